"""Models of a folder of images: trained from a model file, then taken by the path of the training, with the images found again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import train
from bench.jobs.models import load_model
from bench.settings import cli
from bench.settings.compose import group_config
from fewstep.errors import UsageError

MODEL = """
data: ./images
shape: [3, 8, 8]
arch: unet
config: {channels: [8, 16], blocks: 1, emb: 16}
sigma_range: [0.01, 80.0]
pretrain: edm
options: {batches: 2, batch_size: 4}
weights: ./mine.safetensors
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten pictures of 12 x 10 pixels in two classes, and a model file beside them."""
    drawn = np.random.RandomState(0)
    for i in range(10):
        path = tmp_path / "images" / ("cat" if i % 2 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(drawn.randint(0, 256, (10, 12, 3), dtype=np.uint8)).save(path)
    (tmp_path / "own.yaml").write_text(MODEL)
    return tmp_path


def trained(folder: Path) -> Path:
    args = [f"model={folder / 'own.yaml'}", f"out={folder / 'out'}", "threads=1"]
    assert cli.entry("train", "", lambda config: train.run(config, args), args) == 0
    return folder / "out"


def test_a_folder_s_teacher_is_a_model_by_the_path_of_its_training(folder: Path, tmp_path: Path, monkeypatch) -> None:
    out = trained(folder)
    card = json.loads(next(out.glob("*.json")).read_text())
    assert (card["shape"], card["classes"], card["data_path"]) == ([3, 8, 8], 2, str(folder / "images"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for place in (out, next(out.glob("*.safetensors"))):
        model = load_model(group_config("model", str(place)), "cpu")
        assert (model.teacher.shape, model.teacher.classes) == ((3, 8, 8), 2)
        assert (model.data.shape, model.data.digest()) == ((3, 8, 8), card["data_digest"])


def test_a_shape_that_no_image_has_is_one_line(folder: Path) -> None:
    own = folder / "own.yaml"
    own.write_text(MODEL.replace("[3, 8, 8]", "[3, 8, 9]"))
    with pytest.raises(UsageError, match="grey or RGB squares"):
        load_model({**group_config("model", str(own)), "weights": "trained"}, "cpu")
    own.write_text(MODEL.replace("[3, 8, 8]", "[3, 64, 64]"))
    with pytest.raises(UsageError, match=r"64"):
        load_model({**group_config("model", str(own)), "weights": "trained"}, "cpu")
    own.write_text(MODEL.replace("shape: [3, 8, 8]", "shape: three"))
    with pytest.raises(UsageError, match="shape must be a list, got 'three'"):
        load_model({**group_config("model", str(own)), "weights": "trained"}, "cpu")
