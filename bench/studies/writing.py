"""What the study of trajectories found, as numbers and in words. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

Array = np.ndarray


@dataclass(frozen=True, eq=False)
class Curves:
    """The shapes of the trajectories at one guidance scale, as `bench.studies.shape.Shape` and `likeness` give them."""

    scale: float
    sigmas: list[float]
    length: Array
    ahead: Array
    away: Array
    plane: Array
    shares: Array
    alike: Array

    @property
    def named(self) -> str:
        return f"guidance {self.scale:g}" if self.scale != 1 else "no guidance"

    @property
    def outside(self) -> Array:
        """The share of each sample that is outside its leading k directions, k = 0, 1, ... [B, k + 1]."""
        return 1 - np.cumsum(np.pad(self.shares, ((0, 0), (1, 0))), axis=1)

    def numbers(self) -> dict[str, Array]:
        """One number of each sample, by quantity."""
        peak = self.away.argmax(1)
        first, second = (self.shares[:, k] if self.shares.shape[1] > k else 0 * self.shares[:, 0] for k in (0, 1))
        return {
            "length": self.length,
            "largest deviation": self.away.max(1),
            "largest deviation / length": self.away.max(1) / self.length,
            "sigma of the largest deviation": np.array(self.sigmas)[peak],
            "share in 1 further dimension": first,
            "share in 2 further dimensions": first + second,
            "share beyond 2": 1 - first - second,
            "cosine with the mean curve": self.alike,
        }


@dataclass(frozen=True)
class Change:
    """Losses by interval before and after fine-tuning on one interval (from 0)."""

    interval: int
    seed: int
    before: list[float]
    after: list[float]

    @property
    def relative(self) -> Array:
        """after / before - 1; 0 where there was no loss and is none."""
        before, after = np.array(self.before), np.array(self.after)
        return np.divide(after - before, before, out=np.zeros_like(before), where=after != before)


def heat(changes: Sequence[Change]) -> Array:
    """The relative changes [seeds, trained on n, measured on m]."""
    seeds = sorted({c.seed for c in changes})
    return np.array([[c.relative for c in sorted(changes, key=lambda c: c.interval) if c.seed == seed] for seed in seeds])


def by_distance(changes: Sequence[Change]) -> dict[int, Array]:
    """The relative changes by m - n: negative are intervals at higher levels than that trained on."""
    table = heat(changes)
    return {k: np.diagonal(table, k, 1, 2).flatten() for k in range(1 - table.shape[1], table.shape[1])}


def spread(values: Array) -> float:
    """The sample standard deviation of the numbers that are there; NaN of fewer than two."""
    kept = values[np.isfinite(values)]
    return float(kept.std(ddof=1)) if len(kept) > 1 else float("nan")


def mean(values: Array) -> float:
    """The mean of the numbers that are there; NaN of none."""
    kept = values[np.isfinite(values)]
    return float(kept.mean()) if len(kept) else float("nan")


def long_table(curves: Sequence[Curves], changes: Sequence[Change]) -> pd.DataFrame:
    """Every number, one a line: its mean and spread (standard deviation) over `count` samples or trainings; intervals count from 1."""
    lines: list[dict[str, Any]] = []

    def add(observation: str, quantity: str, values: Array, **where: Any) -> None:
        count = int(np.isfinite(values).sum())
        lines.append(
            {"observation": observation, **where, "quantity": quantity, "mean": mean(values), "spread": spread(values), "count": count}
        )

    for of in curves:
        for name, values in of.numbers().items():
            add("trajectories", name, values, guidance=of.scale)
        for i, sigma in enumerate(of.sigmas):
            add("trajectories", "deviation", of.away[:, i], guidance=of.scale, sigma=sigma)
    for n in sorted({c.interval for c in changes}):
        mine = [c for c in changes if c.interval == n]
        for m in range(len(mine[0].before)):
            where = {"trained_on": n + 1, "measured_on": m + 1}
            add("neighbours", "relative change", np.array([c.relative[m] for c in mine]), **where)
            add("neighbours", "loss before", np.array([c.before[m] for c in mine]), **where)
            add("neighbours", "loss after", np.array([c.after[m] for c in mine]), **where)
    columns = ["observation", "guidance", "sigma", "trained_on", "measured_on", "quantity", "mean", "spread", "count"]
    table = pd.DataFrame(lines).reindex(columns=columns)
    return table.astype({"trained_on": "Int64", "measured_on": "Int64"})


def _number(value: float, digits: int = 3) -> str:
    return "" if not np.isfinite(value) else f"{value:.{digits}g}"


def _both(values: Array, percent: bool = False) -> str:
    """mean ± spread."""
    if percent:
        return f"{100 * mean(values):.2f} ± {100 * spread(values):.2f} %" if np.isfinite(mean(values)) else "none: straight"
    return f"{_number(mean(values))} ± {_number(spread(values), 2)}" if np.isfinite(mean(values)) else "none: straight"


def _percent(value: float) -> str:
    return f"{100 * value:+.1f} %"


def trajectories_text(facts: Mapping[str, Any], curves: Sequence[Curves]) -> str:
    """The part of the report on shapes."""
    percents = ("largest deviation / length", "share in 1 further dimension", "share in 2 further dimensions", "share beyond 2")
    rows = [[name, *(_both(c.numbers()[name], name in percents) for c in curves)] for name in curves[0].numbers()]
    said = []
    for c in curves:
        own = c.numbers()
        if not np.isfinite(c.shares).any():
            said.append(f"- {c.named}: the trajectories are straight lines.")
            continue
        one, two, alike = own["share in 1 further dimension"], own["share in 2 further dimensions"], own["cosine with the mean curve"]
        said.append(
            f"- {c.named}: the best plane that holds the line has {100 * mean(one):.1f} % of the squared deviation, the best space of "
            f"three dimensions {100 * mean(two):.1f} % (at least {100 * np.nanmin(two):.1f} % for every sample). The largest deviation "
            f"is {100 * mean(own['largest deviation / length']):.2f} % of the length. In frames of their own the curves have a cosine of "
            f"{mean(alike):.3f} with the mean curve (lowest {np.nanmin(alike):.3f})."
        )
    seeds = f"seeds {facts['seed']} to {facts['seed'] + facts['samples'] - 1} ({facts['noise']} noise)"
    what = (
        f"{facts['samples']} trajectories of the teacher `{facts['model']}` per guidance scale: {facts['steps']} steps of "
        f"{facts['solver']} on the {facts['grid']} grid, in float64, {seeds}. A sample's line goes from its first to its last state, and "
        "its deviation is what is orthogonal to that. Shares are squared singular values of a sample's own deviations at all nodes: "
        "1 further dimension is the best plane that holds the line. Distances are RMS over pixels, in data units. Mean ± standard "
        "deviation over samples."
    )
    return f"""## Shape of trajectories

{what}

{tabulate(rows, ["", *(c.named for c in curves)], tablefmt="pipe", disable_numparse=True)}

{chr(10).join(said)}

Deviation against sigma, the curves and what is left outside k dimensions: `trajectories.png`; every number: `study.csv`.
"""


def neighbours_text(trained: Mapping[str, Any], changes: Sequence[Change], levels: Sequence[float]) -> str:
    """The part of the report on fine-tuning."""
    table, near = heat(changes), by_distance(changes)
    average = table.mean(0)
    names = [f"{n + 1}: {levels[n]:.3g} to {levels[n + 1]:.3g}" for n in range(len(average))]
    total = [mean(np.array([sum(c.after) / sum(c.before) - 1 for c in changes if c.interval == n])) for n in range(len(average))]
    rows = [[name, *(_percent(v) for v in line), _percent(own)] for name, line, own in zip(names, average, total)]
    losses = ["loss before", *(f"{v:.4g}" for v in (*changes[0].before, sum(changes[0].before)))]
    columns = ["trained on (sigma)", *(str(k + 1) for k in range(len(average))), "sum"]
    distance = [[f"{k:+d}", _percent(v.mean()), _percent(np.median(v)), f"{(v < 0).sum()} of {len(v)}"] for k, v in near.items()]
    n, m = np.indices(average.shape)
    groups = {
        "on the interval itself": m == n,
        "on the next at lower noise": m == n + 1,
        "on the next at higher noise": m == n - 1,
        "on those farther away": abs(m - n) > 1,
    }
    said = [
        f"- {name}: {_percent(found.mean())} on average, median {_percent(np.median(found))}; a fall in {(found < 0).sum()} of "
        f"{len(found)} pairs."
        for name, where in groups.items()
        if len(found := average[where])
    ]
    what = (
        f"A student's polynomial grid of {trained['intervals']} intervals. A copy of the teacher is trained on one interval n alone: one "
        f"Euler step against {trained['substeps']} steps of {trained['solver']}, both from x0 + sigma_n noise; loss {trained['loss']}, "
        f"{trained['batches']} batches of {trained['batch_size']}, Adam with lr {trained['lr']:g}, {trained['seeds']} seed(s). The same "
        f"loss is measured on every interval m with {trained['heldout']} held-out images and noise that no training saw, before and "
        "after. Entries are after / before - 1, mean over seeds (negative is better); rows n, columns m, and the sum over m."
    )
    return f"""## Fine-tuning on one interval

{what}

{tabulate([*rows, losses], columns, tablefmt="pipe", disable_numparse=True)}

By m - n (negative: higher noise levels than the one trained on), over intervals and seeds:

{tabulate(distance, ["m - n", "mean change", "median", "loss falls in"], tablefmt="pipe", disable_numparse=True)}

How the loss changes, mean over seeds:

{chr(10).join(said)}

Picture: `neighbours.png`.
"""
