"""What the pictures share: colours, marks, ticks, and how they are written."""

from __future__ import annotations

import io
from pathlib import Path

from matplotlib.figure import Figure

from bench.reports.tables import replace_file
from bench.settings.files import CONF, load

NFE_TICKS = (1, 2, 4, 5, 8, 10, 20, 50)
# Okabe and Ito's colour-blind-safe palette without yellow (too light for lines); names keep their colour whatever else is drawn.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#7F7F7F", "#000000")
NAMED = load(CONF / "pictures.yaml")  # what is drawn in a way of its own
MARKERS = ("o", "s", "^", "D", "v", "<", ">")


def save(figure: Figure, path: Path) -> None:
    """Write a PNG whole; the same figure gives the same bytes."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150, bbox_inches="tight", pad_inches=0.12, facecolor="white", metadata={"Software": None})
    replace_file(path, data.getvalue())
