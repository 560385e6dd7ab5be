"""fewstep COMMAND: every entry point as one script, which finds nothing but what is installed.

    fewstep sweep +suite=digits    what python -m bench.sweep +suite=digits does, and so on
    fewstep COMMAND --help         its fields and defaults
    fewstep --version

`python -m` looks for modules in the working directory first: a `metrics.py` or `bench.py` there stands in for ours. This does not.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from bench.settings import cli
from fewstep.errors import UsageError, near_misses

COMMANDS = ("sweep", "report", "sample", "train", "export", "fetch", "measure", "certify", "ls", "job", "store", "speed")
ELSEWHERE = {"store": "storage"}  # commands that are not called like their module: bench.store is a room


def _about(command: str) -> str:
    """What an entry point says of itself, without importing it."""
    file = Path(__file__).parent / f"{ELSEWHERE.get(command, command)}.py"
    doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return doc.splitlines()[0].partition(": ")[2]


def _version() -> str:
    try:
        return version("fewstep")
    except PackageNotFoundError:
        return "unknown: run from a folder that is not installed"


def _listing() -> str:
    width = max(map(len, COMMANDS))
    return "\n".join([__doc__ or "", "commands:", "", *(f"  {name:{width}}  {_about(name)}" for name in COMMANDS)])


def main(args: Sequence[str] | None = None) -> int:
    args = list(sys.argv[1:] if args is None else args)
    command, *rest = args or ["--help"]

    def run() -> int:
        if command in ("-h", "--help", "help"):
            print(_listing())
            return 0
        if command == "--version":
            print(f"fewstep {_version()}")
            return 0
        if command not in COMMANDS:
            raise UsageError(f"unknown command '{command}'{near_misses(command, COMMANDS)}; fewstep --help says what each does")
        return import_module(f"bench.{ELSEWHERE.get(command, command)}").main(rest)

    return cli.guarded(run)


if __name__ == "__main__":
    sys.exit(main())
