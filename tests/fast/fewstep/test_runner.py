"""The lowered runner against the definition of a plan, and what it refuses."""

import pytest
import torch

from fewstep.cond import Cond
from fewstep.errors import UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.guidance import guide
from fewstep.noise import EDMNoise, PhiloxNoise, Slot
from fewstep.plugins import get
from fewstep.sampling.plan import Apply, Combine, Eval, Plan, interpret
from fewstep.sampling.runner import run
from support.denoisers import COND, DENOISERS, RANGE, SEEDS, Returns, assert_same, network, parameters, state
from support.each import each


@pytest.mark.parametrize("name", ["dpmpp_2m_sde", "nstep_stochastic", "dpmpp_2s_sde"])
def test_noise_that_is_drawn_in_order(name):
    assert_same(get("solver", name).make().plan(make_grid("polynomial", 4, RANGE)), DENOISERS["edm"], make_noise=EDMNoise)


def test_text_takes_a_second_call():
    text = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(1))
    plan = get("solver", "dpmpp_2m").make().plan(make_grid("polynomial", 4, RANGE))
    assert_same(plan, DENOISERS["guided"], Cond(label=COND.label, text=text))
    assert_same(plan, DENOISERS["guided"])  # the plan's program for labels alone is another one


def test_levels_of_their_own_for_every_sample():
    levels = torch.tensor([[20.0, 15.0, 9.0], [3.0, 2.0, 1.5], [0.5, 0.1, 0.2]], dtype=torch.float64).numpy()
    for name in ("euler", "heun", "dpmpp_2m", "ddpm"):
        assert_same(get("solver", name).make().plan(TimeGrid(levels)), DENOISERS["edm"])
        assert_same(get("solver", name).make().plan(TimeGrid(levels)), DENOISERS["guided per sample"])


def test_coefficients_and_levels_that_only_the_run_knows():
    ops = (
        Apply(("sigma", "c"), lambda x: (x.new_full((len(x),), 2.0), x.flatten(1).mean(1)), ("x",)),
        Eval("D", "x", "sigma"),
        Combine("y", (("x", "c"), ("D", 0.5), (Slot(1), "sigma"))),
    )
    plan = Plan(ops, ("x", "y"))
    with torch.no_grad():
        found, expected = (f(plan, DENOISERS["edm"], state(), PhiloxNoise(SEEDS), COND) for f in (run, interpret))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("denoiser", ["edm", "guided", "clipped", "autoguided"])
def test_gradients_flow_through_state_and_weights(denoiser):
    plan = get("solver", "dpmpp_2m_sde").make().plan(make_grid("polynomial", 3, RANGE))
    weights = [p for p in parameters(DENOISERS[denoiser]) if p.requires_grad]
    found = []
    for f in (run, interpret):
        x = state().requires_grad_()
        out = f(plan, DENOISERS[denoiser], x, PhiloxNoise(SEEDS), COND)[plan.states[-1]]
        found.append(torch.autograd.grad(out.square().mean(), [x, *weights]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-5)  # float32 through three network passes


def test_samples_do_not_depend_on_the_batch():
    """Bit for bit, through a network that is elementwise."""
    denoiser = network(net=Returns(torch.tanh))
    plan = get("solver", "dpmpp_2m_sde").make().plan(make_grid("polynomial", 4, RANGE))
    with torch.no_grad():
        whole = run(plan, denoiser, state(), PhiloxNoise(SEEDS))[plan.states[-1]]
        parts = [run(plan, denoiser, state()[b : b + 1], PhiloxNoise(SEEDS[b : b + 1]))[plan.states[-1]] for b in range(3)]
    assert torch.equal(whole, torch.cat(parts))


def test_a_program_is_made_once_and_follows_the_networks_dtype():
    denoiser, plan = network(), get("solver", "euler").make().plan(make_grid("polynomial", 3, RANGE))
    with torch.no_grad():
        for _ in range(2):
            run(plan, denoiser, state(), cond=COND)
            run(plan, denoiser, state(batch=3)[:2], cond=Cond(label=COND.label[:2]))
        ((_, _, made),) = plan.programs
        assert len(made.bounds) == 2
        denoiser.net.bfloat16()
        assert run(plan, denoiser, state(), cond=COND)[plan.states[-1]].dtype is torch.float32
        assert len(plan.programs) == 2
        for seed in range(6):
            run(plan, network(seed=seed), state(), cond=COND)
    assert len(plan.programs) == 4


PLAN = get("solver", "euler").make().plan(make_grid("polynomial", 2, RANGE))


LARGE = Plan((Eval("D", "x", 1.0), Combine("y", (("x", 1.0), ("D", 1e200)))), ("x", "y"))  # a plan refuses what is not finite itself


@each(
    ("plan", "denoiser", "x", "options", "message"),
    [
        (
            PLAN,
            network(),
            state(),
            {"backend": "triton"},
            "backend=triton cannot run: it runs on CUDA devices, not on cpu; use backend=auto",
        ),
        (PLAN, network(), state(), {"backend": "numba"}, "unknown backend 'numba'; known: auto, reference, cpu, triton"),
        (PLAN, network(), state(dtype=torch.float64), {"backend": "cpu"}, "backend=cpu cannot run: it has no torch.float64"),
        (PLAN, network(), state().transpose(2, 3), {"backend": "cpu"}, r"backend=cpu cannot run: x has strides \[108, 36, 1, 6\]"),
        (
            PLAN,
            network(net=Returns(lambda x: x[:1])),
            state(),
            {},
            r"the network returned \[1, 3, 6, 6\] on cpu for an input \[3, 3, 6, 6\]",
        ),
        (PLAN, network(net=Returns(lambda x: x.to("meta"))), state(), {}, "the network returned .* on meta for an input .* on cpu"),
        (LARGE, network(), state(), {}, r"the coefficient of input . in output 0 is .*e\+\d+; every one must be finite in torch.float32"),
        (PLAN, network(), state(), {"keep": ["x[9]"]}, "keep names unknown slots"),
        (Plan((Eval("D", "x", 99.0), Combine("y", (("D", 1.0),))), ("x", "y")), network(), state(), {}, "sigma 99 is outside of"),
        (
            guide(network(), 2.0, interval=(0.1, 1.0)) and get("solver", "euler").make().plan(TimeGrid([[9.0, 8.0, 7.0], [1.0, 1.0, 1.0]])),
            guide(network(), 2.0, interval=(0.1, 1.0)),
            state(),
            {},
            "a guidance interval needs one sigma per call",
        ),
    ],
)
def test_bad_input_is_refused(plan, denoiser, x, options, message):
    with pytest.raises(UsageError, match=message), torch.no_grad():
        run(plan, denoiser, x, **options)


def test_a_subclass_of_the_counter_noise_is_asked():
    class Quiet(PhiloxNoise):
        def normal(self, slot, shape):
            return 0 * super().normal(slot, shape)

    assert_same(get("solver", "ddpm").make().plan(make_grid("polynomial", 4, RANGE)), DENOISERS["edm"], make_noise=Quiet)


def test_a_changed_scale_is_followed():
    scale = torch.tensor([1.0, 2.0, 4.0])
    denoiser, plan = guide(network(), scale), get("solver", "euler").make().plan(make_grid("polynomial", 3, RANGE))
    for change in (lambda: None, lambda: scale.fill_(5), scale.requires_grad_):
        change()
        found, expected = (f(plan, denoiser, state(), cond=COND)[plan.states[-1]] for f in (run, interpret))
        torch.testing.assert_close(found, expected)
    assert torch.autograd.grad(found.sum(), scale)[0].abs().sum() > 0


def test_a_scale_for_another_batch_is_refused():
    plan = get("solver", "euler").make().plan(make_grid("polynomial", 3, RANGE))
    with pytest.raises(UsageError, match="the plan or the guidance has 2 coefficients for 3 samples"), torch.no_grad():
        run(plan, guide(network(), torch.tensor([1.0, 2.0])), state(), cond=COND)


def test_runs_of_every_mode_share_a_program():
    plan, denoiser = get("solver", "dpmpp_2m").make().plan(make_grid("polynomial", 4, RANGE)), network()
    found = []
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad, torch.inference_mode):
        with mode():
            found.append(run(plan, denoiser, state(), cond=COND)[plan.states[-1]].clone())
    for other in found[1:]:
        torch.testing.assert_close(other.detach(), found[0])


def test_noise_for_another_batch_is_refused():
    plan = get("solver", "ddpm").make().plan(make_grid("polynomial", 3, RANGE))
    with pytest.raises(UsageError, match=r"the noise has seeds \[2\] for 3 samples; give it one seed for each"), torch.no_grad():
        run(plan, network(), state(), PhiloxNoise(SEEDS[:2]))


def test_a_kernel_that_is_asked_for_gives_no_gradients():
    with pytest.raises(UsageError, match=r"gradients are recorded; call run under torch.no_grad\(\), or use backend=auto"):
        run(PLAN, network(), state(), backend="cpu")
