"""The command line: sweeps, training, timing, the store and the reports."""

import os
import sys
from types import TracebackType

# OpenMP's idle threads spin for 300,000 rounds by default: two sweeps on two cores then run 30 times slower each instead of 2 times
# (3,000 against 200 us an image). Never spinning makes batch-1 latency 4 times worse; 2,000 rounds cost 15% of it. Read when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")


def _quiet_interrupt(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
    """Ctrl-C before an entry point runs (torch takes seconds to import) ends like Ctrl-C inside it: one line, exit code 130."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted: nothing was started", file=sys.stderr, flush=True)
        os._exit(130)
    sys.__excepthook__(kind, value, trace)


if sys.argv[:1] == ["-m"]:  # true only while `python -m bench.<name>` imports this package
    sys.excepthook = _quiet_interrupt
