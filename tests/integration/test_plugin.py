"""A method outside the repository: one file and an entry point, swept from a folder with its own models/ and data/."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from bench.store.rows import read_rows

ROOT = Path(__file__).parents[2]
PLUGIN = '''
"""The explicit midpoint rule, as a third party would write it."""

from dataclasses import dataclass

from fewstep.sampling.plan import Combine, Eval, Plan, prediction, state
from fewstep.plugins import register
from methods.claims import Claims


@register("solver", "midpoint", "Runge 1895")
@dataclass(frozen=True)
class Midpoint:
    """Explicit midpoint in sigma."""

    version: int = 1
    claims = Claims(order=2)

    def plan(self, grid):
        ops, s = [], grid.sigmas
        for i in range(grid.steps):
            x, d, mid = state(i), prediction(i), (s[i] + s[i + 1]) / 2
            q, h = mid / s[i], s[i + 1] - s[i]
            ops.append(Eval(d, x, s[i]))
            ops.append(Combine(f"xm{i}", ((x, q), (d, 1 - q))))
            ops.append(Eval(f"dm{i}", f"xm{i}", mid))
            ops.append(Combine(state(i + 1), ((x, 1.0), (f"xm{i}", h / mid), (f"dm{i}", -h / mid))))
        return Plan(tuple(ops), tuple(state(i) for i in range(grid.steps + 1)))
'''
METADATA = "Metadata-Version: 2.1\nName: fewstep-midpoint\nVersion: 1.0\n"


def installed_plugin(folder: Path) -> Path:
    """What an installer leaves: the module, and its metadata with the entry point."""
    info = folder / "fewstep_midpoint-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / "fewstep_midpoint.py").write_text(PLUGIN)
    (info / "METADATA").write_text(METADATA)
    (info / "entry_points.txt").write_text("[fewstep.methods]\nmidpoint = fewstep_midpoint\n")
    return folder


def python(folder: Path, plugin: Path, *args: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(plugin), str(ROOT)])}
    return subprocess.run([sys.executable, "-m", *args], cwd=folder, env=env, capture_output=True, text=True, check=False)


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
