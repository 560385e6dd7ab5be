"""python -m bench.store, whose entry point lies with the others: `bench.storage`."""

import sys
from importlib import import_module

sys.exit(import_module("bench.storage").main(sys.argv[1:]))
