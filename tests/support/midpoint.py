"""A method outside of the repository, installed as an installer leaves it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.repository import ROOT

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
