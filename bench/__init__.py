"""The command line: sweeps, training, timing, the store and the reports."""

import os

# OpenMP's idle threads spin for 300,000 rounds by default: two sweeps on two cores then run 30 times slower each instead of 2 times
# (3,000 against 200 us an image). Never spinning makes batch-1 latency 4 times worse; 2,000 rounds cost 15% of it. Read when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
