"""The command line: sweeps, training, timing, the store and the reports."""
