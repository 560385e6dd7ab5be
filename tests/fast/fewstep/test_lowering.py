"""Lowered programs: one update between two network calls, of as few tensors as can be, within the primitive's limits."""

import torch

from fewstep.grid import make_grid
from fewstep.noise import EDMNoise, PhiloxNoise, Slot
from fewstep.plugins import get
from fewstep.sampling.lower import lower
from fewstep.sampling.plan import Combine, Eval, Plan, interpret
from fewstep.sampling.program import Call, Forward, Update
from fewstep.sampling.runner import run
from support.denoisers import COND, DENOISERS, RANGE, SEEDS, SHAPE, assert_same, state
from support.each import each


def program(name, denoiser="edm", steps=6, keep=()):
    plan = get("solver", name).make().plan(make_grid("polynomial", steps, RANGE))
    return lower(plan, DENOISERS[denoiser], torch.float32, COND, keep)


@each(
    ("name", "denoiser", "inputs", "outputs"),
    [
        ("euler", "edm", 2, 1),  # the scaled input stands for the state
        ("euler", "guided", 3, 1),
        ("euler", "bfloat16", 2, 2),
        ("dpmpp_2m", "edm", 3, 2),
        ("dpmpp_2m", "guided", 4, 2),
        ("dpmpp_2m", "bfloat16", 3, 3),
        ("dpmpp_3m", "edm", 4, 2),
        ("ipndm_4", "edm", 5, 2),  # three slopes, and not three states and three D
        ("ipndm_4", "guided", 6, 2),
        ("unipc_bh2_2", "edm", 4, 3),
        ("unipc_bh2_2", "guided", 5, 3),
        ("unipc_bh2_2", "guided bfloat16", 5, 4),
        ("unipc_bh2_3", "edm", 5, 3),
        ("dpmpp_2m_sde", "edm", 4, 2),
    ],
)
def test_one_update_between_two_calls(name, denoiser, inputs, outputs):
    """In the steady state: reads and writes are the fewest that the state and the history allow, noise drawn inside counted."""
    made = program(name, denoiser, steps=12)
    kinds = [type(op) for op in made.instructions]
    assert kinds == [Update, Forward] * (len(kinds) // 2) + [Update]
    steady = made.instructions[14]
    assert (len(steady.inputs), len(steady.outputs)) == (inputs, outputs)


def test_two_evaluations_of_a_step_keep_the_raw_outputs():
    """Heun: the second update reads the state and both raw outputs; nothing but network inputs is ever written."""
    made = program("heun")
    assert [(len(op.inputs), len(op.outputs)) for op in made.instructions if isinstance(op, Update)][1:5] == [(2, 1), (3, 1)] * 2


def test_history_and_states_share_few_buffers():
    assert len(program("dpmpp_2m", steps=20).buffers) == 2
    assert len(program("euler", steps=20).buffers) == 1
    assert [b.repeats for b in program("euler", "guided", steps=20).buffers] == [2, 1]  # the doubled input and the result
    kept = program("euler", steps=5, keep=[f"x[{i}]" for i in range(6)])
    assert len(kept.buffers) == 5  # scaled inputs stay until they become states, each in its place


def test_what_is_not_linear_stays_a_call():
    kinds = [type(op) for op in program("dpmpp_2m", "clipped").instructions]
    assert kinds[:4] == [Update, Forward, Update, Call]


def test_more_inputs_and_outputs_than_a_launch_has():
    """Twelve inputs are summed in parts, six outputs written by two launches, with noise in all of them."""
    noises = [(Slot(1, role), 0.1 * (role + 1)) for role in range(11)]
    wide = [Combine(f"y{m}", (("x", 1.0 + m), *noises)) for m in range(6)]
    last = Combine("z", tuple((f"y{m}", 0.1) for m in range(6)))
    plan = Plan((*wide, Eval("D", "y0", 1.0), last, Combine("w", (("z", 1.0), ("D", 1.0)))), ("x", "w"))
    made = lower(plan, DENOISERS["edm"], torch.float32, COND, [f"y{m}" for m in range(6)])
    for op in made.instructions:
        if isinstance(op, Update):
            assert len(op.inputs) <= 8
            assert len(op.outputs) <= 4
    x, keep = state(), [f"y{m}" for m in range(6)]
    with torch.no_grad():
        found, expected = (f(plan, DENOISERS["edm"], x, PhiloxNoise(SEEDS), COND, keep) for f in (run, interpret))
    torch.testing.assert_close(found, expected)


def test_a_sum_of_nothing_is_zero():
    plan = Plan((Combine("y", (("x", 0.0),)), Eval("D", "y", 1.0), Combine("z", (("D", 0.0),))), ("x", "z"))
    with torch.no_grad():
        found = run(plan, DENOISERS["edm"], state(), cond=COND, keep=["y", "D"])
    assert not found["y"].any()
    assert not found["z"].any()
    torch.testing.assert_close(found["D"], DENOISERS["edm"](torch.zeros(3, *SHAPE), 1.0, COND).detach())


def test_a_plan_that_reads_no_initial_state():
    plan = Plan((Combine("y", ((Slot(1), 2.0),)), Eval("D", "y", 1.0), Combine("z", (("D", 1.0),))), ("x", "z"))
    assert_same(plan, DENOISERS["edm"])


def test_a_noise_of_no_weight_is_drawn_in_its_turn():
    plan = Plan((Combine("y", (("x", 1.0), (Slot(1), 0.0))), Eval("D", "y", 1.0), Combine("z", (("D", 1.0), (Slot(2), 1.0)))), ("x", "z"))
    assert_same(plan, DENOISERS["edm"], make_noise=EDMNoise)
