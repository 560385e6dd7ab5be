"""Training teachers of every form on native time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from fewstep.cond import Cond
from fewstep.data.source import Batch
from fewstep.denoiser import Preconditioned
from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.noise import Rng
from fewstep.plugins import get
from fewstep.precond import EDMPrecond, ProcessPrecond
from fewstep.schedule import Cosine
from methods.training import Phase, State
from support.exactnet import V, gaussian_batch, posterior
from support.forms import FORMS, RANGE, TableNet, denoiser
from support.tiny import mixture_data


def vp_loss(form: str, by: str, gain: float = 1.0, classes: int = 2) -> float:
    """vp's loss of the exact D of Gaussian data times `gain`."""
    sigmas = make_grid("cosine", 20000, RANGE).sigmas
    net = TableNet(sigmas, gain * posterior(sigmas), ProcessPrecond(Cosine(), form))
    (loss,) = (
        get("pretrain", "vp")
        .make(loss=by)
        .losses(State(denoiser(net, form, classes), {"student": net}, {}, Phase("vp", 1, 1, {})), gaussian_batch(4096), Rng((7,)))
    )
    assert loss.net == "student"
    return loss.value.item()


@pytest.mark.parametrize("form", FORMS)
def test_vp_trains_every_form_to_the_posterior_mean(form: str):
    """E_t of the posterior variance v sigma^2 / (v + sigma^2), times the weight, t uniform; another gain is worse."""
    t = (np.arange(100000) + 0.5) / 1e5
    sigma = Cosine().sigma(t)
    variance = V * sigma**2 / (V + sigma**2)
    for by, factor in (("uniform", 1), ("snr", sigma**-2), ("snr_plus_1", 1 + sigma**-2), ("truncated_snr", np.maximum(1, sigma**-2))):
        found = vp_loss(form, by)
        # 4096 samples of 16 pixels: the relative spread of the mean is below 1%; eps carries 22026^2 2^-53 of x at zero SNR.
        assert_allclose(found, np.mean(factor * variance), rtol=0.03)
        assert vp_loss(form, by, gain=0.7) > 1.01 * found


def test_vp_stays_in_the_range_of_any_teacher_and_needs_no_labels():
    """Native time is uniform between the ends of the teacher's own range."""
    seen = []

    class Spy(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, x, time, cond):
            seen.append(torch.exp(4 * time))
            return self.weight * x

    _, data = mixture_data()
    spy = Spy()
    teacher = Preconditioned(spy, EDMPrecond(data.sigma_data), data.shape, 0, (0.01, 40.0))
    batch = Batch(data.draw(4096, Rng((1,))).x0, Cond())
    list(get("pretrain", "vp").make().losses(State(teacher, {"student": spy}, {}, Phase("vp", 1, 1, {})), batch, Rng((2,))))
    u = (torch.arctan(seen[0].double()) - math.atan(0.01)) / (math.atan(40) - math.atan(0.01))
    assert u.min() > -1e-6
    assert u.max() < 1 + 1e-6
    assert_allclose(np.quantile(u, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.03)  # 4096 draws: standard error below 0.008


def test_an_unknown_weight_of_vp_is_refused():
    with pytest.raises(UsageError, match="unknown weight 'snr_plus'; did you mean snr_plus_1"):
        get("pretrain", "vp").make(loss="snr_plus")
