"""Schedules and grids: published values, ends, and what bad input says."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from fewstep.errors import UsageError
from fewstep.grid import ENDS, TimeGrid, make_grid
from fewstep.plugins import entries
from fewstep.schedule import EDM, VP, Cosine, RectifiedFlow, TrigFlow
from support.each import each

FAMILIES = entries("grid")

RANGE = (0.002, 80.0)


def test_vp_fitted_meets_both_ends_of_the_range():
    vp = VP.fitted(*RANGE)
    assert_allclose(vp.sigma([1e-3, 1.0]), RANGE, rtol=1e-11)  # cancellation: 8.8 against 4e-6, weighted by t = 1e-3
    # Values for this range, from arXiv 2206.00364's formula: beta_min is negative here.
    assert_allclose([vp.beta_d, vp.beta_min], [17.537956987, -0.004768986], atol=5e-10)  # nine printed decimals


def test_vp_default_is_the_published_one():
    # sigma(1)^2 = exp(19.9 / 2 + 0.1) - 1 = exp(10.05) - 1, and alpha^2 + sigma_t^2 = 1.
    vp = VP()
    assert_allclose(vp.sigma(1.0), np.sqrt(np.exp(10.05) - 1), rtol=1e-14)  # a handful of float64 roundings
    alpha, sigma_t = vp.alpha_sigma(np.linspace(1e-5, 1, 11))
    assert_allclose(alpha**2 + sigma_t**2, np.ones(11), rtol=1e-14)  # a handful of float64 roundings


def test_vp_inverse_does_not_cancel_at_small_sigma():
    # log(1 + s^2) = s^2 to 1e-24 here, and beta_min t dominates: t = s^2 / beta_min (1 - s^2 beta_d / (2 beta_min^2) + ...).
    small = 1e-9
    assert_allclose(VP().t(small), small**2 / 0.1, rtol=1e-12)  # next term of the series: 1e-15 relative


@each(
    ("t", "logsnr"),
    [(0.0, 20.0), (0.001, 12.855470), (0.125, 3.229426), (0.25, 1.762619), (0.5, 0.0), (0.75, -1.762619), (1.0, -20.0)],
)
def test_cosine_log_snr_of_the_released_code(t, logsnr):
    alpha, sigma_t = Cosine().alpha_sigma(t)
    assert_allclose(2 * np.log(alpha / sigma_t), logsnr, atol=5e-7)  # six printed decimals
    assert_allclose(Cosine().sigma(t), sigma_t / alpha, rtol=1e-11)  # tan against sin / cos near pi / 2: 1e4 roundings


def test_cosine_ends_are_clipped_not_zero():
    # logSNR = -20 at t = 1: sigma = e^10 and alpha = 1 / sqrt(1 + e^20) = 4.53999e-5, so nothing divides by zero.
    alpha, _ = Cosine().alpha_sigma(1.0)
    assert_allclose(alpha, 1 / np.sqrt(1 + np.exp(20)), rtol=1e-11)  # cos near pi / 2 loses 1 / 4.5e-5 = 2e4 roundings
    assert_allclose(Cosine().sigma([0.0, 1.0]), np.exp([-10.0, 10.0]), rtol=1e-11)  # the same


def test_native_processes_are_what_they_are_called():
    t = np.array([0.1, 0.5, 0.9])
    assert_allclose(RectifiedFlow().sigma(t), t / (1 - t))
    assert_allclose(np.sum(RectifiedFlow().alpha_sigma(t), axis=0), np.ones(3))  # z = (1 - t) x0 + t n
    assert_allclose(TrigFlow(0.5).sigma(np.pi / 4), 0.5)  # tan(pi / 4) = 1
    alpha, sigma_t = TrigFlow(0.5).alpha_sigma(t)
    assert_allclose(alpha**2 + (sigma_t / 0.5) ** 2, np.ones(3))
    assert_allclose(EDM().alpha_sigma(t), (np.ones(3), t))


# Reference values computed with the published formulas in float64 and printed with eight digits.
GRIDS = [
    ("polynomial", 0.006, [80, 3.1071219, 0.006]),
    ("polynomial", 0.006, [80, 10.929297, 0.66988566, 0.006]),
    ("polynomial", 0.006, [80, 19.003388, 3.1071219, 0.26829243, 0.006]),
    ("polynomial", 0.006, [80, 31.729821, 10.929297, 3.1071219, 0.66988566, 0.093614998, 0.006]),
    ("polynomial", 0.002, [80, 24.408342, 5.8389476, 0.96541693, 0.085087203, 0.002]),
    ("polynomial", 0.002, [80, 30.183258, 9.7232014, 2.515219, 0.46997906, 0.051532394, 0.002]),
    ("logsnr", 0.002, [80, 13.679808, 2.3392142, 0.4, 0.068399038, 0.011696071, 0.002]),
    ("time_uniform", 0.002, [80, 20.965506, 6.9502354, 2.8236888, 1.2866689, 0.5271716, 0.002]),
    ("time_uniform_rho2", 0.002, [80, 8.6724686, 2.3043399, 0.92625759, 0.38431328, 0.10984617, 0.002]),
]
EDM_18 = [80, 57.585985, 40.785574, 28.374585, 19.352453, 12.910082, 8.4009353, 5.3151945, 3.2568215, 1.9233398]
EDM_18 += [1.0881706, 0.58534812, 0.29644228, 0.13951647, 0.059947311, 0.022934518, 0.00752802, 0.002, 0.0]


@each(("family", "lo", "levels"), GRIDS)
def test_grids_have_their_published_levels(family, lo, levels):
    grid = make_grid(family, len(levels) - 1, (lo, 80.0))
    assert_allclose(grid.sigmas, levels, rtol=1e-7)  # eight printed digits


def test_ending_at_zero_is_the_published_edm_grid():
    assert_allclose(make_grid("polynomial", 18, RANGE, "zero").sigmas, EDM_18, rtol=1e-7)  # eight printed digits


@each("family", FAMILIES)
@each("end", ENDS)
@each("steps", [1, 2, 3, 50])
def test_every_builder_starts_and_ends_exactly_where_it_says(family, end, steps):
    grid = make_grid(family, steps, RANGE, end)
    assert grid.steps == steps
    assert len(grid.sigmas) == steps + 1
    assert grid.sigmas[0] == 80.0
    assert grid.sigmas[-1] == (0.002 if end == "sigma_min" else 0.0)
    assert (np.diff(grid.sigmas) < 0).all()
    if end == "zero" and steps > 1:
        assert grid.sigmas[-2] == 0.002


@each("steps", [1, 2, 3, 4, 8])
def test_nested_grids_are_every_second_level_of_the_doubled_grid(steps):
    coarse, fine = (make_grid("polynomial", n, RANGE, "zero_last") for n in (steps, 2 * steps))
    assert_allclose(coarse.sigmas, fine.sigmas[::2], rtol=1e-13)  # the same powers at i / steps = 2 i / (2 steps), rounded once
    assert coarse.sigmas[0] == 80.0
    assert coarse.sigmas[-1] == 0.0
    # Between its ends it is the polynomial grid with the same number of levels.
    assert_allclose(coarse.sigmas[:-1], make_grid("polynomial", steps, RANGE).sigmas[:-1], rtol=1e-13)  # the same formula


@each(
    ("levels", "message"),
    [
        ([80.0], "at least two noise levels"),
        (3.0, "at least two noise levels"),
        ([[[80.0]], [[1.0]]], "at least two noise levels"),
        ([80.0, 80.0, 1.0], "strictly decrease"),
        ([1.0, 80.0], "strictly decrease"),
        ([80.0, -1.0], "finite noise levels >= 0"),
        ([np.inf, 1.0], "finite noise levels >= 0"),
        ([80.0, np.nan], "finite noise levels >= 0"),
        ([[80.0, 70.0], [1.0, 70.0]], "strictly decrease"),
    ],
)
def test_bad_levels_are_refused(levels, message):
    with pytest.raises(UsageError, match=message) as refusal:
        TimeGrid(levels)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("end", "tail"), [("sigma_min", [0.002]), ("zero_last", [0.0]), ("zero", [0.002, 0.0])])
def test_levels_by_hand_lie_between_the_ends(end, tail):
    grid = make_grid("at 5 0.821", 2 + len(tail), (0.002, 80.0), end)
    assert grid.sigmas.tolist() == [80.0, 5.0, 0.821, *tail]


def test_grids_are_values():
    given = np.array([80.0, 1.0])
    grid = TimeGrid(given)
    given[0] = 5.0
    assert grid.sigmas[0] == 80.0
    with pytest.raises(ValueError, match="read-only"):
        grid.sigmas[0] = 1.0
    assert TimeGrid([[80.0, 70.0], [1.0, 2.0]]).steps == 1  # one grid per sample


@each(
    ("family", "steps", "end", "message"),
    [
        ("polynomal", 5, "zero", "unknown grid 'polynomal'; did you mean polynomial"),
        ("logsnr", 5, "sigma_mn", "unknown end 'sigma_mn'; did you mean sigma_min"),
        ("logsnr", 0, "zero", "the number of steps is an integer >= 1, got 0; a grid needs at least one step"),
        ("at 5 x", 3, "zero", "levels by hand are numbers, got 'at 5 x'; e.g. 'at 5 0.821'"),
        ("at ", 1, "sigma_min", "got 'at '; e.g. 'at 5 0.821'"),
        ("at 0.8 5", 3, "sigma_min", "levels by hand fall from 80 to 0.002 and lie between the two, got 'at 0.8 5'"),
        ("at 5 5", 3, "sigma_min", "levels by hand fall from 80 to 0.002"),
        ("at 80", 2, "sigma_min", "levels by hand fall from 80 to 0.002"),
        ("at 0.002", 2, "sigma_min", "levels by hand fall from 80 to 0.002"),
        ("at 5 0.8", 4, "sigma_min", "a grid at 5 0.8 has 3 steps and no other number"),
    ],
)
def test_bad_requests_name_the_near_misses(family, steps, end, message):
    with pytest.raises(UsageError, match=message):
        make_grid(family, steps, RANGE, end)


def test_a_range_without_a_vp_schedule_is_refused():
    # log(1 + 0.25) = 0.22 at t = 0.001 already: the fitted parabola would have to come down again.
    with pytest.raises(UsageError, match=r"no VP schedule rises from sigma 0\.5 at t = 0\.001 to 1\.0"):
        make_grid("time_uniform", 2, (0.5, 1.0))


def test_an_empty_range_is_refused():
    with pytest.raises(UsageError, match=r"0 < sigma_min < sigma_max, got \(80, 80\)"):
        make_grid("polynomial", 4, (80.0, 80.0))
