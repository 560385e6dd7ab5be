"""Clipping, learning rates, noise levels and real images of the students: ours, and with `released` those of the released codes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from bench.jobs.fits.pairs import probe_pairs
from bench.training.engine import Engine, Settings
from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.noise import Rng
from fewstep.plugins import get
from methods.distill import ctm
from methods.distiller import Distiller
from methods.training import Loss, Phase, State, described
from support.registered import put
from support.tiny import made, mixture_data, network, teacher_of

LR, BATCHES = 0.5, 20
STUDENT, CRITIC = (1.0, 0.5), (1.0, 1.0)  # the norm gradients are clipped to, and from which part of a phase on the lr falls: ours
PLAIN = (math.inf, 1.0)
# By method, phase after phase: of each net these two numbers as released, and over how many of 20 batches the lr rises there.
RELEASED: dict[str, list[dict[str, tuple[float, float]]]] = {
    **{name: [{"student": PLAIN}] for name in ("cd", "ct", "ict", "ect", "ctm")},
    "ctm_gan": [{"student": PLAIN}, {"student": PLAIN, "discriminator": PLAIN}],
    "dmd": [{"student": (10.0, 1.0), "fake": (10.0, 1.0)}],
    "dmd2": [{"student": (10.0, 1.0), "fake": (10.0, 1.0), "head": (10.0, 1.0)}],
    "lcm": [{"student": (1.0, 1.0)}],
    "kd": [{"student": (1.0, 1.0)}],
}
RISES = {("dmd", True): 2, ("lcm", True): 2, ("kd", True): 2, ("kd", False): 2}


@dataclass(frozen=True)
class Pushed:
    """A method's nets and phases under a gradient of 1 for every weight, which is clipped and stepped as the method says."""

    method: Distiller
    seen: list[tuple[str, dict[str, torch.Tensor]]]
    version: int = 1

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return self.method.build(teacher)

    def phases(self) -> Sequence[Phase]:
        return self.method.phases()

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        flat = {name: torch.cat([p.detach().double().flatten() for p in state.nets[name].parameters()]) for name in state.phase.optims}
        self.seen.append((state.phase.name, flat))
        for name in state.phase.optims:
            yield Loss(torch.stack([p.sum() for p in state.nets[name].parameters()]).sum(), name)


def moved(method: Distiller, name: str, folder: Path) -> dict[tuple[str, str], list[float]]:
    """By phase and net: how far each batch but a phase's last moved it, in units of LR, when an optimiser is plain descent."""
    data, seen = mixture_data()[1], list[tuple[str, dict[str, torch.Tensor]]]()
    Engine(Pushed(method, seen), teacher_of(name, data), data, folder, Settings(progress=False)).run()
    steps: dict[tuple[str, str], list[float]] = {}
    for (phase, before), (after_phase, after) in itertools.pairwise(seen):
        for net in before if phase == after_phase else ():
            steps.setdefault((phase, net), []).append(float((after[net] - before[net]).norm()) / LR)
    return steps


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("name", RELEASED)
def test_gradients_and_learning_rates_are_ours_or_the_released_codes(
    name: str, released: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The engine's own steps: of norm lr times that of the gradient, or times `clip` where that is less."""
    for kind in ("adam", "adamw", "radam"):
        put(monkeypatch, "optimiser", kind, lambda params, lr, weight_decay: torch.optim.SGD(params, lr))
    variant = f"{name}/released" if released else name
    method = get("distiller", name).make(batches=BATCHES, batch_size=2, lr=LR, released=released)
    if name == "ctm_gan":
        method = replace(method, discriminator_lr=LR)
    found = moved(method, variant, tmp_path)
    nets = method.build(teacher_of(variant, mixture_data()[1]))
    for phase, expected in zip(method.phases(), RELEASED[name], strict=True):
        assert set(phase.optims) == set(expected)
        for net, told in expected.items():
            clip, falls_from = told if released else STUDENT if net == "student" else CRITIC
            norm = sum(p.numel() for p in nets[net].parameters()) ** 0.5
            assert norm > 11  # so that every clip shows
            rises = RISES.get((name, released), 0)
            rates = [min(1.0, (b + 1) / max(rises, 1)) * min(1.0, (1 - b / BATCHES) / max(1 - falls_from, 1e-9)) for b in range(BATCHES)]
            expected_steps = [rate * min(norm, clip) for rate in rates[:-1]]
            # float32 weights near 1 move by about 1e-2 each: seven digits of them are five of their movement
            np.testing.assert_allclose(found[phase.name, net], expected_steps, rtol=1e-4, err_msg=f"{phase.name} {net}")


def test_released_dmd_has_the_papers_optimiser() -> None:
    method = get("distiller", "dmd").make(released=True, batches=300_000)
    for spec in method.phases()[0].optims.values():
        assert (spec.name, spec.weight_decay, spec.warmup, spec.clip) == ("adamw", 0.01, 500, 10.0)
    for spec in get("distiller", "dmd2").make(released=True).phases()[0].optims.values():  # the paper names AdamW and no more
        assert (spec.name, spec.weight_decay, spec.clip) == ("adamw", 0.01, 10.0)
    assert get("distiller", "lcm").make(released=True, batches=100_000).phases()[0].optims["student"].warmup == 500


@pytest.mark.parametrize("name", RELEASED)
def test_both_are_options_beside_released(name: str) -> None:
    (spec,) = {p.optims["student"] for p in get("distiller", name).make(clip=0.0, anneal_from=0.9).phases()}
    assert (spec.clip, spec.anneal_from) == (math.inf, 0.9)
    for options, message in (
        ({"clip": -1.0}, f"{name.removesuffix('_gan')} clips gradients to a norm clip >= 0 (0: not at all), got clip=-1; use e.g. 1"),
        ({"clip": math.nan}, "got clip=nan"),
        (
            {"anneal_from": 1.5},
            "learning rate falls from a fraction of its batches on, 0 to 1 (1: never), got anneal_from=1.5; use e.g. 0.5",
        ),
    ):
        with pytest.raises(UsageError) as err:
            get("distiller", name).make(**options)
        assert message in str(err.value)
        assert len(str(err.value).splitlines()) == 1


def test_later_fields_leave_identities_alone_until_they_are_used(tmp_path: Path) -> None:
    """What trainings were known by before the fields came is what they are known by now; with one in use they are others."""
    plain, released = (get("distiller", "ctm_gan").make(released=flag) for flag in (False, True))
    by_hand = replace(plain, clip=0.0, anneal_from=1.0)  # the same phases as released, but noised real images
    assert described(plain) == repr(plain)
    assert not any(word in repr(plain) for word in ("clip", "anneal_from", "released"))
    assert [repr(p) for p in by_hand.phases()] == [repr(p) for p in released.phases()]
    data = mixture_data()[1]
    found = {Engine(m, network(data), data, tmp_path, Settings(progress=False)).identity for m in (plain, released, by_hand)}
    assert len(found) == 3


def test_what_released_changed_of_old_has_a_version_of_its_own() -> None:
    for name in ("kd", "lcm"):
        make = get("distiller", name).make
        own = make().version
        assert (make(released=True).version, replace(make(released=True), lr=0.1).version) == (own + 1, own + 1)


def test_the_released_target_of_ct_forgets_faster_at_the_start() -> None:
    """mu = exp(s0 ln(mu0) / N) of the paper, with N - 1 for N in the released code: 0.9 and 0.81 at N = 2."""
    for released, expected in ((False, 0.9), (True, 0.81)):
        decay = get("distiller", "ct").make(released=released).phases()[0].emas["target"].decay_at(0)
        assert decay == pytest.approx(expected)


# Noise levels of DMD


def place(sigma: torch.Tensor) -> np.ndarray:
    """Where levels stand in the table of 1000, from the highest on."""
    table = make_grid("polynomial", 999, (0.002, 80.0)).sigmas
    return np.abs(np.log(table)[None] - np.log(sigma.numpy())[:, None]).argmin(1)


def watched(name: str, released: bool, count: int) -> tuple[np.ndarray, np.ndarray, list, list]:
    """The places at which the fake denoiser is asked for the matching gradient and otherwise, the latter's outputs call by call, and what
    the head reads."""
    data = mixture_data()[1]
    teacher = network(data)
    method = get("distiller", name).make(fake_updates=1, released=released, **({"count": 64} if name == "dmd" else {}))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        nets = method.build(teacher)
    matching, others, outputs, heads = [], [], [], []

    def note(module: nn.Module, inputs: tuple, output: torch.Tensor | tuple) -> None:
        (others if torch.is_grad_enabled() else matching).append(place(torch.exp(4 * inputs[1].double())))
        if torch.is_grad_enabled():
            outputs.append(output)

    nets["fake"].register_forward_hook(note)
    if "head" in nets:
        nets["head"].register_forward_pre_hook(lambda module, inputs: heads.append(inputs[0].detach()))
    batch = (probe_pairs(data) if name == "dmd" else data).draw(count, Rng((1,)))
    list(method.losses(State(teacher, nets, {}, method.phases()[0]), batch, Rng((2,))))
    return np.concatenate(matching), np.concatenate(others), outputs, heads


@pytest.mark.parametrize("name", [pytest.param("dmd", marks=pytest.mark.slow), "dmd2"])
def test_only_the_released_matching_gradient_leaves_both_ends_out(name: str) -> None:
    count = 8000  # of 960 places: each is drawn eight times in the mean, and these seeds reach both ends
    matching, others, *_ = watched(name, False, count)
    assert (matching.min(), matching.max()) == (20, 979)
    assert (others.min(), others.max()) == (20, 979)
    matching, others, *_ = watched(name, True, count)
    assert (matching.min(), matching.max()) == (19, 979)  # 980 and 20 from the lowest level on
    assert (others.min(), others.max()) == (0, 999)


def test_released_denoising_and_gan_have_a_noised_input_each() -> None:
    """The head reads the generated samples' map at levels of their own, not those that the denoising has."""
    for released, calls, read in ((False, 3, 0), (True, 4, 1)):
        _, _, outputs, heads = watched("dmd2", released, 8)
        assert len(outputs) == calls  # denoising [and GAN], real images, the student's GAN
        assert torch.equal(heads[0], outputs[read][1])
        assert torch.equal(heads[1], outputs[read + 1][1])


# Real images of CTM's GAN


@pytest.mark.parametrize("released", [False, True])
def test_only_the_released_discriminator_sees_images_without_noise(released: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    data, shown = mixture_data()[1], []
    original = ctm.deepest_map
    teacher, method = network(data), made("ctm_gan/released" if released else "ctm_gan")
    with torch.random.fork_rng():
        nets = method.build(teacher)
    monkeypatch.setattr(ctm, "deepest_map", lambda teacher, x, cond: shown.append(x) or original(teacher, x, cond))
    batch, phase = data.draw(64, Rng((1,))), method.phases()[1]
    list(method.losses(State(teacher, nets, {"target": nets["student"]}, phase), batch, Rng((2,))))
    estimate, real, again = shown
    assert torch.equal(estimate, again)
    assert float((real - batch.x0).std()) == pytest.approx(0.0 if released else 0.002, rel=0.1)  # 1024 pixels: 2%
