"""When and how replicas exchange. Synchronous so far: one gradient hook, called for every bucket of every step."""
