"""Training-free solvers: each turns a grid into a plan."""
