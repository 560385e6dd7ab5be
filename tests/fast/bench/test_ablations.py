"""Papers' ablations beside ours, by hand."""

import csv
import dataclasses

import numpy as np
import pytest
from scipy import stats

from bench.jobs.suite import expand
from bench.reports.ablations import ABLATIONS, FIELDS, Entry, ablation_text, kendall, ours, read_ablations, read_claims, spearman
from bench.reports.tables import cells
from bench.reports.writing import write_report
from bench.settings.compose import group_config
from bench.settings.files import choices
from fewstep.errors import UsageError
from fewstep.plugins import entries
from support.synthetic import cell_rows, naive_rows

DISTANCES = entries("distance")

PAPER = ("2409.19681", "Table 1")


def entry(variant, value, loss="l2", method="sfd", **change):
    own = Entry("own", method, variant, loss, "", "", "", 2, *PAPER, "FID", value, "")
    return dataclasses.replace(own, **change)


def rows_of(variant, *values, loss="l2", method="sfd", nfe=2, se=0.1, model="digits", metric="fd_digits", **more):
    found = []
    for seed, value in enumerate(values):
        found += cell_rows(method=method, variant=variant, loss=loss, nfe=nfe, fit_seed=seed, values={metric: value}, se=se, **more)
    return [{**row, "suite": "own", "model": model} for row in found]


def table_of(text):
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]
    return {line[0]: dict(zip(lines[0], line)) for line in lines[1:]}


FIVE = {"a": (5.0, 9.0), "b": (4.0, 8.0), "c": (3.0, 6.0), "d": (2.0, 7.0), "e": (1.0, 1.0)}  # ours, the paper's: c and d are swapped


def test_orders_are_compared_by_hand():
    entries = [entry(v, theirs) for v, (_, theirs) in FIVE.items()]
    text = ablation_text([row for v, (mine, _) in FIVE.items() for row in rows_of(v, mine)], entries)
    lines = table_of(text)
    assert [lines[f"sfd {v} l2"]["our rank"] for v in "abcde"] == ["5", "4", "3", "2", "1"]
    assert [lines[f"sfd {v} l2"]["paper's rank"] for v in "abcde"] == ["5", "4", "2", "3", "1"]
    # Spearman: 1 - 6 (1 + 1) / (5 (25 - 1)) = 0.9; Kendall: (9 - 1) / 10 = 0.8
    assert "Spearman 0.90, Kendall tau-b 0.80, over n = 5 lines" in text
    assert "holds" not in text  # none of these lines is one of the paper's conclusions


def test_lines_of_the_papers_order_and_seeds_are_kept():
    text = ablation_text(rows_of("z", 3.0, 4.0, 5.0) + rows_of("a", 1.0), [entry("z", 2.0), entry("a", 1.0)])
    lines = table_of(text)
    assert list(lines) == ["sfd z l2", "sfd a l2"]  # not by name, not by value
    assert (lines["sfd z l2"]["fd_digits"], lines["sfd z l2"]["seeds"]) == ("4 ± 0.6", "3")  # 1 / sqrt(3)
    assert (lines["sfd a l2"]["fd_digits"], lines["sfd a l2"]["seeds"]) == ("1 ± 0.1", "1")
    assert "No rank correlation: it needs 3 lines" in text


def test_ties_are_tau_b():
    mine, theirs = (1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 2.0, 3.0)
    rows = [row for v, x in zip("abcd", mine) for row in rows_of(v, x)]
    text = ablation_text(rows, [entry(v, x) for v, x in zip("abcd", theirs)])
    assert "Kendall tau-b 0.91" in text  # 5 pairs agree, 1 is tied on one side: 5 / sqrt(5 * 6)
    assert [line["paper's rank"] for line in table_of(text).values()] == ["1", "2.5", "2.5", "4"]


def test_rank_correlations_are_scipys():
    rng = np.random.RandomState(0)
    for n in (3, 10, 20):
        a, b = rng.randint(0, n, n), rng.randint(0, n, n)  # with ties
        if min(np.ptp(a), np.ptp(b)):
            assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b)[0])
            assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b, variant="b")[0])


def test_a_stand_in_is_listed_and_left_out():
    entries = [entry(v, theirs) for v, (_, theirs) in FIVE.items()] + [entry("x", 100.0, note="stand-in: another distance")]
    rows = [row for v, (mine, _) in FIVE.items() for row in rows_of(v, mine)] + rows_of("x", 0.01)
    text = ablation_text(rows, entries)
    line = table_of(text)["sfd x l2"]
    assert (line["fd_digits"], line["our rank"], line["paper's rank"]) == ("0.01 ± 0.1", "", "")
    assert "Spearman 0.90, Kendall tau-b 0.80, over n = 5 lines" in text
    assert "Left out of ranks and correlation: sfd x l2 (stand-in: another distance)." in text


def test_what_is_not_measured_is_said_and_has_no_rank():
    entries = [entry(v, theirs) for v, (_, theirs) in FIVE.items()]
    text = ablation_text([row for v in "abcd" for row in rows_of(v, FIVE[v][0])], entries)
    line = table_of(text)["sfd e l2"]
    assert (line["fd_digits"], line["our rank"]) == ("not measured", "")
    assert "over n = 4 lines" in text
    assert ablation_text(naive_rows(), entries) == ""  # another suite
    assert "| not measured" in ablation_text([{**row, "suite": "own"} for row in naive_rows()], entries)


L1, L2 = entry("dpmpp_3m_006_afs", 4.57, loss="l1"), entry("dpmpp_3m_006_afs", 5.67)


def judged(better, worse, entries=(L1, L2), se=0.1):
    rows = rows_of(entries[0].variant, *better, loss=entries[0].loss, method=entries[0].method, se=se)
    rows += rows_of(entries[1].variant, *worse, loss=entries[1].loss, method=entries[1].method, se=se)
    text = ablation_text(rows, entries)
    ((words, line),) = table_of(text[text.index("| conclusion") :]).items()
    return words, line["ours lower by (95%)"], line["on our numbers"]


def test_at_least_as_good_is_only_contradicted_by_worse():
    half = 1.959964 * 0.1 * 2**0.5  # one seed each: normal quantile of the metric's own errors
    assert judged([3.0], [4.0]) == ("L1 is at least as good as L2", f"1 ({1 - half:.3g} to {1 + half:.3g})", "holds")
    assert judged([4.0], [3.0])[2] == "contradicted"
    assert judged([3.1], [3.0])[2].startswith("not contradicted")
    assert judged([3.0], [4.0], se=None)[1:] == ("1", "no interval: one seed, and the metric has no standard error")


def test_a_strict_conclusion_needs_its_interval_above_zero():
    pair = (entry("heun_002", 20.88), entry("heun_002", 46.84, method="trajectory"))
    assert judged([3.0], [4.0], pair)[::2] == ("SFD beats vanilla, Heun as teacher", "holds")
    assert judged([4.0], [3.0], pair)[2] == "contradicted"
    assert judged([3.0], [3.1], pair)[2] == "not told apart"
    # the same gap of 1, but seeds that scatter: Welch has 4.2 degrees of freedom, t is 2.71: 2.71 sqrt(1/3 + 1/3 + 0.1^2 + 0.1^2) = 2.25
    assert judged([2.0, 3.0, 4.0], [3.0, 4.0, 5.0], pair)[1:] == ("1 (-1.25 to 3.25)", "not told apart")


def test_lines_may_select_by_model_and_every_nfe_is_a_section():
    forms = ("v", "eps", "x0")
    entries = [entry("", 3.0 - i, method="pd", loss="l2+snr", model=f"digits_{form}", nfe=None) for i, form in enumerate(forms)]
    at = [(i, form, n) for i, form in enumerate(forms) for n in (4, 8)]
    rows = [row for i, form, n in at for row in rows_of("", n + i, method="pd", loss="l2+snr", nfe=n, model=f"digits_{form}")]
    text = ablation_text(rows, entries)
    assert [part.split("NFE ")[1][0] for part in text.split("## ")[1:]] == ["4", "8"]
    assert text.count("Spearman -1.00, Kendall tau-b -1.00, over n = 3 lines") == 2
    assert "| pd l2+snr (digits_v)" in text


def test_teachers_count_with_their_best_grid_apart_from_students():
    solver = entry("", 2.0, method="teacher", loss="", solver="euler")
    rows = rows_of("", 5.0, loss="", method="teacher", grid="cosine") + rows_of("", 4.0, loss="", method="teacher", grid="polynomial")
    rows += rows_of("", 1.0, loss="", method="teacher", solver="heun") + rows_of("", 3.0)
    assert ours(solver, cells(rows), 2, "fd_digits").mean == 4.0
    text = ablation_text(rows, [solver, entry("", 1.0)])
    titles = [line.split(": ")[1] for line in text.splitlines() if line.startswith("##")]
    assert titles == ["solvers of the teacher at NFE 2", "students at NFE 2"]


def test_guided_rows_and_other_variants_are_no_part_of_a_line():
    rows = rows_of("a", 3.0) + rows_of("a", 1.0, guidance=2.0) + rows_of("b", 2.0) + rows_of("a", 0.5, loss="l1") + rows_of("a", 0.1, nfe=4)
    assert ours(entry("a", 1.0), cells(rows), 2, "fd_digits").mean == 3.0


def test_a_line_is_sampled_with_its_wrapper_or_with_none():
    table = cells(rows_of("a", 3.0) + rows_of("a", 1.0, wrap="clip"))
    found = {wrap: ours(entry("a", 1.0, wrap=wrap), table, 2, "fd_digits").mean for wrap in ("", "clip")}
    assert found == {"": 3.0, "clip": 1.0}
    assert entry("a", 1.0, wrap="clip").name == "sfd a l2 clip"


def test_fid_is_used_where_it_is_measured():
    rows = [row for v, (mine, _) in FIVE.items() for row in rows_of(v, mine, metric="fid", se=None)]
    text = ablation_text(rows, [entry(v, theirs) for v, (_, theirs) in FIVE.items()])
    assert table_of(text)["sfd a l2"]["fid"] == "5"
    assert "Spearman 0.90" in text


def test_the_recorded_lines_are_those_of_the_papers():
    entries = read_ablations()
    sfd = [e.value for e in entries if e.suite == "sfd_ablation"]
    assert sfd == [46.84, 16.69, 20.88, 12.50, 11.65, 10.93, 7.17, 5.67, 5.10, 4.90, 4.57]
    assert [e.loss for e in entries if e.stands_in] == ["digits_features"]
    pd = {(e.model, e.loss): e.value for e in entries if e.suite == "pd_ablation" and e.method == "pd"}
    assert (len(pd), pd["digits_x0", "l2+truncated_snr"], pd["digits_eps", "l2+snr_plus_1"]) == (11, 2.51, 3.27)
    known = {(e.method, e.variant, e.loss): e.value for e in entries if (e.paper, e.table) == PAPER}
    for claim in read_claims()[PAPER]:  # each is the paper's own conclusion
        assert known[claim.better] < known[claim.worse], claim.words


@pytest.mark.parametrize("name", ["sfd_ablation", "sfd_ablation_cifar"])
def test_the_suite_has_a_cell_for_every_line(name):
    assert name in choices("suite")
    suite = expand(group_config("suite", name), 0, "philox")
    students = [c for c in suite.cells if c.method not in ("teacher", "naive")]
    wanted = {(e.method, e.variant, e.loss, e.nfe) for e in read_ablations() if e.suite == name}
    assert {(c.method, c.variant, c.loss, c.nfe) for c in students} == wanted
    assert {c.fit_seed for c in students} == {0, 1, 2}
    assert {c.loss for c in students} <= set(DISTANCES)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"nfe": "two"}, "line 2: nfe is an integer"), ({"value": ""}, "line 2: nfe is an integer"), ({"metric": "IS"}, "got metric 'IS'")],
)
def test_bad_lines_are_named(tmp_path, change, message):
    path = tmp_path / "a.csv"
    with open(ABLATIONS, newline="") as f:
        line = next(csv.DictReader(f)) | change
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, FIELDS)
        writer.writeheader()
        writer.writerow(line)
    with pytest.raises(UsageError, match=message):
        read_ablations(path)
    path.write_text("suite,method\n")
    with pytest.raises(UsageError, match=r"lacks the columns \['variant'"):
        read_ablations(path)
    assert read_ablations(tmp_path / "none.csv") == []


def test_the_report_has_it_for_its_suite_only(tmp_path):
    rows = [{**row, "suite": "sfd_ablation"} for row in naive_rows() + rows_of("dpmpp_3m_006_afs", 1.0)]
    write_report(tmp_path / "a", rows, tmp_path, pictures=False)
    assert "sfd dpmpp_3m_006_afs l2" in (tmp_path / "a" / "ablation.md").read_text()
    write_report(tmp_path / "b", naive_rows(), tmp_path, pictures=False)
    assert not (tmp_path / "b" / "ablation.md").exists()
