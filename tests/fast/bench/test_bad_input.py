"""Bad input around students: one clear line with exit code 2 for a single request, a skipped, marked or warned row in a sweep."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bench import sample, sweep
from bench.jobs.models import Model
from bench.jobs.resolve import resolve
from bench.jobs.suite import Suite
from bench.settings import cli
from bench.store.cell import Cell
from bench.store.rows import read_rows
from bench.training.curves import training_curves
from bench.training.engine import Engine, Settings
from fewstep import plugins as registry
from fewstep.denoiser import Denoiser
from fewstep.errors import Unreachable, UsageError
from fewstep.grid import make_grid
from fewstep.guidance import guide
from fewstep.plugins import entries, get, register
from methods.distiller import Sampling
from methods.start import WarmStarted, like_teacher, student_net
from support.each import each
from support.registered import put
from support.tiny import made, mixture_data, network

READS_W = [name for name in entries("distiller") if get("distiller", name).make().sampling().w is not None]


def model_of(classes: int) -> Model:
    _, data = mixture_data()
    data = replace(data, classes=classes)
    return Model("tiny", network(data), "a", data, {})


def suite_of(**options) -> Suite:
    return Suite("tiny", 4, 0, "philox", "dpmpp_2m", 1, options, ())


def refused(capsys: pytest.CaptureFixture[str], name: str, run, *args: str) -> str:
    """The one line of an entry point that must refuse."""
    assert cli.entry(name, "", run, [*args, "threads=1"]) == 2
    err = capsys.readouterr().err.strip()
    assert len(err.splitlines()) == 1, err
    return err


@each("name", [*READS_W, "cd", "kd"])
def test_guidance_needs_classes(name: str) -> None:
    """Whether the student reads w or is guided from outside."""
    with pytest.raises(UsageError, match="guidance 3 needs classes, and model tiny has none; use guidance=1"):
        resolve(Cell(name, nfe=2, guidance=3.0), suite_of(), model_of(0))


@pytest.mark.parametrize("name", READS_W)
def test_methods_that_distil_guidance_refuse_a_teacher_without_classes(name: str, tmp_path: Path) -> None:
    assert {"gd", "lcm"} <= set(READS_W)
    model = model_of(0)
    with pytest.raises(UsageError, match="teacher has no classes") as err:
        Engine(made(name, batches=1, batch_size=4), model.teacher, model.data, tmp_path, Settings(progress=False))
    assert len(str(err.value).splitlines()) == 1


def test_a_sample_of_guided_distillation_without_classes_is_one_line(capsys, tmp_path, monkeypatch) -> None:
    _, data = mixture_data()
    put(monkeypatch, "data", "digits", lambda: replace(data, classes=0))
    monkeypatch.setattr(sample, "load_model", lambda config, device: model_of(0))
    err = refused(capsys, "sample", sample.run, "method=lcm", "nfe=2", "guidance=3", f"results={tmp_path}")
    assert "guidance 3 needs classes, and model tiny has none" in err


STEPS = [
    ("kd", 2, {}, "kd has a student for 1 step, not 2; use 1, or another method"),
    ("dmd", 4, {}, "dmd has a student for 1 step, not 4; use 1, or dmd2"),
    ("dmd2", 4, {"steps": 2}, "this dmd2 was trained for 2 step(s), not 4; train another with steps=4"),
    ("pd", 3, {}, "pd has students for 8, 4, 2, 1 steps, not 3"),
]


@pytest.mark.parametrize(("name", "steps", "options", "message"), STEPS)
def test_a_step_count_without_a_student(name: str, steps: int, options: dict, message: str) -> None:
    """Unreachable: a sweep skips it by name."""
    with pytest.raises(Unreachable) as err:
        resolve(Cell(name, nfe=steps), suite_of(**{name: options}), model_of(2))
    assert message in str(err.value)
    if name == "dmd2":  # without steps of its own, every step count has a student to train
        student = resolve(Cell(name, nfe=steps), suite_of(), model_of(2)).student
        assert student is not None
        assert student.options["steps"] == 4


@pytest.mark.parametrize(("name", "steps", "message"), [(n, s, m) for n, s, o, m in STEPS if not o])
def test_asking_a_student_for_it_is_one_line(name: str, steps: int, message: str, capsys, tmp_path) -> None:
    assert message in refused(capsys, "sample", sample.run, f"method={name}", f"nfe={steps}", f"results={tmp_path}")


@pytest.fixture
def _own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    registry.load()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@dataclass(frozen=True)
class ReadsW:
    """A student that reads w, trained in 0 to 2: as registered methods do, but without a training to speak of."""

    loss: str = "l2"
    batches: int = 1
    version: int = 1

    def build(self, teacher: Denoiser):
        return {"student": student_net(teacher, "reads_w", ("w",))}

    def phases(self):
        return get("distiller", "kd").make(batches=1, batch_size=2).phases()

    def losses(self, state, batch, rng):
        return get("distiller", "cd").make().losses(replace(state, emas={"target": state.nets["student"]}), batch, rng)

    def phase_for(self, steps: int) -> str:
        return "kd"

    def student(self, net, teacher: Denoiser):
        return like_teacher(net, teacher, "reads_w")

    def sampling(self) -> Sampling:
        return Sampling("euler", "polynomial", "zero_last", w=(0.0, 2.0))


@pytest.mark.usefixtures("_own_registry")
def test_w_outside_of_the_trained_range_is_a_warning_in_the_row(tmp_path: Path) -> None:
    """Measured all the same, at one pass a step; inside the range there is no warning; the range is in every row."""
    register("distiller", "reads_w", "arXiv 0000.00000")(ReadsW)
    block = "suite.blocks=[{method:reads_w,nfe:1,guidance:[1,3,4.5]}]"
    args = ["suite=smoke", block, "suite.base.metrics=[fd_digits]", "suite.samples=20", f"results={tmp_path}", "threads=1"]
    assert cli.entry("sweep", "", sweep.run, args) == 0
    rows, _ = read_rows(tmp_path / "smoke" / "runs.jsonl")
    said = {(r["guidance"], r["w"]): r["protocol"].get("warning") for r in rows if r["metric"] == "fd_digits"}
    assert said == {
        (1.0, 0.0): None,
        (3.0, 2.0): None,
        (4.5, 3.5): "w = 3.5 is outside of the range 0 to 2 it was trained in",
    }
    assert all(r["protocol"]["w_trained"] == [0.0, 2.0] for r in rows)
    assert {r["value"] for r in rows if r["metric"] == "nfe_counted"} == {1.0}


def test_a_weight_at_the_end_of_its_range_is_inside_of_it() -> None:
    own = ReadsW().sampling()
    assert own.w_warning(3.0000000000000004) == ""
    assert replace(own, w=(0.0, 0.3)).w_warning(1.3) == ""  # 1.3 - 1 is above 0.3 in float64
    assert own.w_warning(3.01) == "w = 2.01 is outside of the range 0 to 2 it was trained in"


def test_levels_that_a_student_was_never_told_of_are_a_warning() -> None:
    """ctm's nine: grids of 1, 2, 4 and 8 steps lie on them, one by hand may, that of three steps does not. gamma aims between any grid's
    levels, and solvers that read D alone jump nowhere."""
    own, ends = get("distiller", "ctm").make().sampling(), (0.002, 80.0)
    nine = make_grid("polynomial", 8, ends).sigmas

    def said(grid, solver="ctm_gamma_0") -> str:
        return own.warning(1.0, get("solver", solver).make().plan(grid), ends)

    three = make_grid("polynomial", 3, ends)
    others = ", ".join(f"{s:.4g}" for s in three.sigmas[1:3])
    untold = "not among the 9 levels it was trained to jump between"
    assert [said(make_grid("polynomial", n, ends)) for n in (1, 2, 4, 8)] == [""] * 4
    assert said(three) == f"it jumps from or to {others}, {untold}"
    assert said(make_grid(f"at {nine[3]} {nine[6]}", 3, ends)) == ""
    assert said(make_grid("at 0.821", 2, ends)) == f"it jumps from or to 0.821, {untold}"
    assert said(three, "euler") == said(three, "heun") == ""
    aim = 0.002 + 3**0.5 / 2 * (nine[4] - 0.002)  # sqrt(1 - 1/4) of the way
    assert said(make_grid("polynomial", 2, ends), "ctm_gamma") == f"it jumps from or to {aim:.4g}, {untold}"
    cd = get("distiller", "cd").make().sampling()
    assert cd.warning(1.0, get("solver", "consistency").make().plan(three), ends) == ""


@each(
    ("name", "options", "line"),
    [
        ("ict", {"p_mean": -50.0}, "nothing between sigma 0.002 and 80; use e.g. p_mean=-1.1 p_std=2.0"),
        ("cd", {"mu": 1.5}, "an average of student decays by 0 <= decay < 1, got 1.5; use e.g. 0.99"),
        ("ctm", {"mu": 1.0}, "an average of student decays by 0 <= decay < 1, got 1; use e.g. 0.99"),
        ("pd", {"ema": -0.1}, "an average of student decays by 0 <= decay < 1, got -0.1; use e.g. 0.99"),
        ("cd", {"lr": -1.0}, "a learning rate is a positive number, got lr=-1; use e.g. 5e-4"),
        ("ctm_gan", {"discriminator_lr": 0.0}, "a learning rate is a positive number, got lr=0"),
        ("sfd", {"sigma_min": 100.0}, "a student's grid ends below the highest level 80, got sigma_min=100; use e.g. 0.006"),
    ],
)
def test_numbers_that_train_nothing_are_refused(name: str, options: dict, line: str, tmp_path: Path) -> None:
    _, data = mixture_data()
    with pytest.raises(UsageError, match=line) as raised:
        Engine(made(name, batch_size=4, **options), network(data), data, tmp_path, Settings(progress=False)).run(1)
    assert "\n" not in str(raised.value)


def test_another_methods_checkpoint_is_refused(tmp_path: Path) -> None:
    """In the folder of another method, of other options, or of another teacher; and a file of something else."""
    model = model_of(2)

    def engine(name: str, teacher=model.teacher, **options) -> Engine:
        return Engine(made(name, batches=3, batch_size=4, **options), teacher, model.data, tmp_path, Settings(progress=False))

    engine("cd").run(1)
    teachers = [network(model.data, (8, 16)), network(model.data, seed=1), guide(model.teacher, 2.0)]
    teachers += [replace(model.teacher, sigma_range=(0.01, 80.0)), WarmStarted(mixture_data()[0], model.teacher)]
    file = tmp_path / "checkpoint.safetensors"
    for other in (engine("ct"), engine("cd", mu=0.5), *(engine("cd", teacher) for teacher in teachers)):
        with pytest.raises(UsageError, match=r"is the checkpoint of another training \(its method, .* or teacher differ\); delete it"):
            other.run()
    foreign = tmp_path / "other" / "checkpoint.safetensors"
    foreign.parent.mkdir()
    save_file({"a": torch.zeros(1)}, foreign)
    with pytest.raises(UsageError, match="is the checkpoint of another training"):
        Engine(made("cd"), model.teacher, model.data, foreign.parent, Settings(progress=False)).run()
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(UsageError, match=r"is broken \(.*\); delete it to train from the start"):
        engine("cd").run()


def test_curves_of_what_only_some_phases_log(tmp_path: Path) -> None:
    log = [{"phase": 0, "batch": 50, "loss/student": 1.0}, {"phase": 1, "batch": 50, "loss/student": 0.5, "gan": 0.1}]
    training_curves(log, tmp_path / "curves.png")
    training_curves(log[::-1], tmp_path / "other.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000
