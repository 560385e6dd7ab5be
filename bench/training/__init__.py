"""The training engine: optimisers, averages, checkpoints, and what a training costs."""
