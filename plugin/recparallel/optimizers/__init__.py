"""Optimizers of our own: what torch and DeepSpeed have not."""
