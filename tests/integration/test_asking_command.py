"""python -m bench.sample with a folder of pictures: filled in, started from, and refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fewstep
from bench import sample
from fewstep.data.asking import asking_folder
from fewstep.data.digits import digits
from fewstep.errors import UsageError

TEACHER = "digits_edm"


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Six digits, and masks of their lower halves."""
    for name in ("in", "masks"):
        (tmp_path / name).mkdir()
    hidden = np.zeros((8, 8), np.uint8)
    hidden[4:] = 255
    for i, image in enumerate(digits().heldout_x[:6]):
        Image.fromarray(((image[0] + 1) * 127.5).round().astype(np.uint8)).save(tmp_path / "in" / f"digit{i}.png")
        Image.fromarray(hidden).save(tmp_path / "masks" / f"digit{i}.png")
    return tmp_path


def levels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


def run(folder: Path, *args: str) -> int:
    return sample.main([f"results={folder}", "threads=1", f"condition={folder / 'in'}", f"out={folder / 'out.png'}", *args])


def test_pictures_are_filled_in_under_their_names(folders: Path) -> None:
    assert run(folders, "solver=repaint", "nfe=5", f"mask={folders / 'masks'}", "each=2") == 0
    names = sorted(file.name for file in (folders / "out").iterdir())
    assert names == [f"digit{i}-{k}.png" for i in range(6) for k in range(2)]
    assert levels(folders / "out.png").ndim == 2
    for i in range(6):
        own, first, second = (levels(folders / place) for place in (f"in/digit{i}.png", f"out/digit{i}-0.png", f"out/digit{i}-1.png"))
        assert first.shape == (8, 8)
        assert np.abs(first[:4].astype(int) - own[:4]).max() <= 1  # what is known stays, but for noise of 0.002
        assert not np.array_equal(first[4:], second[4:])


def test_the_command_does_what_the_function_does(folders: Path) -> None:
    assert run(folders, "solver=euler", "nfe=4", "strength=0.5", "label=3", "seed=7", "batch=4") == 0
    images = asking_folder(folders / "in", (1, 8, 8)).pictures
    teacher = fewstep.load_teacher(TEACHER)
    expected, labels = fewstep.edit(teacher, "euler", 4, torch.arange(7, 13), images, strength=0.5, label=3)
    assert labels.tolist() == [3] * 6
    for i, image in enumerate(expected):
        file = levels(folders / "out" / f"digit{i}.png").astype(int)
        assert np.abs(np.clip(127.5 * image[0].numpy() + 128, 0, 255).astype(int) - file).max() <= 1


def test_what_does_not_fit_is_one_line(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folders / "few").mkdir()
    Image.open(folders / "masks" / "digit0.png").save(folders / "few" / "digit0.png")
    bad = [
        ([], "give a mask, to fill it in, or a strength"),
        (["strength=1.5"], "strength is a number from 0"),
        (["strength=much"], "strength"),
        (["strength=0.5", "each=0"], "images for each picture"),
        (["strength=0.5", "label=10"], "label 10 is no class"),
        (["strength=0.5", "guidance=3", "nfe=4"], "give a label, or guidance 1"),
        ([f"mask={folders / 'few'}"], "do not match: digit1 has no mask"),
        (["condition=nowhere", "strength=0.5"], "condition=nowhere is no folder"),
        (["condition=2026", "strength=0.5"], "condition=2026 is no folder"),
        (["strength=0.5", "label=cat"], "the label is an integer >= 0, got 'cat'"),
        (["strength=0.5", "label=1.5"], "the label is an integer >= 0, got 1.5"),
        (["strength=0.5", "afs=true", "nfe=3"], "its first step is the analytical one"),
        (["strength=0.5", f"out={folders / 'in.png'}"], "in, which holds files already; give another out=NAME.png"),
        (["strength=0.5", f"out={folders / 'masks.png'}"], "masks, which holds files already"),
        (["solver=gits", "strength=0.5", "nfe=4"], "fitted to its own levels"),
    ]
    for args, words in bad:
        assert run(folders, *args) == 2, args
        said = capsys.readouterr().err
        assert words in said, (args, said)
        assert "Traceback" not in said
    assert len(list((folders / "in").iterdir())) == 6
    with pytest.raises(UsageError, match="8x8, and this model enlarges pictures of 4x4; give it those"):
        asking_folder(folders / "in", (1, 8, 8), small=4)
    assert sample.main([f"results={folders}", "strength=0.5"]) == 2
    assert "strength without a folder of pictures; give one as condition=FOLDER" in capsys.readouterr().err
