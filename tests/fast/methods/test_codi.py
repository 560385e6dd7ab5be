"""Conditional diffusion distillation on Gaussian data, where noise and images that a network sees are known in closed form."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.noise import Rng, noised
from fewstep.plugins import get
from fewstep.precond import TimestepPrecond
from methods.distill.codi import earlier, noise_of
from methods.training import State
from support.exactnet import EDM, ExactNet, V, gaussian_batch, linear_teacher, posterior

COSINE = get("schedule", "cosine").make()


def state_of(method, student=None, target=None) -> State:
    net = ExactNet(posterior, EDM)
    return State(linear_teacher(), {"student": student or net}, {"target": target or net}, method.phases()[0])


def loss_of(method, rng: Rng | None = None, count: int = 64, **nets):
    (loss,) = method.losses(state_of(method, **nets), gaussian_batch(count), rng or Rng((7,)))
    return loss


class Spied(ExactNet):
    """The exact network, which keeps the levels that it is told."""

    def __init__(self) -> None:
        super().__init__(posterior, EDM)
        self.told: list[np.ndarray] = []

    def forward(self, x, time, cond):
        self.told.append(np.exp(4 * time.double().numpy()))
        return super().forward(x, time, cond)


def one(value: float) -> torch.Tensor:
    return torch.full((1, 1), value, dtype=torch.float64)


@pytest.mark.parametrize(
    ("dt", "z_s", "eps_s", "gap"),
    [
        (0.25, 0.69429074, 0.73839195, 0.1544),
        (0.1, 0.89383446, 1.03194535, 9.885e-3),
        (0.01, 0.99045280, 1.12401353, 5.413e-5),
        (0.001, 0.99905634, 1.13065757, 5.09e-7),
    ],
)
def test_the_noise_of_an_exact_network_is_not_its_own_one_step_on(dt: float, z_s: float, eps_s: float, gap: float) -> None:
    (a, s), (a_to, s_to) = COSINE.alpha_sigma(0.5), COSINE.alpha_sigma(0.5 - dt)
    sigma, sigma_to = (torch.tensor([float(v)], dtype=torch.float64) for v in (s / a, s_to / a_to))
    x = one(1 / a)  # z = 1
    d = posterior(float(sigma)) * x
    eps = noise_of(x, d, sigma)
    assert (float(d), float(eps)) == pytest.approx((0.28284271, 1.13137085), abs=5e-9)
    x_to = earlier("ddim_v", x, d, torch.full_like(x, math.nan), sigma, sigma_to)
    eps_to = noise_of(x_to, posterior(float(sigma_to)) * x_to, sigma_to)
    assert (float(a_to * x_to), float(eps_to)) == pytest.approx((z_s, eps_s), abs=5e-9)
    assert float((eps - eps_to) ** 2) == pytest.approx(gap, rel=5e-4 if dt > 0.001 else 1e-3)


def test_the_state_before_by_the_noise_that_was_drawn() -> None:
    (a, s), (a_to, s_to) = COSINE.alpha_sigma(0.5), COSINE.alpha_sigma(0.4)
    sigma, sigma_to = (torch.tensor([float(v)], dtype=torch.float64) for v in (s / a, s_to / a_to))
    x0, noise = one(0.4), one(1.0)
    x = noised(x0, noise, sigma)
    assert float(a * x) == pytest.approx(0.98994949, abs=5e-9)
    d = posterior(float(sigma)) * x
    x_to = earlier("prev", x, d, noise, sigma, sigma_to)
    eps_to = noise_of(x_to, posterior(float(sigma_to)) * x_to, sigma_to)
    found = float(d), float(a_to * x_to), float(noise_of(x, d, sigma)), float(eps_to)
    assert found == pytest.approx((0.28, 0.81431586, 1.12, 0.94013992), abs=5e-9)
    torch.testing.assert_close(earlier("prev", x, x0, noise, sigma, sigma_to), noised(x0, noise, sigma_to))  # of the true image
    for d in (torch.randn(1, 1, dtype=torch.float64), x0):
        same = [earlier(name, x, d, noise, sigma, sigma_to) for name in ("ddim", "ddim_v", "prior")]
        assert torch.equal(same[0], same[1])
        assert torch.equal(same[0], same[2])


@pytest.mark.parametrize("predictor", ["prev", "ddim_v"])
def test_the_loss_is_what_the_formula_says(predictor: str) -> None:
    method = get("distiller", "codi").make(predictor=predictor, per_sample=True, guide="none", skip=50)
    rng, batch = Rng((7,)), gaussian_batch(64)
    levels = make_grid("time_uniform", 1000, (0.002, 80.0)).sigmas
    i = rng.integers(951, (64,)).numpy()
    n = rng.normal(batch.x0.shape).double().numpy()
    sigma, to = (levels[j][:, None, None, None] for j in (i, i + 50))
    x = batch.x0.numpy() + sigma * n
    d = posterior(sigma) * x
    x_to = d + to * (n if predictor == "prev" else (x - d) / sigma)
    # D of the exact network is off by 1e-6, which (x - D) / sigma magnifies by up to 1 / sigma = 500: 1e-4 of a mean over all levels.
    expected = (((x - d) / sigma - (1 - posterior(to)) * x_to / to) ** 2).mean()
    assert loss_of(method).value.item() == pytest.approx(expected, rel=1e-4)
    guided = loss_of(replace(method, guide="l2"))
    assert guided.value.item() == pytest.approx(expected + ((d - batch.x0.numpy()) ** 2).mean(), rel=1e-4)
    assert guided.logs["consistency"] == pytest.approx(expected, rel=1e-4)
    signal = loss_of(replace(method, space="signal")).value.item()
    assert signal == pytest.approx(((d - posterior(to) * x_to) ** 2).mean(), rel=1e-4)


class Halves:
    """A codec whose decoder forgets the left half of an image, and whose encoder doubles."""

    def pixels(self, x: torch.Tensor) -> torch.Tensor:
        return x[..., 2:]

    def latents(self, images: torch.Tensor) -> torch.Tensor:
        return 2 * torch.cat([torch.zeros_like(images), images], dim=-1)


def test_the_image_may_be_compared_in_three_places() -> None:
    """Of latents; of latents decoded and encoded again with latents; of decoded images. Without a decoder they are one."""
    batch, codec, nothing = gaussian_batch(32), Halves(), get("distiller", "codi").make(guide="none")

    def guidance(where: str, **own) -> float:
        method = get("distiller", "codi").make(guide_in=where)
        (loss,) = method.losses(replace(state_of(method), **own), batch, Rng((7,)))
        (alone,) = nothing.losses(replace(state_of(nothing), **own), batch, Rng((7,)))
        return loss.value.item() - alone.value.item()

    rng = Rng((7,))
    sigma, _ = nothing._levels(linear_teacher(), 32, rng)
    x = noised(batch.x0, rng.normal(batch.x0.shape), sigma)
    d = posterior(sigma.numpy()[:, None, None, None]) * x.numpy()
    x0 = batch.x0.numpy()
    again = np.concatenate([0 * d[..., :2], 2 * d[..., 2:]], axis=-1)
    # The exact network knows its level to 5e-7 relative, and differences of two losses lose a digit.
    for where, wanted in (("latents", (d - x0) ** 2), ("encoded", (again - x0) ** 2), ("pixels", (d - x0)[..., 2:] ** 2)):
        assert guidance(where, codec=codec) == pytest.approx(wanted.mean(), rel=1e-4)
        assert guidance(where) == pytest.approx(((d - x0) ** 2).mean(), rel=1e-4)


def test_one_time_for_the_batch_or_one_for_each_image() -> None:
    for per_sample in (False, True):
        student, target = Spied(), Spied()
        method = get("distiller", "codi").make(per_sample=per_sample)
        loss_of(method, student=student, target=target)
        (at,), (to,) = student.told, target.told
        assert (len(np.unique(at)) > 32) if per_sample else (len(np.unique(at)) == 1)
        assert (to < at).all()  # the target is asked at s
        levels = make_grid("time_uniform", 1000, (0.002, 80.0)).sigmas
        index = np.abs(levels[None] - at[:, None]).argmin(1)
        np.testing.assert_allclose(to, levels[index + 1], rtol=1e-5)  # it is told log(sigma) / 4 in float32
    parts = [Rng((3,), part=part).integer(1000) for part in ((0, 2, 4), (2, 4, 4))]
    assert parts[0] == parts[1]  # whoever computes which examples


def test_gradients_flow_through_the_student_alone() -> None:
    class Free(ExactNet):
        def __init__(self) -> None:
            super().__init__(posterior, EDM)
            self.gain_by = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, x, time, cond):
            return self.gain_by * super().forward(x, time, cond)

    student, target = Free(), Free()
    loss_of(get("distiller", "codi").make(), student=student, target=target).value.backward()
    assert student.gain_by.grad is not None
    assert float(student.gain_by.grad) != 0
    assert target.gain_by.grad is None


def test_the_released_variant() -> None:
    method = get("distiller", "codi").make(released=True)
    assert (method.predictor, method.space, method.per_sample, method.skip, method.version) == ("prior", "signal", True, 20, 2)
    student = method.student(ExactNet(posterior, EDM), linear_teacher())
    assert isinstance(student.precond, TimestepPrecond)
    assert math.isfinite(loss_of(method).value.item())


def test_bad_options() -> None:
    for options, told in (
        ({"predictor": "ddmi"}, "did you mean"),
        ({"space": "image"}, "space"),
        ({"guide": "lpisp"}, "lpips"),
        ({"skip": 1000}, "skip=1000"),
        ({"init": "random"}, "scratch"),
    ):
        with pytest.raises(UsageError, match=told):
            get("distiller", "codi").make(**options)
    with pytest.raises(UsageError, match="task has none"):
        get("distiller", "codi").make().build(linear_teacher())
    assert V == 0.25
