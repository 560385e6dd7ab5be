"""python -m bench.ls: everything that is registered, with its paper.

python -m bench.ls            all kinds
python -m bench.ls solver     one kind: solver, distiller, pretrain, grid, metric, model, suite
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from tabulate import tabulate

from bench import cli
from bench.settings.compose import GROUPS
from bench.settings.files import CONF, choices, text_of
from fewstep.errors import UsageError, near_misses
from fewstep.grid import FAMILIES
from fewstep.plugins import KINDS, entries
from metrics import METRICS


def _summary(doc: str | None) -> str:
    line = (doc or "").strip().splitlines()[0] if doc else ""
    return line if len(line) <= 100 else line[:97] + "..."


def _first_comment(group: str, name: str) -> str:
    lines = text_of(CONF / group / f"{name}.yaml").splitlines()
    return lines[0].removeprefix("# ") if lines and lines[0].startswith("#") else ""


def listing() -> dict[str, list[tuple[str, str, str]]]:
    """kind -> (name, what it is, paper) for everything registered."""
    found = {kind: [(e.name, _summary(e.cls.__doc__), e.paper) for e in entries(kind).values()] for kind in KINDS}
    found["grid"] = [(name, text.partition(" (")[0], text.partition(" (")[2].rstrip(")")) for name, (_, text) in FAMILIES.items()]
    found["metric"] = [(m.name, _summary(type(m).__doc__), m.paper) for m in METRICS.values()]
    for group in GROUPS:
        found[group] = [(name, _first_comment(group, name), "") for name in choices(group)]
    return found


def _print(kinds: Sequence[str]) -> int:
    found = listing()
    for kind in kinds:
        if kind not in found:
            raise UsageError(f"unknown kind '{kind}'{near_misses(kind, list(found))}")
    for kind in kinds or found:
        print(f"{kind}\n{tabulate(found[kind], headers=('name', 'what', 'paper'), tablefmt='simple')}\n")
    return 0


def main(args: Sequence[str]) -> int:
    def run() -> int:
        if {"-h", "--help"} & set(args):
            print(__doc__)
            return 0
        return _print(args)

    return cli.guarded(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
