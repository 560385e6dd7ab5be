"""The pictures of a training: its losses over the batches, and its quality over the images seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def quality_curve(points: Sequence[Mapping[str, Any]], metric: str, path: Path) -> None:
    """A metric against the images seen, with two standard errors where they are known, written as PNG."""
    figure, ax = plt.subplots(figsize=(5, 3.4), layout="constrained")
    seen = [point["samples"] / 1e6 for point in points]
    errors = [2 * (point["std_error"] or 0.0) for point in points]
    ax.errorbar(seen, [point["value"] for point in points], errors, color="#0072B2", marker="o", markersize=4, capsize=3)
    ax.set_xlabel("training images seen (millions)")
    ax.set_ylabel(metric)
    ax.set_xlim(left=0)
    ax.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def training_curves(log: list[dict[str, float]], path: Path) -> None:
    """One panel per logged quantity, where it was logged, batches counted across phases (dashed lines between them), written as PNG."""
    names = list(dict.fromkeys(k for line in log for k in line if k not in ("phase", "batch")))
    starts, offset = {}, 0.0
    for phase in sorted({line["phase"] for line in log}):
        starts[phase] = offset
        offset += max(line["batch"] for line in log if line["phase"] == phase)
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.2), squeeze=False, layout="constrained")
    for ax, name in zip(axes[0], names):
        own = [line for line in log if name in line]  # a method may log some quantities in some of its phases
        x = np.array([starts[line["phase"]] + line["batch"] for line in own])
        y = np.array([line[name] for line in own])
        ax.plot(x, y, color="#0072B2", linewidth=0.8, alpha=0.5)
        width = max(1, len(y) // 20)
        if len(y) >= 2 * width:
            ax.plot(x[width - 1 :], np.convolve(y, np.ones(width) / width, "valid"), color="#D55E00", linewidth=1.6)
        for start in list(starts.values())[1:]:
            ax.axvline(start, color="grey", linestyle="--", linewidth=0.8)
        if (y > 0).all() and y.max() / y.min() > 20:
            ax.set_yscale("log")
        ax.set_xlabel("batch")
        ax.set_title(name, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
