"""Students over their training seeds against the best solver, by hand."""

import math
from statistics import stdev

import pytest

from bench.reports.summary import summary
from bench.reports.tables import cells
from bench.reports.verdicts import Score, best_solver, difference, level, quality, ratio, score_of, students_text, verdicts
from fewstep.plugins import get
from support.registered import changed
from support.synthetic import FLOOR, MEANS, cell_rows, naive_rows, welch

T_4, Z = 2.776445, 1.959964  # 97.5% quantiles: Student's t with 4 degrees of freedom, normal (any table has them)
KNOWN = math.inf  # degrees of freedom of an error that is not an estimate


def student(value, seed=0, nfe=2, se=0.3, **more):
    return cell_rows(method="sfd", solver="euler", loss="l1", nfe=nfe, fit_seed=seed, values={"fd_digits": value}, se=se, **more)


def solvers(learned=6.0, se=0.4, nfe=2):
    free = cell_rows(solver="heun", nfe=nfe, values={"fd_digits": 9.0}, se=0.1)
    return [*naive_rows(), *free, *cell_rows(solver="gits", nfe=nfe, values={"fd_digits": learned}, se=se, train=3.0)]


def test_seeds_are_averaged_and_their_spread_is_the_error():
    rows = solvers() + student(3.0) + student(4.0, 1) + student(5.0, 2)
    (v,) = verdicts(rows)
    assert (v.name, v.nfe, v.score.seeds, v.score.mean) == ("sfd l1", 2, 3, 4.0)
    assert v.score.error == pytest.approx(math.hypot(1 / math.sqrt(3), 0.3))  # of the seeds, and of the metric that they share
    # best(2) = 6, of the learned solver: (4 - 0.1) / (6 - 0.1)
    share = (4 - FLOOR) / (6 - FLOOR)
    assert v.share[0] == pytest.approx(share)
    assert math.isnan(v.share[1])  # the floor has no error here
    half = welch((1 / math.sqrt(3), 2), (0.3, KNOWN), (0.4, KNOWN))
    assert v.text == f"better by 2 ({2 - half:.3g} to {2 + half:.3g})"


def test_one_seed_has_the_error_of_the_metric():
    (v,) = verdicts(solvers() + student(3.0))
    half = math.hypot(0.3, 0.4) * Z
    assert v.text == f"better by 3 ({3 - half:.3g} to {3 + half:.3g})"
    (v,) = verdicts(solvers() + student(12.0))
    assert v.text == f"worse by 6 ({6 - half:.3g} to {6 + half:.3g})"


def test_more_is_better_where_a_metric_says_so(monkeypatch):
    """The same numbers of a metric whose largest value is best: another solver is the best, and the student that was better is worse."""
    changed(monkeypatch, "metric", "fd_digits", preset={**get("metric", "fd_digits").preset, "higher_is_better": True})
    rows = solvers() + student(3.0)
    (v,) = verdicts(rows)
    half = math.hypot(0.3, 0.1) * Z
    assert v.text == f"worse by 6 ({6 - half:.3g} to {6 + half:.3g})"  # than heun's 9
    assert "best training-free at NFE 2: heun" in summary(rows)
    (v,) = verdicts(solvers() + student(12.0))
    assert v.text == f"better by 3 ({3 - half:.3g} to {3 + half:.3g})"


def test_without_errors_there_is_no_verdict():
    (v,) = verdicts([*solvers(se=None), *student(3.0, se=None)])
    assert v.text == "better by 3, without an interval"


def test_scores_from_the_same_noise_are_compared_over_the_same_resamples():
    """Resamples that move both alike say nothing of the difference; those of other noise, or of real images, do."""

    def score(draws, noise=0, spread=None):
        return Score(sum(draws) / len(draws), spread, 9.9, 1 if spread is None else 3, noise, tuple(draws))

    a, b, apart = score([1.0, 2.0, 3.0]), score([2.0, 3.0, 4.5]), math.sqrt(1 / 12)  # of 1, 1, 1.5
    assert a.half_width == pytest.approx(welch((1.0, 2)))
    assert difference(a, b) == (pytest.approx(9.5 / 3 - 2), pytest.approx(welch((apart, 2))))
    other = score([2.0, 3.0, 4.5], noise=1)
    assert difference(a, other)[1] == pytest.approx(welch((1.0, 2), (stdev([2.0, 3.0, 4.5]), 2)))
    assert difference(a, Score(3.0, None, 0.5, 1))[1] == pytest.approx(welch((1.0, 2), (0.5, KNOWN)))
    assert difference(score([1.0, 2.0, 3.0], spread=0.2), b)[1] == pytest.approx(welch((0.2, 2), (apart, 2)))
    assert ratio(a, b)[1] == pytest.approx(welch((stdev([1 - 2 * 6 / 9.5, 2 - 3 * 6 / 9.5, 3 - 4.5 * 6 / 9.5]), 2)) / (9.5 / 3))


def test_three_seeds_each_that_scatter_alike_have_four_degrees_of_freedom():
    sides = [Score(mean, 0.1, None, 3) for mean in (1.0, 2.0)]
    assert difference(*sides) == (1.0, pytest.approx(T_4 * 0.1 * math.sqrt(2)))
    assert math.isnan(difference(sides[0], Score(2.0, None, None, 1))[1])
    assert Score(1.0, None, 0.0, 1).half_width == 0.0  # an exact one


def test_resamples_come_from_rows_and_are_averaged_over_training_seeds():
    def rows(values, method="sfd", **more):
        made = cell_rows(method=method, nfe=2, values={"fd_digits": sum(values) / 2}, se=0.3, protocol={"resampled": values}, **more)
        return [{**row, "protocol": {**row["protocol"], "noise": "philox"}} for row in made]

    table = cells(rows([3.0, 5.0]) + rows([4.0, 8.0], fit_seed=1) + rows([1.0, 2.0], "naive", solver="real_train"))
    found = score_of([c for c in table if c["method"] == "sfd"], "fd_digits")
    assert (found.noise, found.draws, found.own) == ((0, 2000, "philox"), (3.5, 6.5), pytest.approx(stdev([3.5, 6.5])))
    (real,) = (score_of([c], "fd_digits") for c in table if c["method"] == "naive")
    assert (real.draws, real.own) == ((), 0.3)
    mixed = cells(rows([3.0, 5.0]) + student(4.0, 1))  # one of before there were any
    assert score_of([c for c in mixed if c["method"] == "sfd"], "fd_digits").own == pytest.approx(0.3)


def test_an_interval_that_holds_zero_is_no_verdict():
    (v,) = verdicts(solvers() + student(5.5))
    assert v.text.startswith("not told apart, 0.5")
    (v,) = verdicts(solvers() + student(3.0) + student(3.1, 1))  # two seeds: t with one degree of freedom is wide
    half = welch((0.05, 1), (0.3, KNOWN), (0.4, KNOWN))
    assert v.text == f"better by 2.95 ({2.95 - half:.3g} to {2.95 + half:.3g})"


def test_best_counts_learned_solvers_and_no_more_than_the_class_means():
    table, of = cells(solvers()), "fd_digits"
    assert best_solver(table, 2, of)["solver"] == "gits"
    assert best_solver(table, 3, of) is None
    assert level(table, 2, of).mean == 6.0
    assert level(cells([r for r in solvers(learned=99.0) if r["solver"] != "heun"]), 2, of).mean == MEANS
    assert level([c for c in table if c["method"] != "naive"], 2, of) is None  # the class means are missing
    assert level([c for c in table if c["method"] == "naive"], 2, of) is None


def test_guided_rows_variants_and_samplers_are_apart():
    rows = solvers() + student(3.0) + student(1.0, guidance=2.0) + student(4.0, variant="heun")
    rows += cell_rows(method="sfd", solver="other", loss="l1", nfe=2, values={"fd_digits": 5.0})
    found = {(v.variant, v.sampler): v.score.mean for v in verdicts(rows)}
    assert found == {("", "euler"): 3.0, ("heun", "euler"): 4.0, ("", "other"): 5.0}


def test_costs_are_means_over_seeds():
    told = [{"training": {"passes": {"teacher": t, "student": 1500, "ema": 500}, "peak_bytes": 5e8}} for t in (10_000, 26_000)]
    told[1]["training"]["passes"]["net teacher"] = 4_000  # the student of the phase before, which teaches as well
    rows = solvers() + [row for seed, p in enumerate(told) for row in student(3.0, seed, protocol=p, train=10.0 + 20 * seed)]
    line = next(text for text in students_text(rows).splitlines() if text.startswith("| sfd l1"))
    assert [cell.strip() for cell in line.split("|")[-5:-1]] == ["20", "20", "2", "500"]
    assert score_of([{"fd": 2.0, "fd_se": None}], "fd").half_width != score_of([{"fd": 2.0, "fd_se": 0.1}], "fd").half_width


def test_no_students_is_said():
    assert students_text(naive_rows()) == "No students yet.\n"


def test_a_share_has_the_interval_of_all_three_scores():
    levels = {"real_train": 1.0, "class_means": 9.0}
    naives = [row for s, v in levels.items() for row in cell_rows(method="naive", solver=s, nfe=0, values={"fd_digits": v}, se=0.2)]
    (v,) = verdicts([*naives, *cell_rows(nfe=2, values={"fd_digits": 5.0}, se=0.4), *student(2.0, se=0.3)])
    # (2 - 1) / (5 - 1); by hand: ds/dx = 1/4, ds/dbest = -1/16, ds/dfloor = -3/16
    assert v.share == pytest.approx((0.25, Z * math.hypot(0.3 / 4, 0.4 / 16, 0.2 * 3 / 16)))
    # 2 / 5: d/dx = 1/5, d/dbest = -2/25
    assert v.ratio == pytest.approx((0.4, Z * math.hypot(0.3 / 5, 0.4 * 2 / 25)))


def test_seeds_that_failed_are_told():
    (v,) = verdicts([*solvers(), *student(3.0), *student(RuntimeError("diverged"), 1), *student(4.0, 2)])
    assert (v.score.mean, v.group.seeds) == (3.5, "2 of 3")
    assert verdicts([*solvers(), *student(RuntimeError("diverged"))]) == []


def test_class_means_have_no_error_of_their_own_and_need_none():
    """Nothing of them is drawn, so their row has no error; a student is judged against them with its own."""
    means = [{**row, "std_error": None} for row in naive_rows() if row["solver"] == "class_means"]
    floor = [{**row, "std_error": 0.2} for row in naive_rows() if row["solver"] == "real_train"]
    worse = cell_rows(solver="heun", nfe=2, values={"fd_digits": MEANS + 1}, se=0.1)
    (v,) = verdicts([*means, *floor, *worse, *student(3.0)])
    assert (v.level.mean, v.level.error) == (MEANS, 0.0)
    assert v.ratio[1] == pytest.approx(0.3 * Z / MEANS)
    assert not math.isnan(v.share[1])


def test_levels_by_hand_and_seeds_of_noise_are_other_rows_than_seeds_of_training():
    rows = solvers() + student(3.0) + student(5.0, 1) + student(9.0, grid="at 0.821") + student(7.0, seed=0, wrap="clip")
    noise = [{**row, "seed": 1000} for row in student(11.0)]
    found = {v.sampler: (v.score.mean, v.group.seeds) for v in verdicts(rows + noise)}
    assert found == {"euler": (4.0, "2"), "euler at 0.821": (9.0, "1"), "euler clip": (7.0, "1"), "euler from seed 1000": (11.0, "1")}


@pytest.mark.parametrize("metric", ["fid", "fd_moments"])
def test_students_are_judged_by_what_was_measured(metric):
    exact = {"fine_grid": 0.5} if metric == "fd_moments" else {}
    levels = {"real_train": 0.5, "class_means": 9.0}
    naives = [row for s, v in levels.items() for row in cell_rows(method="naive", solver=s, nfe=0, values={metric: v})]
    rows = cell_rows(nfe=2, values={metric: 4.5}, se=0.1) + (naives if metric == "fid" else [])
    rows += cell_rows(method="cd", solver="consistency", nfe=2, values={metric: 1.5}, se=0.1, protocol=exact)
    assert quality(cells(rows)) == metric
    (v,) = verdicts(rows)
    assert v.share[0] == pytest.approx((1.5 - 0.5) / (4.5 - 0.5))
    assert metric in students_text(rows)
    assert "better by 3" in students_text(rows)


def test_the_metric_is_that_of_most_students_and_each_models_own():
    rows = solvers() + student(3.0) + student(4.0, variant="x")
    rows += cell_rows(method="cd", solver="consistency", nfe=1, values={"fid": 9.0})
    assert {v.group.metric for v in verdicts(rows)} == {"fd_digits"}
    other = cell_rows(method="cd", solver="consistency", nfe=1, dataset="arena", values={"fd_moments": 0.5})
    found = {(v.model, v.group.metric) for v in verdicts(rows + other)}
    assert found == {("digits", "fd_digits"), ("arena", "fd_moments")}
    text = students_text(rows + other)
    assert text.count("| fd_digits ") == text.count("| fd_moments ") == 1


def test_no_share_where_the_best_solver_is_not_told_from_the_floor():
    levels = {"real_train": 1.0, "class_means": 9.0}
    naives = [row for s, v in levels.items() for row in cell_rows(method="naive", solver=s, nfe=0, values={"fd_digits": v}, se=0.2)]
    for best, told in ((1.3, False), (1.9, True)):  # 1.96 hypot(0.2, 0.2) = 0.55
        (v,) = verdicts([*naives, *cell_rows(nfe=2, values={"fd_digits": best}, se=0.2), *student(2.0)])
        assert (v.share is not None) == told


def test_rows_of_older_runs_without_a_variant_are_the_same_student():
    old = [{k: v for k, v in row.items() if k not in ("variant", "wrap")} for row in student(3.0)]
    (v,) = verdicts([*solvers(), *old, *student(5.0, 1)])
    assert (v.score.mean, v.group.seeds) == (4.0, "2")
