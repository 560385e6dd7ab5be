"""The measurements against ground truth, on constructed evidence whose answers are known; and the pictures made of them."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from torch.testing import assert_close

from bench.evaluate.judge import exact_moments_of
from bench.reports.plots.arena import FAMILIES, PER_PANEL, error_vs_nfe, family, floor_of, lines_of, panels, write_arena_pictures
from bench.reports.writing import write_report
from fewstep.arenas import arena_gaussian, arena_mixture
from fewstep.errors import Unavailable, UsageError
from fewstep.plugins import entries, get
from metrics import Evidence, metric_named, metrics_by_name, quantise
from metrics.families.endpoint import rms
from metrics.moments import Moments, exact_moments, frechet_distance
from metrics.reference import Reference, build_reference
from support.synthetic import cell_rows, synthetic_rows

ENDPOINT_ERROR = metric_named("endpoint_error")
FD_MOMENTS = metric_named("fd_moments")

METRICS = metrics_by_name()

SHAPE, DIM = (1, 2, 2), 4


def reference(mean=None, cov=None) -> Reference:
    none = np.zeros((1, *SHAPE))
    exact = exact_moments(np.zeros(DIM) if mean is None else mean, np.eye(DIM) if cov is None else cov)
    return Reference("arena", 2, none, none, none, none, "abc", {}, exact)


def evidence(raw, teacher=None, error=None, against=None) -> Evidence:
    labels = np.arange(len(raw)) % 2
    against = reference() if against is None else against
    return Evidence(np.zeros(raw.shape, np.float32), labels, {}, {}, None, against, raw, teacher, error)


def normal(count: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal((count, *SHAPE))


# --- endpoint_error -------------------------------------------------------------------------------------------------------------


def test_endpoint_error_of_known_differences():
    exact = normal(10)
    raw = exact + 0.3
    raw[:4] = exact[:4] + 0.1
    raw[4] = exact[4] + 0.1
    found = ENDPOINT_ERROR(evidence(raw, exact, 1e-6))
    # Mean squares 0.01 and 0.09, five each: RMS sqrt(0.05). Three and two of five in the two classes: variances 0.0064 * 3 / 10 each, so
    # the error of the mean is sqrt(2 * 5 * 0.00192) / 10.
    assert_close(found.value, math.sqrt(0.05))
    assert_close(found.std_error, math.sqrt(0.0192) / 10 / (2 * math.sqrt(0.05)))
    assert_close(found.protocol["median"], math.sqrt(0.05))  # the mean of the two middle squares
    assert found.samples == 10
    assert found.protocol["saturated"] is False


def test_the_median_is_blind_to_a_stray_sample():
    exact = normal(11)
    raw = exact + 0.01
    raw[0] += 5
    found = ENDPOINT_ERROR(evidence(raw, exact))
    assert found.value > 1
    assert_close(found.protocol["median"], 0.01)


def test_endpoint_error_is_not_quantised_or_clipped():
    exact = 3 * normal(10)
    assert_close(ENDPOINT_ERROR(evidence(exact + 1e-5, exact)).value, 1e-5, atol=0, rtol=1e-9)  # 1e-15 of rounding over 1e-5


@pytest.mark.parametrize(("dtype", "error", "floor"), [("f8", 1e-3, 1e-3), ("f8", None, 2.0**-52), ("f4", 1e-12, 2.0**-23)])
def test_endpoint_error_stops_at_the_reference_s_own_error_or_at_rounding(dtype, error, floor):
    exact = normal(10)
    unit = exact / rms(exact)
    raw = unit.astype(dtype)
    found = ENDPOINT_ERROR(evidence(raw, raw.astype("f8"), error))
    # Equal sets: the value is the larger of the stated error and the machine epsilon of the dtype times the RMS, here 1 to its rounding.
    assert_close(found.value, floor, atol=0, rtol=1e-6)  # the RMS of `unit` in float32
    assert found.std_error is None
    assert found.protocol["saturated"] is True
    assert found.protocol["reference_error"] == error


def test_its_standard_error_is_the_spread_over_fresh_samples():
    exact = np.zeros((200, *SHAPE))
    found = [ENDPOINT_ERROR(evidence(0.1 * normal(200, seed), exact)) for seed in range(60)]
    spread = np.std([m.value for m in found], ddof=1)
    # The spread of 60 is known to 9%, the claims' mean to under 1%; 1.35 is three of these and more.
    assert 1 / 1.35 < np.mean([m.std_error for m in found]) / spread < 1.35


# --- fd_moments -----------------------------------------------------------------------------------------------------------------


def test_fd_moments_of_known_moments():
    half = np.concatenate([normal(50), -normal(50)]).reshape(100, DIM)
    white = half @ np.linalg.inv(np.linalg.cholesky(np.cov(half.T))).T  # mean 0 and covariance 1, exactly
    shift, scale = np.array([0.1, 0.2, 0.0, -0.3]), np.array([1.0, 2.0, 0.5, 1.0])
    raw = (white * scale + shift).reshape(100, *SHAPE)
    # |shift|^2 + sum (scale - 1)^2 = 0.14 + 1 + 0.25, against the standard normal.
    assert_close(FD_MOMENTS(evidence(raw)).value, 1.39)


def test_fd_moments_is_invariant_under_rotations_and_scales_with_the_square():
    basis = np.linalg.qr(np.random.RandomState(1).randn(DIM, DIM))[0]
    mean, cov = np.arange(DIM) / 10, np.diag([1.0, 0.5, 2.0, 0.1])
    raw = normal(60)
    plain = FD_MOMENTS(evidence(raw, against=reference(mean, cov)))
    turned = (raw.reshape(60, DIM) @ basis).reshape(raw.shape)
    same = FD_MOMENTS(evidence(turned, against=reference(mean @ basis, basis.T @ cov @ basis)))
    assert_close((same.value, same.std_error), (plain.value, plain.std_error))
    tripled = FD_MOMENTS(evidence(3 * raw, against=reference(3 * mean, 9 * cov)))
    assert_close((tripled.value, tripled.std_error), (9 * plain.value, 9 * plain.std_error))


def test_fd_moments_knows_the_fine_grid_s_value_and_its_own_rank():
    raw, fine = normal(60), normal(60, 1)
    found = FD_MOMENTS(evidence(raw, fine))
    assert_close(found.protocol["fine_grid"], frechet_distance(exact_moments(np.zeros(DIM), np.eye(DIM)), Moments.of(fine.reshape(60, -1))))
    assert found.protocol["rank_deficient"] is False
    few = FD_MOMENTS(evidence(raw[:4]))
    assert few.protocol["fine_grid"] is None
    assert few.protocol["rank_deficient"] is True


def test_exact_arena_samples_score_only_their_number():
    """Four times the samples, about a quarter of the distance: nothing but sampling error is left."""
    model = arena_mixture()
    against = reference(*exact_moments_of(model))
    values = []
    for count in (500, 2000):
        draws = [model.draw(torch.arange(count) % 10, torch.Generator().manual_seed(k)).numpy() for k in range(4)]
        values.append(np.mean([FD_MOMENTS(evidence(x, against=against)).value for x in draws]))
    assert 3 < values[0] / values[1] < 5


# --- evidence -------------------------------------------------------------------------------------------------------------------


def test_what_is_absent_is_unavailable():
    full = evidence(normal(6), normal(6))
    for metric, change in (
        (ENDPOINT_ERROR, {"raw": None}),
        (ENDPOINT_ERROR, {"raw_teacher": None}),
        (FD_MOMENTS, {"raw": None}),
        (FD_MOMENTS, {"reference": dataclasses.replace(full.reference, moments=None)}),
    ):
        with pytest.raises(Unavailable):
            metric(dataclasses.replace(full, **change))


@pytest.mark.parametrize("field", ["raw", "raw_teacher"])
def test_raw_images_must_match(field):
    with pytest.raises(UsageError, match="same noise"):
        dataclasses.replace(evidence(normal(6), normal(6)), **{field: normal(5)})


@pytest.mark.parametrize("name", ["endpoint_error", "fd_moments"])
def test_diverged_samples_are_an_error(name):
    raw = normal(6)
    raw[2, 0, 0, 0] = np.nan
    with pytest.raises(FloatingPointError, match="NaN"):
        METRICS[name](evidence(raw, normal(6)))


def test_exact_moments_are_checked():
    with pytest.raises(UsageError, match="symmetric"):
        exact_moments(np.zeros(2), np.array([[1.0, 0.5], [0.0, 1.0]]))
    with pytest.raises(UsageError, match="mean"):
        exact_moments(np.zeros(3), np.eye(2))


def test_the_reference_takes_moments_and_its_digest_covers_them():
    data = get("data", "arena_gaussian").make()
    moments = exact_moments_of(arena_gaussian())
    built = build_reference(data, [], moments)
    assert_close(built.moments.cov, moments[1])
    other = build_reference(data, [], (moments[0] + 1e-6, moments[1]))
    assert len({built.digest, other.digest, build_reference(data, []).digest}) == 3


# Values on pinned evidence by version. A change here asks for a new version, so that rows are measured again.
FINGERPRINT = {
    ("endpoint_error", 2): (0.04887811595737185, 0.002023605343107924),
    ("fd_moments", 3): (0.11807508348567275, 0.09267159251820302),
}


@pytest.mark.parametrize("name", ["endpoint_error", "fd_moments"])
def test_numbers_belong_to_the_version(name):
    exact = normal(100)
    found = METRICS[name](evidence(exact + 0.05 * normal(100, 1), exact, 1e-6))
    assert_close((found.value, found.std_error), FINGERPRINT[name, METRICS[name].version])


def test_quantised_images_are_not_what_is_measured():
    exact = 0.3 * normal(10)
    raw = exact + 1e-4
    sample = dataclasses.replace(evidence(raw, exact), images=quantise(raw))
    assert_close(ENDPOINT_ERROR(sample).value, 1e-4, atol=0, rtol=1e-9)  # 1e-16 of rounding over 1e-4


# --- pictures -------------------------------------------------------------------------------------------------------------------


def arena_rows():
    """Solvers of orders 1 and 2, a student and a guided row, with the protocols of the two metrics."""
    rows = []
    for solver, order in (("euler", 1), ("dpmpp_2m", 2), ("heun", 2)):
        for grid in ("polynomial", "logsnr"):
            for nfe in (1, 2, 5, 10, 50):
                values = {"endpoint_error": 0.3 * nfe**-order, "fd_moments": 2.0 * nfe ** (-2 * order) + 0.05}
                protocol = {"reference_error": 1e-6, "fine_grid": 0.05}
                rows += cell_rows(solver=solver, grid=grid, end="sigma_min", nfe=nfe, values=values, protocol=protocol)
    rows += cell_rows(solver="euler", grid="logsnr", end="zero", nfe=5, values={"endpoint_error": 9.0})
    rows += cell_rows(solver="euler", grid="logsnr", end="sigma_min", nfe=5, guidance=2.0, values={"endpoint_error": 9.0})
    rows += cell_rows(method="cd", solver="consistency", loss="l2", grid="logsnr", end="sigma_min", nfe=1, values={"endpoint_error": 0.2})
    return rows


def test_lines_are_the_plainest_rows():
    lines = lines_of(arena_rows(), "endpoint_error", "logsnr")
    assert set(lines) == {"euler", "dpmpp_2m", "heun", "cd l2"}
    assert_close(dict(lines["euler"])[5], 0.06)  # ends at sigma_min, unguided
    assert lines_of(arena_rows(), "endpoint_error", "time_uniform") == {}
    assert floor_of(arena_rows(), "endpoint_error") == 1e-6
    assert floor_of(arena_rows(), "fd_moments") == 0.05


def test_every_solver_has_a_family_and_no_panel_is_crowded():
    names = [*entries("solver"), "cd l2", "something_new"]
    shown = panels(names)
    assert sorted(n for _, mine in shown for n in mine) == sorted(names)
    assert max(len(mine) for _, mine in shown) <= PER_PANEL
    assert (family("cd l2"), family("something_new")) == ("students", "others")
    known = {title for title, _ in FAMILIES}
    assert {family(name) for name in entries("solver")} <= known


def test_arena_pictures_are_drawn_where_there_are_rows(tmp_path):
    write_report(tmp_path, arena_rows(), tmp_path / ".store", pictures=True)
    drawn = {p.name for p in tmp_path.glob("*.png")}
    assert drawn == {f"{m}_{g}.png" for m in ("endpoint_error", "fd_moments") for g in ("polynomial", "logsnr")}
    for name in drawn:
        assert np.ptp(imread(tmp_path / name)[..., :3]) > 0.5  # something dark on white
    write_arena_pictures(synthetic_rows(), tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert error_vs_nfe(synthetic_rows(), "endpoint_error", "logsnr") is None


def test_arena_protocols_are_plain_json():
    for metric in (ENDPOINT_ERROR, FD_MOMENTS):
        json.dumps(metric(evidence(normal(6), normal(6), 1e-6)).protocol)
