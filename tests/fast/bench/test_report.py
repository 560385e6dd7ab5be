"""Tables, ratios, papers' numbers and pictures from synthetic rows."""

import csv
import io
import json
import lzma
import random
import re

import numpy as np
import pytest

from bench import report, sweep
from bench.jobs.suite import expand
from bench.reports.checks import bars, bars_text, limits, print_bars, read_targets
from bench.reports.plots.overview import pareto
from bench.reports.summary import summary
from bench.reports.tables import TIMING_COLUMNS, cells, columns, latex, markdown, measures, wide, write_tables
from bench.reports.writing import _state, write_report
from bench.settings import cli
from bench.settings.compose import group_config
from bench.store.addresses import seal
from fewstep.errors import UsageError
from support.each import each
from support.synthetic import cell_rows, naive_rows, synthetic_rows


def records(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_one_line_per_cell_in_a_fixed_order():
    rows = synthetic_rows()
    table = wide(rows)
    assert list(table.columns) == columns(measures())
    assert len(table) == len({r["key"] for r in rows})
    methods = table["method"].tolist()
    assert methods == sorted(methods, key=["naive", "teacher", "cd", "pd"].index)
    by_cell = [[r for r in rows if r["key"] == k] for k in {r["key"] for r in rows}]  # a set: another order of cells
    random.Random(1).shuffle(by_cell)
    assert wide([r for cell in by_cell for r in cell]).to_csv() == table.to_csv()


def test_csv_holds_the_raw_numbers(tmp_path):
    value = 0.1 + 0.2  # needs 17 digits
    write_tables(cell_rows(values={"fd_digits": value, "fid": None}, se=1 / 3), tmp_path)
    (line,) = records((tmp_path / "table.csv").read_text())
    assert float(line["fd_digits"]) == value
    assert float(line["fd_digits_se"]) == 1 / 3
    assert line["fid"] == "unavailable: the weights of fid are not here"
    assert (line["nfe"], line["status"], line["psnr_teacher"]) == ("5", "ok", "")
    assert {p.name for p in tmp_path.iterdir()} == {"table.csv", "table.md", "table.tex"}


def test_a_value_without_an_error_stands_alone():
    rows = cell_rows(nfe=5, values={"fd_digits": 10.17}, se=None) + cell_rows(nfe=8, values={"fd_digits": 6.055}, se=0.5)
    for text in (markdown(wide(rows)), latex(wide(rows)), summary(rows)):
        assert re.search(r"10\.(2|17)", text)
        assert not re.search(r"10\.(2|17)\S* *(±|\$)", text)
        assert re.search(r"6\.0\S* (±|\$\\pm\$) 0\.5", text)
        assert "nan" not in text.lower()
    assert [line["fd_digits_se"] for line in records(wide(rows).to_csv(index=False))] == ["", "0.5"]


def test_dropping_the_timing_columns_hides_timings_only():
    numbers = dict.fromkeys(measures(), 1.5)
    other = {m: 2.5 if m in TIMING_COLUMNS else 1.5 for m in measures()}
    a, b = (wide(cell_rows(values=v, train=t)) for v, t in ((numbers, 10.0), (other, 20.0)))
    assert a.to_csv() != b.to_csv()
    assert a.drop(columns=[*TIMING_COLUMNS]).to_csv() == b.drop(columns=[*TIMING_COLUMNS]).to_csv()
    c = wide(cell_rows(values=numbers | {"psnr_teacher": 3.0}, train=10.0))
    assert a.drop(columns=[*TIMING_COLUMNS]).to_csv() != c.drop(columns=[*TIMING_COLUMNS]).to_csv()


def test_a_failed_cell_is_shown_until_it_succeeds():
    failed = cell_rows(values={"cell": RuntimeError("boom\nhere")})
    (cell,) = cells(failed)
    assert (cell["status"], cell["error"], cell["fd_digits"]) == ("failed", "boom here", None)
    (cell,) = cells(failed + cell_rows(values={"fd_digits": 3.0}))
    assert (cell["status"], cell["error"], cell["fd_digits"]) == ("ok", "", 3.0)
    (cell,) = cells(cell_rows(values={"fd_digits": 3.0, "psnr_teacher": RuntimeError("no"), "fid": None}))
    assert (cell["status"], cell["error"], cell["fd_digits"]) == ("failed", "no", 3.0)


def test_best_of_each_nfe_and_guidance_is_bold_and_reasons_are_told_once():
    rows = (
        naive_rows() + cell_rows(values={"fd_digits": 4.0, "fid": None}) + cell_rows(solver="heun", values={"fd_digits": 3.0, "fid": None})
    )
    rows += cell_rows(solver="heun", guidance=2.0, values={"fd_digits": 8.0}) + cell_rows(nfe=7, values={"cell": RuntimeError("a|b")})
    text = markdown(wide(rows))
    assert [part for part in text.split() if part.startswith("**")] == ["**3**", "**8**"]
    assert text.count("the weights of fid are not here") == 1
    assert text.count("n/a [1]") == 2
    assert r"a\|b" in text


def test_latex_is_escaped_booktabs():
    text = latex(wide(cell_rows(solver="dpmpp_2m", values={"fd_digits": 3.0, "fid": None}, se=0.5)))
    body = text[text.index(r"\begin{tabular}") : text.index(r"\end{tabular}")]
    assert all(rule in body for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert r"dpmpp\_2m" in body
    assert r"\textbf{3 $\pm$ 0.5}" in body
    assert "_" not in body.replace(r"\_", "")


def bar_rows(cd=8.1, pd=15.0, first=22.0, two_m=21.0, diversity=(5.0, 4.0, 3.0)):
    """Rows that settle every bar; best(1) = best(2) = 20.1, so best - floor = 20."""
    rows = naive_rows() + cell_rows(nfe=1, values={"fd_digits": first}) + cell_rows(nfe=2, values={"fd_digits": 30.0})
    for n in (1, 2):
        rows += cell_rows(method="cd", solver="consistency", loss="l2", nfe=n, values={"fd_digits": cd})
    rows += cell_rows(method="pd", loss="uniform", nfe=2, values={"fd_digits": pd})
    for n in (5, 10, 20):
        for solver, psnr in (("euler", 20.0), ("dpmpp_2m", two_m)):
            rows += cell_rows(solver=solver, nfe=n, grid="logsnr", end="sigma_min", values={"psnr_teacher": psnr})
    for scale, value in zip((1.0, 2.0, 4.0), diversity):
        rows += cell_rows(solver="heun", nfe=10 if scale == 1 else 20, steps=5, guidance=scale, values={"diversity_digits": value})
    return rows


def test_bars_hold_by_hand():
    found = bars(bar_rows())
    # (8.1 - 0.1) / 20, twice; 15 / 20.1; 22 / 20.1; 21 - 20 dB three times; the larger of 4/5 and 3/4
    np.testing.assert_allclose([b.value for b in found], [0.4, 0.4, 15 / 20.1, 22 / 20.1, 1, 1, 1, 0.8])
    assert all(b.holds is True for b in found)


@each(
    ("change", "failing"),
    [
        ({"cd": 10.2}, ["cd l2, consistency, NFE 1", "cd l2, consistency, NFE 2"]),
        ({"pd": 20.2}, ["pd uniform, euler, NFE 2"]),
        ({"first": 22.2}, ["teacher D(sigma_max), NFE 1"]),
        ({"two_m": 20.0}, [f"dpmpp_2m, logsnr grid to sigma_min, NFE {n}" for n in (5, 10, 20)]),
        ({"diversity": (5.0, 4.0, 4.0)}, ["heun 5 steps polynomial to zero seed 0"]),
        ({"diversity": (5.0, 5.5, 4.0)}, ["heun 5 steps polynomial to zero seed 0"]),
    ],
)
def test_each_bar_can_fail(change, failing):
    assert [b.name.split(":")[0] for b in bars(bar_rows(**change)) if b.holds is False] == failing


OWN = "suite,check,parameters,limit,why\n"


def test_a_suite_of_one_s_own_has_targets(tmp_path, monkeypatch):
    """They stand in results/targets.csv of the folder where the command runs; the two shares of `cd` are 0.4."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "targets.csv").write_text(OWN + "*,share_of_gap,nfe=1 methods=cd,<= 0.3,mine is to be better\n")
    before = bars(bar_rows())
    monkeypatch.chdir(tmp_path)
    *shared, own = bars(bar_rows())
    assert [bar.name for bar in shared] == [bar.name for bar in before]
    assert (own.value, own.limit, own.holds) == (pytest.approx(0.4), "<= 0.3", False)


@each(
    ("line", "message"),
    [
        ("*,share_of_gap,nfe=1 methods=cd,0.3,why", r"targets.csv line 2 is no target"),
        ("*,share_of_gap,nfe=1 methods=cd,about 0.3,why", r"line 2: the limit is one of .*, got 'about 0.3'"),
        ("*,share_of_gap,nfe 1,<= 0.3,why", r"line 2 is no target"),
        ("*,share_of_gab,nfe=1 methods=cd,<= 0.3,why", r"unknown check 'share_of_gab'; did you mean share_of_gap\?"),
        ("*,share_of_gap,nfe=1 method=cd,<= 0.3,why", r"targets.csv: check 'share_of_gap' cannot be made with .*'method': 'cd'"),
        ("*,share_of_gap,nfe=one methods=cd,<= 0.3,why", r"check 'share_of_gap' cannot be made with .*invalid literal"),
    ],
)
def test_a_target_that_is_none_is_one_line(line, message, tmp_path):
    (tmp_path / "targets.csv").write_text(OWN + line + "\n")
    with pytest.raises(UsageError, match=message):
        bars(bar_rows(), [tmp_path / "targets.csv"])


MARKED = ("\ufeff" + OWN + "*,share_of_gap,nfe=1 methods=cd,<= 0.3,why\n").encode()


@each("data", [MARKED, OWN.encode() + b"*,share_of_gap,,,\xff\n"])
def test_targets_as_other_programs_save_them(data, tmp_path):
    """A byte order mark is passed over, and what is no UTF-8 is one line."""
    (tmp_path / "targets.csv").write_bytes(data)
    if data == MARKED:
        assert bars(bar_rows(), [tmp_path / "targets.csv"])[0].limit == "<= 0.3"
    else:
        with pytest.raises(UsageError, match="line 2 is not UTF-8; save the file as UTF-8"):
            bars(bar_rows(), [tmp_path / "targets.csv"])


def test_a_wrong_target_is_told_before_anything_is_computed(tmp_path, monkeypatch, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "targets.csv").write_text(OWN + "smoke,share_of_gab,nfe=1,<= 0.3,why\n")
    monkeypatch.chdir(tmp_path)
    assert cli.entry("sweep", "", sweep.run, ["suite=smoke", "threads=1", "dry=true"]) == 2
    assert capsys.readouterr().err == "error: unknown check 'share_of_gab'; did you mean share_of_gap?\n"
    (tmp_path / "results" / "targets.csv").unlink()
    rows = [{**row, "checksum": str(n)} for n, row in enumerate(bar_rows())]
    before = _state(rows)
    (tmp_path / "results" / "targets.csv").write_text(OWN + "*,share_of_gap,nfe=1 methods=cd,<= 0.3,why\n")
    read_targets.cache_clear()
    assert _state(rows) != before  # so that another sweep writes bars.md anew


def named(suite, rows):
    return [row | {"suite": suite} for row in rows]


def test_limits_of_cifar_are_of_cells_that_its_budgets_have():
    """The order of SFD and pd in seconds and value, whatever pd starts from; limits without cells are told."""
    rows = naive_rows() + cell_rows(nfe=1, end="sigma_min", values={"fd_digits": 22.0})
    for method, train, value in (("pd", 600.0, 5.0), ("sfd", 50.0, 4.0)):
        rows += cell_rows(method=method, nfe=2, train=train, values={"fd_digits": value}, protocol={"distiller": {"start": 8}})
    for solver, psnr in (("euler", 20.0), ("ipndm_4", 21.0)):
        rows += cell_rows(solver=solver, nfe=5, end="sigma_min", values={"psnr_teacher": psnr})
    found, idle = limits(named("cifar", rows))
    own = {bar.name.split(":")[0]: bar.holds for bar in found}
    names = ("pd, NFE 2", "sfd, NFE 2", "teacher D(sigma_max), NFE 1", "ipndm_4, polynomial grid to sigma_min, NFE 5")
    assert all(own[name] for name in names)
    assert [target.check for target in idle] == ["share_of_gap", "learned_over_base"]  # of one step, and of no learned solver
    text = bars_text(named("cifar", rows))
    assert "Limits without cells to compare:\n\n- share_of_gap nfe=1 methods=cd or ctm or sfd_one or dmd2 <= 0.5\n" in text
    assert text.endswith("\n- learned_over_base metrics=judged or endpoint_error nfe=5 < 1\n")
    assert "Limits without" not in bars_text(named("mine", rows))
    (without,) = (target for target in limits(named("cifar", naive_rows()))[1] if target.check == "seconds_ratio")
    assert dict(without.parameters) == {"slow": "pd", "fast": "sfd", "nfe": "2"}


@each(("suite", "budget"), [("cifar", "cpu"), ("cifar", "short"), ("cifar", "paper")])
def test_every_limit_of_a_suite_has_cells_under_each_budget(suite, budget):
    """By the cells alone: what the limits of cifar compare is sampled there."""
    config = group_config("suite", suite, budget=budget)
    cells = [cell for cell in expand(config, 0, "philox").cells if budget == "cpu" or cell.method != "gd"]
    rows = []
    for cell in cells:
        known = {"fid": 20.0 + cell.nfe} | ({"psnr_teacher": 10.0} if "psnr_teacher" in cell.metrics else {})
        grid = {"grid": cell.grid or "polynomial", "end": cell.end or "sigma_min", "afs": cell.afs}
        base = {"gits": "ipndm_4", "amed_plugin": "ipndm_4"}.get(cell.solver, "")
        told = {"protocol": {"solver_fit": {"base": base}}} if base else {}
        steps = cell.nfe + 1 if cell.afs else cell.nfe
        rows += cell_rows(
            cell.method, cell.solver, cell.nfe, steps, loss=cell.loss, values=known, train=10.0 if cell.trained else None, **grid, **told
        )
    assert limits(named(suite, rows))[1] == []


def test_fewer_images_than_features_are_told():
    rows = cell_rows(values={"fd_digits": 3.0}, protocol={"rank_deficient": True}) + cell_rows(solver="heun", values={"fd_digits": 2.0})
    (line,) = [line for line in records(wide(rows).to_csv(index=False)) if line["solver"] == "euler"]
    assert line["warning"] == "fd_digits of fewer images than features (a covariance is singular)"
    assert "fewer images than features" in markdown(wide(rows))
    assert "- 1 of these 2 values are of fewer images than features (a covariance is singular)" in summary(rows)
    assert "fewer images" not in summary(rows[1:])


def test_only_what_was_sampled_has_bars():
    assert bars([]) == []
    assert print_bars([]) == ""
    assert bars(naive_rows() + cell_rows(solver="heun", nfe=5, values={"fd_digits": 1.0})) == []
    failed = cell_rows(
        solver="dpmpp_2m", nfe=5, grid="logsnr", end="sigma_min", values={"psnr_teacher": FloatingPointError("samples hold NaN")}
    )
    (bar,) = bars(naive_rows() + failed)
    assert (bar.value, bar.holds, bar.verdict) == (None, None, "not measured")


def test_a_value_within_its_error_of_the_limit_is_said_to_be():
    def found(cd, se):
        rows = [{**row, "std_error": 0.0} for row in naive_rows() + cell_rows(nfe=2, values={"fd_digits": 20.1})]
        return bars(rows + cell_rows(method="cd", solver="consistency", loss="l2", nfe=2, values={"fd_digits": cd}, se=se))[0]

    assert [found(cd, 1.0).verdict for cd in (8.0, 9.5, 10.5, 12.5)] == ["yes", "yes, within its error", "NO, within its error", "NO"]
    assert "0.302 to 0.498" in print_bars([found(8.1, 1.0)])  # 0.4 -+ 1.96 / 20


def test_a_student_that_failed_is_not_measured_and_a_variant_is_not_judged():
    failed = [cell_rows(method=m, nfe=n, loss=loss, values={"cell": RuntimeError("diverged")})
              for m, n, loss in (("sfd", 2, ""), ("ect", 2, ""), ("kd", 1, ""), ("cd", 2, "pseudo_huber"))]  # fmt: skip
    seed = cell_rows(method="cd", solver="consistency", loss="l2", nfe=2, fit_seed=1, values={"cell": RuntimeError("diverged")})
    heun = cell_rows(method="sfd_v", variant="heun", nfe=2, values={"fd_digits": 99.0})
    rows = [*bar_rows(), *(row for cell in failed for row in cell), *seed, *heun]
    found = {b.name: (b.holds, b.seeds) for b in bars(rows)}
    share = "(value - floor) / (best(2) - floor)"
    assert found[f"sfd, euler, NFE 2: {share}"] == (None, "0 of 1")
    assert found[f"cd pseudo_huber, euler, NFE 2: {share}"] == (None, "0 of 1")
    assert found[f"cd l2, consistency, NFE 2: {share}"] == (True, "1 of 2")
    assert found["ect, euler, NFE 2: value / best(2)"] == (None, "0 of 1")
    assert found["kd, euler, NFE 1: value / best(1)"] == (None, "0 of 1")
    assert not [name for name in found if "sfd_v" in name]


@pytest.mark.parametrize(("seconds", "holds"), [(450.0, True), (290.0, False)])
def test_sfd_is_ten_times_cheaper_than_halving_from_32_steps(seconds, holds):
    """Means over training seeds: seconds / 30, and 3 / 4 in quality."""
    rows = bar_rows()
    for seed, (train, fd) in enumerate(((20.0, 2.0), (40.0, 4.0))):
        rows += cell_rows(method="sfd", loss="l1", nfe=2, fit_seed=seed, values={"fd_digits": fd}, train=train)
    other = {"method": "pd", "nfe": 2, "values": {"fd_digits": 4.0}}
    assert not [b for b in bars([*rows, *cell_rows(**other, train=1.0, protocol={"distiller": {"start": 8}})]) if "pd with" in b.name]
    rows += cell_rows(**other, train=seconds, protocol={"distiller": {"start": 16}})
    found = {b.name: b for b in bars(rows)}
    ratio, quality = found["pd with start 16, NFE 2: seconds / those of sfd"], found["sfd, NFE 2: value / that of pd with start 16"]
    assert (ratio.value, ratio.holds) == (seconds / 30, holds)
    assert (quality.value, quality.holds) == (0.75, True)


def test_diversity_is_judged_for_each_student_and_training_seed():
    where = {"method": "cd", "variant": "long", "loss": "l2", "solver": "consistency", "nfe": 1}
    rows = naive_rows()
    for seed, values in enumerate(((5.0, 4.0, 3.0), (5.0, 4.0, 4.5))):
        for scale, value in zip((1.0, 2.0, 4.0), values):
            rows += cell_rows(**where, guidance=scale, fit_seed=seed, values={"diversity_digits": value})
    found = {b.name.partition(":")[0]: b.holds for b in bars(rows) if "diversity" in b.name}
    name = "cd long l2 consistency 1 steps polynomial to zero seed 0"
    assert found == {name: True, f"{name} trained with seed 1": False}


@pytest.mark.parametrize(("value", "seconds", "holds"), [(0.1, 30.0, [True, True]), (0.15, 130.0, [False, False])])
def test_students_of_an_arena_are_held_to_one_ddim_step(value, seconds, holds):
    rows = cell_rows(nfe=1, end="zero_last", dataset="arena", values={"energy_distance": 0.6, "fd_moments": 1.0})
    rows += cell_rows(method="cd", solver="consistency", nfe=1, dataset="arena", values={"energy_distance": value}, train=seconds)
    assert [b.holds for b in bars(rows)] == holds
    assert bars(rows)[0].value == pytest.approx(value / 0.6)
    other = {"method": "cd", "solver": "consistency", "nfe": 1, "dataset": "arena", "fit_seed": 1, "train": 2 * seconds}
    seeds = bars([*rows, *cell_rows(**other, values={"energy_distance": value / 2})])
    assert [b.value for b in seeds] == [pytest.approx(0.75 * value / 0.6), 2 * seconds]  # the mean of both, and the slower one
    failed = bars([*rows, *cell_rows(method="pd", nfe=1, dataset="arena", values={"energy_distance": ValueError("no")})])[1]
    assert (failed.name, failed.holds, failed.seeds) == ("pd, NFE 1: energy_distance / that of euler in 1 step", None, "0 of 1")


def test_a_summary_has_means_over_training_seeds_and_how_far_students_are_above_the_exact_flow():
    rows = cell_rows(nfe=1, dataset="arena", values={"energy_distance": 0.6}, protocol={"fine_grid": 0.05})
    for seed, value in enumerate((0.25, 0.15)):
        where = {"method": "cd", "solver": "consistency", "nfe": 1, "dataset": "arena", "fit_seed": seed, "se": 0.3}
        rows += cell_rows(**where, values={"energy_distance": value}, protocol={"fine_grid": 0.05})
    lines = [[part.strip() for part in line.strip("|").split("|")] for line in summary(rows).splitlines()]
    assert ["**cd**", "0.2 ± 0.3"] in lines  # of two seeds 0.05, and of the metric 0.3
    start = lines.index(["energy_distance above the exact flow's, at NFE", "1"])
    assert lines[start + 2] == ["**cd**", "0.15 ± 0.3"]
    assert "above" not in summary(cell_rows(method="cd", nfe=1, values={"fd_digits": 1.0}))


def test_pareto_front_keeps_what_nothing_beats():
    # (2, 5) is beaten by (1, 4); (3, 1) ends the front; equal quality at a higher cost is no gain
    assert pareto([(3.0, 1.0), (2.0, 5.0), (1.0, 4.0), (4.0, 1.0), (2.5, 2.0)]) == [2, 4, 0]
    assert pareto([]) == []


def test_a_text_that_the_rows_have_no_more_is_removed(tmp_path):
    for name in ("guidance.md", "ablation.md"):
        (tmp_path / name).write_text("of an earlier suite")
    write_report(tmp_path, synthetic_rows(), tmp_path / ".store", pictures=False)
    assert not any((tmp_path / name).exists() for name in ("guidance.md", "ablation.md"))


def test_an_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*table.csv.*results=<folder>"):
        write_tables(synthetic_rows(), tmp_path / "file")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no suite given"),
        (["suit=digits"], "unknown field 'suit'; did you mean suite"),
        (["digits"], "argument 'digits' is not of the form key=value"),
        (["suite=digits", "pictures=maybe"], "pictures must be true or false, got 'maybe'"),
        (["suite=digit", "results={results}"], "did you mean digits?"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(argv, message, tmp_path, capsys):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "runs.jsonl").write_text("")
    assert cli.entry("report", "", report.run, [word.format(results=tmp_path) for word in argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_tells_the_keys(capsys):
    assert cli.entry("report", "", report.run, ["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{key}: " in out for key in ("suite", "results", "pictures"))


def test_packed_rows_are_read_where_there_are_no_others(tmp_path, capsys):
    folder = tmp_path / "digits"
    folder.mkdir()
    packed = lzma.compress("".join(json.dumps(seal(row)) + "\n" for row in synthetic_rows()).encode())
    (folder / "runs.jsonl.xz").write_bytes(packed)
    assert cli.entry("report", "", report.run, ["suite=digits", "pictures=false", f"results={tmp_path}"]) == 0
    assert "dpmpp_2m" in (folder / "table.md").read_text()
    (folder / "runs.jsonl.xz").write_bytes(packed[: len(packed) // 2])
    assert cli.entry("report", "", report.run, ["suite=digits", "pictures=false", f"results={tmp_path}"]) == 2
    assert "runs.jsonl.xz is damaged" in capsys.readouterr().err
