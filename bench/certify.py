"""python -m bench.certify: measure what every solver claims of itself, and fail where it does not hold.

    python -m bench.certify                 all registered solvers, plugins too
    python -m bench.certify solver=heun     one of them

Per solver and grid: the order by halving the step from an exact history, exact transport of constants, mean and variance of what noise
does, counted network passes, published check vectors and golden outputs, the schedulers of diffusers, and declared defects at their size.
Writes certificates.json and certificates.md to the results folder. Exit code 1 when a certificate does not hold.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.certificate.certify import certify, refused
from bench.certificate.finding import Certificate
from bench.certificate.report import as_json, failures, markdown, table
from bench.execute.process import tune_process
from bench.reports.tables import replace_file
from bench.settings import cli
from bench.store.artefacts import Store
from fewstep.plugins import Entry, entries, get
from fewstep.progress import bar_settings, say


def chosen(name: str) -> list[Entry]:
    """The registered solvers that are asked for. **Raises**: UsageError with near misses for an unknown one."""
    return [get("solver", name)] if name else list(entries("solver").values())


def certified(entry: Entry) -> Certificate:
    """The certificate of a registered solver; one that cannot be made has a failing one."""
    try:
        solver = entry.make()
    except Exception as err:  # of a plugin's own checks
        return refused(err, entry.name, entry.paper)
    return certify(solver, entry.name, entry.paper)


def run(config: dict[str, Any]) -> int:
    """The entry point; exit code 1 when a certificate does not hold."""
    tune_process(config["threads"])
    started, found = time.monotonic(), list[Certificate]()
    asked, folder = chosen(config["solver"]), Path(config["results"])
    Store(folder)  # refuses a folder that cannot be written, before the work
    with tqdm(asked, desc="certify", unit="solver", **bar_settings()) as bar:
        for entry in bar:
            bar.set_postfix_str(entry.name, refresh=False)
            found.append(certified(entry))
    failed = failures(found)
    replace_file(folder / "certificates.json", as_json(found).encode())
    replace_file(folder / "certificates.md", markdown(found).encode())
    print(table(found))
    for line in failed:
        say(f"failed: {line}")
    holds = sum(c.holds for c in found)
    say(f"{holds} of {len(found)} certificates hold; findings in {folder} ({time.monotonic() - started:.0f} s)")
    return 0 if holds == len(found) else 1


def main(args: Sequence[str]) -> int:
    return cli.entry("certify", __doc__ or "", run, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
