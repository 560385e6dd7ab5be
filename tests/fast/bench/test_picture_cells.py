"""Cells of models that are asked by pictures: students that others taught, starts at a strength, and what is put into every D."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench.jobs.fits.teachers import teacher_fit
from bench.jobs.models import Model, load_model
from bench.jobs.resolve import options_used, resolve, student_of
from bench.jobs.suite import Suite
from bench.settings.compose import group_config
from bench.store.cell import Cell
from fewstep.errors import Unreachable, UsageError
from fewstep.wrappers import Prior, picture_channels
from support.registered import changed

PLAIN = group_config("model", "digits")
OPTIONS: dict[str, dict[str, Any]] = {
    "pd": {"start": 4},
    "cd/finetuned": {"taught_by": "finetune"},
    "cd/frozen": {"taught_by": "finetune", "freeze": "branch"},
    "finetune/distilled": {"taught_by": "pd", "taught_steps": 4},
    "cd/controlled": {"adapter": "controlnet"},
    "cd/around": {"taught_by": "pd/around"},
    "pd/around": {"taught_by": "cd/around"},
    "cd/odd": {"taught_by": 3},
}


def model(task: str = "superres_x2") -> Model:
    return load_model(PLAIN | ({"task": task} if task else {}), "cpu")


def suite(**options: dict[str, Any]) -> Suite:
    return Suite("pictures", 8, 0, "philox", "dpmpp_2m", 4, OPTIONS | options, ())


def test_a_model_of_pictures_has_a_prior_that_is_not_told_them() -> None:
    asked, plain = model(), model("")
    assert isinstance(asked.teacher, Prior)
    assert (picture_channels(asked.teacher), picture_channels(plain.teacher)) == (1, 0)
    assert asked.data.classes == 0  # the task has no labels
    assert model("inpaint_half").teacher.channels == 2  # pyright: ignore[reportAttributeAccessIssue]
    labelled = load_model(PLAIN | {"task": "superres_x4_labelled"}, "cpu")
    assert labelled.prior == plain.digest
    assert len({labelled.digest, labelled.asking, labelled.prior}) == 3


def test_students_that_are_told_no_pictures_are_the_priors() -> None:
    """So that those of a suite of generation are found again; others learn from pictures, whichever images ask when they are sampled."""
    plain, labelled = model(""), load_model(PLAIN | {"task": "superres_x4_labelled"}, "cpu")
    cd, codi = (student_of(Cell(name), suite()) for name in ("cd", "codi"))
    assert cd.key(labelled) == cd.key(plain)
    assert codi.spec(labelled)["teacher"] == labelled.asking
    assert student_of(Cell("cd", variant="finetuned"), suite()).spec(labelled)["teacher"] == labelled.asking
    other = replace(labelled.data, heldout_x=labelled.data.heldout_x[:40], heldout_y=labelled.data.heldout_y[:40])
    assert codi.key(replace(labelled, data=other)) == codi.key(labelled)


def test_students_are_taught_by_others() -> None:
    asked = model()
    finetuned, frozen = (student_of(Cell("cd", variant=v), suite()) for v in ("finetuned", "frozen"))
    assert finetuned.taught_by is not None
    assert finetuned.taught_by.method == "finetune"
    assert list(finetuned.requires(asked).values()) == [finetuned.taught_by]
    assert len({finetuned.key(asked), frozen.key(asked), student_of(Cell("cd"), suite()).key(asked)}) == 3
    distilled = student_of(Cell("finetune", variant="distilled"), suite())
    assert distilled.spec(asked)["taught_phase"] == "4"
    longer = suite(**{"finetune/distilled": {"taught_by": "pd", "taught_steps": 2}})
    assert student_of(Cell("finetune", variant="distilled"), longer).key(asked) != distilled.key(asked)
    assert options_used(Cell("finetune", variant="distilled"), suite()) == ["finetune/distilled", "pd"]
    for variant, told in (("around", "waits for"), ("odd", "names a student as method or method/variant")):
        with pytest.raises(UsageError, match=told):
            student_of(Cell("cd", variant=variant), suite())


def test_a_branch_of_another_is_part_of_the_samples_address_and_not_of_the_training() -> None:
    asked = model()
    own, controlled = (resolve(Cell("cd", variant=v, nfe=2), suite(), asked) for v in ("", "controlled"))
    assert own.spec["fit"] == controlled.spec["fit"]
    assert own.key != controlled.key
    assert [fit.label for fit in controlled.fits] == ["cd()", "controlnet()"]


def test_sampling_starts_at_a_strength() -> None:
    edited = model("edit_strokes")
    whole, part = (
        resolve(Cell(solver="euler", grid="polynomial", end="sigma_min", nfe=3, strength=s), suite(), edited) for s in (1.0, 0.5)
    )
    assert part.steps == 3
    assert part.sigma_max < whole.sigma_max
    assert part.grid.steps == 3
    four = resolve(Cell("pd", nfe=4), suite(), edited)
    strength = next(s for s in np.linspace(0.99, 0.3, 70) if _left(edited, float(s)) == 3)
    three = resolve(Cell("pd", nfe=3, strength=float(strength)), suite(), edited)
    assert three.steps == 4  # the student for four steps, from its second level down
    np.testing.assert_array_equal(three.grid.sigmas, four.grid.sigmas[1:])
    assert three.spec["phase"] == four.spec["phase"]
    for cell, of, told in (
        (Cell(solver="euler", grid="polynomial", end="sigma_min", nfe=3, strength=0.5), model(), "starts from pictures"),
        (Cell(solver="euler", grid="polynomial", end="sigma_min", nfe=3, strength=1.5), edited, "from 0, the picture itself, to 1"),
        (Cell(solver="gits", grid="polynomial", end="sigma_min", nfe=3, strength=0.5), edited, "fitted to its own levels"),
        (Cell("sfd", nfe=3, strength=0.5), edited, "analytical"),
        (Cell(solver="euler", grid="polynomial", end="sigma_min", nfe=3, replaced=True), edited, "has no masks"),
    ):
        with pytest.raises(UsageError, match=told):
            resolve(cell, suite(), of)


def _left(of: Model, strength: float) -> int:
    """The passes that the student for four steps has left at a strength."""
    try:
        return 3 if resolve(Cell("pd", nfe=3, strength=strength), suite(), of).steps == 4 else 0
    except Unreachable:
        return 0


def test_what_is_known_is_put_into_every_d() -> None:
    hidden = model("inpaint_half")
    plain, replaced = (
        resolve(Cell(solver="ddpm", grid="polynomial", end="sigma_min", nfe=3, replaced=r), suite(), hidden) for r in (False, True)
    )
    assert plain.key != replaced.key
    assert "replaced" not in plain.spec  # older addresses stay valid


def test_who_may_teach_and_whose_branch_may_be_lent() -> None:
    options = {
        "cd/by_gd": {"taught_by": "gd"},
        "cd/by_sfd_v": {"taught_by": "sfd_v"},
        "kd/finetuned": {"taught_by": "finetune"},
        "cd/lent": {"adapter": "finetune"},
        "pd/by_sfd": {"taught_by": "sfd", "taught_steps": 3},
    }
    for name, told in (
        ("cd/by_gd", "guidance weight or the number of steps"),
        ("cd/by_sfd_v", "guidance weight or the number of steps"),
        ("kd/finetuned", "pairs of the model's own teacher"),
        ("cd/lent", "not one beside a frozen network"),
    ):
        method, _, variant = name.partition("/")
        with pytest.raises(UsageError, match=told):
            student_of(Cell(method, variant=variant), suite(**options))
    taught = student_of(Cell("pd", variant="by_sfd"), suite(**options)).taught_by
    assert taught is not None
    assert taught.options["steps"] == 3  # a fit for each number of steps
    for cell, of, told in (
        (Cell("cd", variant="controlled", solver="consistency_search", nfe=2), model(), "a branch of another"),
        (Cell("codi", nfe=2), model("edit_strokes"), "starts from them"),
    ):
        with pytest.raises(UsageError, match=told):
            resolve(cell, suite(), of)


def test_the_version_of_a_branch_is_in_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, codi = model(), student_of(Cell("codi"), suite())
    before = codi.key(asked)
    changed(monkeypatch, "branch", "codi", preset={"version": 2})
    assert codi.key(asked) != before


def test_agreement_with_the_teacher_is_of_its_own_questions() -> None:
    """Not of students that are told what it is not, nor of samples that begin elsewhere."""
    asked, edited, hidden = model(), model("edit_strokes"), model("inpaint_half")
    plain = {"solver": "euler", "grid": "polynomial", "end": "sigma_min", "nfe": 3}
    for cell, of, solved in (
        (Cell(**plain), asked, True),
        (Cell("cd", nfe=2), asked, True),
        (Cell("codi", nfe=2), asked, False),
        (Cell("cd", variant="finetuned", nfe=2), asked, False),
        (Cell("cd", variant="controlled", nfe=2), asked, False),
        (Cell(**plain, strength=0.5), edited, False),
        (Cell(**plain), edited, False),
        (Cell(**plain, replaced=True), hidden, False),
    ):
        assert resolve(cell, suite(), of).solved_by(of) == solved, cell


def test_priors_are_trained_once_for_all_tasks() -> None:
    config = group_config("model", "cifar_smoke")
    tasks = ("superres_x4_labelled", "superres_x4", "inpaint_half", "")
    labelled, first, second, plain = (load_model(config | ({"task": task} if task else {}), "cpu") for task in tasks)
    keys = [teacher_fit(m).key(m) for m in (labelled, first, second, plain)]  # pyright: ignore[reportOptionalMemberAccess]
    assert keys[1] == keys[2]
    assert keys[0] == keys[3]
    assert keys[0] != keys[1]  # without labels it is another training
