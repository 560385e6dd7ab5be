"""Whatever memory, layout and mode networks, noises and callers bring: nothing that is still needed is written over."""

import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.noise import PhiloxNoise
from fewstep.plugins import get
from fewstep.precond import ProcessPrecond
from fewstep.sampling.plan import Apply, Combine, Eval, Plan, interpret
from fewstep.sampling.runner import run
from fewstep.schedule import VP
from support.denoisers import COND, DENOISERS, RANGE, SEEDS, SHAPE, Returns, Small, assert_same, network, state
from support.each import each


def test_uninitialised_memory_is_never_read():
    torch.use_deterministic_algorithms(True)  # fills new memory with not-a-number
    try:
        for denoiser in DENOISERS.values():
            plan = get("solver", "unipc_bh2_3").make().plan(make_grid("polynomial", 6, RANGE))
            with torch.no_grad():
                assert run(plan, denoiser, state(), cond=COND)[plan.states[-1]].isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


@each("name", ["heun", "dpmpp_2m", "unipc_bh2_2"])
@each(
    "of",
    [
        lambda x: x,
        lambda x: x.view(x.shape),
        lambda x: x.expand(x.shape),
        lambda x: (x * 2).transpose(2, 3),
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.bfloat16(),
        lambda x: x.double(),
    ],
)
def test_whatever_memory_a_network_returns(name, of):
    """Its own input, a view of it, strides of its own, another dtype: nothing that is still needed is written over."""
    denoiser = network(net=Returns(of))
    plan = get("solver", name).make().plan(make_grid("polynomial", 5, RANGE))
    with torch.no_grad():
        found, expected = run(plan, denoiser, state(), keep=plan.states), interpret(plan, denoiser, state(), keep=plan.states)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # the identity network amplifies roundings up to 20 times


def test_the_callers_state_and_earlier_results_stay():
    plan, x = get("solver", "dpmpp_2m").make().plan(make_grid("polynomial", 4, RANGE)), state()
    before = x.clone()
    with torch.no_grad():
        first = run(plan, DENOISERS["edm"], x, cond=COND, keep=plan.states)
        kept = {name: value.clone() for name, value in first.items()}
        for seed in (1, 2):
            run(plan, DENOISERS["edm"], state(seed), cond=COND, keep=plan.states)
    assert torch.equal(x, before)
    assert all(torch.equal(first[name], kept[name]) for name in kept)


def test_threads_that_run_one_plan_at_once():
    """Each has buffers of its own."""
    plan, denoiser = get("solver", "dpmpp_2m").make().plan(make_grid("polynomial", 30, RANGE)), network(net=Returns(torch.tanh))

    def sample(seed):
        with torch.no_grad():
            return run(plan, denoiser, state(seed))[plan.states[-1]]

    alone = [sample(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            assert all(torch.equal(a, b) for a, b in zip(pool.map(sample, range(8)), alone, strict=True))


def test_functions_that_return_their_input():
    """Or a view of it, as `c` is, whose memory is wanted for the next update."""
    ops = (Eval("D", "x", 2.0), Apply(("a", "b", "c"), lambda d: (d, d[:], d.flatten(1)[:, 5]), ("D",)), Eval("E", "a", 1.0))
    plan = Plan((*ops, Combine("y", (("x", 0.5), ("b", 0.25), ("E", 0.25))), Eval("F", "y", 0.5), Combine("z", (("F", "c"),))), ("x", "z"))
    with torch.no_grad():
        found, expected = (f(plan, DENOISERS["edm"], state(), cond=COND, keep=["a", "b", "D"]) for f in (run, interpret))
    torch.testing.assert_close(found, expected)


class Drawn:
    """A noise whose tensors are laid out in some way."""

    def __init__(self, of):
        self.of = of

    def normal(self, slot, shape):
        return self.of(PhiloxNoise(SEEDS).normal(slot, shape))


@pytest.mark.parametrize(
    "of", [lambda z: z.contiguous(memory_format=torch.channels_last), lambda z: z[:1].expand(z.shape), torch.Tensor.double]
)
def test_noise_of_any_layout(of):
    assert_same(get("solver", "ddpm").make().plan(make_grid("polynomial", 4, RANGE)), DENOISERS["edm"], make_noise=lambda seeds: Drawn(of))


def test_noise_of_another_shape_is_refused():
    plan = get("solver", "ddpm").make().plan(make_grid("polynomial", 3, RANGE))
    with pytest.raises(UsageError, match=r"the noise gave \[1, 3, 6, 6\] on cpu, which is summed with \[3, 3, 6, 6\]"), torch.no_grad():
        run(plan, network(), state(), Drawn(lambda z: z[:1]))


@pytest.mark.parametrize("of", [lambda y: y.transpose(2, 3), lambda y: y.contiguous(memory_format=torch.channels_last)])
def test_sums_of_any_layout(of):
    """Of a function's result, with a coefficient that only the run knows."""
    ops = (
        Apply(("y", "c"), lambda x: (of(x), x.new_full((len(x),), 0.5)), ("x",)),
        Combine("z", (("y", "c"),)),
        Eval("D", "z", 1.0),
        Combine("w", (("z", 0.5), ("D", 0.5), ("y", 0.25))),
    )
    plan = Plan(ops, ("x", "w"))
    with torch.no_grad():
        found, expected = (f(plan, DENOISERS["edm"], state(), cond=COND) for f in (run, interpret))
    torch.testing.assert_close(found, expected)


class Careless(nn.Module):
    """A network that does what it should not."""

    def __init__(self, of):
        super().__init__()
        self.of, self.own = of, torch.empty(3, *SHAPE)

    def forward(self, x, c_noise, cond):
        return self.of(self, x, c_noise)


@each("mode", [torch.no_grad, torch.inference_mode])
@each(
    ("name", "of", "message"),
    [
        ("euler", lambda net, x, t: x.mul_(0.5) + 1, "a Careless wrote into its input; let it copy what it changes"),
        ("euler", lambda net, x, t: x * t.mul_(1.5)[:, None, None, None], "a Careless wrote into its input"),
        ("heun", lambda net, x, t: net.own.copy_(x * 0.5), "a Careless returned memory that it had returned before"),
    ],
)
def test_a_careless_network_is_named(mode, name, of, message):
    plan = get("solver", name).make().plan(make_grid("polynomial", 4, RANGE))
    with pytest.raises(UsageError, match=message), mode():
        run(plan, network(net=Careless(of)), state(), backend="cpu")


def test_a_networks_own_memory_is_not_a_result():
    x0 = ProcessPrecond(VP(), "x0")
    denoiser = network(x0, net=Careless(lambda net, x, t: net.own.copy_(x * 0.5)))
    plan = get("solver", "euler").make().plan(make_grid("polynomial", 2, RANGE, "zero"))
    with torch.no_grad():
        first = run(plan, denoiser, state())[plan.states[-1]]
        kept = first.clone()
        run(plan, denoiser, state(1))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("seeds", [SEEDS.repeat(2)[::2], torch.tensor([0, 1, 7], dtype=torch.int32)])
def test_seeds_of_other_strides_and_integers(seeds):
    plan = get("solver", "ddpm").make().plan(make_grid("polynomial", 3, RANGE))
    with torch.no_grad():
        found, expected = (f(plan, DENOISERS["edm"], state(), PhiloxNoise(seeds)) for f in (run, interpret))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("denoiser", ["edm", "guided"])
def test_an_empty_batch_gives_an_empty_one(denoiser):
    plan = get("solver", "dpmpp_2m_sde").make().plan(make_grid("polynomial", 3, RANGE))
    with torch.no_grad():
        found = run(plan, DENOISERS[denoiser], state()[:0], PhiloxNoise(SEEDS[:0]), COND[:0])
    assert found[plan.states[-1]].shape == (0, *SHAPE)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_what_nothing_reads_any_more_is_freed(backend):
    """Before each pass, at most the last two raw outputs are alive: the one just read, and none before it."""
    returned = []

    def remember(x):
        made = x * 0.5
        alive = sum(r() is not None for r in returned)
        returned.append(weakref.ref(made))
        assert alive <= 1
        return made

    plan = get("solver", "dpmpp_2m").make().plan(make_grid("polynomial", 8, RANGE))
    with torch.no_grad():
        run(plan, network(net=Returns(remember)), state(), backend=backend)
    assert len(returned) == 8


def test_states_of_other_layouts_and_dtypes_run():
    plan = get("solver", "euler").make().plan(make_grid("polynomial", 2, RANGE))
    for x in (state().transpose(2, 3), state().contiguous(memory_format=torch.channels_last), state(dtype=torch.float64)):
        with torch.no_grad():
            denoiser = network() if x.dtype is torch.float32 else network(net=Small().double())
            found, expected = run(plan, denoiser, x, cond=COND), interpret(plan, denoiser, x, cond=COND)
        torch.testing.assert_close(found, expected)
