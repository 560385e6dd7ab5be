"""python -m bench.store, whose entry point lies with the others: `bench.space`."""

import sys
from importlib import import_module

sys.exit(import_module("bench.space").main(sys.argv[1:]))
