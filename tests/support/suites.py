"""What tests of the command line type: the smallest suite that measures something, and commands that must refuse."""

from __future__ import annotations

import pytest

from bench import export, job, sample, sweep, train
from bench.settings import cli

BLOCK = "suite.blocks=[{solver:euler,grid:polynomial,end:zero,nfe:1,metrics:[fd_digits]}]"
RUNS = {"sweep": sweep.run, "sample": sample.run, "train": train.run, "export": export.run, "job": job.run}


def refused(capsys: pytest.CaptureFixture[str], name: str, *args: str) -> str:
    """The one line on stderr of an entry point that must refuse."""
    assert cli.entry(name, "", RUNS[name], [*args, "threads=1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    return err.strip()
