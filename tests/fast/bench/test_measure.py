"""python -m bench.measure: part by part, from where it was stopped, against images or published statistics."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench import measure
from bench.evaluate.judge import make_judge
from fewstep.data.digits import digits
from metrics.features.extractors import DigitsExtractor


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scores(folder: Path) -> dict[str, dict]:
    return {line["metric"]: line for line in map(json.loads, (folder / "scores.jsonl").read_text().splitlines())}


def run(*args: str) -> int:
    return measure.main([*args, "out=scores.jsonl"])


def test_a_split_of_a_data_set_is_scored_and_a_second_run_sees_no_image(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("images=digits", "split=heldout", "reference=digits", "metrics=fd_digits,class_accuracy,nn_train_share,psnr_teacher")
    assert run(*args) == 0
    first, told = scores(folder), capsys.readouterr()
    assert "359 images of digits against digits (1438 training images)" in told.out
    assert "psnr_teacher: not measured: psnr_teacher compares with the teacher's fine-grid solution" in told.err
    judge = make_judge(digits(), None, {"fd_digits"})
    own = judge.evidence({"images": digits().heldout_x[:], "labels": digits().heldout_y})
    from metrics import metric_named

    assert first["fd_digits"]["value"] == metric_named("fd_digits")(own).value
    assert first["class_accuracy"]["samples"] == 359
    monkeypatch.setattr(DigitsExtractor, "__call__", None)
    assert run(*args) == 0
    assert scores(folder) == first
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert run(*args, "samples=100") == 0
    assert (scores(folder)["fd_digits"]["samples"], scores(folder)["fd_digits"]["protocol"]["rank_deficient"]) == (100, False)
    assert run(*args, "samples=50") == 0
    assert "fewer images than features" in capsys.readouterr().out


def test_a_stopped_command_goes_on_where_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ("images=digits", "reference=digits", "metrics=fd_digits")
    seen, plain = [], DigitsExtractor.__call__

    def stopping(self, images):
        if len(seen) == 2:  # a probe, and the first 1,024 training images
            raise KeyboardInterrupt
        seen.append(len(images))
        return plain(self, images)

    monkeypatch.setattr(DigitsExtractor, "__call__", stopping)
    assert run(*args) == 130
    seen.clear()
    monkeypatch.setattr(DigitsExtractor, "__call__", lambda self, images: seen.append(len(images)) or plain(self, images))
    assert run(*args) == 0
    assert 1438 not in seen
    assert sum(n for n in seen if n > 1) == (1438 - 1024) + 1797


def test_published_statistics_in_place_of_images(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moments = make_judge(digits(), None, {"fd_digits"}).reference.spaces["digits"].moments
    np.savez(folder / "digits-8x8.npz", mu=moments.mean, sigma=moments.cov)
    common = ("images=digits", "split=heldout", "metrics=fd_digits,nn_train_share")
    assert run(*common, "reference=digits") == 0
    with_images = scores(folder)["fd_digits"]
    assert run(*common, "against=digits-8x8.npz") == 0
    found, told = scores(folder)["fd_digits"], capsys.readouterr()
    assert found["value"] == pytest.approx(with_images["value"], rel=1e-8)  # a covariance that was divided and multiplied
    assert found["protocol"]["statistics"].startswith("digits-8x8-")
    assert "against digits-8x8.npz (published statistics)" in told.out
    assert "nn_train_share: not measured: nn_train_share compares with real images; give them with reference=" in told.err


def test_bad_input_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(folder / "ffhq-64x64.npz", mu=np.zeros(64), sigma=np.eye(64))
    np.savez(folder / "wide.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    np.savez(folder / "bare.npz", features=np.zeros(3))
    digit = ("images=digits", "metrics=fd_digits")
    for args, told in (
        ((), "no images given; type python -m bench.measure images=DIR reference=DIR"),
        (digit, "give either reference or against"),
        ((*digit, "reference=digits", "against=wide.npz"), "give either reference or against"),
        ((*digit, "reference=digits", "split=test"), "split must be all, train, heldout, got 'test'"),
        ((*digit, "reference=digits", "samples=1"), "samples is 0 for all, or 2 to 1797"),
        ((*digit, "reference=digits", "samples=9999"), "samples is 0 for all, or 2 to 1797"),
        ((*digit, "reference=digitz"), "unknown data set 'digitz'"),
        ((*digit, "against=nowhere.npz"), "there is no file nowhere.npz"),
        ((*digit, "against=bare.npz"), "lacks"),
        ((*digit, "against=wide.npz"), "statistics wide.npz are of 2048 features, and digits has 64"),
        ((*digit, "against=ffhq-64x64.npz"), "of images of 64x64, and these are 8x8"),
    ):
        assert measure.main(args) == 2, args
        found = capsys.readouterr().err
        assert told in found
        assert found.count("\n") == 1
