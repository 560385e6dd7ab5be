"""What a stranger may hand to a denoiser or a run from Python: the right number or one clear line, never NaN or a bare torch error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fewstep.analytic import Gaussian, GaussianMixture, image_set
from fewstep.cond import NULL, Cond
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.flowmap import TwoTime
from fewstep.grid import make_grid
from fewstep.guidance import guide
from fewstep.noise import EDMNoise, PhiloxNoise
from fewstep.plugins import entries, get
from fewstep.precond import ProcessPrecond
from fewstep.sampling.plan import Plan, interpret
from fewstep.sampling.runner import run
from fewstep.schedule import RectifiedFlow
from fewstep.wrappers import Mapped, WithScalars, clip, dynamic_threshold
from methods.solver import draft
from support.denoisers import COND, DENOISERS, RANGE, SEEDS, SHAPE, Returns, network, state
from support.each import each

NAN, INF = float("nan"), float("inf")
GENERATOR = torch.Generator().manual_seed(0)
MEANS = torch.randn(6, *SHAPE, generator=GENERATOR, dtype=torch.float64)
MIXTURE = GaussianMixture(MEANS, torch.full((6,), 0.2), torch.zeros(6), 3)
IMAGES = image_set(MEANS, torch.tensor([0, 0, 0, 1, 1, 1]), 3)  # the last class has no image
MODELS: dict[str, Denoiser] = {
    "network": network(),
    "mixture": MIXTURE,
    "images": IMAGES,
    "guided": guide(network(), 2.0),
    "guided mixture": guide(MIXTURE, 2.0),
    "clipped": Mapped(network(), clip),
    "told": WithScalars(network(), {"w": 1.0}),
}
PLAIN = Gaussian(torch.zeros(SHAPE), torch.ones(SHAPE), SHAPE)  # no classes
X, PLAN = state(), get("solver", "dpmpp_2m").make().plan(make_grid("polynomial", 3, RANGE))
DRAWS = get("solver", "ddpm").make().plan(make_grid("polynomial", 3, RANGE))


def label(*values: int) -> Cond:
    return Cond(label=torch.tensor(values))


def refused(call: Callable[[], Any], line: str) -> None:
    with torch.no_grad(), pytest.raises(UsageError, match=line) as raised:
        call()
    assert "\n" not in str(raised.value)


CONDITIONS: list[tuple[Any, str]] = [
    (label(0, -1, 1), "label -1 is outside of the model's 3 classes; use 0 to 2, or 3 for no class"),
    (label(0, 4, 1), "label 4 is outside of the model's 3 classes; use 0 to 2, or 3 for no class"),
    (label(0, 1), r"label has shape \[2\] for 3 samples; give it one class index for each, \[3\]"),
    (label(0), r"label has shape \[1\] for 3 samples"),
    (Cond(label=torch.tensor([[0], [1], [2]])), r"label has shape \[3, 1\] for 3 samples"),
    (Cond(label=torch.tensor([0.0, 1.0, 2.0])), r"label is torch.float32, and class indices are int64; use label.long\(\)"),
    (Cond(label=torch.tensor([True, False, True])), "label is torch.bool"),
    (Cond(label=[0, 1, 2]), "label is a list; give a tensor"),  # pyright: ignore[reportArgumentType]
    (Cond(label=torch.tensor([0, 1, 2], device="meta")), r"the condition is on meta and x on cpu; use cond.to\(x.device\)"),
    (Cond(scalars={"w": 1.0}), "scalar 'w' is a float; give a tensor"),  # pyright: ignore[reportArgumentType]
    (Cond(scalars={"w": torch.ones(2)}), r"scalar 'w' has shape \[2\] for 3 samples"),
    (Cond(text=torch.ones(3, 4)), r"cond.text has shape \[3, 4\] for 3 samples; give it \[B, L, E\]"),
    (Cond(image=torch.ones(2, *SHAPE)), r"cond.image has shape \[2, 3, 6, 6\] for 3 samples"),
    (torch.tensor([0, 1, 2]), r"cond is a Tensor; give a Cond, e.g. Cond\(label=torch.tensor\(\[0, 1\]\)\)"),
    (None, "cond is a NoneType; give a Cond"),
]


@each(("cond", "line"), CONDITIONS)
@each("model", MODELS)
def test_conditions(model: str, cond: Any, line: str) -> None:
    """By a call, by a run, and by the definition of a run."""
    if not (model == "told" and not isinstance(cond, Cond)):  # its own scalars are put into it first
        refused(lambda: MODELS[model](X, 1.0, cond), line)
    refused(lambda: run(PLAN, MODELS[model], X, cond=cond), line)
    refused(lambda: interpret(PLAN, MODELS[model], X, cond=cond), line)


STATES: list[tuple[Any, str]] = [
    (X.long(), r"x is torch.int64, and a state is float32 or float64; use x.float\(\)"),
    (X.half(), "x is torch.float16, and a state is float32 or float64"),
    (X.bfloat16(), "x is torch.bfloat16, and a state is float32 or float64"),
    (X[:, :1], r"x has shape \[3, 1, 6, 6\], and the model takes \[B, 3, 6, 6\]; check its channels and size"),
    (X[0], r"x has shape \[3, 6, 6\], and the model takes \[B, 3, 6, 6\]"),
    (torch.tensor(1.0), r"x has shape \[\], and the model takes"),
    (X.numpy(), "x is a ndarray; give a tensor"),
]


@each(("x", "line"), STATES)
@each("model", MODELS)
def test_states(model: str, x: Any, line: str) -> None:
    refused(lambda: run(PLAN, MODELS[model], x), line)
    refused(lambda: interpret(PLAN, MODELS[model], x), line)
    if model != "told" or (isinstance(x, torch.Tensor) and x.ndim):
        refused(lambda: MODELS[model](x, 1.0), line)


def test_a_state_on_another_device_than_the_network() -> None:
    for call in (lambda x: network()(x, 1.0), lambda x: run(PLAN, network(), x)):
        refused(lambda call=call: call(X.to("meta")), r"x is on meta and the Small on cpu; use x.to\('cpu'\)")


LEVELS: list[tuple[Any, str]] = [
    (NAN, "sigma is nan; noise levels are finite"),
    (INF, "sigma is inf; noise levels are finite"),
    (-1.0, "sigma is -1; noise levels are finite"),
    (torch.tensor([1.0, NAN, 1.0]), "sigma is nan; noise levels are finite"),
    (torch.tensor([1.0, -2.0, 1.0]), "sigma is -2; noise levels are finite"),
    (torch.ones(2), r"sigma is torch.float32 \[2\] for 3 samples; give a float, or a tensor \[3\] with a level for each sample"),
    (torch.ones(3, 1, 1, 1), r"sigma is torch.float32 \[3, 1, 1, 1\] for 3 samples"),
    (np.ones(3), "sigma is a ndarray; give a float, or a tensor"),
    ("1.0", "sigma is a str; give a float"),
]


@each(("sigma", "line"), LEVELS)
@each("model", MODELS)
def test_levels(model: str, sigma: Any, line: str) -> None:
    refused(lambda: MODELS[model](X, sigma, COND if model != "images" else NULL), line)


def test_one_level_for_many_samples_is_one_and_many_for_one_sample_are_none() -> None:
    """Broadcasting made three samples of one."""
    with torch.no_grad():
        torch.testing.assert_close(network()(X, torch.tensor(1.0), COND), network()(X, torch.ones(3), COND))
    refused(lambda: network()(X[:1], torch.ones(3)), r"sigma is torch.float32 \[3\] for 1 samples")
    guided = guide(network(), torch.full((3,), 2.0))
    refused(lambda: guided(X[:1], 1.0), "guidance has 3 scales for 1 samples; give each its own, or all one")


def test_level_zero_is_the_state_where_there_is_a_limit_and_refused_where_there_is_none() -> None:
    x, zero = X.double(), torch.tensor([1.0, 0.0, 1.0])
    for model in (MIXTURE, PLAIN):
        assert torch.equal(model(x, 0.0), x)
        assert torch.equal(model(x, zero)[1], x[1])
    flow = network(ProcessPrecond(RectifiedFlow(), "u"))
    with torch.no_grad():
        assert torch.equal(flow(X, zero)[1], X[1])
    refused(lambda: network()(X, zero), "sigma 0 has no coefficients in EDMPrecond, whose D at 0 is a limit; use levels above 0")
    refused(lambda: network()(X, 0.0), "sigma 0 is outside of the model's range 0.01 to 40")
    for sigma in (0.0, zero):
        refused(lambda s=sigma: IMAGES(x, s), "sigma is 0; noise levels are finite and above 0, where the model has no D")


def test_labels_of_a_model_without_classes() -> None:
    line = "label 2 is given to a model that has no classes; leave the label out, or use 0"
    for call in (lambda c: PLAIN(X, 1.0, c), lambda c: run(PLAN, PLAIN, X, cond=c)):
        refused(lambda call=call: call(COND), line)
        call(label(0, 0, 0))


def test_classes_without_components_have_no_posterior() -> None:
    """Before: a softmax of nothing, NaN."""
    line = "class 2 of the mixture has no component, so it has no D; use labels of the others"
    refused(lambda: IMAGES(X, 1.0, label(0, 1, 2)), line)
    refused(lambda: IMAGES.draw(torch.tensor([2]), torch.Generator()), line)
    assert IMAGES(X, 1.0, label(0, 1, 3)).isfinite().all()
    refused(lambda: MIXTURE.draw(torch.tensor([-1]), torch.Generator()), "label -1 is outside of the model's 3 classes")


def test_labels_are_looked_at_again_when_somebody_writes_into_them() -> None:
    plan = get("solver", "euler").make().plan(make_grid("polynomial", 2, RANGE))
    cond = label(0, 1, 3)
    with torch.no_grad():
        run(plan, network(), X, cond=cond)
        cond.label[0] = 9  # pyright: ignore[reportOptionalSubscript]
    refused(lambda: run(plan, network(), X, cond=cond), "label 9 is outside of the model's 3 classes")
    with torch.inference_mode():
        inside = Cond(label=torch.tensor([0, 1, 3]))
        run(plan, network(), X, cond=inside)
        inside.label[0] = 9  # pyright: ignore[reportOptionalSubscript]
        refused(lambda: run(plan, network(), X, cond=inside), "label 9 is outside")


@each("name", ["ab_v_4", "dpmpp_3m", "heun", "unipc_bh2_3", "ddpm", "edm_churn", "amed"])
@each("backend", ["cpu", "reference"])
def test_an_empty_batch_is_an_empty_result(name: str, backend: str) -> None:
    """Before: "a Small returned memory that it had returned before"."""
    plan = draft(entries("solver")[name].make()).plan(make_grid("polynomial", 4, RANGE))
    for kind in (PhiloxNoise, EDMNoise):
        for model in ("edm", "guided", "guided twice", "clipped", "called only"):
            with torch.no_grad():
                out = run(plan, DENOISERS[model], X[:0], kind(SEEDS[:0]), COND[:0], plan.states, backend if name != "amed" else "auto")
            assert all(value.shape == (0, *SHAPE) for value in out.values())


def test_arguments_in_the_wrong_place() -> None:
    plan: Any = PLAN
    solver: Any = get("solver", "heun").make()
    net: Any = Returns(lambda x: x)
    refused(lambda: run(solver, network(), X), r"the first argument is a Heun; give a Plan, e.g. get\('solver', 'heun'\)")
    refused(lambda: run(network(), plan, X), "the first argument is a Preconditioned; give a Plan")  # pyright: ignore[reportArgumentType]
    refused(lambda: run(PLAN, net, X), r"the second argument is a Returns; give a denoiser, e.g. Preconditioned\(net, ...\)")
    refused(lambda: run(DRAWS, network(), X, X), "noise is a tensor; give the source that draws it")  # pyright: ignore[reportArgumentType]
    refused(lambda: run(PLAN, network(), X, keep="x[1]"), r"keep is a sequence of slots, got the text 'x\[1\]'; use keep=\['x\[1\]'\]")
    for kind in (PhiloxNoise, EDMNoise):
        for f in (run, interpret):
            refused(lambda f=f, kind=kind: f(DRAWS, network(), X, kind(SEEDS[:2])), r"the noise has seeds \[2\] for 3 samples")


SCALES: list[tuple[dict[str, Any], str]] = [
    ({"scale": NAN}, "a guidance scale is a finite number, got nan; 1 is no guidance, papers' w is scale - 1"),
    ({"scale": INF}, "a guidance scale is a finite number, got inf"),
    ({"scale": "2"}, "a guidance scale is a finite number, got '2'"),
    ({"scale": torch.tensor([1.0, NAN])}, r"guidance scales are finite, got \[1.0, nan\]"),
    ({"scale": torch.tensor([[2.0]])}, r"guidance scales are torch.float32 \[1, 1\]; give a float, or floats \[B\]"),
    ({"scale": 2.0, "interval": (2.0, 0.3)}, r"a guidance interval is two levels \(low, high\), low below high, got \(2.0, 0.3\)"),
    ({"scale": 2.0, "interval": (NAN, 0.3)}, "a guidance interval is two levels"),
    ({"scale": 2.0, "interval": 0.3}, "a guidance interval is two levels"),
    ({"scale": 2.0, "ref": Gaussian(torch.zeros(2), torch.ones(2), (2,))}, r"the guided model makes \[3, 6, 6\] and its reference \[2\]"),
    ({"scale": 2.0, "ref": GaussianMixture(MEANS, torch.ones(6), torch.zeros(6), 2)}, "has 3 classes and its reference 2"),
]


@each(("options", "line"), SCALES)
def test_guidance(options: dict[str, Any], line: str) -> None:
    refused(lambda: guide(network(), **options), line)


def test_a_reference_without_classes_is_not_told_labels() -> None:
    """By a call and lowered; an embedding of one class has no entry for them."""

    class Unlabelled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(1, 3)

        def forward(self, x: torch.Tensor, c_noise: torch.Tensor, cond: Cond) -> torch.Tensor:
            at = torch.zeros(len(x), dtype=torch.int64) if cond.label is None else cond.label
            return x * 0.5 + self.embed(at)[:, :, None, None]

    guided = guide(network(), 2.0, ref=replace(network(net=Unlabelled()), classes=0))
    with torch.no_grad():
        found, expected = run(PLAN, guided, X, cond=COND), interpret(PLAN, guided, X, cond=COND)
    torch.testing.assert_close(found[PLAN.states[-1]], expected[PLAN.states[-1]])


def test_jumps_of_a_flow_map() -> None:
    student = TwoTime(network())
    for to, line in ((NAN, "sigma_to is nan"), (-1.0, "sigma_to is -1"), (torch.tensor([0.0, INF, 1.0]), "sigma_to is inf")):
        refused(lambda to=to: student.jump(X, 1.0, to), line)
        refused(lambda to=to: student.g(X, 1.0, to), line)
    refused(lambda: student.jump(X, 1.0, torch.ones(2)), r"sigma_to is torch.float32 \[2\] for 3 samples")
    refused(lambda: student.jump(X, torch.tensor([1.0, 0.0, 1.0]), 0.5), "sigma is 0; noise levels are finite and above 0")
    with torch.no_grad():
        assert student.jump(X, 1.0, 0.0).isfinite().all()


def test_wrappers() -> None:
    refused(lambda: WithScalars(network(), {"w": NAN}), "scalar 'w' is a finite number, got nan")
    refused(lambda: dynamic_threshold(X, 2.0), "dynamic thresholding has a ratio in 0 to 1 and a floor above 0, got 2.0 and 1.0")
    refused(lambda: dynamic_threshold(X, floor=0.0), "a floor above 0, got 0.995 and 0.0")


@each("plan", [PLAN, DRAWS])
@each("model", ["network", "guided", "mixture"])
def test_layouts_and_gradients_change_nothing(plan: Plan, model: str) -> None:
    """What is allowed stays allowed: other strides, channels-last, requires_grad, float64 beside float32 noise."""
    with torch.no_grad():
        expected = run(plan, MODELS[model], X, PhiloxNoise(SEEDS), COND)[plan.states[-1]]
    for x in (X.transpose(2, 3).contiguous().transpose(2, 3), X.to(memory_format=torch.channels_last), X.clone().requires_grad_()):
        torch.testing.assert_close(run(plan, MODELS[model], x, PhiloxNoise(SEEDS), COND)[plan.states[-1]].detach(), expected)
    wide = run(plan, MIXTURE, X.double(), PhiloxNoise(SEEDS), COND)[plan.states[-1]]
    assert wide.dtype is torch.float64
