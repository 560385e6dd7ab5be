"""The command line: sweeps, training, timing, the store and the reports."""

import os

# OpenMP's idle threads spin 300,000 rounds by default, which costs others (a second sweep) most of the machine; never spinning makes
# batch-1 latency 5 times worse (4.1 against 0.85 ms a pass). 20,000 rounds keep both. Read when torch is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
