"""How gradients and payloads are summed over the replicas, and the bucket that they travel in."""
