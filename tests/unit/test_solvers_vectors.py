"""Published samplers, run in float64 on an analytic denoiser: their outputs to ten digits.

Data: elementwise mixture of two Gaussians at +-1/2 with standard deviation 1/10; z = (-3/2, -1/2, 1/4, 1), x_0 = 80 z. Outputs of the
reference implementations (zju-pi/diff-sampler at 68d5ce4; NVlabs/edm at 008a4e5 for the last two).
"""

import pytest
import torch
from torch.testing import assert_close

from fewstep.cond import NULL
from fewstep.grid import make_grid
from fewstep.plan import run, with_afs
from methods.registry import get


class TwoModes:
    """D = (s^2 x + sigma^2 m tanh(m x / v)) / v with v = s^2 + sigma^2, m = 1/2, s = 1/10."""

    shape, classes, sigma_range = (4,), 0, (0.002, 80.0)

    def cost(self, sigma):
        return 1

    def __call__(self, x, sigma, cond=NULL):
        v = 0.01 + sigma**2
        return (0.01 * x + sigma**2 * 0.5 * torch.tanh(0.5 * x / v)) / v


NOT_LOWERED = {"lower_order_final": False}
# name, options, grid, nodes, end, AFS, evaluations, output
VECTORS = [
    ("euler", {}, "polynomial", 7, "sigma_min", False, 6, [-0.5216895691, -0.3175433907, 0.2171359293, 0.4509819745]),
    ("euler", {}, "polynomial", 7, "sigma_min", True, 5, [-0.5216994809, -0.3175544282, 0.2171427637, 0.4509936643]),
    ("heun", {}, "polynomial", 4, "sigma_min", False, 6, [-2.8614427354, -1.5689086922, 0.9452197456, 2.4227879392]),
    ("heun", {}, "polynomial", 4, "sigma_min", True, 5, [-2.8606706768, -1.5679735550, 0.9446501074, 2.4217742057]),
    ("dpm_2s", {}, "polynomial", 4, "sigma_min", False, 6, [-1.2235858452, -0.6044383233, 0.5840896568, 0.8690241695]),
    ("dpm_2s", {}, "polynomial", 4, "sigma_min", True, 5, [-1.2230395610, -0.6043665569, 0.5841062098, 0.8686836281]),
    ("dpmpp_1s", {}, "logsnr", 7, "sigma_min", False, 6, [-0.5308369055, -0.3522465590, 0.2550143470, 0.4695607011]),
    ("dpmpp_2m", {}, "logsnr", 7, "sigma_min", False, 6, [-0.6992292645, -0.4975800062, 0.3678338362, 0.6369727526]),
    ("dpmpp_3m", {}, "logsnr", 7, "sigma_min", False, 6, [-0.8349890983, -0.6351531083, 0.4525134510, 0.7938780184]),
    ("dpmpp_3m", {}, "logsnr", 7, "sigma_min", True, 5, [-0.8354563441, -0.6357172401, 0.4529230171, 0.7943592916]),
    ("dpmpp_3m", NOT_LOWERED, "logsnr", 7, "sigma_min", False, 6, [-0.8028981394, -0.6299273006, 0.5000164861, 0.7546362950]),
    ("dpmpp_3m", {}, "polynomial", 7, "sigma_min", False, 6, [-0.7074014083, -0.4589403125, 0.2987694561, 0.6378519907]),
    ("heun", {}, "polynomial", 7, "zero", False, 11, [-1.0609634065, -0.9367030175, 0.9438918113, 0.9708454192]),
    ("heun", {}, "polynomial", 19, "zero", False, 35, [-0.6285336008, -0.4843405360, 0.4266686172, 0.5623566712]),
]


@pytest.mark.parametrize(("name", "options", "family", "nodes", "end", "afs", "evals", "expected"), VECTORS)
def test_published_outputs(name, options, family, nodes, end, afs, evals, expected):
    grid = make_grid(family, nodes - 1, (0.002, 80.0), end)
    plan = get("solver", name).make(**options).plan(grid)
    plan = with_afs(plan) if afs else plan
    assert len(plan.evals) == evals
    x = 80 * torch.tensor([[-1.5, -0.5, 0.25, 1.0]], dtype=torch.float64)
    out = run(plan, TwoModes(), x)[plan.states[-1]][0]
    assert_close(out, torch.tensor(expected, dtype=torch.float64), atol=5.1e-11, rtol=0)  # ten printed decimals
