"""Budgets of suites and published settings: what each suite is under each budget, and what a wrong one says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from bench.fetching.wants import wanted
from bench.jobs.resolve import student_of
from bench.jobs.rows import conditions_of_cell
from bench.jobs.suite import Suite, expand, settings_lines, students_of
from bench.reports.cohorts import cohorts
from bench.reports.published import read_published
from bench.settings.budgets import with_budget
from bench.settings.compose import configure, group_config
from bench.settings.files import CONF, choices, load
from bench.settings.published import options_for, settings_for, settings_named, telling, told, untold
from bench.store.cell import Cell
from bench.store.measures import TIMINGS
from bench.store.supersession import newest
from fewstep.errors import UsageError
from fewstep.plugins import entries, get
from methods.recipe import split
from support.each import each
from support.suites import refused
from support.synthetic import cell_rows

SUITES = [load(path) for path in sorted((CONF / "suite").glob("*.yaml"))]
WITH = [(suite["name"], budget) for suite in SUITES for budget in suite.get("budgets", {})]
PICTURES = ("codi", "codi_ablation", "conditional")
FITTED = ("kd", "pd", "gd", "cd", "ctm", "ect", "sfd", "sfd_v", "sfd_one", "dmd2")


def under(name: str, budget: str) -> Suite:
    return expand(group_config("suite", name, budget=budget), 0, "philox")


def fits(suite: Suite) -> Counter[str]:
    """How many students of each method a suite trains: one for each variant, loss, seed and, where it has them, number of steps."""
    found = {student_of(cell, suite).at(cell.nfe).label + str(cell.fit_seed) + cell.method for cell in suite.cells if cell.trained}
    return Counter(method for method in entries("distiller") for one in found if one.endswith(f"0{method}"))


def test_the_suites_have_the_budgets_of_the_contract() -> None:
    assert {name: [b for n, b in WITH if n == name] for name, _ in WITH} == {
        "cifar": ["smoke", "cpu", "short", "paper"],
        "sfd_ablation_cifar": ["smoke", "paper"],
        **{name: ["smoke", "short", "paper"] for name in ("afhqv2", "ffhq64", "imagenet64")},
        **{name: ["smoke", "cpu", "short"] for name in PICTURES},
    }


@each(("name", "budget"), WITH)
def test_every_cell_names_known_things(name: str, budget: str) -> None:
    config, suite = group_config("suite", name, budget=budget), under(name, budget)
    assert config["budget_name"] == suite.budget == budget
    assert "budgets" not in config
    assert config["model"] in choices("model")
    known = {kind: set(entries(kind)) for kind in ("solver", "distiller", "metric", "grid", "wrapper")}
    for cell in suite.cells:
        assert cell.method in ("naive", "teacher") or cell.method in known["distiller"], cell
        assert cell.method == "naive" or not cell.solver or cell.solver in known["solver"], cell
        assert not cell.grid or cell.grid in known["grid"] or cell.grid.startswith("at "), cell
        assert not cell.wrap or cell.wrap in known["wrapper"], cell
        assert set(cell.metrics) <= known["metric"] | {*TIMINGS, "timing"}, cell
    for key, options in suite.options.items():  # each is refused where it is unknown
        if (method := key.partition("/")[0]) in known["distiller"]:
            assert student_of(Cell(method, variant=key.partition("/")[2]), suite).distiller().version >= 1
        else:
            assert get("solver", method).make(**options).version >= 1


def test_the_cpu_budget_keeps_its_bounds() -> None:
    suite = under("cifar", "cpu")
    solvers = [cell for cell in suite.cells if cell.method == "teacher"]
    assert len(solvers) <= 60
    assert sum(cell.nfe for cell in solvers) <= 700
    assert suite.samples == 2500
    of_tables = {"euler", "heun", "dpm_2s", "dpmpp_3m", "unipc_bh2_3", "deis_tab", "ipndm_4", "ipndm_v_4"}
    assert of_tables | {"amed", "amed_plugin", "gits", "gits_euler"} == {cell.solver for cell in solvers}
    assert fits(suite) == Counter(FITTED)
    assert all(set(suite.options[method]) >= {"batches", "batch_size", "lr"} for method in FITTED)  # none is the digits' by default
    floors = {cell.solver: cell.metrics for cell in suite.cells if cell.method == "naive"}
    assert {"real_heldout", "real_train_subset"} <= set(floors)
    assert all("fid" in metrics for metrics in floors.values())
    at = {nfe: [cell for cell in suite.cells if cell.nfe == nfe] for nfe in (1, 2, 4, 10)}
    assert all(any(cell.method == "teacher" for cell in cells) for cells in at.values())
    assert all(any(cell.trained for cell in at[nfe]) for nfe in (1, 2, 4))


@each(("name", "budget"), [(name, budget) for name, budget in WITH if not name.startswith("sfd_ablation")])
def test_solvers_are_on_the_grids_of_their_published_numbers(name: str, budget: str) -> None:
    """Of every line of the papers that says its grid; AFS and levels by hand are for students and comparisons."""
    papers = read_published()
    stated = papers[(papers["method"] == "teacher") & (papers["grid"] != "")]
    grids = {solver: set(lines["grid"]) for solver, lines in stated.groupby("solver")}
    for cell in under(name, budget).cells:
        if cell.method == "teacher" and cell.solver in grids:
            assert cell.grid in grids[cell.solver], cell
            assert cell.grid in entries("grid"), cell
    assert grids["deis_tab"] == {"time_uniform_rho2"}
    assert grids["amed"] == {"time_uniform"}
    assert grids["gits"] == grids["amed_plugin"] == {"polynomial"}


def test_the_short_and_paper_budgets_score_as_many_samples_as_they_say() -> None:
    assert (under("cifar", "short").samples, under("cifar", "paper").samples) == (10_000, 50_000)
    assert all(under(name, "paper").samples == 50_000 for name in ("imagenet64", "ffhq64", "afhqv2", "sfd_ablation_cifar"))


@each("name", sorted({name for name, _ in WITH}))
def test_a_smoke_budget_has_a_cell_of_each_solver_family_and_one_fit_of_each_method(name: str) -> None:
    smoke, paper = under(name, "smoke"), under(name, "short" if name in PICTURES else "paper")
    assert smoke.mark == "not a measurement"
    assert {cell.method for cell in smoke.cells} == {cell.method for cell in paper.cells}
    if name not in ("sfd_ablation_cifar", *PICTURES):  # whose blocks differ in their variants
        assert all(count == 1 for count in fits(smoke).values())
        fitted = {"amed", "amed_plugin", "gits"}
        assert fitted <= {cell.solver for cell in smoke.cells}
    model = group_config("model", group_config("suite", name, budget="smoke")["model"])
    assert (model["weights"], model["data"]) == ("trained", "patterns32")  # nothing is fetched
    assert not {"fid", "lpips_teacher"} & {metric for cell in smoke.cells for metric in cell.metrics}


def test_a_budget_replaces_fields_and_merges_options() -> None:
    suite: dict[str, Any] = {"name": "s", "samples": 9, "options": {"cd": {"lr": 1, "nodes": 3}}, "base": {"afs": True}, "blocks": [1]}
    suite["budgets"] = {"cpu": {"samples": 3, "options": {"cd": {"lr": 2}, "kd": {"lr": 3}}, "base": {"end": "zero"}, "blocks": [2]}}
    found = with_budget(suite)
    assert found == {
        "name": "s",
        "samples": 3,
        "options": {"cd": {"lr": 2, "nodes": 3}, "kd": {"lr": 3}},
        "base": {"afs": True, "end": "zero"},
        "blocks": [2],
        "budget_name": "cpu",
    }
    assert with_budget({"name": "s", "samples": 9}) == {"name": "s", "samples": 9}


def test_published_settings_come_first_and_a_budget_s_options_over_them() -> None:
    options = under("cifar", "short").options
    assert options["cd"]["lr"] == settings_named("cifar10")["cd"].options["lr"]
    assert options["cd"]["batches"] == 10_000
    assert under("sfd_ablation_cifar", "paper").options["sfd"] == settings_named("cifar10")["sfd"].options


@each(("device", "budget"), [("cpu", "cpu"), ("cuda", "short"), ("cuda:1", "short")])
def test_the_default_is_what_the_device_can_do(device: str, budget: str) -> None:
    assert group_config("suite", "cifar", device=device)["budget_name"] == budget
    if device != "cpu":
        assert group_config("suite", "sfd_ablation_cifar", device=device)["budget_name"] == "paper"  # the largest, where it has no such one
    assert group_config("suite", "sfd_ablation_cifar")["budget_name"] == "paper"  # so where no device is said


def test_the_command_takes_a_budget() -> None:
    assert configure("sweep", ["+suite=cifar", "budget=smoke"])["suite"]["model"] == "cifar_smoke"
    assert configure("sweep", ["+suite=cifar", "budget=paper", "suite.options.cd.lr=1e-3"])["suite"]["options"]["cd"]["lr"] == 1e-3
    assert configure("train", ["suite=cifar", "budget=paper", "method=cd"])["suite"]["options"]["cd"]["batches"] == 800_000


WRONG = [
    (["suite=cifar", "budget=tiny"], "suite cifar has no budget 'tiny'; known: cpu, paper, short, smoke"),
    (["suite=cifar", "budget=papr"], "did you mean paper?"),
    (["suite=sfd_ablation_cifar", "budget=cpu"], "suite sfd_ablation_cifar has no budget 'cpu'; it has smoke, paper"),
    (["suite=imagenet64"], "suite imagenet64 has no budget for a CPU; type budget=smoke or budget=short or budget=paper"),
    (["suite=sfd_ablation_cifar"], "suite sfd_ablation_cifar has no budget for a CPU; type budget=smoke or budget=paper"),
    (["suite=digits", "budget=smoke"], "suite digits has no budgets; leave budget=smoke out"),
    (["budget=smoke"], "budget=smoke is a suite's; add suite=NAME"),
]


@each(("args", "message"), WRONG)
def test_a_wrong_budget_is_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refused(capsys, "sweep", *args)


@each(
    ("budgets", "message"),
    [
        ({"night": {}}, "unknown budget 'night'"),
        ({"cpu": {"sampels": 3}}, "budget cpu has an unknown field 'sampels'; did you mean samples?"),
        ({"cpu": {"settings": "cifar"}}, "unknown settings 'cifar'; did you mean cifar10?"),
        ({"cpu": 3}, "budgets are"),
    ],
)
def test_a_suite_with_wrong_budgets_is_one_line(budgets: Any, message: str) -> None:
    with pytest.raises(UsageError, match=r"suite|settings") as said:
        with_budget({"name": "mine", "budgets": budgets})
    assert message in str(said.value)


def test_rows_of_two_budgets_are_two_cohorts_and_neither_supersedes_the_other() -> None:
    cell = under("cifar", "smoke").cells[-1]
    smoke, cpu = (conditions_of_cell(cell, under("cifar", budget)) for budget in ("smoke", "cpu"))
    assert smoke["budget"] == "smoke (not a measurement)"
    rows = []
    for conditions, recipe in ((smoke, "a"), (cpu, "b")):
        own = cell_rows(method="cd", values={"energy_distance": 1.0}, protocol={"recipe": recipe, "model_digest": "m"})
        rows += [{**row, "conditions": conditions, "cohort": conditions["budget"], "schema": 2} for row in own]
    assert len(cohorts(rows)) == 2
    assert len(newest(rows)) == 2  # though they were trained in two ways
    same = [{**row, "conditions": cpu, "cohort": "cpu"} for row in rows]
    assert len(newest(same)) == 1


@pytest.mark.parametrize("name", entries("distiller"))
def test_every_method_has_its_cifar10_settings_or_says_that_there_are_none(name: str) -> None:
    if not get("distiller", name).cls.__module__.startswith("methods.distill."):
        return  # another's plugin says it itself
    found = settings_for("cifar10")[name]
    assert found.source or found.none
    method = get("distiller", name).make(**split(found.options)[0])
    fields = get("distiller", name).fields
    assert found.options["batches"] > fields["batches"]  # never the digits' budget
    for option in ("batches", "batch_size", "lr"):
        assert option in found.options, option
    assert method.phases()
    said = told(name, "cifar10")
    assert said.startswith(
        f"no published settings of {name} on cifar10: " if found.none else f"{name} has its published settings on cifar10: "
    )
    assert "\n" not in said


def test_the_figures_of_the_papers() -> None:
    """Those that the issue names, and flips in the model that trains."""
    own = options_for("cifar10")
    assert [own["cd"][f] for f in ("batches", "batch_size", "lr", "mu", "ema", "loss")] == [800_000, 512, 4e-4, 0.0, 0.9999, "lpips"]
    assert [own["sfd"][f] for f in ("batches", "batch_size", "lr")] == [1563, 128, 5e-5]
    assert [own["sfd_v"]["batches"], own["sfd_one"]["second_batches"], own["sfd_one"]["second_lr"]] == [6250, 15_625, 5e-4]
    assert [own["ect"]["batches"], own["pd"]["start"], own["pd"]["last"], own["kd"]["count"]] == [200_000, 4096, 2, 1_024_000]
    assert group_config("model", "cifar10")["augment"] == "flip"
    assert group_config("suite", "cifar", budget="paper")["model"] == "cifar10_edm_uncond_vp"  # as in SFD's table 1 and CM's rows
    assert options_for("CIFAR-10 32x32") == own == options_for("cifar10-32x32")
    assert options_for("digits") == {}


def test_a_data_set_without_settings_says_what_is_used() -> None:
    assert told("cd", "digits") == (
        "digits has no published settings of cd: it has its defaults, which are for trainings of minutes (suite=NAME has others)"
    )


def test_a_training_says_its_settings_before_it_begins() -> None:
    said: list[str] = []
    saying = telling(said.append, ["first", "second"])
    assert said == []  # what is refused, or in the store already, says nothing of them
    saying("training cd")
    saying("done")
    assert said == ["first", "second", "training cd", "done"]


def test_a_suite_without_settings_of_a_method_says_so() -> None:
    """Where some are published for the data; the defaults are those of trainings of minutes."""
    cifar = under("cifar", "cpu")
    line = "suite cifar under budget=cpu has no settings of ict: it has its defaults, which are for trainings of minutes"
    assert settings_lines(cifar, "ict", "cifar10") == [f"{line} (settings: NAME has published ones)"]
    assert settings_lines(under("imagenet64", "paper"), "ect", "imagenet64")[0].startswith(
        "suite imagenet64 under budget=paper has no settings of ect"
    )
    assert settings_lines(cifar, "cd", "cifar10") == []  # the suite has them
    assert settings_lines(cifar, "ict", "patterns32") == untold("mine", "", ["ict"], "digits") == []
    assert settings_lines(students_of(None, 0, "philox", "cifar10"), "cd", "cifar10") == [told("cd", "cifar10")]


@each(("name", "budget"), WITH)
def test_every_method_of_a_suite_has_settings(name: str, budget: str) -> None:
    suite = under(name, budget)
    assert {cell.method for cell in suite.cells if cell.trained} <= set(suite.options)
    learned = {cell.solver for cell in suite.cells if cell.solver in ("amed", "amed_plugin", "gits", "gits_euler")}
    assert budget == "smoke" or learned <= set(suite.options)


@each("name", ["cifar", "sfd_ablation_cifar", "imagenet64", "ffhq64", "afhqv2"])
def test_the_paper_budget_is_the_published_protocol(name: str) -> None:
    told = configure("sweep", [f"suite={name}", "budget=paper"])
    assert (told["noise"], told["seed"], told["suite"]["samples"]) == ("edm", 0, 50_000)
    assert configure("sweep", [f"suite={name}", "budget=paper", "noise=philox"])["noise"] == "philox"
    sampled = [cell for cell in under(name, "paper").cells if cell.method != "naive"]
    assert all("fid_published" in cell.metrics for cell in sampled)
    assert configure("sweep", [f"suite={name}", "budget=smoke"])["noise"] == "philox"


@each("name", ["edm_cifar", "edm_64"])
def test_the_least_of_three_runs_is_of_three_times_as_many_samples(name: str) -> None:
    told = configure("sweep", [f"suite={name}"])
    assert (told["noise"], told["suite"]["samples"]) == ("edm", 150_000)
    suite = expand(told["suite"], told["seed"], told["noise"])
    assert {cell.metrics for cell in suite.cells} == {("fid_published_min3",)}


def test_copying_is_measured_in_every_suite_on_real_images() -> None:
    for name, budget in (
        ("cifar", "cpu"),
        ("cifar", "short"),
        ("cifar", "paper"),
        *((n, "paper") for n in ("imagenet64", "ffhq64", "afhqv2")),
    ):
        assert all("nn_train_share_inception" in cell.metrics for cell in under(name, budget).cells), (name, budget)


def test_guided_distillation_is_on_a_teacher_with_classes() -> None:
    """The unconditional one has no guidance to distil, and the published conditional ones have no branch without labels."""
    for budget in ("short", "paper"):
        suite = under("cifar", budget)
        models = {named for cell, named in zip(suite.cells, suite.models) if cell.method == "gd"}
        assert models == {"cifar10"}
        own = suite.on("cifar10", whole=False)
        assert {cell.method for cell in own.cells} == {"teacher", "gd"}
        assert "gd" not in {cell.method for cell in suite.on("cifar10_edm_uncond_vp", whole=True).cells}
        assert len(own.cells) + len(suite.on("cifar10_edm_uncond_vp", whole=True).cells) == len(suite.cells)
    mine = ["suite=cifar", "budget=paper", "suite.blocks=[{model: cifar10_edm_cond_vp, solver: euler, nfe: 1}]"]
    needs = {piece.label for piece in wanted(configure("fetch", mine))}
    assert {"edm_teachers.cifar10-32x32-cond-vp", "edm_teachers.cifar10-32x32-uncond-vp"} <= needs
    assert "gd" not in {cell.method for cell in under("imagenet64", "paper").cells}  # no teacher there has that branch


def test_a_block_s_model_is_a_name() -> None:
    with pytest.raises(UsageError, match="the model of a suite's block is a name, got 3"):
        expand({**group_config("suite", "smoke"), "blocks": [{"model": 3, "solver": "euler", "nfe": 1}]}, 0, "philox")
