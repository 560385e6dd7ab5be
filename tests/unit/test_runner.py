"""The lowered runner against the definition of a plan, its updates one by one, and what may go wrong."""

import itertools
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from fewstep.cond import NULL, Cond
from fewstep.denoiser import Around, EDMPrecond, Preconditioned, ProcessPrecond
from fewstep.errors import UsageError
from fewstep.grid import TimeGrid, make_grid
from fewstep.guidance import guide
from fewstep.lower import lower
from fewstep.noise import EDMNoise, PhiloxNoise, Slot
from fewstep.plan import Apply, Combine, Eval, Plan, interpret
from fewstep.program import Call, Forward, Update
from fewstep.runner import run
from fewstep.schedule import VP
from fewstep.wrappers import Mapped, clip
from methods.registry import entries, get
from methods.solver import Learned

RANGE, SHAPE = (0.02, 20.0), (3, 6, 6)
SEEDS = torch.tensor([0, 1 << 35, 7])
COND = Cond(label=torch.tensor([0, 2, 1]))
SOLVERS = [name for name, entry in entries("solver").items() if not isinstance(entry.make(), Learned)]


class Small(nn.Module):
    """A smooth network that reads everything it is given."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv, self.label, self.time = nn.Conv2d(3, 3, 3, padding=1), nn.Embedding(4, 3), nn.Linear(1, 3)

    def forward(self, x, c_noise, cond=NULL):
        label = cond.label if cond.label is not None else torch.full((len(x),), 3, device=x.device)
        shift = self.label(label) + self.time(c_noise[:, None].to(x.dtype) / 10)
        text = 0 if cond.text is None else cond.text.to(x.dtype).mean((1, 2))[:, None]
        return torch.tanh(self.conv(x) + (shift + text)[:, :, None, None])


class Plain(Around):
    """A denoiser that can only be called."""

    def __init__(self, base):
        self.base = base

    def __call__(self, x, sigma, cond=NULL):
        return self.base(x, sigma, cond)


def network(precond=None, seed=0, dtype=torch.float32, net=None):
    made = Small(seed).to(dtype) if net is None else net
    return Preconditioned(made, precond or EDMPrecond(0.5), SHAPE, 3, (0.01, 40.0))  # churn rises above the grid


VP_EPS = ProcessPrecond(VP(), "eps")
DENOISERS = {
    "edm": network(),
    "vp": network(VP_EPS),
    "bfloat16": network(dtype=torch.bfloat16),
    "guided": guide(network(), 2.5),
    "guided bfloat16": guide(network(dtype=torch.bfloat16), 2.5),
    "guided inside": guide(network(), 2.5, interval=(0.1, 3.0)),
    "guided per sample": guide(network(), torch.tensor([1.0, 2.0, 4.0])),
    "autoguided": guide(network(), 2.0, ref=network(VP_EPS, seed=1)),
    "guided twice": guide(guide(network(), 1.5), 1.5),
    "clipped": Mapped(guide(network(), 2.0), clip),
    "guided clipped": guide(Mapped(network(), clip), 2.0),
    "called only": Plain(network()),
}


def state(seed=0, dtype=torch.float32, batch=3):
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=dtype) * RANGE[1]


def worst(found, expected):
    return float(torch.stack([(found[k].double() - expected[k].double()).abs().max() for k in expected]).max())  # NaN if any is


def assert_same(plan, denoiser, cond=COND, make_noise=PhiloxNoise):
    """With and without buffers, every state or only the last: as near to float64 as the definition in float32 is, within a factor."""
    x, keep = state(), plan.states
    wide = x.double() if all(p.dtype is torch.float32 for p in _parameters(denoiser)) else x
    with torch.no_grad():
        expected = interpret(plan, denoiser, wide, make_noise(SEEDS), cond, keep)
        own = worst(interpret(plan, denoiser, x, make_noise(SEEDS), cond, keep), expected)
        # Roundings of two orders of summation; of bfloat16 inputs, judged where the states are small.
        budget, judged = (4 * own + 2e-6 * RANGE[1], keep) if wide is not x else (1e-2, keep[-1:])
        for backend in ("cpu", "reference"):
            found = run(plan, denoiser, x, make_noise(SEEDS), cond, keep, backend=backend)
            assert found.keys() == expected.keys()
            assert worst(found, {name: expected[name] for name in judged}) <= budget
            last = run(plan, denoiser, x, make_noise(SEEDS), cond, backend=backend)
            assert worst(last, {plan.states[-1]: expected[plan.states[-1]]}) <= budget


def _parameters(denoiser):
    return list(denoiser.net.parameters()) if isinstance(denoiser, Preconditioned) else _parameters(denoiser.base)


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_as_defined(name):
    solver = get("solver", name).make()
    for steps, end in itertools.product((1, 2, 3, 6), ("zero", "sigma_min")):
        assert_same(solver.plan(make_grid("polynomial", steps, RANGE, end)), DENOISERS["edm"])


@pytest.mark.parametrize("denoiser", DENOISERS)
@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m", "dpm_3s", "unipc_bh2_3", "ipndm_4", "dpmpp_2m_sde", "edm_churn"])
def test_every_kind_of_denoiser_as_defined(name, denoiser):
    solver = get("solver", name).make()
    for steps in (1, 2, 5):
        assert_same(solver.plan(make_grid("polynomial", steps, RANGE)), DENOISERS[denoiser])


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


def program(name, denoiser="edm", steps=6, keep=()):
    plan = get("solver", name).make().plan(make_grid("polynomial", steps, RANGE))
    return lower(plan, DENOISERS[denoiser], torch.float32, COND, keep)


@pytest.mark.parametrize(
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


def test_uninitialised_memory_is_never_read():
    torch.use_deterministic_algorithms(True)  # fills new memory with not-a-number
    try:
        for denoiser in DENOISERS.values():
            plan = get("solver", "unipc_bh2_3").make().plan(make_grid("polynomial", 6, RANGE))
            with torch.no_grad():
                assert run(plan, denoiser, state(), cond=COND)[plan.states[-1]].isfinite().all()
    finally:
        torch.use_deterministic_algorithms(False)


class Returns(nn.Module):
    """A network that returns what `of` makes of its input."""

    def __init__(self, of):
        super().__init__()
        self.of = of

    def forward(self, x, c_noise, cond):
        return self.of(x)


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m", "unipc_bh2_2"])
@pytest.mark.parametrize(
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
    weights = [p for p in _parameters(DENOISERS[denoiser]) if p.requires_grad]
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
NAN = Plan((Eval("D", "x", 1.0), Combine("y", (("x", 1.0), ("D", float("nan"))))), ("x", "y"))


@pytest.mark.parametrize(
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
        (NAN, network(), state(), {}, "the coefficient of input . in output 0 is nan; every one must be finite"),
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


def test_a_subclass_of_the_counter_noise_is_asked():
    class Quiet(PhiloxNoise):
        def normal(self, slot, shape):
            return 0 * super().normal(slot, shape)

    assert_same(get("solver", "ddpm").make().plan(make_grid("polynomial", 4, RANGE)), DENOISERS["edm"], make_noise=Quiet)


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


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
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


def test_a_plan_that_reads_no_initial_state():
    plan = Plan((Combine("y", ((Slot(1), 2.0),)), Eval("D", "y", 1.0), Combine("z", (("D", 1.0),))), ("x", "z"))
    assert_same(plan, DENOISERS["edm"])


def test_a_noise_of_no_weight_is_drawn_in_its_turn():
    plan = Plan((Combine("y", (("x", 1.0), (Slot(1), 0.0))), Eval("D", "y", 1.0), Combine("z", (("D", 1.0), (Slot(2), 1.0)))), ("x", "z"))
    assert_same(plan, DENOISERS["edm"], make_noise=EDMNoise)


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


def test_a_kernel_that_is_asked_for_gives_no_gradients():
    with pytest.raises(UsageError, match=r"gradients are recorded; call run under torch.no_grad\(\), or use backend=auto"):
        run(PLAN, network(), state(), backend="cpu")


def test_states_of_other_layouts_and_dtypes_run():
    for x in (state().transpose(2, 3), state().contiguous(memory_format=torch.channels_last), state(dtype=torch.float64)):
        with torch.no_grad():
            denoiser = network() if x.dtype is torch.float32 else network(net=Small().double())
            found, expected = run(PLAN, denoiser, x, cond=COND), interpret(PLAN, denoiser, x, cond=COND)
        torch.testing.assert_close(found, expected)
