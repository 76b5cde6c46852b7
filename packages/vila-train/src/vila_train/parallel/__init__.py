"""Training on several processes: who takes part, the device mesh, and sharded weights."""
