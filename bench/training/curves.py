"""The pictures of a training: its losses over the batches, its quality over the images seen, and samples of what it made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

from metrics import to_uint8

SCALE, GAP = 2, 2  # of pictures of samples: a pixel's side, and what lies between images


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


def sample_grid(images: np.ndarray, labels: np.ndarray, path: Path) -> None:
    """Images [N, C, H, W] in [-1, 1], a row for each class (without classes in rows of ten), each pixel doubled, written as PNG."""
    rows = [images[labels == label] for label in np.unique(labels)] if labels.any() else np.split(images, range(10, len(images), 10))
    height, width = images.shape[2] * SCALE, images.shape[3] * SCALE
    columns = max(len(row) for row in rows)
    canvas = np.full((GAP + len(rows) * (height + GAP), GAP + columns * (width + GAP), images.shape[1]), 255, np.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(to_uint8(row)):
            y, x = GAP + i * (height + GAP), GAP + j * (width + GAP)
            canvas[y : y + height, x : x + width] = np.moveaxis(image, 0, -1).repeat(SCALE, 0).repeat(SCALE, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas[..., 0] if images.shape[1] == 1 else canvas).save(path)


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
