"""The study of trajectories: shapes known by hand and in closed form, and trainings that resume exactly."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from bench import sweep
from bench.jobs.models import Model, load_model
from bench.jobs.suite import expand
from bench.settings import cli
from bench.settings.compose import group_config
from bench.store.artefacts import Store
from bench.studies import neighbours, trajectories
from bench.studies.neighbours import Exam, FineTuned, OneInterval
from bench.studies.shape import likeness, shape_of
from bench.studies.trajectories import NeighbourOptions, Study, TrajectoryOptions, curves_of, read_options
from bench.studies.writing import Change, by_distance, heat, long_table, trajectories_text
from bench.training.engine import Engine, Settings
from fewstep.analytic import Gaussian
from fewstep.data.images import ImageData
from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.noise import LATENT, PhiloxNoise
from support.each import each
from support.tiny import mixture_data, network

SUITE = group_config("suite", "trajectories")
SMALL = {"trajectories": {"samples": 8, "steps": 12, "scales": [1.0]}}
SMALL["neighbours"] = {"intervals": 3, "substeps": 2, "batches": 5, "batch_size": 16, "lr": 2e-4, "seeds": 2, "heldout": 8}


def points(*rows: tuple[float, ...]) -> torch.Tensor:
    """One trajectory through these points, as images of one row of pixels: [1, nodes, 1, 1, d]."""
    return torch.tensor(rows, dtype=torch.float64)[None, :, None, None]


def test_a_triangle_deviates_in_one_direction() -> None:
    shape = shape_of(points((0, 0), (2, -3), (4, 0)))
    root = math.sqrt(2)  # distances are RMS over two pixels
    exact = {"atol": 1e-12, "rtol": 0}  # float64 rounding
    torch.testing.assert_close(shape.length, torch.tensor([4 / root], dtype=torch.float64), **exact)
    torch.testing.assert_close(shape.ahead, torch.tensor([[4, 2, 0]], dtype=torch.float64) / root, **exact)
    torch.testing.assert_close(shape.away, torch.tensor([[0, 3, 0]], dtype=torch.float64) / root, **exact)
    torch.testing.assert_close(shape.plane[:, :, 0], torch.tensor([[0, 3, 0]], dtype=torch.float64) / root, **exact)  # its peak is positive
    torch.testing.assert_close(shape.shares, torch.tensor([[1, 0]], dtype=torch.float64), **exact)


def test_shares_are_squared_deviations_by_direction() -> None:
    shape = shape_of(points((1, 1, 1), (2, 4, 1), (3, 1, 0), (5, 1, 1)))  # deviations (3, 0) and (0, -1) beside the first axis
    # float64 rounding, as in all three
    torch.testing.assert_close(shape.shares, torch.tensor([[0.9, 0.1, 0]], dtype=torch.float64), atol=1e-12, rtol=0)
    flat = shape.plane[0] * math.sqrt(3)
    torch.testing.assert_close(flat, torch.tensor([[0, 0], [3, 0], [0, 1], [0, 0]], dtype=torch.float64), atol=1e-12, rtol=0)  # rounding


def test_curves_of_one_form_are_alike_whatever_their_size() -> None:
    curve = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 1.0]])
    assert likeness(torch.stack([curve, 5 * curve, 0.1 * curve])).tolist() == pytest.approx([1, 1, 1])
    other = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    assert likeness(torch.stack([curve, other]))[1] == pytest.approx(3 / math.sqrt(18))  # mean curve (3, 3) / 2, other (0, 2)


def images(shape: tuple[int, ...]) -> ImageData:
    zeros, labels = np.zeros((4, *shape), np.float32), np.zeros(4, np.int64)
    return ImageData("none", 0, zeros, labels, zeros, labels)


def study_of(teacher: Any, folder: Path, **change: Any) -> Study:
    """The part on shapes for a closed form."""
    model = Model("closed", teacher, "0" * 16, images(teacher.shape), {"closed_form": "here", "options": {}})
    fine = TrajectoryOptions(**{**SUITE["trajectories"], "samples": 16, "steps": 200, "scales": [1.0], **change})
    return Study("s", model, Store(folder), fine, NeighbourOptions(**SUITE["neighbours"]), 0, "philox", "cpu", 7)


@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_isotropic_gaussians_have_straight_trajectories(tmp_path: Path, mean: float) -> None:
    teacher = Gaussian(torch.full((1, 2, 2), mean, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64), (1, 2, 2))
    study = study_of(teacher, tmp_path)
    shape = study.shapes(1.0)
    assert float((shape.away.amax(1) / shape.length).max()) < 1e-12  # float64 rounding over 200 steps
    assert bool(shape.shares.isnan().all())
    facts = {"model": "closed", "seed": 0, "noise": "philox", **vars(study.trajectories)}
    text = trajectories_text(facts, [curves_of(1.0, [1.0] * 201, shape)])
    assert "the trajectories are straight lines" in text
    assert "nan" not in text


def test_anisotropic_gaussians_deviate_as_their_flow_does(tmp_path: Path) -> None:
    """Coordinate k of the exact trajectory is proportional to sqrt(std_k^2 + sigma^2): for three different std in three dimensions its
    deviation has two directions."""
    std = torch.tensor([1.0, 0.3, 0.05], dtype=torch.float64).view(1, 1, 3)
    teacher = Gaussian(torch.zeros(1, 1, 3, dtype=torch.float64), std, (1, 1, 3))
    study = study_of(teacher, tmp_path)
    shape = study.shapes(1.0)
    sigmas = torch.from_numpy(make_grid("polynomial", 200, (0.002, 80.0)).sigmas.copy()).view(1, -1, 1, 1, 1)
    x = 80 * PhiloxNoise(torch.arange(16)).normal(LATENT, (1, 1, 3)).double()[:, None]
    exact = shape_of(x * torch.sqrt((std**2 + sigmas**2) / (std**2 + 80.0**2)))
    peak = float(exact.away.max())
    assert peak > 0.1
    torch.testing.assert_close(shape.away, exact.away, atol=2e-3 * peak, rtol=0)  # Heun's error at 200 steps is 8e-4 of the peak
    torch.testing.assert_close(shape.shares, exact.shares, atol=2e-3, rtol=0)  # as above
    assert float(exact.shares[:, 1].max()) > 1e-2
    assert float(shape.shares[:, 2].max()) < 1e-20  # three dimensions have two beside the line
    torch.testing.assert_close(shape.shares.sum(1), torch.ones(16, dtype=torch.float64), atol=1e-12, rtol=0)  # rounding
    torch.testing.assert_close(shape.plane.norm(dim=2), shape.away, atol=1e-9, rtol=0)  # rounding at length 80


def test_a_class_of_three_gaussians_deviates_in_two_dimensions(tmp_path: Path) -> None:
    """D of isotropic components lies in the affine hull of x and their three means: at most two dimensions beside the line."""
    model = load_model(group_config("model", "arena_mixture"), "cpu")
    study = replace(study_of(model.teacher, tmp_path, steps=20), model=model)
    shares = study.shapes(1.0).shares
    assert float((1 - shares[:, :2].sum(1)).abs().max()) < 1e-12  # float64 rounding
    assert float(shares[:, 1].max()) > 1e-3
    guided = study.shapes(4.0).shares
    assert float(guided[:, 2].max()) > 1e-6  # the unconditional branch adds the other classes' means


def method(**change: Any) -> OneInterval:
    own = {"interval": 1, "intervals": 3, "substeps": 2, "solver": "dpmpp_3m", "loss": "l1", "batches": 5, "batch_size": 16, "lr": 1e-3}
    return OneInterval(**{**own, **change})


def tiny_model() -> Model:
    _, data = mixture_data(64)
    return Model("tiny", network(data, (8,)), "1" * 16, data, {})


def test_the_teacher_has_no_loss_against_one_euler_step_of_its_own() -> None:
    model = tiny_model()
    own, coarse = (Exam(model, method(solver="euler", substeps=k, loss="l2"), 8, 0, "cpu").before for k in (1, 2))
    assert max(own) < 1e-8  # float32: the runner's step and the student's differ in rounding at states of size 80
    assert min(coarse) > 1e3 * max(own)


def test_grids_of_a_teacher_of_zero_snr_start_where_those_of_its_students_do(tmp_path: Path) -> None:
    teacher = replace(tiny_model().teacher, sigma_range=(math.exp(-10), math.exp(10)))
    assert method().grid(teacher, 0).sigmas[0] == study_of(teacher, tmp_path).grid.sigmas[0] == 80


def weights(tuned: FineTuned, model: Model, store: Store) -> dict[str, torch.Tensor]:
    return dict(tuned.load(model, store, "cpu").net.state_dict())  # pyright: ignore[reportAttributeAccessIssue]


def test_an_interrupted_training_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tuned, quiet = tiny_model(), FineTuned(method(), 3), (lambda _: None)
    whole, broken = Store(tmp_path / "whole"), Store(tmp_path / "broken")
    tuned.ensure(model, whole, "cpu", quiet)
    work = broken.root / "training" / tuned.key(model)
    Engine(tuned.method, model.teacher, model.data, work, Settings(3, progress=False)).run(stop_after=3)
    batches, losses = [], OneInterval.losses
    monkeypatch.setattr(OneInterval, "losses", lambda self, state, *rest: batches.append(state.batch) or losses(self, state, *rest))
    tuned.ensure(model, broken, "cpu", quiet)
    assert batches == [3, 4]
    first, second = weights(tuned, model, whole), weights(tuned, model, broken)
    assert all(torch.equal(first[k], second[k]) for k in first)
    start = model.teacher.net.state_dict()  # pyright: ignore[reportAttributeAccessIssue]
    assert any(not torch.equal(first[k], start[k]) for k in first)
    exam = Exam(model, tuned.method, 8, 0, "cpu")
    first, second = exam.ensure(tuned, whole, quiet), exam.ensure(tuned, broken, quiet)
    assert all(first[name] == second[name] for name in ("before", "after", "files"))


def test_addresses_hold_what_changes_the_numbers() -> None:
    model, tuned = tiny_model(), FineTuned(method(), 0)
    others = [
        FineTuned(method(**{k: v}), 0) for k, v in {"interval": 0, "lr": 2e-3, "solver": "dpmpp_2m", "substeps": 3, "loss": "l2"}.items()
    ]
    others.append(FineTuned(method(), 1))
    assert len({t.key(model) for t in [tuned, *others]}) == 1 + len(others)
    keys = {Exam(model, tuned.method, count, seed, "cpu").key(tuned) for count, seed in ((8, 0), (7, 0), (8, 1))}
    assert len(keys) == 3


def test_heat_maps_are_seed_by_trained_on_by_measured_on() -> None:
    before = [1.0, 2.0, 4.0]
    made = [
        Change(n, seed, before, [b * (1 + 0.1 * n + 0.01 * m + 0.001 * seed) for m, b in enumerate(before)])
        for seed in (0, 1)
        for n in (2, 0, 1)
    ]
    n, m = np.mgrid[:3, :3]
    np.testing.assert_allclose(heat(made), np.stack([0.1 * n + 0.01 * m, 0.1 * n + 0.01 * m + 0.001]), atol=1e-12)  # rounding
    np.testing.assert_allclose(by_distance(made)[2], [0.02, 0.021], atol=1e-12)  # rounding: trained on 0, measured on 2
    np.testing.assert_allclose(by_distance(made)[-2], [0.2, 0.201], atol=1e-12)  # as above, the other way round
    table = long_table([], made)
    line = table[(table.trained_on == 3) & (table.measured_on == 1) & (table.quantity == "relative change")].iloc[0]
    assert line["mean"] == pytest.approx(0.2005)
    assert line["count"] == 2
    assert Change(0, 0, [0.0], [0.0]).relative.tolist() == [0.0]


def small(results: Path, dry: bool = False) -> dict[str, Any]:
    suite = {**SUITE, **{k: {**SUITE[k], **v} for k, v in SMALL.items()}}
    where = {"results": str(results), "device": "cpu", "batch": 5, "threads": 1, "workers": 0, "conf": "", "plugins": ""}
    return {"suite": suite, "seed": 0, "noise": "philox", "dry": dry, **where}


def artefacts(results: Path) -> set[str]:
    return {f"{p.parent.parent.name}/{p.parent.name}" for p in (results / ".store").rglob("record.json")}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a small study of a tiny network."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trajectories, "load_model", lambda *_: tiny_model())
        assert sweep.run(small(folder)) == 0
    return folder


def test_a_study_leaves_numbers_words_and_pictures(done: Path) -> None:
    folder = done / "trajectories"
    assert {p.name for p in folder.iterdir()} == {"study.csv", "study.md", "trajectories.png", "neighbours.png"}
    table = pd.read_csv(folder / "study.csv")
    change = table[table.quantity == "relative change"]
    assert len(change) == 9
    assert set(change["count"]) == {2}
    assert (change[change.trained_on == change.measured_on]["mean"] < 0).all()  # what it was trained on got better
    assert len(table[table.quantity == "deviation"]) == 13
    assert "nan" not in (folder / "study.md").read_text()
    assert len(artefacts(done)) == 1 + 6 + 6  # shapes, trainings, measurements


def test_a_second_run_does_nothing_and_a_lost_piece_is_made_again(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(done, copy)
    monkeypatch.setattr(trajectories, "load_model", lambda *_: tiny_model())
    trained, made = [], []
    engine, shapes = neighbours.Engine, Study._shapes
    monkeypatch.setattr(neighbours, "Engine", lambda *args: trained.append(args[0].interval) or engine(*args))
    monkeypatch.setattr(Study, "_shapes", lambda *args: made.append(args[1]) or shapes(*args))
    (copy / "trajectories" / "study.csv").unlink()
    assert sweep.run(small(copy)) == 0
    assert (trained, made) == ([], [])
    csv = (done / "trajectories" / "study.csv").read_bytes()
    assert (copy / "trajectories" / "study.csv").read_bytes() == csv
    for kind in ("fit", "study"):
        lost = [
            p.parent
            for p in (copy / ".store" / kind).rglob("record.json")
            if json.loads(p.read_text())["label"] == "interval 2 of 3, seed 1"
        ]
        assert len(lost) == 1
        shutil.rmtree(lost[0])
    assert sweep.run(small(copy)) == 0
    assert (trained, made) == ([1], [])
    assert (copy / "trajectories" / "study.csv").read_bytes() == csv


def test_the_dry_run_runs_nothing(done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(trajectories, "load_model", lambda *_: tiny_model())
    assert sweep.run(small(tmp_path, dry=True)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["to"] * 7 + ["about"]
    assert artefacts(tmp_path) == set()
    assert not (tmp_path / "trajectories").exists()
    assert not (tmp_path / ".store" / "training").exists()
    assert sweep.run(small(done, dry=True)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["cached"] * 7 + ["about"]
    assert lines[-1].startswith("about 0.0 minutes")


def test_closed_forms_have_shapes_and_no_fine_tuning(tmp_path: Path) -> None:
    options = [
        "suite.model=arena_mixture",
        "suite.trajectories.samples=4",
        "suite.trajectories.steps=6",
        "threads=1",
        f"results={tmp_path}",
    ]
    (tmp_path / "trajectories").mkdir()
    (tmp_path / "trajectories" / "neighbours.png").write_bytes(b"of another run")
    assert cli.entry("sweep", "", sweep.run, ["+suite=trajectories", *options]) == 0
    assert {p.name for p in (tmp_path / "trajectories").iterdir()} == {"study.csv", "study.md", "trajectories.png"}
    assert "the closed form `arena_mixture` has no network" in (tmp_path / "trajectories" / "study.md").read_text()


@each(
    ("option", "message"),
    [
        ("suite.study=trajektories", "unknown study 'trajektories'; did you mean trajectories?"),
        (
            "suite.trajectories.samples=1",
            "suite.trajectories.samples must be an integer from 2 on, got 1; e.g. suite.trajectories.samples=2",
        ),
        ("suite.trajectories.scales=[]", "suite.trajectories.scales takes different finite numbers, got []; e.g. [1,2,4]"),
        ("suite.trajectories.scales=[1,1]", "suite.trajectories.scales takes different finite numbers"),
        ("suite.trajectories.scales=strong", "suite.trajectories.scales takes different finite numbers, got strong"),
        ("suite.trajectories.scales=[.nan]", "suite.trajectories.scales takes different finite numbers"),
        ("suite.trajectories.solver=ddpm", "the study runs on a solver that draws no noise, got 'ddpm'"),
        ("suite.trajectories.solver=huen", "unknown solver 'huen'; did you mean heun?"),
        ("suite.trajectories.grid=cubic", "unknown grid 'cubic'"),
        ("suite.trajectories.stpes=3", "unknown field 'stpes' in suite.trajectories; did you mean steps?"),
        ("suite.neighbours.intervals=1", "suite.neighbours.intervals must be an integer from 2 on, got 1"),
        ("suite.neighbours.seeds=0", "suite.neighbours.seeds must be an integer from 1 on, got 0"),
        ("suite.neighbours.batches=2.5", "suite.neighbours.batches must be an integer"),
        ("suite.neighbours.lr=0", "suite.neighbours.lr must be above 0, got 0; e.g. 0.0002"),
        ("suite.neighbours.loss=l3", "unknown loss 'l3'"),
        ("suite.neighbours.heldout=1000", "digits has 359 held-out images, got neighbours.heldout=1000; use fewer"),
        ("workers=2", "suite trajectories is a study, which runs in one process; leave workers out"),
        ("suite.model=digts", "unknown model 'digts'"),
        ("seed=-1", "seed must lie in 0..2^62, got -1"),
        ("noise=pink", "unknown noise 'pink'"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(option: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.entry("sweep", "", sweep.run, ["+suite=trajectories", option, "threads=1", f"results={tmp_path}"])
    (line,) = capsys.readouterr().err.splitlines()
    assert code == 2
    assert line.startswith(f"error: {message}")
    assert artefacts(tmp_path) == set()


def test_guidance_needs_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["+suite=trajectories", "suite.model=arena_gaussian", "threads=1", f"results={tmp_path}"]
    assert cli.entry("sweep", "", sweep.run, options) == 2
    assert "guidance needs classes, and model arena_gaussian has none; use suite.trajectories.scales=[1]" in capsys.readouterr().err


def test_a_section_has_its_fields_and_no_others() -> None:
    with pytest.raises(UsageError, match=r"suite\.neighbours is a table of the fields intervals, .*, got None"):
        read_options(NeighbourOptions, {"neighbours": None})
    with pytest.raises(UsageError, match=r"unknown field 'stpes' in suite\.trajectories; did you mean steps\?"):
        read_options(TrajectoryOptions, {"trajectories": {**SUITE["trajectories"], "stpes": 3}})


def test_a_study_has_no_cells() -> None:
    with pytest.raises(
        UsageError, match=r"suite trajectories is a study without cells; run it with python -m bench\.sweep \+suite=trajectories"
    ):
        expand(SUITE, 0, "philox")
