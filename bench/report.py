"""python -m bench.report: rebuild a suite's tables and pictures from its recorded rows. Needs no torch.

    python -m bench.report suite=digits

Writes summary.md, few_steps.md, students.md, table.csv, table.md, table.tex, bars.md, published.md (and published.csv where papers
report the data set; ablation.md where results/ablations.csv has lines for the suite; guidance.md where students were sampled at several
weights) and the pictures into results/digits/, from results/digits/runs.jsonl (or, where there is none, runs.jsonl.xz) and the samples in
results/.store.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.reports.writing import findings, write_report
from bench.settings import cli
from bench.settings.files import example
from bench.store.rows import read_rows
from fewstep.errors import UsageError, near_misses
from fewstep.progress import say


def _records(suite: str, results: Path) -> Path:
    """The rows of a suite, or where there are only packed ones (as committed results have them) those."""
    path, packed = (results / suite / name for name in ("runs.jsonl", "runs.jsonl.xz"))
    if packed.is_file() and not path.is_file():
        return packed
    if not path.is_file():
        known = sorted({p.parent.name for p in results.glob("*/runs.jsonl*")})
        raise UsageError(f"no records at {path}{near_misses(suite, known)}; run python -m bench.sweep +suite={suite} first")
    return path


def run(config: dict[str, Any]) -> int:
    """The entry point."""
    if not config["suite"]:
        raise UsageError(f"no suite given; type for example suite={example('suite')}")
    results = Path(config["results"])
    path = _records(config["suite"], results)
    rows, corrupt = read_rows(path)
    for record in corrupt:
        say(f"{path} line {record.line} left out: {record.reason}")
    write_report(path.parent, rows, results / ".store", config["pictures"])
    if told := findings(rows):
        print(told)
    print(f"{len(rows)} rows; tables{' and pictures' if config['pictures'] else ''} in {path.parent}")
    return 0


def main(args: Sequence[str]) -> int:
    return cli.entry("report", __doc__ or "", run, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
