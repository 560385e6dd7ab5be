"""A device with room for a few images at once: everything is made all the same, and what was made in smaller batches says so."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bench import sweep, train
from bench.settings import cli
from bench.store.rows import read_rows
from fewstep.nets.features import DigitClassifier
from fewstep.nets.unet import UNet

MOST = 7  # images
BLOCK = (
    "suite.blocks=[{solver:euler,grid:polynomial,end:zero,nfe:2,metrics:[fd_digits,psnr_teacher,timing]},"
    "{method:kd,nfe:1,metrics:[fd_digits]}]"
)
ARGS = ["suite=smoke", "threads=1", "suite.samples=20", "suite.reference=exact", "suite.reference_steps=2", BLOCK]
ARGS += ["++suite.options.kd={teacher_steps: 1, count: 20, batches: 2, batch_size: 4}"]


def narrow(monkeypatch: pytest.MonkeyPatch, training: bool = False) -> None:
    """Networks that have room for so many images where nothing is trained, or nothing else."""
    for net in (UNet, DigitClassifier):
        plain = net.forward

        @functools.wraps(plain)
        def forward(self: Any, x: torch.Tensor, *more: Any, plain: Any = plain) -> Any:
            if len(x) > MOST and torch.is_grad_enabled() == training:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return plain(self, x, *more)

        monkeypatch.setattr(net, "forward", forward)


def rows_of(folder: Path, method: str = "teacher") -> dict[str, Any]:
    return {row["metric"]: row for row in read_rows(folder / "smoke" / "runs.jsonl")[0] if row["method"] == method}


def pairs_of(folder: Path) -> torch.Tensor:
    (path,) = folder.glob(".store/fit/*/pairs-*.safetensors")
    return load_file(path)["images"]


def test_what_has_no_room_at_once_is_made_in_halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    assert cli.entry("sweep", "", sweep.run, [*ARGS, f"results={tmp_path / 'wide'}"]) == 0
    assert "no room" not in capsys.readouterr().err
    narrow(monkeypatch)
    assert cli.entry("sweep", "", sweep.run, [*ARGS, f"results={tmp_path / 'narrow'}"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "has no room" in line]
    wide, found = rows_of(tmp_path / "wide"), rows_of(tmp_path / "narrow")
    for name in ("fd_digits", "psnr_teacher", "nfe_counted"):
        assert found[name]["value"] == pytest.approx(wide[name]["value"], rel=1e-4), name  # batches of other sizes round differently
    torch.testing.assert_close(pairs_of(tmp_path / "narrow"), pairs_of(tmp_path / "wide"), rtol=0, atol=1e-4)  # the same
    own = found["psnr_teacher"]["protocol"]
    assert own["samples_batch"] == own["teacher_solution"]["batch"] == 5
    assert rows_of(tmp_path / "narrow", "kd")["fd_digits"]["protocol"]["training"]["pairs_batch"] == 5
    assert found["fd_digits"]["protocol"]["features_batch"] == 5
    assert "batch" not in json.dumps([row["protocol"].get("teacher_solution") for row in wide.values()])
    assert found["psnr_teacher"]["conditions"] == wide["psnr_teacher"]["conditions"]
    for what in ("20 pairs of noise", "the exact flow", "teacher/euler", "extractor digits"):
        assert any(f"for 20 images of {what}" in line and "going on with 5" in line for line in lines), (what, lines)
    assert found["latency_ms_p50_b1"]["status"] == "ok"
    for name in ("latency_ms_p50_b64", "latency_ms_p90_b64", "peak_memory_mb"):
        assert (found[name]["status"], wide[name]["status"]) == ("unavailable", "ok")
        assert found[name]["error"].startswith("cpu has no room for 64 images at once, which it is measured with")


def test_a_training_that_has_no_room_says_what_to_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    narrow(monkeypatch, training=True)
    args = ["model=digits", "batches=2", "threads=1", f"results={tmp_path}"]
    assert cli.entry("train", "", train.run, args) == 2
    told = capsys.readouterr().err
    assert "error: cpu has no room for 128 training images at once (phase edm, batches of 128); train with accumulate=2" in told
    assert "Traceback" not in told
