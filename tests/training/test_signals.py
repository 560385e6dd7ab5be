"""What asks a training to end: the batch is finished, the checkpoint whole, and the same command goes on to the same bits."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from bench.settings import cli
from bench.training import checkpoints
from bench.training.engine import Engine, Settings
from bench.training.signals import noting
from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser
from fewstep.errors import Terminated
from fewstep.noise import Rng
from methods.training import Ema, Loss, Optim, Phase, State
from support.tiny import mixture_data, network

RARELY, OFTEN = Settings(progress=False), Settings(progress=False, checkpoint_seconds=0.0, checkpoint_share=0.0)
BATCHES = 6


@dataclass(frozen=True)
class Told:
    """Noise pulls at a layer; in batch `at` this process gets a signal."""

    at: int = -1
    number: int = signal.SIGINT
    seen: list[int] = field(default_factory=list, repr=False)
    version: int = 1

    def build(self, teacher: Denoiser) -> dict[str, torch.nn.Module]:
        return {"student": torch.nn.Linear(4, 1)}

    def phases(self) -> list[Phase]:
        return [Phase("one", BATCHES, 4, {"student": Optim(lr=0.1)}, {"ema": Ema("student", 0.9)}, export="ema")]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        self.seen.append(state.batch)
        if state.batch == self.at:
            os.kill(os.getpid(), self.number)
        yield Loss(state.nets["student"](rng.normal((4, 4))).square().mean(), "student")


def engine(method, folder: Path, settings: Settings = RARELY) -> Engine:
    _, data = mixture_data()
    made = Engine(method, network(data), data, folder, settings)
    made.identity = "one training"  # with and without its signal
    return made


@pytest.fixture(autouse=True)
def _answered() -> Iterator[None]:
    """A test run in the background may have Ctrl-C ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
@pytest.mark.parametrize("at", [0, 2, BATCHES - 1])
def test_a_signal_ends_a_training_after_its_batch(number: int, raised: type[BaseException], at: int, tmp_path: Path) -> None:
    whole = engine(Told(), tmp_path / "whole").run()
    before = signal.getsignal(number)
    cut = Told(at, number)
    with pytest.raises(raised) as told:
        engine(cut, tmp_path / "cut").run()
    assert type(told.value) is raised
    assert cut.seen == list(range(at + 1))
    assert signal.getsignal(number) is before
    rest = Told()
    found = engine(rest, tmp_path / "cut").run()
    assert rest.seen == list(range(at + 1, BATCHES))
    assert all(torch.equal(found.exports["one"][key], value) for key, value in whole.exports["one"].items())


def test_signals_while_a_checkpoint_is_written_tear_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of them, before and after the bytes are written: the file is whole, and the training ends after it."""
    written, calls = checkpoints.write, []

    def slow(*args) -> None:
        calls.append(1)
        os.kill(os.getpid(), signal.SIGTERM)
        written(*args)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "write", slow)
        with pytest.raises(Terminated):
            engine(Told(), tmp_path, OFTEN).run()
    assert len(calls) == 2  # the one of the first batch, and that of the end
    rest = Told()
    engine(rest, tmp_path).run()
    assert rest.seen == list(range(1, BATCHES))


def fails(interrupted: bool) -> None:
    with noting():
        if interrupted:
            os.kill(os.getpid(), signal.SIGINT)
        raise ValueError("of the block")


def test_what_is_raised_meanwhile_does_not_hide_a_signal() -> None:
    with pytest.raises(KeyboardInterrupt):
        fails(interrupted=True)
    with pytest.raises(ValueError, match="of the block"):
        fails(interrupted=False)


def test_ignored_signals_stay_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with noting() as noted:
            os.kill(os.getpid(), signal.SIGINT)
        assert not noted.number
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_train_without_handlers(tmp_path: Path) -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(engine(Told(), tmp_path).run()))
    thread.start()
    thread.join()
    assert list(found[0].exports) == ["one"]


@pytest.mark.parametrize(("number", "code", "line"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_commands_say_in_one_line_that_they_go_on(number: int, code: int, line: str, tmp_path: Path, capsys) -> None:
    assert cli.guarded(lambda: len(engine(Told(1, number), tmp_path).run().log)) == code
    assert capsys.readouterr().err == f"{line}: finished work is kept; run the same command to go on\n"


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        (Settings(progress=False), 0),  # three minutes have not passed
        (Settings(progress=False, checkpoint_seconds=0.0), BATCHES),  # a hundredth of six batches is less than one
        (Settings(progress=False, checkpoint_seconds=0.0, checkpoint_share=0.5), 2),
        (Settings(progress=False, checkpoint_seconds=1e9, checkpoint_share=0.0), 0),
    ],
)
def test_a_checkpoint_is_due_by_time_and_by_share(settings: Settings, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever is rarer."""
    calls = []
    monkeypatch.setattr(Engine, "save", lambda self: calls.append(self.progress.batch))
    engine(Told(), tmp_path, settings).run()
    assert len(calls) == count
