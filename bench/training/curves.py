"""The picture of a training: its losses over the batches."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


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
