"""python -m bench.measure targets=: images of other programs against the true ones, by the names of their files."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bench import measure
from bench.evaluate.external import Files, MaskFiles, named_files
from bench.evaluate.pairs import numbered, pairs_by_seed
from fewstep.data.degradation import Told
from fewstep.data.degradations.bicubic import resized_levels
from fewstep.data.digits import digits
from fewstep.errors import UsageError
from fewstep.plugins import get
from fewstep.tasks.pictures import Pictured
from metrics import quantise


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(place: str, levels: np.ndarray, names: list[str] | None = None) -> None:
    Path(place).mkdir()
    for i, image in enumerate(levels.astype(np.uint8)):
        Image.fromarray(image).save(Path(place) / f"{names[i] if names else i}.png")


def run(*args: str) -> dict[str, dict[str, Any]]:
    assert measure.main([*args, "out=scores.jsonl"]) == 0
    return {line["metric"]: line for line in map(json.loads, Path("scores.jsonl").read_text().splitlines())}


def levels(n: int = 3, side: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(20, 200, (n, side, side, 3))


def test_outputs_find_their_true_images_by_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    true, off = levels(), np.array([1, 5, 10])
    write("true", true, ["b", "a", "c"])
    write("out", (true + off[:, None, None, None])[::-1], ["c_sr", "a_sr", "b_sr"])
    found = run("images=out", "targets=true", "suffix=_sr", "metrics=psnr,psnr_y,ssim,psnr_hidden,fid", "border=2", "crop=5")
    assert found["psnr"]["value"] == pytest.approx(np.mean([20 * math.log10(255 / d) for d in off]))
    assert found["psnr"]["protocol"] | {"border": 2, "crop": 5, "conditions": 3} == found["psnr"]["protocol"]
    assert 0.9 < found["ssim"]["value"] < 1
    told = capsys.readouterr()
    assert "3 images of out against the true image of each in true" in told.out
    assert "psnr_hidden: not measured: psnr_hidden looks at what the masks of conditions hide" in told.err
    assert "fid: not measured: fid compares with a set of real images; give one with reference=" in told.err
    everything = run("images=out", "targets=true", "suffix=_sr", "protocols=true")
    assert {"psnr", "psnr_y", "ssim", "ssim_y"} <= set(everything)
    assert "| PSNR | Y | 4 | 0 | 8 bits | mean of dB |" in capsys.readouterr().out


def test_masks_in_a_folder_are_white_where_hidden(folder: Path) -> None:
    true, mask = levels(), np.zeros((3, 16, 16), np.uint8)
    mask[:, :, :8] = 255
    write("true", true)
    write("mask", mask)
    write("out", true + np.where(mask[..., None] == 255, 20, 2))
    found = run("images=out", "targets=true", "mask=mask", "metrics=psnr_hidden,rmse_known")
    assert found["psnr_hidden"]["value"] == pytest.approx(20 * math.log10(255 / 20))
    assert found["rmse_known"]["value"] == pytest.approx(2)
    assert MaskFiles(Files(tuple(named_files("mask").values()), (1, 16, 16)))[:2].sum() == 2 * 128


def test_a_task_s_conditions_are_exported_for_other_programs_and_made_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ("targets=digits", "task=superres_x2")
    assert measure.main([*common, "samples=7", "export=given"]) == 0
    assert "7 images in each of given/target, given/condition, given/small" in capsys.readouterr().out
    task = get("task", "superres_x2").make().bound(digits())
    pairs = pairs_by_seed(task, range(7))
    small = [np.asarray(Image.open(f"given/small/{i:05d}.png")) for i in range(7)]
    assert {image.shape for image in small} == {(4, 4)}
    for name, images in (("target", pairs.target), ("condition", quantise(pairs.condition["image"][:]))):
        seen = Files(tuple(named_files(f"given/{name}").values()), (1, 8, 8))
        assert np.array_equal(seen[:], images[:])
    named = run("images=given/condition", *common, "metrics=psnr,consistency", "reference=digits")
    alone = run("images=given/condition", "targets=given/target", "metrics=psnr")
    assert named["psnr"]["value"] == pytest.approx(alone["psnr"]["value"])
    assert run("images=given/target", *common, "metrics=consistency")["consistency"]["value"] > 50  # digits are no 8-bit images
    assert named["consistency"]["value"] < 40
    assert named["psnr"]["protocol"]["pairs"]["made_of"] == "bicubic_x2 1"
    assert (named["psnr"]["protocol"]["pairs"]["heldout_images"], alone["psnr"]["protocol"]["pairs"]["targets"]) == (359, "given/target")
    with_set = run("images=given/condition", "targets=digits", "metrics=psnr,fd_digits", "reference=digits")
    assert with_set["psnr"]["value"] == named["psnr"]["value"]
    assert with_set["fd_digits"]["samples"] == 7


def test_what_does_not_match_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    true = levels()
    write("true", true)
    write("out", true)
    write("more", levels(4))
    write("large", levels(side=32))
    write("other", true, ["x", "y", "z"])
    write("numbers", true, ["0", "1", "99999999"])
    write("again", levels(2), ["7", "00007"])
    write("mixed", levels(2))
    Image.fromarray(levels(1, 20)[0].astype(np.uint8)).save("mixed/2.png")
    write("twice", true)
    Image.fromarray(true[0].astype(np.uint8)).save("twice/0.jpg")
    Path("empty").mkdir()
    Path("bad").mkdir()
    Path("bad/0.png").write_bytes(b"no image")
    out, score = "images=out", "metrics=psnr"
    for args, told in (
        ((out, "targets=./nowhere"), "nowhere is no folder"),
        ((out, "targets=nowhere"), "unknown data set 'nowhere'"),
        ((out, "targets=empty"), "empty holds no images (.png, .jpg"),
        ((out, "targets=more"), "out lacks '3', which more has (3 images there, 4 here)"),
        (("images=more", "targets=true"), "more has '3', which true lacks (4 images there, 3 here)"),
        ((out, "targets=other"), "out has '0', which other lacks (3 images there, 3 here); give both the same names, or suffix="),
        ((out, "targets=true", "suffix=_out"), "out/0.png does not end in suffix=_out"),
        ((out, "targets=large"), "are of 16 x 16 and 32 x 32; compare images of one size"),
        ((out, "targets=true", "mask=large", score), "outputs in out and mask of each are of 16 x 16 and 32 x 32"),
        (("images=mixed", "targets=true", score), "mixed/2.png is 20 x 20, and 0.png is 16 x 16; images of one folder have one size"),
        (("images=twice", "targets=true"), "twice has 0.jpg and 0.png, which are of one name"),
        (("images=bad", "targets=true"), "bad/0.png cannot be read as an image"),
        (("images=other", "targets=digits"), "other has 'x', and held-out images of digits are called by their numbers, 0 to 358"),
        (("images=numbers", "targets=digits"), "numbers has '99999999', and held-out images of digits"),
        (("images=numbers", "targets=digits", "task=superres_x2"), "called by their numbers, 0 to 358"),  # which a task would count modulo
        (("images=again", "targets=digits"), "again has '00007' and '7', which are of one held-out image; keep one of them"),
        ((out, "targets=./true", "task=superres_x2"), "which are compared by name; leave task out"),
        ((out, "targets=digits"), "are of 16 x 16 and 8 x 8"),
        ((out, "targets=digits", "task=class_conditional"), "task 'class_conditional' has no true images to compare with; take one of"),
        ((out, "targets=digits", "task=superres_x4", "mask=true"), "task=superres_x4 makes the conditions itself; leave mask out"),
        ((out, "reference=digits", "task=superres_x4"), "task is of images that are compared with true ones; give these with targets=DIR"),
        ((out, "targets=true", "samples=2"), "with targets every image of the folder is measured; leave split and samples out"),
        ((out, "targets=true", "border=-1"), "border is an integer >= 0, got -1"),
        ((out, "targets=true", "reference=digits"), "out has images of [3, 16, 16] and digits of [1, 8, 8]; both must agree"),
        (("export=x", "targets=digits"), "export= writes the conditions of a task on a data set; type targets=NAME task=NAME export=DIR"),
        (("export=x", "targets=digits", "task=superres_x2", "samples=360"), "samples is 0 for all, or 1 to 359, the held-out images"),
    ):
        assert measure.main(list(args)) == 2, args
        found = capsys.readouterr().err
        assert told in found, args
        assert found.count("\n") == 1, args
    measure.main([out, "targets=true", "mask=true", "metrics=psnr_hidden"])
    assert "masks in true are white where hidden and black elsewhere, and have other levels, too" in capsys.readouterr().err
    assert measure.main(["export=out", "targets=digits", "task=superres_x2", "samples=2"]) == 0  # beside what lies there
    assert measure.main(["export=out", "targets=digits", "task=superres_x2", "samples=2"]) == 2
    assert "out/target holds files already" in capsys.readouterr().err


def test_conditions_of_seeds_are_made_part_by_part() -> None:
    """Any piece of them is that of the whole; samples of one true image have one number, and the same condition."""
    data = digits()
    for each in (1, 3):
        task = get("task", "superres_x2").make(each=each).bound(data)
        pairs = pairs_by_seed(task, range(5, 5 + 12))
        for images in (pairs.target, pairs.condition["image"]):
            whole, index = images[:], np.array([7, 0, 3])
            assert whole.dtype == np.float32
            assert np.array_equal(images[2:9], whole[2:9])
            assert np.array_equal(images[index], whole[index])
        assert np.array_equal(pairs.target[:], quantise(data.heldout_x[np.arange(5, 17) // each]))
        first = {1: list(range(12)), 3: [0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4]}[each]
        assert pairs.groups.tolist() == first
        told = pairs.condition["image"][:]
        assert all(np.array_equal(told[i], told[list(pairs.groups).index(g)]) for i, g in enumerate(pairs.groups))
        assert pairs.asked is not None
        true = data.heldout_x[np.arange(8, 11) // each]  # digits are no 8-bit images, and `target` is
        small = pairs.asked(true, np.arange(3, 6))
        assert small.shape == (3, 1, 4, 4)
        assert np.array_equal(resized_levels(torch.from_numpy(small), (8, 8)).numpy(), told[3:6])
        assert np.abs(pairs.asked(pairs.target[3:6], np.arange(3, 6)) - small).max() < 0.02
    assert numbered(data.heldout_x[np.array([4, 4, 2, 4])]).tolist() == [0, 0, 1, 0]
    with pytest.raises(UsageError, match="asked for by held-out images, and the task has no data"):
        pairs_by_seed(get("task", "superres_x2").make(), range(3))


@dataclass(frozen=True)
class Darker:
    """A made-up degradation, as dark as its seed says."""

    version: int = 1

    def channels(self, shape: tuple[int, ...]) -> int:
        return shape[0]

    def __call__(self, images: torch.Tensor, seeds: torch.Tensor) -> Told:
        return Told(images - 0.01 * seeds.view(-1, 1, 1, 1))


def test_samples_of_one_condition_share_what_is_drawn_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Pictured, "degrade", property(lambda self: Darker()))
    pairs = pairs_by_seed(Pictured(each=3).bound(digits()), range(3, 12))
    told, true = pairs.condition["image"][:], digits().heldout_x[np.arange(3, 12) // 3]
    np.testing.assert_allclose(told, true - 0.01 * (np.arange(3, 12) // 3)[:, None, None, None], atol=1e-6)  # float32
    assert all(np.array_equal(told[i], told[i - i % 3]) for i in range(9))
    assert pairs.asked is not None
    assert np.array_equal(pairs.asked(true[4:], np.arange(4, 9)), told[4:])
