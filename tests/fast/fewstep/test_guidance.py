"""Guidance identities: D_ref + scale (D - D_ref), its cost, and where it is switched off."""

import pytest
import torch
from torch.testing import assert_close

from fewstep.analytic import Counting, Gaussian, GaussianMixture
from fewstep.cond import NULL, Cond
from fewstep.denoiser import Around, layers, leaf, with_leaves
from fewstep.errors import UsageError
from fewstep.grid import TimeGrid
from fewstep.guidance import Guided, guide
from fewstep.plugins import get
from fewstep.wrappers import Mapped, WithScalars, clip

LABEL = Cond(torch.tensor([0, 1, 2]))
X = torch.tensor([[0.4, 1.0], [-1.0, 0.2], [2.0, -0.3]], dtype=torch.float64)


def teacher() -> GaussianMixture:
    means = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], dtype=torch.float64)
    return GaussianMixture(means, torch.tensor([0.3, 0.4, 0.5]), torch.log(torch.tensor([0.2, 0.3, 0.5])), classes=3)


def test_scale_one_is_the_denoiser_itself():
    model = teacher()
    assert guide(model, 1.0) is model
    assert guide(model, 1) is model


@pytest.mark.parametrize("scale", [0.0, 2.0, 4.0])
def test_one_doubled_batch_equals_two_calls(scale):
    model = teacher()
    free, own = model(X, 0.9, NULL), model(X, 0.9, LABEL)
    counting = Counting(model)
    assert_close(guide(counting, scale)(X, 0.9, LABEL), free + scale * (own - free))
    assert counting.calls == 1
    assert counting.conds[0].label.tolist() == [0, 1, 2, 3, 3, 3]  # the null label is one past the last class


def test_scale_zero_and_a_missing_label_are_unconditional():
    model = teacher()
    assert_close(guide(model, 0.0)(X, 0.9, LABEL), model(X, 0.9))
    assert_close(guide(model, 3.0)(X, 0.9, NULL), model(X, 0.9))


def test_per_sample_scale_and_sigma():
    model, sigma = teacher(), torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    out = guide(model, torch.tensor([1.0, 2.0, 5.0]))(X, sigma, LABEL)
    rows = [guide(model, s)(X[i : i + 1], float(sigma[i]), LABEL[i : i + 1]) for i, s in enumerate([1.0, 2.0, 5.0])]
    assert_close(out, torch.cat(rows))


def test_autoguidance_uses_the_other_denoiser():
    model, weak = teacher(), Gaussian(torch.zeros(2), torch.ones(2), (2,))
    d, d_ref = model(X, 0.9, LABEL), weak(X, 0.9)
    assert_close(guide(model, 2.5, ref=weak)(X, 0.9, LABEL), d_ref + 2.5 * (d - d_ref))


def test_an_image_condition_is_dropped_from_the_reference_branch_only():
    class Picture(Gaussian):
        def __call__(self, x, sigma, cond=NULL):
            return torch.full_like(x, 1.0 if cond.image is None else 3.0)

    model = Picture(torch.zeros(2), torch.ones(2), (2,))
    cond = Cond(image=torch.zeros(3, 1, 2, 2))
    assert_close(guide(model, 2.0)(X, 0.9, cond), torch.full_like(X, 5.0))  # 1 + 2 (3 - 1)


def test_scalars_reach_both_branches():
    counting = Counting(teacher())
    guide(counting, 2.0)(X, 0.9, Cond(LABEL.label, scalars={"w": torch.tensor([1.0, 2.0, 3.0])}))
    assert counting.conds[0].scalars["w"].tolist() == [1.0, 2.0, 3.0] * 2


def test_outside_its_interval_guidance_is_off_and_free():
    model = teacher()
    guided = guide(model, 3.0, interval=(0.5, 2.0))
    for sigma, inside in [(0.5, False), (0.51, True), (2.0, True), (2.01, False)]:  # (low, high]
        expected = guide(model, 3.0) if inside else model
        assert_close(guided(X, sigma, LABEL), expected(X, sigma, LABEL))
        assert guided.cost(sigma) == (2 if inside else 1)
    with pytest.raises(UsageError, match="one sigma per call"):
        guided(X, torch.tensor([1.0, 2.0, 3.0]), LABEL)


def test_nfe_counts_both_branches_where_guidance_is_on():
    model = teacher()
    plan = get("solver", "heun").make().plan(TimeGrid([80.0, 1.0, 0.1, 0.0]))
    assert [float(e.sigma) for e in plan.evals] == [80.0, 1.0, 1.0, 0.1, 0.1]
    assert plan.nfe(model) == 5
    assert plan.nfe(guide(model, 2.0)) == 10
    assert plan.nfe(guide(model, 2.0, interval=(0.5, 2.0))) == 5 + 2  # the two evaluations at sigma 1
    assert plan.nfe(guide(guide(model, 2.0), 2.0, ref=model)) == 15  # (1 + 1) + 1 passes a call
    assert plan.nfe(guide(model, 2.0, ref=guide(model, 2.0))) == 15  # 1 + (1 + 1)


def test_guidance_passes_on_what_a_sampler_asks_for():
    guided = guide(teacher(), 2.0)
    assert (guided.shape, guided.classes, guided.sigma_range) == ((2,), 3, (0.002, 80.0))


def test_a_wrapper_is_made_anew_around_what_is_inside():
    """`layers` sees references too; `with_leaves` keeps every wrapper, and `leaf` is what is under the bases."""
    one, two, other = (
        Gaussian(torch.full((2,), m, dtype=torch.float64), torch.ones(2, dtype=torch.float64), (2,)) for m in (0.0, 1.0, 2.0)
    )
    inside = guide(WithScalars(one, {"w": 1.0}), 2.0, ref=two)
    whole = Mapped(inside, clip)
    assert [type(layer).__name__ for layer in layers(whole)] == ["Mapped", "Guided", "WithScalars", "Gaussian", "Gaussian"]
    assert leaf(whole) is one
    made = with_leaves(whole, lambda d: other if d is one else d)
    assert [layer for layer in layers(made) if isinstance(layer, Gaussian)] == [other, two]
    assert isinstance(made, Mapped)
    assert vars(made.with_base(one)) == {"base": one, "fn": clip}
    assert isinstance(inside, Guided)
    swapped = inside.with_base(other)
    assert (swapped.inner(), swapped.scale) == ((other, two), 2.0)


def test_a_wrapper_that_cannot_be_made_anew_is_one_line():
    class Mine(Around):
        def __init__(self, base):
            self.base = base

        def __call__(self, x, sigma, cond=NULL):
            return self.base(x, sigma, cond)

    with pytest.raises(UsageError, match="the wrapper Mine cannot be put around another denoiser; make it a dataclass"):
        with_leaves(Mine(teacher()), lambda d: d)
