"""Pictures of tasks that are asked by pictures: answers side by side, and likeness to images against likeness to the true one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from bench.reports.plots.asked import MOST, _columns, asked
from bench.reports.plots.tradeoff import likeness, tradeoff
from bench.space.keeping import ASKED, keep_asked
from bench.store.artefacts import Store
from bench.store.cell import AXES, DEFAULTS
from metrics import metrics_by_name

BLANK = {**dict.fromkeys(metrics_by_name()), **{name: DEFAULTS[name] for name in AXES}, "artifact": "a"}


def cell(method: str, nfe: int, fd: float | None = None, near: float | None = None, **other: Any) -> dict[str, Any]:
    own = {"method": method, "solver": "euler", "nfe": nfe, "fd_efficientnet": fd, "st_lpips_128": near}
    return {**BLANK, **own, **other}


def test_a_line_for_each_method_over_its_passes() -> None:
    table = [cell("codi", n, 50 / n, 0.1 + 0.01 * n) for n in (1, 2, 4, 8)] + [cell("finetune", n, 90 / n, 0.3) for n in (4, 50)]
    table += [cell("codi", 4, None, 0.2, variant="no_guidance"), cell("naive", 0, 5.0, 0.5, solver="picture")]
    assert likeness(table) == "st_lpips_128"
    figure = tradeoff(table)
    assert figure is not None
    (ax,) = figure.axes
    lines = {line.get_label(): len(line.get_xdata()) for line in ax.get_lines()}
    assert {name: count for name, count in lines.items() if not str(name).startswith("_")} == {"codi, euler": 4, "finetune, euler": 2}
    assert "picture" in {text.get_text() for text in ax.texts}
    assert tradeoff([cell("codi", 4, 1.0, 1.0)]) is None
    assert tradeoff([cell("codi", n, 1.0) for n in (1, 2)]) is None


def test_each_method_is_shown_at_few_passes_and_at_many() -> None:
    table = [cell("codi", n) for n in (1, 2, 4, 8)] + [cell("finetune", n) for n in (4, 8, 20, 50)] + [cell("naive", 0)]
    assert [(c["method"], c["nfe"]) for c in _columns(table)] == [("codi", 4), ("finetune", 4), ("finetune", 50)]
    assert not _columns([cell("codi", 4, guidance=2.0), cell("codi", 4, artifact=None)])


def test_pictures_answers_and_truths_stand_side_by_side(tmp_path: Path) -> None:
    store, rng = Store(tmp_path), np.random.RandomState(0)
    pictures, targets = (rng.uniform(-1, 1, (40, 3, 8, 8)).astype(np.float32) for _ in range(2))
    keep_asked(store, "0" * 64, pictures, targets)
    shown = tmp_path / ".store" / "shown" / "a"
    shown.mkdir(parents=True)
    save_file(
        {"images": rng.randint(0, 255, (12, 3, 8, 8)).astype(np.uint8), "labels": np.zeros(12, np.int64)}, shown / "shown.safetensors"
    )
    rows = [{"protocol": {"pairs": "of a metric that means something else"}}, {"protocol": {"pairs": {"shown": "0" * 64}}}]
    figure = asked([cell("codi", 4), cell("finetune", 50)], rows, tmp_path / ".store")
    assert figure is not None
    assert [text.get_text() for text in figure.texts] == ["asked by", "codi\neuler\nNFE 4", "finetune\neuler\nNFE 50", "true image"]
    assert len(figure.axes) == 4 * 8
    assert asked([cell("codi", 4)], rows[:1], tmp_path / ".store") is None
    assert asked([cell("codi", 4)], rows, tmp_path / "elsewhere") is None
    crowded = asked([cell("codi", n, variant=f"v{n}") for n in range(1, 30)], rows, tmp_path / ".store")
    assert crowded is not None
    assert len(crowded.texts) <= MOST + 3
    assert (tmp_path / ".store" / ASKED).exists()
