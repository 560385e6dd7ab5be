"""A method outside the repository: one file and an entry point, swept from a folder with its own models/ and data/."""

from __future__ import annotations

from pathlib import Path

from bench.store.rows import read_rows
from support.midpoint import installed_plugin, python


def test_a_plugin_is_listed_and_swept_from_anywhere(tmp_path: Path) -> None:
    plugin, work = installed_plugin(tmp_path / "site"), tmp_path / "work"
    for name in ("models", "data", "results"):  # names that a research folder has, and that must not get in the way
        (work / name).mkdir(parents=True)
        (work / name / "__init__.py").write_text("raise ImportError('the wrong package was imported')\n")
    listed = python(work, plugin, "bench.ls", "kind=solver")
    assert "midpoint" in listed.stdout, listed.stderr
    assert "Runge 1895" in listed.stdout
    blocks = "suite.blocks=[{solver:[midpoint,euler],grid:polynomial,end:sigma_min,nfe:[2,20],metrics:[fd_digits,psnr_teacher]}]"
    done = python(work, plugin, "bench.sweep", "suite=smoke", blocks, "threads=1")
    assert done.returncode == 0, done.stderr
    rows, _ = read_rows(work / "results" / "smoke" / "runs.jsonl")
    psnr = {(r["solver"], r["nfe"]): r["value"] for r in rows if r["metric"] == "psnr_teacher"}
    assert psnr["midpoint", 20] > psnr["midpoint", 2]
    assert {r["steps"] for r in rows if r["solver"] == "midpoint"} == {1, 10}


def test_a_broken_plugin_is_named_in_one_line(tmp_path: Path) -> None:
    plugin = installed_plugin(tmp_path / "site")
    (plugin / "fewstep_midpoint.py").write_text("import a_module_that_is_not_there\n")
    done = python(tmp_path, plugin, "bench.ls")
    assert done.returncode == 2
    assert "plugin 'midpoint' (fewstep_midpoint) fails to import: No module named 'a_module_that_is_not_there'" in done.stderr
    assert "Traceback" not in done.stderr
