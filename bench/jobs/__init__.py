"""From a suite to its cells, and from a cell to its jobs: fits, samples, solutions, rows."""
