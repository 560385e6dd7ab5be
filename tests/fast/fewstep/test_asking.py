"""Folders of pictures that models are asked by: what becomes of their sizes, and what is refused in one line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.data.asking import asking_folder
from fewstep.errors import UsageError

RNG = np.random.RandomState(0)


def picture(path: Path, wide: int = 16, high: int = 16, levels: np.ndarray | None = None) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = RNG.randint(0, 256, (high, wide, 3), dtype=np.uint8) if levels is None else levels
    Image.fromarray(levels).save(path)
    return levels


def test_pictures_are_made_of_the_model_s_size(tmp_path: Path) -> None:
    same, small = picture(tmp_path / "b.png"), picture(tmp_path / "a.png", 4, 4)
    picture(tmp_path / "c.png", 40, 20)
    (tmp_path / "notes.txt").write_text("no picture")
    found = asking_folder(tmp_path, (3, 16, 16))
    assert found.names == ("a", "b", "c")
    assert found.pictures.shape == (3, 3, 16, 16)
    assert found.masks is None
    levels = ((found.pictures + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    assert np.array_equal(levels[1], same)
    assert np.array_equal(levels[0], np.asarray(Image.fromarray(small).resize((16, 16), Image.Resampling.BICUBIC)))
    assert asking_folder(tmp_path, (1, 16, 16)).pictures.shape == (3, 1, 16, 16)


def test_masks_belong_to_pictures_by_their_names(tmp_path: Path) -> None:
    part = np.zeros((16, 16), np.uint8)
    part[:, 8:] = 255
    for name in ("a", "b"):
        picture(tmp_path / "in" / f"{name}.png")
        picture(tmp_path / "masks" / f"{name}.webp", levels=np.stack([part if name == "a" else part.T] * 3, -1))
    found = asking_folder(tmp_path / "in", (3, 16, 16), tmp_path / "masks")
    assert found.masks is not None
    assert found.masks.shape == (2, 1, 16, 16)
    assert torch.equal(found.masks[0, 0], torch.from_numpy(part > 0).float())
    assert torch.equal(found.masks[1, 0], found.masks[0, 0].T)
    picture(tmp_path / "large" / "a.png", 48, 32)
    wide = np.zeros((32, 48), np.uint8)
    wide[:, :24] = 255
    picture(tmp_path / "large_masks" / "a.png", levels=wide)
    cropped = asking_folder(tmp_path / "large", (3, 16, 16), tmp_path / "large_masks").masks
    assert cropped is not None
    assert torch.equal(cropped[0, 0].mean(0), (torch.arange(16) < 8).float())  # resized and cropped as the picture


def test_what_does_not_match_is_one_line(tmp_path: Path) -> None:
    def refused(told: str, pictures: str, masks: str | None = None, shape: tuple[int, ...] = (3, 16, 16)) -> None:
        with pytest.raises(UsageError, match=told) as caught:
            asking_folder(tmp_path / pictures, shape, None if masks is None else tmp_path / masks)
        assert "\n" not in str(caught.value)

    for name in ("a", "b"):
        picture(tmp_path / "in" / f"{name}.png")
    half = np.zeros((16, 16), np.uint8)
    half[:8] = 255
    refused("is no folder", "nowhere")
    (tmp_path / "empty").mkdir()
    refused("holds no image", "empty")
    picture(tmp_path / "one" / "a.png", levels=half)
    refused("2 pictures .* and 1 masks .* do not match: b has no mask", "in", "one")
    for name in ("a", "b", "c"):
        picture(tmp_path / "three" / f"{name}.png", levels=half)
    refused("the mask c has no picture", "in", "three")
    picture(tmp_path / "twice" / "a.png")
    picture(tmp_path / "twice" / "a.jpg")
    refused(r"has both a\.jpg and a\.png", "twice")
    for folder, levels in (("all", np.full((16, 16), 255, np.uint8)), ("none", np.zeros((16, 16), np.uint8)), ("wrong", half[:, :9])):
        for name in ("a", "b"):
            picture(tmp_path / folder / f"{name}.png", levels=np.ascontiguousarray(levels))
    refused(r"all/a\.png of image 0 hides everything", "in", "all")
    refused(r"none/a\.png of image 0 hides nothing", "in", "none")
    refused(r"wrong/a\.png is 9x16 and its picture 16x16; give it the picture's size, or 16x16", "in", "wrong")
    picture(tmp_path / "small" / "a.png", 10, 10)
    refused("is 10x10, and the model's pictures are 16x16; give one as large, or square and a whole number of times smaller", "small")
    refused("square grey or RGB images", "in", shape=(2, 16, 16))
    (tmp_path / "in" / "z.png").write_text("text")
    refused(r"z\.png cannot be read as an image", "in")
