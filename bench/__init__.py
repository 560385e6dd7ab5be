"""The command line: sweeps, training, timing, the store and the reports."""

import logging
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb
from types import TracebackType

# OpenMP's idle threads spin for 300,000 rounds by default: two sweeps on two cores then run 30 times slower each instead of 2 times
# (3,000 against 200 us an image). Never spinning makes batch-1 latency 4 times worse; 2,000 rounds cost 15% of it. Read when torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
# Without a home (no HOME, no passwd entry) libraries refuse to start, or make a folder that is named `~` where they run.
if not os.path.isabs(os.path.expanduser("~")):
    os.environ["HOME"] = "/nonexistent"
INSTALLED = Path(__file__).resolve().parents[1]
BESIDE = ("fewstep", "kernels", "methods", "metrics")  # the packages that are installed together with this one
INSTEAD = "rename it, run from another folder, or type fewstep COMMAND, which looks for nothing here"
# True only while `python -m bench.<name>` or the script `fewstep` imports this package.
COMMAND = sys.argv[:1] == ["-m"] or Path(*sys.argv[:1]).name in ("fewstep", "fewstep.exe")


def _in_front() -> str:
    """What Python would import in place of one of our packages: a file or folder of that name, say, where the command runs."""
    for name in BESIDE:
        spec = find_spec(name)
        places = [] if spec is None else [*(spec.submodule_search_locations or []), *([spec.origin] if spec.origin else [])]
        for place in places:
            if INSTALLED / name not in (Path(place).resolve(), Path(place).resolve().parent):
                return f"{place} is imported in place of fewstep's own {name}; {INSTEAD}"
    return ""


def _local(trace: TracebackType | None) -> list[str]:
    """The files that imports found where `python -m` looks first, in the working directory, and that are not ours."""
    here, ours = Path(sys.path[0] or ".").resolve(), [INSTALLED / name for name in (*BESIDE, "bench")]
    found = [frame.f_code.co_filename for frame, _ in walk_tb(trace)]
    found += [file for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))]
    beside = [Path(file) for file in found if here in (Path(file).parent, Path(file).parent.parent)]
    return [str(file) for file in beside if not set(ours) & set(file.resolve().parents)]


def _one_line(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
    """What ends a command before its entry point runs is one line too: Ctrl-C (torch takes seconds to import), with exit code 130, a disk
    without room for what libraries write, and an import that found a file of the working directory in place of an installed module."""
    if issubclass(kind, KeyboardInterrupt):
        print("interrupted: nothing was started", file=sys.stderr, flush=True)
        os._exit(130)
    if issubclass(kind, ImportError | AttributeError) and (found := _local(trace)):
        said = str(value).splitlines()[0] if str(value) else kind.__name__
        print(f"error: {said}; {found[0]} is imported in place of an installed module; {INSTEAD}", file=sys.stderr, flush=True)
        os._exit(2)
    if issubclass(kind, OSError):  # entry points catch their own
        print(f"error: {' '.join(str(value).splitlines())}", file=sys.stderr, flush=True)
        os._exit(2)
    sys.__excepthook__(kind, value, trace)


if COMMAND:
    sys.excepthook = _one_line
    # It says in two lines that its folder is a temporary one where home cannot be written. That is no news to whoever has no home.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
if reason := _in_front():
    if not COMMAND:
        raise ImportError(reason)
    print(f"error: {reason}", file=sys.stderr)
    raise SystemExit(2)
