"""What a start with a large data set costs: python tests/benchmark/start.py, with the root and tests/ on the path. Not part of any run."""

from __future__ import annotations

import tempfile
from pathlib import Path

from support.many import SIZE, bare, prepare, started

if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        runs = {"first start": started(folder, "first"), "second start": started(folder, "second", "suite.blocks.0.nfe=2")}
        runs["third start"] = started(folder, "third", "suite.blocks.0.nfe=3")
        alone = bare(folder, "third")
        print(f"a process that imports the same modules: {alone.memory / 1e6:.0f} MB, {alone.seconds:.1f} s")
        for which, found in runs.items():
            above, seconds = found.memory - alone.memory, found.seconds - alone.seconds
            print(f"{which}: {above / 1e6:.0f} MB above it ({above / SIZE:.2f} x {SIZE / 1e6:.1f} MB), {seconds:.1f} s above it")
