"""Space in the results folder: what is kept of samples, what unfinished sweeps need, what everything costs, and freeing it."""
