"""Pictures of students and the guidance table, from synthetic rows."""

import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.text import Text

from bench.jobs.suite import expand
from bench.reports.checks import bars
from bench.reports.guidance import curves, guidance_text
from bench.reports.plots.overview import quality_vs_nfe
from bench.reports.plots.students import guidance, place_labels, students_cost, students_vs_nfe, write_student_pictures
from bench.reports.tables import cells
from bench.reports.verdicts import verdicts
from bench.settings.compose import group_config
from support.synthetic import FLOOR, MEANS, cell_rows, naive_rows, welch

SOLVERS = {1: 21.0, 2: 9.0, 4: 3.0, 8: 1.0, 16: 0.8}


def solvers():
    return [row for n, fd in SOLVERS.items() for row in cell_rows(solver="heun", nfe=n, values={"fd_digits": fd}, se=0.1)]


def students(methods=("cd",), nfes=(1, 2, 4), variants=("",), losses=("l2",), seeds=3, train=30.0):
    rows = []
    for k, method in enumerate(methods):
        for j, (variant, loss) in enumerate((v, loss) for v in variants for loss in losses):
            for n in nfes:
                for seed in range(seeds):
                    fd = (4 + k + j + 0.1 * seed) / n
                    rows += cell_rows(method=method, variant=variant, loss=loss, solver="consistency", nfe=n, fit_seed=seed,
                                      values={"fd_digits": fd}, se=0.1, train=train and train * (1 + k))  # fmt: skip
    return rows


def drawn(make, rows):
    return make(cells(rows), verdicts(rows))


def legend(ax):
    return [t.get_text() for t in ax.get_legend().get_texts()]


def test_a_panel_for_each_method_with_shared_axes():
    rows = naive_rows() + solvers() + students([f"method_{i:02d}" for i in range(16)])
    figure = drawn(students_vs_nfe, rows)
    assert len(figure.axes) == 16
    assert len({ax.get_xlim() for ax in figure.axes}) == len({ax.get_ylim() for ax in figure.axes}) == 1
    boxes = [ax.get_position() for ax in figure.axes]
    apart = [a.x1 <= b.x0 or b.x1 <= a.x0 or a.y1 <= b.y0 or b.y1 <= a.y0 for i, a in enumerate(boxes) for b in boxes[:i]]
    assert all(apart)
    low, high = figure.axes[0].get_ylim()
    assert low < FLOOR < MEANS < high


def test_lines_are_means_with_intervals_beside_the_best_solver():
    rows = naive_rows() + solvers() + students(losses=("l2", "pseudo_huber"))
    (ax,) = drawn(students_vs_nfe, rows).axes
    assert legend(ax) == ["l2", "pseudo_huber"]
    lines = {tuple(line.get_ydata()) for line in ax.lines}
    assert (21.0, 9.0, 3.0) in lines  # best solver up to the students' NFE
    means = next(y for y in lines if len(y) == 3 and y[0] == pytest.approx(4.1))
    np.testing.assert_allclose(means, [4.1, 2.05, 1.025])  # over seeds
    spread = next(s for c in ax.containers for s in c.lines[2] if c.lines[0].get_ydata()[0] == pytest.approx(4.1))
    half = welch((0.1 / 3**0.5, 2), (SE, math.inf))  # of 4.0, 4.1, 4.2, and of the metric
    np.testing.assert_allclose(spread.get_segments()[0][:, 1], [4.1 - half, 4.1 + half], rtol=1e-6)  # the quantile above has seven digits
    assert [t.get_text() for t in ax.get_xticklabels()] == ["1", "2", "4"]


def test_lines_are_named_by_what_they_differ_in():
    rows = naive_rows() + solvers() + students(["sfd"], (2,), ("heun", "dpm"), ("l1", "l2"))
    rows += cell_rows(method="sfd", variant="heun", loss="l2", solver="other", nfe=2, values={"fd_digits": 3.0})
    (ax,) = drawn(students_vs_nfe, rows).axes
    assert set(legend(ax)) == {*(f"{v} {x} consistency" for v in ("heun", "dpm") for x in ("l1", "l2")), "heun l2 other"}
    assert legend(drawn(students_vs_nfe, naive_rows() + students(losses=("",))).axes[0]) == ["default"]


def test_cost_has_a_panel_for_each_nfe_and_names_every_method():
    methods = [f"m{i}" for i in range(14)]
    rows = naive_rows() + solvers() + students(methods, (1, 2, 4, 8), losses=("l2", "pseudo_huber"))
    figure = drawn(students_cost, rows)
    assert [ax.get_title("left") for ax in figure.axes] == ["NFE 1", "NFE 2", "NFE 4"]
    for ax, nfe in zip(figure.axes, (1, 2, 4)):
        named = [t.get_text().partition(" ") for t in ax.texts]  # 28 points: the best of each method has a name, which says its loss
        assert sorted(method for method, _, _ in named) == sorted(methods)
        assert {loss for _, _, loss in named} <= {"l2", "pseudo_huber"}
        assert any(set(line.get_ydata()) == {SOLVERS[nfe]} for line in ax.lines)
    assert drawn(students_cost, naive_rows() + students(train=None)) is None


def test_few_points_have_a_name_each():
    figure = drawn(students_cost, naive_rows() + solvers() + students(["sfd"], (2,), ("heun", "dpm"), ("l1", "l2")))
    assert {t.get_text() for t in figure.axes[0].texts} == {f"sfd {v} {x}" for v in ("heun", "dpm") for x in ("l1", "l2")}


def test_labels_of_crowded_points_do_not_cover_each_other():
    figure = Figure(figsize=(5, 4))
    ax = figure.add_axes((0.1, 0.1, 0.85, 0.85))
    rng = np.random.RandomState(0)
    points = [(float(x), float(y)) for x, y in 0.5 + 0.06 * rng.standard_normal((12, 2))]
    place_labels(ax, points, {i: f"method_{i}" for i in range(12)}, ["k"] * 12, 8, [])
    naive_ax = figure.add_axes((0.1, 0.1, 0.85, 0.85))
    at_points = [naive_ax.text(*p, f"method_{i}", fontsize=8) for i, p in enumerate(points)]

    FigureCanvasAgg(figure).draw()  # texts know their places from then on

    def overlaps(texts):
        found = [Text.get_window_extent(t) for t in texts]  # of an annotation's words alone, without the line
        return found, sum(a.overlaps(b) for i, a in enumerate(found) for b in found[:i])

    boxes, covered = overlaps(ax.texts)
    assert len(boxes) == 12
    assert covered <= 2
    assert overlaps(at_points)[1] >= 12
    frame = ax.get_window_extent()
    assert all(frame.x0 <= b.x0 and b.x1 <= frame.x1 for b in boxes)


W = (0.0, 0.3, 1.0, 4.0)
SE, Z = 0.1, 1.959964  # an error; the normal 97.5% quantile


def guided(method, steps, shift, afs=False, outside=True, psnr=None, weights=W, solver="euler", seeds=1):
    rows = []
    for w in weights:
        for seed in range(seeds):
            evaluations = steps * (2 if outside and w else 1)
            values = {"fd_digits": 2.0 + shift + w, "class_accuracy": 0.9 + 0.02 * w}
            values |= {} if psnr is None else {"psnr_teacher": psnr - w + 0.1 * seed}
            rows += cell_rows(method=method, solver=solver, nfe=evaluations, steps=steps + afs, guidance=1 + w, afs=afs, fit_seed=seed,
                              loss="" if method == "teacher" else "l2", values=values, se=SE)  # fmt: skip
    return rows


def test_guidance_has_a_panel_for_each_step_count_of_students():
    rows = [row for n in (1, 2, 4) for m, outside in (("teacher", True), ("gd", False)) for row in guided(m, n, 3 / n, outside=outside)]
    rows += guided("teacher", 64, 0.0, solver="dpmpp_2m") + guided("sfd", 4, 0.5, afs=True)
    figure = guidance(cells(naive_rows() + rows))
    assert [ax.get_title("left") for ax in figure.axes] == ["1 step", "2 steps", "4 steps"]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["gd l2, euler", "sfd l2, euler", "teacher, euler", "teacher, 64 steps"]
    per_panel = [sorted(t.get_text() for t in ax.texts) for ax in figure.axes]
    assert per_panel == [sorted(["0", "0.3", "1", "4"] * n) for n in (2, 2, 3)]  # sfd at NFE 4 and 8: four steps, and the analytical one
    wide = [line for line in figure.axes[0].lines if line.get_linewidth() > 4]
    np.testing.assert_allclose(wide[0].get_ydata(), [2.0, 2.3, 3.0, 6.0])


def test_curves_of_two_models_are_apart_and_failed_seeds_are_told():
    rows = guided("gd", 4, 0, outside=False, psnr=20.0) + guided("teacher", 4, 0, psnr=18.0)
    other = [{**row, "model": "other", "value": row["value"] + 5} for row in rows]
    lost = [{**row, "fit_seed": 1, "value": None, "status": "failed"} for row in rows if row["method"] == "gd" and row["w"] == 1]
    found = {b.name: (b.value, b.seeds) for b in bars(rows + other + lost) if "above the guided" in b.name}
    name = "gd l2, euler, w = {}: psnr_teacher above the guided teacher's, both at 4 steps"
    assert found["digits: " + name.format(1)] == (pytest.approx(2), "1 of 2")
    assert found["other: " + name.format(1)] == (pytest.approx(2), "1")
    labels = {c.label for c in curves(cells(rows + other), "psnr_teacher")}
    assert labels == {f"{model}: {what}, euler" for model in ("digits", "other") for what in ("gd l2", "teacher")}


def test_two_weights_are_no_curve():
    assert guidance(cells(naive_rows() + guided("gd", 4, 0.0, weights=(0.0, 1.0)))) is None
    assert guidance_text(naive_rows() + guided("gd", 4, 0.0, weights=(0.0, 1.0), psnr=20.0)) == ""


def test_one_curve_per_sampler_has_the_grid_with_most_weights():
    rows = guided("gd", 4, 0.0) + guided("gd", 4, 1.0, solver="nstep_stochastic") + guided("teacher", 4, 0.0)
    rows += cell_rows(solver="euler", nfe=4, grid="logsnr", values={"fd_digits": 0.1, "class_accuracy": 1.0})
    found = curves(cells(rows), "fd_digits")
    assert sorted((c.label, len(c.points)) for c in found) == [
        ("gd l2, euler", 4),
        ("gd l2, nstep_stochastic", 4),
        ("teacher, euler", 4),
    ]


def test_the_guidance_table_compares_at_the_same_number_of_steps():
    rows = guided("teacher", 4, 0, psnr=18.0, solver="dpmpp_2m") + guided("teacher", 4, 0, psnr=15.0) + guided("teacher", 8, 0, psnr=40.0)
    rows += guided("gd", 4, 0, outside=False, psnr=20.0, seeds=3) + guided("sfd", 4, 0, afs=True, psnr=17.0) + guided("gd", 8, 0, psnr=99.0)
    text = guidance_text(naive_rows() + rows)
    lines = [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    half = welch((0.1 / math.sqrt(3), 2), (SE, math.inf), (SE, math.inf))  # over three seeds; over the student's images and the teacher's
    gain = f"+2.10 ({2.1 - half:.2f} to {2.1 + half:.2f})"
    assert lines[1] == ["0", "gd l2", "euler", "4", "20.1 ± 0.1", "dpmpp_2m", "18 ± 0.1", gain, "yes"]
    half = math.hypot(SE, SE) * Z
    gain = f"-1.00 ({-1 - half:.2f} to {-1 + half:.2f})"
    assert ["4", "sfd l2", "euler", "8", "13 ± 0.1", "dpmpp_2m", "14 ± 0.1", gain, "NO"] in lines
    found = {b.name: (b.value, b.holds, b.seeds) for b in bars(naive_rows() + rows)}
    assert found["gd l2, euler, w = 0: psnr_teacher above the guided teacher's, both at 4 steps"] == (pytest.approx(2.1), True, "3")
    assert found["sfd l2, euler, w = 4: psnr_teacher above the guided teacher's, both at 4 steps"] == (pytest.approx(-1), False, "1")
    near = guided("teacher", 4, 0, psnr=18.0) + guided("gd", 4, 0, psnr=18.1)
    assert "not told apart" in guidance_text(naive_rows() + near)
    assert "not measured" in guidance_text(naive_rows() + guided("gd", 4, 0, psnr=20.0))


def test_many_solvers_leave_the_known_ones_and_the_envelope():
    few = [row for i in range(8) for row in cell_rows(solver=f"s{i}", nfe=2, values={"fd_digits": 5.0 + i})]
    few += cell_rows(solver="euler", nfe=2, values={"fd_digits": 20.0})
    more = few + cell_rows(solver="s8", nfe=2, values={"fd_digits": 4.0})
    names = [legend(quality_vs_nfe(cells(naive_rows() + rows)).axes[0]) for rows in (few, more)]
    assert names[0] == ["euler (DDIM)", *(f"s{i}" for i in range(8))]
    assert names[1] == ["best of all solvers", "euler (DDIM)"]
    (envelope,) = [x for x in quality_vs_nfe(cells(naive_rows() + more)).axes[0].lines if x.get_label() == "best of all solvers"]
    assert list(envelope.get_ydata()) == [4.0]


def test_quality_against_nfe_is_a_mean_over_seeds_and_names_the_variant():
    rows = naive_rows() + students(["sfd"], (1, 2), ("heun",))
    ax = quality_vs_nfe(cells(rows)).axes[0]
    assert legend(ax) == ["sfd heun l2"]
    np.testing.assert_allclose(ax.containers[0].lines[0].get_ydata(), [4.1, 2.05])  # not the best seed's 4 and 2


def test_of_many_students_the_best_of_each_method_is_drawn():
    rows = naive_rows() + students(["a", "b"], (2,), tuple(f"v{i}" for i in range(5)), seeds=1)
    assert legend(quality_vs_nfe(cells(rows)).axes[0]) == ["a v0 l2", "b v0 l2"]


def test_pictures_are_written_where_there_is_something_to_show(tmp_path):
    write_student_pictures(naive_rows() + solvers(), tmp_path)
    assert not list(tmp_path.iterdir())
    write_student_pictures(naive_rows() + solvers() + students() + guided("gd", 2, 0.0), tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"students_vs_nfe.png", "students_cost.png", "guidance.png"}
    for path in tmp_path.iterdir():
        assert np.ptp(imread(path)[..., :3]) > 0.5


def test_the_guidance_suite_pairs_students_and_teachers_at_every_weight():
    suite = expand(group_config("suite", "guidance"), 0, "philox")
    steps = {}
    for c in suite.cells:
        if c.method != "naive" and c.nfe < 100:
            passes = 2 if c.method not in ("gd", "gd_stochastic") and c.guidance != 1 else 1
            steps.setdefault((c.method, c.solver, round(c.guidance - 1, 6)), set()).add(c.nfe / passes)
    names = {("gd", ""), ("gd_stochastic", ""), ("sfd", ""), ("teacher", "euler"), ("teacher", "dpmpp_2m")}
    assert set(steps) == {(*name, w) for name in names for w in (0, 0.3, 1, 2, 4)}
    assert all(found == {1, 2, 4, 8, 16} for found in steps.values())
