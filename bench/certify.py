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
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench import cli
from bench.certificate.certify import certify
from bench.certificate.report import as_json, failures, markdown, table
from bench.tables import replace_file
from methods.registry import Entry, entries, get


def chosen(name: str) -> list[Entry]:
    """The registered solvers that are asked for. **Raises**: UsageError with near misses for an unknown one."""
    return [get("solver", name)] if name else list(entries("solver").values())


def run(config: dict[str, Any]) -> int:
    """The entry point; exit code 1 when a certificate does not hold."""
    cli.tune_process(config["threads"])
    started, found = time.monotonic(), []
    with tqdm(chosen(config["solver"]), desc="certify", unit="solver", **cli.bar_settings()) as bar:
        for entry in bar:
            bar.set_postfix_str(entry.name, refresh=False)
            found.append(certify(entry.make(), entry.name, entry.paper))
    folder, failed = Path(config["results"]), failures(found)
    replace_file(folder / "certificates.json", as_json(found).encode())
    replace_file(folder / "certificates.md", markdown(found).encode())
    print(table(found))
    for line in failed:
        cli.say(f"failed: {line}")
    holds = sum(c.holds for c in found)
    cli.say(f"{holds} of {len(found)} certificates hold; findings in {folder} ({time.monotonic() - started:.0f} s)")
    return 0 if holds == len(found) else 1


if __name__ == "__main__":
    sys.exit(cli.entry("certify", __doc__ or "", run))
