"""What a plan computes, whatever its solver is called: the address of samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench import sweep
from bench.certificate.checks.parity import TwoModes
from bench.jobs.models import Model
from bench.jobs.resolve import resolve
from bench.jobs.samples import Bound, ensure_samples
from bench.jobs.suite import Suite
from bench.settings.compose import group_config
from bench.store.artefacts import Store
from bench.store.cell import Cell
from fewstep.errors import Unreachable
from fewstep.grid import TimeGrid, make_grid
from fewstep.noise import EDMNoise, PhiloxNoise, Slot
from fewstep.plugins import entries, get
from fewstep.sampling.plan import Apply, Combine, Eval, Plan, content, with_afs
from fewstep.sampling.runner import run
from methods.solver import Learned
from support.tiny import mixture_data, network

X = 80 * torch.sin(torch.arange(12, dtype=torch.float64)).view(3, 4)
GRIDS = [make_grid(family, steps, (0.002, 80.0)) for family in ("polynomial", "logsnr") for steps in (1, 2, 3)]
TRAINING_FREE = [name for name in entries("solver") if not isinstance(get("solver", name).make(), Learned)]


def plans(grid: TimeGrid) -> dict[str, Plan]:
    found = {}
    for name in TRAINING_FREE:
        try:
            found[name] = get("solver", name).make().plan(grid)
        except Unreachable:
            continue
    return found


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: f"{grid.steps} from {grid.sigmas[0]:g} by {grid.sigmas[1]:.3g}")
def test_plans_of_one_content_make_the_same_samples(grid):
    """Every training-free solver, in pairs."""
    made = plans(grid)
    ends = {name: run(plan, TwoModes(), X, PhiloxNoise(torch.arange(3)))[plan.states[-1]] for name, plan in made.items()}
    contents = {name: found for name, plan in made.items() if (found := content(plan)) is not None}
    same = [(a, b) for a in contents for b in contents if a < b and contents[a] == contents[b]]
    assert len(same) > 10
    for a, b in same:
        torch.testing.assert_close(ends[a], ends[b], rtol=0, atol=1e-7)  # coefficients to 10 digits of states up to 80


def test_what_two_solvers_are_at_few_steps():
    one, two, three = (plans(grid) for grid in GRIDS[:3])
    assert content(one["euler"]) == content(one["dpmpp_2m"]) == content(one["ipndm_4"])
    assert content(two["ab_v_2"]) == content(two["ab_v_4"]) != content(two["euler"])
    assert content(three["ipndm_3"]) != content(three["ipndm_2"])
    assert content(with_afs(two["euler"])) != content(two["euler"])


def small(sigma=80.0, own=0.25, noise: Slot | None = None, extra=(), names=("x[0]", "D[0]", "x[1]")) -> Plan:
    start, d, out = names
    noised = () if noise is None else ((noise, 0.5),)
    return Plan((Eval(d, start, sigma), Combine(out, ((start, own), (d, 1 - own), *noised, *extra))), (start, out))


def test_names_and_terms_without_weight_do_not_count_and_all_else_does():
    base = content(small())
    assert content(small(names=("a", "b", "c"))) == base
    assert content(small(own=0.25 * (1 + 1e-14))) == base
    assert content(small(extra=(("x[0]", 0.0),))) == base
    swapped = Plan((Eval("D", "x", np.float64(80.0)), Combine("y", (("D", 0.75), ("x", np.array(0.25))))), ("x", "y"))
    assert content(swapped) == base
    jump = Plan((Eval("D", "x", 80.0, to=2.0), Combine("y", (("x", 0.25), ("D", 0.75)))), ("x", "y"))
    other = [small(sigma=79.0), small(own=0.25 * (1 + 1e-9)), small(noise=Slot(1)), small(noise=Slot(2)), small(noise=Slot(1, 1)), jump]
    kept = Plan(small().ops, ("x[0]", "D[0]"))  # another slot is the result
    found = [repr(content(plan)) for plan in (small(), *other, kept)]
    assert len(set(found)) == len(found)


def test_a_noise_without_weight_counts_because_its_draw_moves_a_generator_on():
    def plan(*before) -> Plan:
        return Plan((Combine("y", (*before, ("x", 0.5), (Slot(2), 1.0))),), ("x", "y"))

    x, drawn = torch.zeros(3, 4), (Slot(1), 0.0)
    ends = [run(p, TwoModes(), x, EDMNoise(torch.arange(3)))["y"] for p in (plan(), plan(drawn))]
    assert not torch.equal(*ends)
    assert content(plan()) != content(plan(drawn))
    swapped = Plan((Combine("y", ((Slot(2), 1.0), ("x", 0.5), drawn)),), ("x", "y"))
    assert content(swapped) != content(plan(drawn))


def test_a_function_has_no_content():
    applied = Apply(("f",), lambda x: (x,), ("D[0]",))
    assert content(Plan((*small().ops, applied), ("x[0]", "x[1]"))) is None


PLAIN = {"grid": "polynomial", "end": "sigma_min"}
SUITE = Suite("test", 4, 0, "philox", "dpmpp_2m", 4, {}, ())


def test_cells_of_one_content_share_their_samples(tmp_path):
    _, data = mixture_data()
    model, store, labels = Model("mixture", network(data), "0" * 64, data, {}), Store(tmp_path), list[str]()

    def key(solver: str, nfe: int, suite: Suite = SUITE, **axes) -> str:
        return resolve(Cell("teacher", solver, nfe=nfe, **PLAIN | axes), suite, model).key

    assert key("euler", 1) == key("dpmpp_2m", 1) == key("euler", 1, grid="logsnr")
    assert key("ab_v_4", 2) == key("ab_v_2", 2)
    euler = [key("euler", 2, grid=grid, **axes) for grid in ("polynomial", "logsnr") for axes in ({}, {"afs": True}, {"end": "zero_last"})]
    euler += [key("euler", 2, wrap="clip"), key("heun", 2), key("gits", 2), key("gits_euler", 2)]
    euler += [key("euler", 2, replace(SUITE, **other)) for other in ({"seed": 4}, {"samples": 8}, {"noise": "edm"})]
    guided = [resolve(Cell("teacher", "euler", nfe=4, guidance=g, **PLAIN), SUITE, model).key for g in (2.0, 3.0)]
    assert len({*euler, *guided}) == len(euler) + 2
    for solver in ("euler", "dpmpp_2m"):
        job = resolve(Cell("teacher", solver, nfe=1, **PLAIN), SUITE, model)
        images = ensure_samples(Bound(job, model, store, "cpu"), 4, labels.append).images[:]
        assert images.shape[0] == 4
    assert len(list((tmp_path / ".store" / "samples").iterdir())) == 1
    assert store.read("samples", job.key)["first"] == resolve(Cell("teacher", "euler", nfe=1, **PLAIN), SUITE, model).cell.label


def test_a_student_that_reads_its_steps_has_them_in_its_address():
    _, data = mixture_data()
    model = Model("mixture", network(data), "0" * 64, data, {})
    job = resolve(Cell("sfd_v", nfe=2), SUITE, model)
    assert job.spec["steps"] == 3
    assert "steps" not in resolve(Cell("teacher", "euler", nfe=2, **PLAIN), SUITE, model).spec


def test_an_address_holds_only_options_that_are_not_the_default():
    """So an option that is added later leaves addresses as they are; this is the list of what has always been in one."""
    _, data = mixture_data()
    model = Model("mixture", network(data), "0" * 64, data, {})
    always = {"model", "fit", "phase", "sampler_version", "guidance", "noise", "seed", "count", "dtype"}
    assert resolve(Cell("teacher", "euler", nfe=2, **PLAIN), SUITE, model).spec.keys() == always | {"plan", "sigma_max"}
    fitted = resolve(Cell("teacher", "gits", nfe=2, **PLAIN), SUITE, model).spec.keys()
    assert fitted == always | {"solver", "solver_version", "levels", "afs", "solver_fit"}
    clipped = resolve(Cell("teacher", "gits", nfe=2, wrap="clip", **PLAIN), SUITE, model).spec.keys()
    assert clipped == fitted | {"wrap"}


def test_a_dry_run_counts_samples_that_cells_share_once(tmp_path, capsys):
    blocks = [{"solver": ["euler", "dpmpp_2m"], "nfe": [1, 3]}]
    suite = {**group_config("suite", "smoke"), "base": {**PLAIN, "metrics": ["fd_digits"]}, "blocks": blocks}
    where = {"results": str(tmp_path), "device": "cpu", "batch": 4, "threads": 1, "workers": 0, "conf": "", "plugins": ""} | {
        "executor": "",
        "keep": "samples",
        "fetch": False,
    }
    assert sweep.run({"suite": suite, "seed": 0, "noise": "philox", "dry": True, **where}) == 0
    cells = [line for line in capsys.readouterr().out.splitlines() if "teacher/" in line]
    assert ["about" in line for line in cells] == [True, True, False, True]


def test_a_dry_run_tells_a_finished_cell_from_one_that_shares_its_samples(tmp_path, capsys):
    suite = {**group_config("suite", "smoke"), "base": {**PLAIN, "metrics": ["fd_digits"]}}
    config = {
        "seed": 0,
        "noise": "philox",
        "results": str(tmp_path),
        "device": "cpu",
        "batch": 4,
        "threads": 1,
        "workers": 0,
        "conf": "",
        "plugins": "",
        "executor": "",
        "keep": "samples",
        "fetch": False,
    }
    assert sweep.run({"suite": {**suite, "blocks": [{"solver": "euler", "nfe": 1}]}, "dry": False, **config}) == 0
    capsys.readouterr()
    assert sweep.run({"suite": {**suite, "blocks": [{"solver": ["euler", "dpmpp_2m"], "nfe": 1}]}, "dry": True, **config}) == 0
    told = capsys.readouterr().out
    assert [line.split("teacher")[0].strip() for line in told.splitlines() if "teacher/" in line] == ["cached", "to do"]
    assert "2 cells, 1 to do" in told
