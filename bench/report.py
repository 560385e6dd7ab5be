"""`python -m bench.report suite=digits`: rebuild a suite's tables and pictures from its recorded rows. Needs no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from bench.bars import bars, print_bars
from bench.plots import write_pictures
from bench.published import PUBLISHED, has_papers, join_published, published_text, read_published
from bench.store import read_rows
from bench.summary import summary
from bench.tables import Row, replace_file, write_tables
from fewstep.errors import UsageError, near_misses

HELP = """usage: python -m bench.report suite=<name> [results=<folder>] [pictures=true|false]

Rebuilds summary.md, table.csv, table.md, table.tex, bars.md, published.md (and published.csv where papers report
the data set) and the pictures in <folder>/<name>/ from <folder>/<name>/runs.jsonl and the samples in <folder>/.store.

  suite      the suite that was swept, for example digits
  results    the results folder (results)
  pictures   also draw the plots and the sample grids (true)
"""
DEFAULTS = {"suite": "", "results": "results", "pictures": "true"}


def write_report(folder: Path, rows: Sequence[Row], store: Path, pictures: bool, published: Path = PUBLISHED) -> None:
    """Write everything that is derived from rows into `folder`; `store` holds the sample artefacts that the grids show.

    **Raises**: UsageError when the folder cannot be written or the file of papers' numbers lacks a column.
    """
    write_tables(rows, folder)
    replace_file(folder / "summary.md", summary(rows).encode())
    replace_file(folder / "bars.md", (print_bars(bars(rows), "pipe") + "\n").encode())
    papers = read_published(published)
    if has_papers(rows, papers):
        replace_file(folder / "published.csv", join_published(rows, papers).to_csv(index=False, lineterminator="\n").encode())
    replace_file(folder / "published.md", published_text(rows, papers).encode())
    if pictures:
        write_pictures(rows, folder, store)


def parse(argv: Sequence[str]) -> tuple[str, Path, bool]:
    """(suite, results folder, pictures) from `key=value` words. **Raises**: UsageError with the near misses."""
    given = dict(DEFAULTS)
    for word in argv:
        key, equals, value = word.lstrip("+").partition("=")
        if not equals:
            raise UsageError(f"'{word}' is not key=value{near_misses(key, list(DEFAULTS))}")
        if key not in DEFAULTS:
            raise UsageError(f"unknown key '{key}'{near_misses(key, list(DEFAULTS))}")
        given[key] = value
    if not given["suite"]:
        raise UsageError("no suite given; type for example suite=digits")
    if given["pictures"].lower() not in ("true", "false"):
        raise UsageError(f"pictures={given['pictures']} is not true or false")
    return given["suite"], Path(given["results"]), given["pictures"].lower() == "true"


def _records(suite: str, results: Path) -> Path:
    path = results / suite / "runs.jsonl"
    if not path.is_file():
        known = sorted(p.parent.name for p in results.glob("*/runs.jsonl"))
        raise UsageError(f"no records at {path}{near_misses(suite, known)}; run python -m bench.sweep +suite={suite} first")
    return path


def main(argv: Sequence[str]) -> int:
    """The command line. Returns the exit code: 0, or 2 for bad input (one line on stderr)."""
    if any(word in ("-h", "--help", "help") for word in argv):
        print(HELP, end="")
        return 0
    try:
        suite, results, pictures = parse(argv)
        path = _records(suite, results)
        rows, corrupt = read_rows(path)
        for record in corrupt:
            print(f"{path} line {record.line} left out: {record.reason}", file=sys.stderr)
        write_report(path.parent, rows, results / ".store", pictures)
    except UsageError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    print(print_bars(bars(rows)))
    print(f"{len(rows)} rows -> {path.parent}/table.csv, table.md, table.tex, bars.md, published.md" + (", *.png" if pictures else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
