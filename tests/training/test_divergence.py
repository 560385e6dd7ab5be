"""A training that diverges: the last good state is kept, the sweep goes on and says why, and says so again quickly."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from bench import sweep
from bench.settings import cli
from bench.store.rows import read_rows
from bench.training.engine import Diverged, Engine, Settings
from fewstep import plugins as registry
from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser
from fewstep.noise import Rng
from fewstep.plugins import register
from methods.distiller import Sampling
from methods.start import like_teacher, student_net
from methods.training import Ema, Loss, Optim, Phase, State
from support.tiny import mixture_data, network

QUIET = Settings(progress=False)
STEPS: list[int] = []  # the batches that were begun


@dataclass(frozen=True)
class Explodes:
    """Two nets, two losses a batch: the second is not finite from batch `bad` on, when the first net has already moved."""

    loss: str = "nan"
    bad: int = 5
    batches: int = 8
    version: int = 1

    def build(self, teacher: Denoiser) -> dict[str, torch.nn.Module]:
        return {"student": student_net(teacher, "explodes"), "critic": torch.nn.Linear(2, 2)}

    def phases(self) -> list[Phase]:
        optims = {name: Optim(lr=1e-3) for name in ("student", "critic")}
        return [Phase("one", 3, 8, optims, {"ema": Ema("student", 0.9)}), Phase("two", self.batches - 3, 8, optims)]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        number = state.batch + (3 if state.phase.name == "two" else 0)
        STEPS.append(number)
        x = rng.normal(batch.x0.shape)
        yield Loss(self.student(state.nets["student"], state.teacher)(x, 1.0).square().mean(), "student")
        value = state.nets["critic"].weight.square().sum()
        if number >= self.bad:
            value = {"nan": value * float("nan"), "inf": value / 0, "gradient": value + torch.sqrt(0 * value)}[self.loss]
        yield Loss(value, "critic")

    def phase_for(self, steps: int) -> str:
        return {1: "two", 2: "one"}[steps]

    def student(self, net: torch.nn.Module, teacher: Denoiser):
        return like_teacher(net, teacher, "explodes")

    def sampling(self) -> Sampling:
        return Sampling("euler", "polynomial", "zero_last")


def engine(method: Explodes, folder: Path, settings: Settings = QUIET) -> Engine:
    _, data = mixture_data()
    return Engine(method, network(data), data, folder, settings)


def checkpoint(folder: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """Tensors and progress, but for seconds and memory."""
    with safe_open(folder / "checkpoint.safetensors", framework="pt") as f:
        progress = json.loads(f.metadata()["progress"])
        tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (not a dict)
    return tensors, {k: v for k, v in progress.items() if k not in ("seconds", "peak_bytes", "finished")}


def assert_same_checkpoint(a: Path, b: Path) -> None:
    (one, progress), (other, of_other) = checkpoint(a), checkpoint(b)
    assert progress == of_other
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert all(torch.isfinite(v).all() for v in one.values())


@pytest.mark.parametrize("bad", [0, 2, 3, 5])
@pytest.mark.parametrize("seconds", [1e9, 0.0])
def test_the_last_good_state_is_kept(bad: int, seconds: float, tmp_path: Path) -> None:
    """To the bit that of a training stopped before the bad batch: not the half-stepped one, with or without an earlier checkpoint; also
    in the first batch, and in the first of a phase."""
    method, settings = Explodes(bad=bad), Settings(progress=False, checkpoint_seconds=seconds)
    with pytest.raises(Diverged, match=r"training diverged: loss nan at batch \d of phase (one|two); lower lr"):
        engine(method, tmp_path / "bad", settings).run()
    engine(method, tmp_path / "good").run(bad)
    assert_same_checkpoint(tmp_path / "bad", tmp_path / "good")
    assert (tmp_path / "good" / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(("loss", "said"), [("inf", "loss inf"), ("gradient", "gradient norm nan")])
def test_what_is_not_finite_is_named(loss: str, said: str, tmp_path: Path) -> None:
    """A gradient that is not finite stops the training too: its step would spoil the weights, and every checkpoint after it."""
    with pytest.raises(Diverged, match=f"training diverged: {said} at batch 2 of phase two; lower lr"):
        engine(Explodes(loss=loss), tmp_path).run()
    assert all(torch.isfinite(v).all() for v in checkpoint(tmp_path)[0].values())


def test_a_second_run_fails_at_once(tmp_path: Path) -> None:
    with pytest.raises(Diverged):
        engine(Explodes(), tmp_path).run()
    STEPS.clear()
    with pytest.raises(Diverged, match="batch 2 of phase two"):
        engine(Explodes(), tmp_path).run()
    assert STEPS == [5]


@pytest.fixture
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.load()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@pytest.mark.usefixtures("_own_registry")
@pytest.mark.parametrize("bad", [1, 5])
def test_a_sweep_marks_the_cell_and_goes_on(bad: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Also where the loss is broken from the first batches on, which are measured before a training. What a phase before gave is kept."""
    register("distiller", "explodes", "arXiv 0000.00000", bad=bad)(Explodes)
    blocks = "suite.blocks=[{method:explodes,nfe:[1,2]},{solver:euler,grid:polynomial,end:zero,nfe:1}]"
    args = ["suite=smoke", blocks, "suite.base.metrics=[fd_digits]", "suite.samples=20", f"results={tmp_path}", "threads=1"]
    reason = f"training diverged: loss nan at batch {bad if bad < 3 else bad - 3} of phase {'one' if bad < 3 else 'two'}; lower lr"

    assert cli.entry("sweep", "", sweep.run, args) == 1
    assert f"cell failed: digits explodes/euler/polynomial/zero_last NFE 1: Diverged: {reason}" in capfd.readouterr().err
    rows, _ = read_rows(tmp_path / "smoke" / "runs.jsonl")
    lost = (1,) if bad > 3 else (1, 2)
    failed = [r for r in rows if r["method"] == "explodes" and r["status"] == "failed"]
    assert [r["nfe"] for r in failed] == list(lost)
    assert all(r["error"].startswith(f"Diverged: {reason}") for r in failed)
    if bad > 3:  # the one artefact that is not whole is named
        (fit,) = (tmp_path / ".store" / "fit").iterdir()
        assert failed[0]["error"].endswith(f"; delete .store/fit/{fit.name} to go on from its checkpoint")
    whole = {(r["nfe"], r["metric"], r["status"]) for r in rows if r["method"] == "explodes" and r["nfe"] not in lost}
    assert whole == ({(2, "fd_digits", "ok"), (2, "nfe_counted", "ok")} if bad > 3 else set())
    assert {r["status"] for r in rows if r["method"] == "teacher"} == {"ok"}
    assert reason in (tmp_path / "smoke" / "table.csv").read_text()
    assert reason in (tmp_path / "smoke" / "table.md").read_text()
    (kept,) = (tmp_path / ".store" / "training").iterdir()
    assert len(checkpoint(kept)[0]) > 0

    STEPS.clear()
    before = time.monotonic()
    assert cli.entry("sweep", "", sweep.run, args) == 1
    assert capfd.readouterr().err.count(f"cell failed: digits explodes/euler/polynomial/zero_last NFE 1: Diverged: {reason}") == 1
    assert len(read_rows(tmp_path / "smoke" / "runs.jsonl")[0]) == len(rows)
    # Three batches to say what a training costs (or up to the bad one, and once more those before it), and then the bad batch alone.
    assert len(STEPS) <= 2 * 5
    assert time.monotonic() - before < 60
