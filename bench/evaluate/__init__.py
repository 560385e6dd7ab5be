"""From samples to numbers: features, metrics and timings."""
