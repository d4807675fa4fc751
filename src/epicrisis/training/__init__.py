"""The training loop of every arm that learns by gradient: steps, checkpoints, resuming, processes, and class losses."""
