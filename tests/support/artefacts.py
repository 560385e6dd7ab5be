"""What tests of the store fill artefacts with."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def silent(message: str) -> None:
    pass


def fill_with(text: str):
    def fill(folder: Path) -> dict[str, Any]:
        (folder / "data.txt").write_text(text)
        return {"made_of": text}

    return fill
