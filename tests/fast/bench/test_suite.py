"""Suites expand to the same cells in the same order, whatever is repeated in them."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.jobs.resolve import student_of
from bench.jobs.suite import Suite, expand
from bench.settings.compose import configure, group_config
from bench.settings.files import choices
from bench.store.cell import Cell, cell_name
from fewstep.errors import UsageError
from fewstep.plugins import entries
from support.each import each

BLOCK = {"solver": ["euler", "heun"], "grid": "polynomial", "end": ["zero", "sigma_min"], "nfe": [1, 2], "metrics": ["fd_digits"]}


def suite_of(*blocks: dict[str, Any], **change: Any) -> Suite:
    config = {"name": "s", "model": "digits", "samples": 10, "reference": "dpmpp_2m", "reference_steps": 4, "blocks": list(blocks)} | change
    return expand(config, 0, "philox")


def test_a_block_is_the_product_of_its_lists_in_order() -> None:
    cells = suite_of(BLOCK).cells
    assert [(c.solver, c.end, c.nfe) for c in cells] == [
        (solver, end, nfe) for solver in ("euler", "heun") for end in ("zero", "sigma_min") for nfe in (1, 2)
    ]
    assert cells[0] == Cell("teacher", "euler", "polynomial", "zero", nfe=1, metrics=("fd_digits",))


def subsets(values: list[Any]) -> st.SearchStrategy[list[Any]]:
    return st.lists(st.sampled_from(values), min_size=1, unique=True)


def blocks() -> st.SearchStrategy[dict[str, Any]]:
    metrics = subsets(["fd_digits", "class_accuracy", "timing"])
    axes = {"solver": subsets(["euler", "heun"]), "nfe": subsets([1, 2, 4]), "guidance": subsets([1, 2.0, 4]), "metrics": metrics}
    return st.fixed_dictionaries(axes, optional={"afs": subsets([False, True])})


def identity(cell: Cell) -> tuple[Any, ...]:
    return tuple(v for k, v in vars(cell).items() if k != "metrics")


@given(st.lists(blocks(), min_size=1, max_size=4), st.lists(blocks(), max_size=2))
def test_expansion_is_idempotent_and_keeps_its_order(first: list[dict[str, Any]], more: list[dict[str, Any]]) -> None:
    once = suite_of(*first)
    assert once == suite_of(*first)
    assert suite_of(*first, *first) == once  # repeated blocks add nothing
    assert suite_of(*({k: [v] if k != "metrics" else list(v) for k, v in vars(c).items()} for c in once.cells)) == once
    assert len({identity(c) for c in once.cells}) == len(once.cells)
    longer = suite_of(*first, *more).cells
    assert [identity(c) for c in longer[: len(once.cells)]] == [identity(c) for c in once.cells]  # new blocks come after the old ones
    assert all(set(before.metrics) <= set(after.metrics) for before, after in zip(once.cells, longer))


def test_a_cell_in_two_blocks_has_the_metrics_of_both() -> None:
    other = {"solver": "heun", "grid": "polynomial", "end": "zero", "nfe": 2, "guidance": 1, "metrics": ["timing", "fd_digits"]}
    cells = suite_of(BLOCK, other).cells
    assert len(cells) == 8
    merged = [c for c in cells if "timing" in c.metrics]
    assert [(c.solver, c.end, c.nfe, c.metrics) for c in merged] == [("heun", "zero", 2, ("fd_digits", "timing"))]


def test_a_suite_without_a_key_it_needs_is_one_line() -> None:
    with pytest.raises(UsageError, match=r"^the suite lacks reference, blocks; bench/conf/suite/digits\.yaml has every key"):
        expand({"name": "s", "model": "digits", "samples": 10, "reference_steps": 4}, 0, "philox")


def test_base_values_hold_unless_a_block_gives_its_own() -> None:
    cells = suite_of({"solver": "euler"}, {"solver": "heun", "nfe": 5}, base={"nfe": 3, "metrics": ["fid"]}).cells
    assert [(c.solver, c.nfe, c.metrics) for c in cells] == [("euler", 3, ("fid",)), ("heun", 5, ("fid",))]


def test_grids_and_ends_of_the_base_are_the_teachers() -> None:
    base = {"grid": "logsnr", "end": "zero", "afs": True, "nfe": 2, "fit_seed": 1}
    teacher, student = suite_of({"solver": "euler"}, {"method": "cd"}, base=base).cells
    assert (teacher.grid, teacher.end, teacher.afs, teacher.fit_seed) == ("logsnr", "zero", True, 0)
    assert (student.grid, student.end, student.afs, student.fit_seed) == ("", "", False, 1)
    both = suite_of({"method": ["teacher", "cd"], "solver": "euler"}, base=base).cells
    assert [(c.method, c.grid, c.fit_seed) for c in both] == [("teacher", "logsnr", 0), ("cd", "", 1)]


def test_a_row_names_its_cell() -> None:
    row = {"model": "digits", "method": "sfd", "solver": "euler", "grid": "polynomial", "end": "sigma_min", "afs": True, "nfe": 2}
    row |= {"guidance": 3.0, "loss": "l1", "wrap": "", "variant": "heun", "fit_seed": 2, "metric": "fd_digits"}
    assert cell_name(row) == "digits sfd/heun/l1/euler/polynomial/sigma_min/afs/seed 2 NFE 2 at guidance 3"


@each(
    ("block", "message"),
    [
        ({"sovler": "euler"}, "unknown axis 'sovler' in a suite block; did you mean solver?"),
        ({"method": "naive", "solver": "real_trian"}, "unknown naive row 'real_trian'; did you mean real_train?"),
        ({"method": "naive"}, "unknown naive row"),
        ({"solver": "euler", "nfe": "4"}, "nfe"),
        ({"solver": "euler", "nfe": 4.5}, "nfe"),
        ({"solver": "euler", "guidance": "strong"}, "guidance"),
        ({"method": "cd", "end": "zero", "nfe": 1}, "cd has its own end and afs; leave end and afs out of its block"),
    ],
)
def test_bad_blocks_are_refused(block: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        suite_of(block)


def test_one_sample_is_no_suite() -> None:
    with pytest.raises(UsageError, match=r"suite\.samples must be .* got 1"):
        suite_of(BLOCK, samples=1)


@each("name", [n for n in choices("suite") if "blocks" in group_config("suite", n)])
def test_shipped_suites_measure_something_in_every_cell(name: str) -> None:
    suite = expand(group_config("suite", name), 0, "philox")
    assert suite.name == name
    assert all(c.metrics for c in suite.cells)
    models = suite.models or ("",) * len(suite.cells)
    assert len({(model, c.label) for model, c in zip(models, suite.cells, strict=True)}) == len(
        suite.cells
    )  # no two cells look alike to the person who reads the log


def test_the_main_suites_hold_every_method_and_solver() -> None:
    """Whoever registers one adds it to the tables; what needs classes or photographs cannot be everywhere."""
    cells = {name: expand(group_config("suite", name), 0, "philox").cells for name in ("digits_full", "arena", "digits_unconditional")}
    methods = {name: {c.method for c in found} - {"naive", "teacher"} for name, found in cells.items()}
    of_pictures = {name for name, entry in entries("distiller").items() if "branch" in entry.fields}  # which have suites of their own
    assert methods["digits_full"] == methods["arena"] == set(entries("distiller")) - of_pictures
    assert {c.method for c in expand(group_config("suite", "codi"), 0, "philox").cells} >= {"codi", "pe_codi", "finetune", "controlnet"}
    assert methods["digits_full"] - methods["digits_unconditional"] == {"gd", "gd_stochastic", "lcm"}
    for name in ("digits_full", "arena"):
        assert {c.solver for c in cells[name] if c.method == "teacher"} == set(entries("solver")) - {"consistency_search"}


@each("name", ["digits_full", "arena", "guidance", "digits_unconditional", "sfd_ablation", "pd_ablation"])
def test_a_budget_multiplies_the_batches_of_every_student(name: str) -> None:
    def batches(*overrides: str) -> list[tuple[str, int]]:
        suite = expand(configure("sweep", [f"+suite={name}", *overrides])["suite"], 0, "philox")
        students = [student_of(c, suite) for c in suite.cells if c.method not in ("naive", "teacher")]
        return [(s.method, vars(s.distiller())["batches"]) for s in students]

    assert batches("suite.budget=4") == [(method, 4 * count) for method, count in batches()]
    assert batches("suite.budget=1") == batches()


def test_a_budget_reaches_variants_and_second_stages_and_leaves_solvers_alone() -> None:
    options = {"sfd_one": {"second_batches": 30}, "sfd/long": {"batches": 90}, "pd": {"start": 8}, "amed": {"batches": 7}}
    blocks = [{"method": ["sfd_one", "sfd", "pd"], "nfe": 1}, {"solver": "amed", "grid": "time_uniform", "nfe": 2}]
    found = suite_of(*blocks, options=options, budget=0.5).options
    assert found["sfd_one"] == {"batches": 60, "second_batches": 15}
    assert (found["sfd"], found["sfd/long"]) == ({"batches": 75}, {"batches": 45})
    assert (found["pd"], found["amed"]) == ({"batches": 125, "start": 8}, {"batches": 7})


def test_a_budget_leaves_a_plugin_without_batches_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    known = entries("distiller")
    monkeypatch.setattr("bench.jobs.suite.entries", lambda kind: {**known, "other": SimpleNamespace(fields={"epochs": 3})})
    assert suite_of({"method": ["other", "kd"], "nfe": 1}, budget=2).options == {"kd": {"batches": 2000}}


@each("budget", [0, -1, True, "long", float("inf")])
def test_a_budget_is_a_factor(budget: Any) -> None:
    with pytest.raises(UsageError, match=r"suite\.budget multiplies .* e\.g\. suite\.budget=4"):
        suite_of(BLOCK, budget=budget)


@pytest.mark.parametrize("name", ["digits_full", "arena", "guidance", "digits_unconditional"])
def test_training_seeds_are_one_override(name: str) -> None:
    def seeds(*overrides: str) -> list[int]:
        suite = expand(configure("sweep", [f"+suite={name}", *overrides])["suite"], 0, "philox")
        return sorted({c.fit_seed for c in suite.cells if c.method not in ("naive", "teacher")})

    assert (seeds(), seeds("suite.base.fit_seed=[0,1,2]"), seeds("suite.base.fit_seed=2")) == ([0], [0, 1, 2], [2])


def student_options(cell: Cell, options: dict[str, Any]) -> dict[str, Any]:
    return dict(student_of(cell, suite_of({"method": "cd", "nfe": 1}, options=options)).options)


def test_a_variant_adds_its_options_to_the_methods_and_the_loss_comes_last() -> None:
    options = {"cd": {"batches": 9, "nodes": 6}, "cd/coarse": {"nodes": 3, "loss": "l1"}}
    assert student_options(Cell("cd"), options) == {"batches": 9, "nodes": 6}
    assert student_options(Cell("cd", variant="coarse"), options) == {"batches": 9, "nodes": 3, "loss": "l1"}
    assert student_options(Cell("cd", variant="coarse", loss="l2"), options)["loss"] == "l2"
    with pytest.raises(UsageError, match=r"suite\.options has no 'cd/corse'.*cd/coarse"):
        student_options(Cell("cd", variant="corse"), options)


def test_students_have_seeds_and_teachers_have_none() -> None:
    suite = suite_of({"method": "cd", "nfe": 1, "fit_seed": [0, 1, 2]})
    assert [student_of(cell, suite).seed for cell in suite.cells] == [0, 1, 2]
    for axis in ({"fit_seed": 1}, {"variant": "coarse"}):
        with pytest.raises(UsageError, match=r"variant and fit_seed are of students, got them for method teacher; leave them out"):
            suite_of({"solver": "euler", "nfe": 1, **axis})
