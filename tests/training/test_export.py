"""Exported students: the same samples anywhere, and one clear line for everything that is not what it should be."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from bench import export, sample
from bench.export import job_of
from bench.jobs import models
from bench.jobs.fits.students import Student
from bench.jobs.models import Model, load_model
from bench.jobs.resolve import resolve
from bench.jobs.samples import Bound, ensure_samples
from bench.jobs.suite import Suite
from bench.settings import cli
from bench.store.artefacts import Store
from bench.store.cell import Cell
from fewstep.cond import Cond
from fewstep.errors import Unreachable, UsageError
from fewstep.files import file_digest
from fewstep.grid import TimeGrid
from fewstep.nets.loading import load_denoiser
from fewstep.nets.readers.card import SHIPPED, identity, save_weights
from fewstep.noise import LATENT, PhiloxNoise
from fewstep.plugins import entries, get
from fewstep.sampling.runner import run
from fewstep.strength import strengths_of
from fewstep.students import FILE, load_student
from support.each import each
from support.registered import put
from support.tiny import CLASSES, mixture_data, network, pictured

BUDGET = {"batches": 2, "batch_size": 4, "start": 2, "count": 16, "nodes": 6, "teacher_steps": 2}
CHANNELS = (8, 16)


def network_config(path: Path, classes: int) -> dict:
    """A tiny teacher on disk, as a `model` configuration names it."""
    data = replace(mixture_data()[1], classes=classes)
    teacher = network(data, CHANNELS)
    config = {"name": "tiny", "data": "mixture", "weights": str(path), "arch": "unet", "sigma_range": [0.002, 80.0]}
    config |= {"config": {"channels": list(CHANNELS), "blocks": 1, "emb": 32}}
    save_weights(path, teacher.net.state_dict(), models.card_of(config, data))
    return config


def tiny(monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str = "network", task: str = "") -> Model:
    """A tiny model of each kind: a network with or without classes, or a closed form whose students start warm."""
    form, data = mixture_data()
    if kind == "unconditional":
        data = replace(data, classes=0, train_y=0 * data.train_y)
    put(monkeypatch, "data", "mixture", lambda: data)
    if kind != "closed":
        own = network_config(folder / "tiny.safetensors", 0 if kind == "unconditional" else CLASSES)
        return load_model(own | ({"task": task} if task else {}), "cpu")
    put(monkeypatch, "closed_form", "mixture", lambda: form)
    config = {"name": "mixture", "data": "mixture", "closed_form": "mixture", "arch": "unet", "sigma_range": [0.002, 80.0]}
    return load_model(config | {"config": {"channels": [8, 16], "blocks": 1, "emb": 32}, "options": {"batches": 2, "batch_size": 4}}, "cpu")


def suite_of(method: str, seed: int = 3, **options) -> Suite:
    fields = get("distiller", method).fields
    found = {k: v for k, v in {**BUDGET, **options}.items() if k in fields}
    return Suite("tiny", 6, seed, "philox", "dpmpp_2m", 1, {method: found}, ())


def exported(cell: Cell, steps: int, suite: Suite, model: Model, folder: Path):
    """A student trained into folder/store and written to folder/out: its job, the store, and where it is."""
    job, store = job_of(cell, steps, suite, model), Store(folder / "store")
    for fit in job.fits:
        fit.ensure(model, store, "cpu", lambda text: None)
    export.export(job, model, store, folder / "out")
    return job, store, folder / "out"


@pytest.mark.parametrize("name", entries("distiller"))
def test_an_exported_student_makes_the_sweeps_samples(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """To the bit, after the store and the teacher are gone; whatever its preconditioning, solver, scalars or AFS are."""
    model = tiny(monkeypatch, tmp_path, task="superres_x2" if pictured(name) else "")
    suite = suite_of(name)
    steps = 1 + get("distiller", name).make(**suite.options[name]).sampling().afs
    job, store, folder = exported(Cell(name), steps, suite, model, tmp_path)
    expected = ensure_samples(Bound(job, model, store, "cpu"), 4, lambda text: None)
    wanted = expected.images[:]
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "tiny.safetensors").unlink()
    student = load_student(folder)
    asked = {"condition": model.task.conditions(torch.arange(3, 9), model.teacher).image} if pictured(name) else {}
    images, labels = student.sample(torch.arange(3, 9), batch=4, **asked)
    assert torch.equal(images, torch.from_numpy(wanted))
    assert torch.equal(labels, torch.from_numpy(expected.labels))
    told = student.card["student"]
    assert (told["method"], told["steps"], told["nfe"]) == (name, steps, job.cell.nfe)
    assert told["training"]["train_seconds"] > 0
    assert told["training"]["passes"]
    assert student.sampling == job.student.distiller().sampling()
    assert student.card["sha256"] == file_digest(folder / FILE)


@pytest.mark.parametrize(("name", "options"), [("lcm", {"released": True, "nodes": 51, "skip": 1}), ("sfd_one", {"second_loss": "l2"})])
def test_variants_travel_with_their_options(name: str, options: dict, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, suite = tiny(monkeypatch, tmp_path), suite_of(name, **options)
    job, store, folder = exported(Cell(name), 2, suite, model, tmp_path)
    expected = ensure_samples(Bound(job, model, store, "cpu"), 6, lambda text: None)
    student = load_student(folder)
    assert student.card["student"]["options"].items() >= options.items()
    assert torch.equal(student.sample(torch.arange(3, 9))[0], torch.from_numpy(expected.images[:]))


def test_a_student_is_sampled_on_levels_by_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They are in the address, the row's levels and the card; a student of fixed intervals refuses them."""
    model, suite = tiny(monkeypatch, tmp_path), suite_of("cd")
    job, store, folder = exported(Cell("cd", grid="at 0.821"), 2, suite, model, tmp_path)
    assert Bound(job, model, store, "cpu").levels() == [80.0, 0.821, 0.002]
    assert job.cell.grid == "at 0.821"
    plain = resolve(Cell("cd", nfe=2), suite, model)
    assert (plain.cell.grid, plain.key != job.key) == ("polynomial", True)
    with pytest.raises(UsageError, match="cd has its own polynomial grid, not logsnr; leave grid out"):
        resolve(Cell("cd", grid="logsnr", nfe=2), suite, model)
    student = load_student(folder)
    assert student.card["student"]["levels"] == [80.0, 0.821, 0.002]
    made = [ensure_samples(Bound(j, model, store, "cpu"), 6, lambda text: None).images[:] for j in (job, plain)]
    assert torch.equal(student.sample(torch.arange(3, 9))[0], torch.from_numpy(made[0]))
    assert np.abs(made[0] - made[1]).max() > 1e-3
    with pytest.raises(Unreachable, match=r"a grid at 0.821 has 2 steps and no other number"):
        resolve(Cell("cd", grid="at 0.821", nfe=3), suite, model)
    with pytest.raises(
        UsageError, match=r"sfd has students for its own polynomial grid, not for levels by hand; leave grid 'at 0.821' out"
    ):
        resolve(Cell("sfd", grid="at 0.821", nfe=1), suite_of("sfd"), model)


@pytest.mark.parametrize("kind", ["unconditional", "closed"])
@pytest.mark.parametrize(("name", "steps"), [("cd", 2), ("pd", 2), ("kd", 1), ("dmd2", 2)])
def test_other_teachers_students_travel_too(kind: str, name: str, steps: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tiny(monkeypatch, tmp_path, kind)
    job, store, folder = exported(Cell(name), steps, suite_of(name), model, tmp_path)
    expected = ensure_samples(Bound(job, model, store, "cpu"), 6, lambda text: None)
    assert torch.equal(load_student(folder).sample(torch.arange(3, 9))[0], torch.from_numpy(expected.images[:]))
    if kind == "unconditional":
        with pytest.raises(UsageError, match="guidance 2 needs classes, and this student has none; use guidance=1"):
            load_student(folder).sample(torch.arange(2), guidance=2.0)


def test_samples_outside_of_sweeps_are_of_the_models_task(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    tiny(monkeypatch, tmp_path)
    config = network_config(tmp_path / "tiny.safetensors", CLASSES) | {"task": "class_conditional_edm"}
    model = load_model(config, "cpu")
    expected = model.task.conditions(torch.arange(3, 9), model.teacher).label
    _, _, folder = exported(Cell("cd"), 1, suite_of("cd"), model, tmp_path)
    assert torch.equal(load_student(folder).sample(torch.arange(3, 9))[1], expected)
    (tmp_path / "tiny.yaml").write_text(json.dumps(config))
    args = [f"model={tmp_path / 'tiny.yaml'}", "solver=euler", "nfe=1", "n=6", "seed=3", f"out={tmp_path / 'a.safetensors'}"]
    assert cli.entry("sample", "", sample.run, [*args, f"results={tmp_path}", "threads=1"]) == 0
    assert torch.equal(load_file(tmp_path / "a.safetensors")["labels"], expected)


@pytest.mark.parametrize(("name", "guidance"), [("cd", 2.0), ("lcm", 2.5)])
def test_guidance_is_the_sweeps(name: str, guidance: float, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From outside for a student like its teacher, as the scalar w for one that reads it, within its range."""
    model = tiny(monkeypatch, tmp_path)
    suite = suite_of(name)
    job, store, folder = exported(Cell(name), 2, suite, model, tmp_path)
    nfe = 2 if job.student.distiller().sampling().w else 4
    guided = resolve(Cell(name, nfe=nfe, guidance=guidance), suite, model)
    expected = ensure_samples(Bound(guided, model, store, "cpu"), 6, lambda text: None)
    student = load_student(folder)
    assert torch.equal(student.sample(torch.arange(3, 9), guidance=guidance)[0], torch.from_numpy(expected.images[:]))
    if name == "lcm":
        with pytest.warns(UserWarning, match=f"^{name}: w = 5 is outside of the range 0 to 4 it was trained in"):
            student.sample(torch.arange(2), guidance=6.0)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one exported student of a tiny teacher."""
    folder = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        return exported(Cell("cd"), 2, suite_of("cd"), tiny(patch, folder), folder)[2]


def copied(kept: Path, folder: Path) -> tuple[Path, dict]:
    shutil.copytree(kept, folder / "copy")
    return folder / "copy", json.loads((kept / "student.json").read_text())


def write(folder: Path, card: dict) -> None:
    """A card whose identity is right: one that an export of something else could have written."""
    sealed = {**card, "sha256": file_digest(folder / FILE)}
    (folder / "student.json").write_text(json.dumps({**sealed, "identity": identity(sealed)}))


def test_changed_and_broken_files_are_refused(kept: Path, tmp_path: Path) -> None:
    folder, card = copied(kept, tmp_path)

    def refused(match: str) -> None:
        with pytest.raises(UsageError, match=match) as err:
            load_student(folder)
        assert len(str(err.value).splitlines()) == 1

    for change in ({"steps": 3}, {"levels": [80.0, 1.0, 0.002]}, {"method": "pd"}, {"options": card["student"]["options"] | {"mu": 0.0}}):
        (folder / "student.json").write_text(json.dumps({**card, "student": card["student"] | change}))
        refused(r"student.json was changed after it was written")
    (folder / "student.json").write_text(json.dumps({k: v for k, v in card.items() if k != "student"}))
    refused(r"student.json was changed after it was written")
    (folder / "student.json").write_text("{")
    refused("is not valid JSON")
    (folder / "student.json").unlink()
    refused("have no card student.json beside them")
    write(folder, card)
    assert load_student(folder).card["student"]["steps"] == 2
    assert load_student(folder / FILE).card["student"]["steps"] == 2
    raw = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(raw[: len(raw) // 2])
    refused("are truncated or not safetensors")
    (folder / FILE).write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    refused("do not match their card")
    (folder / FILE).unlink()
    refused(r"no exported student at .*student.safetensors; write one with python -m bench.export method=NAME out=")


def test_other_methods_shapes_and_versions_are_refused(kept: Path, tmp_path: Path) -> None:
    """What another export, another installation or another release would have written."""
    folder, card = copied(kept, tmp_path)
    told = card["student"]

    def refused(change: dict, match: str, **rest) -> None:
        write(folder, {**card, **rest, "student": told | change})
        with pytest.raises(UsageError, match=match) as err:
            load_student(folder)
        assert len(str(err.value).splitlines()) == 1

    refused({"method": "mine"}, "needs the distiller 'mine', which is not installed here; install the plugin that brings it")
    refused({"solver": "mine"}, "needs the solver 'mine', which is not installed here")
    refused({"version": 99}, "was exported with version 99 of cd, here is version 2; export it again")
    refused({"solver_version": 99}, "was exported with version 99 of consistency, here is version 1")
    refused({"options": {"mue": 0.1}}, "distiller 'cd' has no field 'mue'; did you mean mu")
    refused({"method": "lcm", "options": {}, "version": get("distiller", "lcm").make().version}, r"weights .* lack 'embed_scalars.w")
    wider = {**card["config"], "channels": [16, 32]}
    refused({}, r"'.*' has shape \[.*\], the network needs \[", config=wider)
    refused({}, "unknown architecture 'unot'; did you mean unet", arch="unot")
    tensors = load_file(folder / FILE)
    save_file({k: v for k, v in tensors.items() if k != "conv_in.bias"}, folder / FILE)
    refused({}, "lack 'conv_in.bias'; they belong to another architecture or version")


def test_a_teacher_is_no_student_and_a_student_no_teacher(kept: Path) -> None:
    with pytest.raises(UsageError, match="holds no exported student but a unet"):
        load_student(SHIPPED / "digits_edm.safetensors")
    with pytest.raises(UsageError, match=r"are a student of cd; load it with fewstep.load_student"):
        load_denoiser(kept / FILE)


def test_a_student_without_such_a_step_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = tiny(monkeypatch, tmp_path)
    for name, steps, message in (("pd", 3, "pd has students for"), ("kd", 2, "kd has a student for 1 step, not 2")):
        with pytest.raises(Unreachable, match=message):
            job_of(Cell(name), steps, suite_of(name), model)
    with pytest.raises(UsageError, match="is not trained in"):
        Student("cd").weights(model, Store(tmp_path / "s"), 2)


# The entry point

RUNS = [
    ([], "no method given; type method=NAME with one of: cd, "),
    (["method=cdd"], "unknown distiller 'cdd'; did you mean cd"),
    (["method=cd", "steps=0"], "steps must be at least 1, got 0"),
    (["method=cd", "steps=two"], "steps must be an integer, got 'two'"),
    (["method=pd", "steps=3"], "pd has students for 8, 4, 2, 1 steps, not 3"),
    (["method=kd", "steps=2"], "kd has a student for 1 step, not 2; use 1, or another method"),
    (["method=cd", "loss=l3"], "unknown loss 'l3'"),
    (["method=cd", "solver=heun"], "cd is sampled with consistency"),
    (["method=cd", "solver=hoin"], "unknown solver 'hoin'"),
    (["method=cd", "variant=best"], "suite.options has no 'cd/best'"),
    (["method=cd", "grid=at 5 0.821", "steps=2"], "a grid at 5 0.821 has 3 steps and no other number"),
    (["method=pd", "grid=at 0.821", "steps=2"], "pd has students for its own polynomial grid, not for levels by hand"),
    (["method=cd", "step=2"], "unknown field 'step'; did you mean steps"),
    (["method=cd", "model=digit"], "unknown model 'digit'; did you mean digits"),
]


@each(("args", "message"), RUNS)
def test_export_refuses_in_one_line(args, message, capsys, tmp_path) -> None:
    assert cli.entry("export", "", export.run, [*args, f"results={tmp_path}", "threads=1"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.strip().splitlines()) == 1, err
    assert message in err


def test_export_trains_what_is_missing_once(capsys, tmp_path) -> None:
    for steps in (1, 2):
        few = "suite.options.cd={batches: 2, batch_size: 8}"
        args = ["method=cd", f"steps={steps}", "suite=smoke", few, f"results={tmp_path}", "threads=1"]
        assert cli.entry("export", "", export.run, args) == 0
        err = capsys.readouterr().err
        assert ("training cd(" in err) == (steps == 1)
        assert f"for {steps} step(s) in {tmp_path}/students/cd-{steps}" in err
        images, labels = load_student(tmp_path / "students" / f"cd-{steps}").sample(torch.arange(20))
        assert images.shape == (20, 1, 8, 8)
        assert labels.tolist() == [i % 10 for i in range(20)]


def test_help(capsys) -> None:
    assert cli.entry("export", export.__doc__ or "", export.run, ["--help"]) == 0
    assert "load_student" in capsys.readouterr().out


def test_an_exported_student_fills_in_and_starts_from_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Three of its four steps at the strength of its second level, the known part kept, and each row by its own picture."""
    model, suite = tiny(monkeypatch, tmp_path, "network"), suite_of("pd", start=4)
    *_, folder = exported(Cell("pd", nfe=4), 4, suite, model, tmp_path)
    student, seeds = load_student(folder), torch.arange(3)
    levels = student.card["student"]["levels"]
    pictures = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    second = float(strengths_of(TimeGrid(levels), student.denoiser.sigma_range)[1])
    plan, first = student.at_strength(second)
    assert (len(plan.evals), first) == (3, levels[1])
    found, _ = student.sample(seeds, condition=pictures, strength=second)
    x = pictures + first * PhiloxNoise(seeds).normal(LATENT, (1, 4, 4))
    with torch.inference_mode():
        expected = run(plan, student.denoiser, x, PhiloxNoise(seeds), Cond(torch.full((3,), CLASSES)))[plan.states[-1]]
    assert_close(found, expected)
    assert_close(student.sample(seeds, condition=pictures, strength=second, batch=2)[0], found)
    mask = torch.zeros(3, 1, 4, 4)
    mask[..., :2] = 1
    filled, labels = student.sample(seeds, condition=pictures, mask=mask, label=1)
    assert labels.tolist() == [1] * 3
    assert torch.equal(filled[..., 2:], pictures[..., 2:])
    plain = student.sample(seeds)[0]
    assert not torch.equal(filled[..., :2], plain[..., :2])
    for how, words in (
        ({"mask": mask}, "give them as condition="),
        ({"condition": pictures}, "give a mask, to fill it in, or a strength"),
        ({"condition": pictures, "strength": 2}, "strength is a number from 0"),
        ({"condition": pictures, "strength": 0.0}, "leaves nothing to do"),
        ({"condition": pictures[:2], "mask": mask}, "3 samples of this model are asked by"),
        ({"condition": pictures, "mask": mask, "guidance": 2.0}, "give a label, or guidance 1"),
    ):
        with pytest.raises(UsageError, match=words):
            student.sample(seeds, **how)


def test_a_strength_means_the_same_in_a_cell_and_in_an_exported_student(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a student that takes any level as many steps from there down; of one that knows its own alone, what is left of them."""
    for name, options, steps in (("cd", {"nodes": 9}, 3), ("pd", {"start": 4}, 4)):
        folder = tmp_path / name
        folder.mkdir()
        model, suite = tiny(monkeypatch, folder, "network"), suite_of(name, **options)
        *_, out = exported(Cell(name, nfe=steps), steps, suite, model, folder)
        plan, first = load_student(out).at_strength(0.6)
        edited = replace(model, config={**model.config, "task": "edit_strokes"})
        job = resolve(Cell(name, nfe=len(plan.evals), strength=0.6), suite, edited)
        assert job.steps == steps
        assert (job.sigma_max, len(job.grid.sigmas)) == (pytest.approx(first, rel=1e-12), len(plan.evals) + 1)
    with pytest.raises(UsageError, match="analytical"):
        replace(load_student(out), sampling=get("distiller", "sfd").make().sampling()).at_strength(0.6)
