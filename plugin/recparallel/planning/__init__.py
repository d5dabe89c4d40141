"""Which of several ways is the fastest: predictions from measurements, and the choices that follow from them."""
