"""How far the scores of one set of images move with the protocol: one table of PSNR and SSIM under the choices that papers make."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fewstep.errors import Unavailable
from fewstep.plugins import get
from metrics.metric import Evidence, Measurement, Metric
from metrics.pixels import Seen

BORDER, CROP = 4, 3  # pixels: what super-resolution by 4 shaves, and a multiple that sides of powers of two are not
COLUMNS = ("metric", "channels", "border", "crop", "levels", "average", "value", "standard error")


@dataclass(frozen=True)
class Choice:
    """One protocol: a metric with its fields, on `levels` of 8 bits or on outputs as they were before (`float`)."""

    metric: str
    channels: str = "rgb"
    border: int = 0
    crop: int = 0
    rounded: bool = False
    over: str = "images"
    levels: str = "8 bits"

    def make(self) -> Metric:
        own = {"channels": self.channels, "border": self.border, "crop": self.crop, "rounded": self.rounded}
        return get("metric", self.metric).make(**own, **({"over": self.over} if self.metric == "psnr" else {}))

    def cells(self) -> list[str]:
        """What the table says of it."""
        channels = f"Y{' rounded' if self.rounded else ''}" if self.channels == "y" else "RGB"
        average = "dB of the mean error" if self.over == "set" else "mean of dB" if self.metric == "psnr" else "mean"
        return [self.metric.upper(), channels, str(self.border), str(self.crop), self.levels, average]


def choices(border: int = BORDER, crop: int = CROP) -> list[Choice]:
    """Of each metric RGB of 8-bit files first, then what changes one thing of that, or of Y with its border shaved."""
    found = list[Choice]()
    for metric in ("psnr", "ssim"):
        one = Choice(metric)
        y = replace(one, channels="y")
        found += [one, y, replace(y, rounded=True), replace(one, border=border), replace(y, border=border)]
        found += [replace(one, crop=crop), replace(one, levels="float"), replace(y, border=border, levels="float")]
        found += [replace(one, over="set"), replace(y, border=border, over="set")] if metric == "psnr" else []
    return found


def clipped(images: np.ndarray) -> np.ndarray:
    """Outputs in [-1, 1] that are not rounded to levels of 8 bits."""
    return np.clip(images, -1, 1)


def by_protocol(evidence: Evidence, chosen: Sequence[Choice] | None = None) -> list[tuple[Choice, Measurement | str]]:
    """What each protocol measures of the same outputs; a string is the reason why one has no number.

    Protocols of float levels read `raw`, and are left out where outputs come from files of 8 bits.
    """
    found = list[tuple[Choice, Measurement | str]]()
    for choice in choices() if chosen is None else chosen:
        seen = evidence
        if choice.levels == "float":
            if evidence.raw is None:
                continue
            seen = replace(evidence, images=Seen(evidence.raw, clipped), raw=None, range_known=True)
        try:
            found.append((choice, choice.make()(seen)))
        except Unavailable as err:
            found.append((choice, str(err)))
    return found


def protocol_lines(found: Sequence[tuple[Choice, Measurement | str]]) -> list[list[str]]:
    """The cells of the table, row by row, in the order of `COLUMNS`."""
    lines = []
    for choice, m in found:
        number = [m, ""] if isinstance(m, str) else [f"{m.value:.4f}", "" if m.std_error is None else f"{m.std_error:.2g}"]
        lines.append([*choice.cells(), *number])
    return lines


def protocol_text(found: Sequence[tuple[Choice, Measurement | str]]) -> str:
    """The table in Markdown."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS), *protocol_lines(found)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
