"""Trackers: told what the log is, absent unless asked for, and one line where their package is not installed."""

from pathlib import Path

import pytest
from accelerate.tracking import GeneralTracker

from bench import train
from bench.settings import cli
from bench.training import tracking
from bench.training.engine import Engine, Settings
from fewstep.errors import UsageError
from methods.recipe import Recipe
from support.tiny import made, mixture_data, network


class Notes(GeneralTracker):
    """A tracker that keeps what it is told."""

    name = "notes"
    requires_logging_directory = True

    def __init__(self) -> None:
        super().__init__(_blank=True)
        self.facts: dict = {}
        self.lines: list[tuple[int, dict]] = []
        self.done = False

    @property
    def tracker(self):
        return self

    def start(self) -> None: ...

    def store_init_configuration(self, values: dict) -> None:
        self.facts = values

    def log(self, values: dict, step: int | None = None) -> None:
        self.lines.append((step or 0, dict(values)))

    def finish(self) -> None:
        self.done = True


@pytest.fixture
def _notes(monkeypatch: pytest.MonkeyPatch) -> Notes:
    """As what `log=notes` starts."""
    from accelerate import tracking as theirs

    kept = Notes()
    monkeypatch.setitem(theirs.LOGGER_TYPE_TO_CLASS, "notes", _Made(kept))
    monkeypatch.setitem(tracking.PACKAGES, "notes", "accelerate")
    return kept


class _Made:
    """What makes the one tracker of a test."""

    requires_logging_directory = True

    def __init__(self, kept: Notes) -> None:
        self.kept = kept

    def __call__(self, run: str, folder: str) -> Notes:
        assert Path(folder).is_dir()
        return self.kept


def test_a_tracker_is_told_what_the_log_is(_notes: Notes, tmp_path: Path) -> None:  # noqa: PT019 (its value is read)
    _, data = mixture_data()
    method = made("cd", batches=60, batch_size=4)
    with tracking.tracking("notes", tmp_path / "logs", "cd", {"lr": 1e-3}) as tracker:
        result = Engine(method, network(data), data, tmp_path, Settings(progress=False, tracker=tracker)).run()
    assert _notes.facts == {"lr": "0.001"}
    assert [step for step, _ in _notes.lines] == [50, 60]
    assert [{**line, "phase": 0, "batch": step} for step, line in _notes.lines] == result.log
    assert _notes.done


def test_a_tracker_changes_no_numbers_and_is_off_by_default(tmp_path: Path) -> None:
    with tracking.tracking("none", tmp_path / "logs", "cd", {}) as tracker:
        assert tracker is None
    assert not (tmp_path / "logs").exists()
    assert Settings().tracker is None


def test_a_package_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    assert cli.entry("train", "", train.run, ["model=digits", "log=tensorboard", f"results={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert told == "error: log=tensorboard needs the package tensorboard, which is not installed; pip install tensorboard, or log=none\n"
    with pytest.raises(UsageError, match=r"unknown log 'tensorbord'; did you mean tensorboard\?"):
        tracking.check_tracker("tensorbord")


def test_typed_fields_of_a_recipe(tmp_path: Path) -> None:
    weights = tmp_path / "w.safetensors"
    weights.touch()
    fields = {"precision": "fp16", "accumulate": 2, "compile": True, "init": str(weights), "batches": 7}
    assert train.typed(fields) == {"precision": "fp16", "accumulate": 2, "compile": True, "init_from": str(weights), "batches": 7}
    plain = Recipe()
    assert train.typed({"precision": "no", "accumulate": 1, "compile": False, "init": "", "batches": None}) == plain.given() == {}
