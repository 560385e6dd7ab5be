"""Rows that were measured in unlike ways share no ranking."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from bench.reports.cohorts import apart, by_cohort, cohorts, stated
from bench.reports.summary import summary
from bench.reports.tables import cells, markdown, wide
from bench.reports.writing import findings, write_report
from bench.store.addresses import digest
from bench.store.rows import SCHEMA, coordinates
from bench.store.supersession import newest
from support.synthetic import cell_rows, naive_rows


def made(samples: int = 1000, noise: str = "philox", own: dict[str, Any] | None = None, **more: Any) -> list[dict[str, Any]]:
    """The rows of one cell as a sweep of today leaves them."""
    base = {"samples": samples, "seed": more.get("seed", 0), "noise": noise, "dtype": "float32"}
    options = more.pop("options", "")
    rows = cell_rows(**more)
    return [{**r, "schema": SCHEMA, "options": options, "cohort": digest(base), "conditions": {**base, **(own or {})}} for r in rows]


def real(samples: int) -> list[dict[str, Any]]:
    base = {"samples": samples, "seed": 0}
    return [{**row, "schema": SCHEMA, "cohort": digest(base), "conditions": base} for row in naive_rows()]


def euler(value: float, nfe: int = 5, **more: Any) -> list[dict[str, Any]]:
    return made(values={"fd_digits": value}, se=0.1, nfe=nfe, **more)


def test_a_row_of_fewer_samples_neither_replaces_nor_meets_those_of_more() -> None:
    """euler 1.6 of 1,000 samples and 3.8 of 50, beside dpmpp_2m's 0.4 of 1,000."""
    rows = [*euler(1.6), *euler(0.4, solver="dpmpp_2m"), *euler(3.8, samples=50)]
    assert len({coordinates(row) for row in rows}) == 3
    many, few = cohorts(newest(rows))
    assert [row["value"] for row in many.rows] == [1.6, 0.4]
    assert [row["value"] for row in few.rows] == [3.8]
    assert apart([many, few]) == ["cohort 2: 1 rows are not comparable with the 2 of cohort 1 (samples: 50 against 1000)"]


def test_each_condition_of_a_cell_parts_rows() -> None:
    for other, told in (
        (euler(2.0, noise="edm"), "noise: edm against philox"),
        (euler(2.0, seed=7), "seed: 7 against 0"),
        (cell_rows(values={"fd_digits": 2.0}), "samples: 2000 against 1000"),
    ):
        found = cohorts([*euler(1.6), *euler(1.7, 10), *other])
        assert [len(c.rows) for c in found] == [2, 1]
        assert told in found[1].apart(found[0])


def test_conditions_of_one_metric_part_that_metric_alone() -> None:
    """PSNR against another solution, or latency of another machine: the other metrics of the cell stay where they are."""
    first, second = ({"compared_with": {"solver": "dpmpp_2m", "steps": n}} for n in (100, 200))
    rows = [*euler(1.6), *euler(1.1, 10), *(r for n in (5, 10) for r in made(own=first, nfe=n, values={"psnr_teacher": 20.0}))]
    rows += made(own=second, nfe=20, values={"psnr_teacher": 25.0}) + euler(0.9, 20)
    whole, rest = cohorts(rows)
    assert [(r["metric"], r["nfe"]) for r in rest.rows] == [("psnr_teacher", 20)]
    assert [r["nfe"] for r in whole.rows if r["metric"] == "fd_digits"] == [5, 10, 20]
    assert rest.apart(whole) == "compared_with: solver dpmpp_2m, steps 200 against solver dpmpp_2m, steps 100"


def test_real_images_stand_in_every_cohort_with_as_many_samples() -> None:
    rows = [*real(1000), *euler(1.6), *euler(2.0, noise="edm"), *euler(3.8, samples=50)]
    assert [[row["method"] for row in c.rows].count("naive") for c in cohorts(rows)] == [3, 3, 0]
    alone = cohorts([*real(1000), *euler(3.8, samples=50)])
    assert [{row["method"] for row in c.rows} for c in alone] == [{"naive"}, {"teacher"}]


def test_real_images_stand_beside_metrics_that_compare_with_a_solution() -> None:
    """They are compared with none, and agree with every one."""
    own = {"compared_with": {"solver": "exact"}}
    base = {"samples": 1000, "seed": 0}
    images = [{**row, "metric": "energy_distance", "schema": SCHEMA, "cohort": digest(base), "conditions": base} for row in naive_rows()]
    rows = [*images, *made(own=own, values={"energy_distance": 0.1}), *made(own=own, nfe=10, values={"energy_distance": 0.05})]
    (whole,) = cohorts(rows)
    assert len(whole.rows) == len(rows)
    apart_too = [*rows, *made(own={"compared_with": {"solver": "other"}}, nfe=20, values={"energy_distance": 0.2})]
    assert [[row["method"] for row in c.rows].count("naive") for c in cohorts(apart_too)] == [len(images)] * 2


def test_rows_from_before_conditions_were_recorded_part_by_what_they_say() -> None:
    """Three thousand samples against fifty: the folder that a run with fewer samples once spoiled."""
    old = cell_rows(values={"fd_digits": 1.6}, nfe=5), cell_rows(values={"fd_digits": 3.8}, nfe=10)
    few = [{**row, "samples": 50} for row in old[1]]
    assert [c.text for c in cohorts([*old[0], *few])] == ["2,000 samples, schema 1, seed 0", "50 samples, schema 1, seed 0"]
    timed = [{**row, "samples": 7, "protocol": {**row["protocol"], "machine": {}}} for row in cell_rows(values={"latency_ms_p50_b1": 1.0})]
    assert len(cohorts([*old[0], *timed])) == 1  # seven repeats are no samples


def test_a_number_compared_with_another_solution_replaces_none() -> None:
    first, second = ({"compared_with": {"solver": "dpmpp_2m", "steps": n}} for n in (100, 50))
    assert len({coordinates(r) for own in (first, second) for r in made(own=own, values={"psnr_teacher": 20.0})}) == 2


def test_a_solver_with_other_options_is_another_contestant() -> None:
    rows = [*euler(0.4, solver="dpmpp_2m"), *euler(1.6, solver="dpmpp_2m", options="order=1"), *euler(0.2, 10, solver="dpmpp_2m")]
    assert len(cohorts(rows)) == 1
    assert {(c["solver"], c["nfe"]): c["fd_digits"] for c in cells(rows)} == {
        ("dpmpp_2m", 5): 0.4,
        ("dpmpp_2m(order=1)", 5): 1.6,
        ("dpmpp_2m", 10): 0.2,
    }
    assert "| dpmpp_2m(order=1)" in summary(rows)


def test_tables_rank_within_a_cohort_and_show_how_many_samples(tmp_path: Path) -> None:
    rows = [*real(1000), *euler(1.6), *euler(0.4, solver="dpmpp_2m"), *euler(0.3, samples=50)]
    write_report(tmp_path, rows, tmp_path / ".store", pictures=True)
    table = (tmp_path / "table.md").read_text()
    assert "**0.4 ± 0.1**" in table
    assert "**0.3 ± 0.1**" in table  # the least of its own cohort
    assert "**1.6" not in table
    assert "Not to be compared with cohort 1: samples: 50 against 1000." in table
    assert "% Not to be compared with cohort 1: samples: 50 against 1000." in (tmp_path / "table.tex").read_text()
    read = pd.read_csv(tmp_path / "table.csv")
    assert read.groupby("cohort")["samples"].unique().map(list).to_dict() == {1: [1000], 2: [50]}
    text = (tmp_path / "summary.md").read_text()
    assert "best training-free at NFE 5: dpmpp_2m, polynomial to 0: 0.4" in text
    assert "1,000 samples, seed 0, noise philox" in text
    told = findings(rows)
    assert "cohort 2: 1 rows are not comparable" in told


def test_one_cohort_needs_no_heading_and_says_its_samples() -> None:
    rows = [*real(1000), *euler(1.6)]
    assert by_cohort(cohorts(rows), summary) == summary(rows)
    assert stated(rows) in summary(rows)
    assert "Every row: samples 1000." in markdown(wide(rows))
    assert by_cohort([], summary) == "No rows yet.\n"


def versioned(date: int, value: float, components: dict[str, Any], **more: Any) -> list[dict[str, Any]]:
    return [{**row, "date": f"2026-01-{date:02}", "components": components} for row in euler(value, **more)]


def test_rows_of_an_earlier_version_of_a_component_are_superseded() -> None:
    """A metric, a solver, a network or a wrapper that computes something else: what only the later sweep measured again is shown."""
    old = [row for nfe in (5, 10) for row in versioned(1, 1.0 / nfe, {"metric fd_digits": 2, "solver euler": 1}, nfe=nfe)]
    other = versioned(1, 0.4, {"metric fd_digits": 3, "solver heun": 1}, solver="heun")
    new = versioned(2, 0.3, {"metric fd_digits": 3, "solver euler": 1})
    assert newest([*old, *other, *new]) == [*other, *new]
    assert newest([*old, *versioned(2, 0.3, {"metric fd_digits": 2, "solver euler": 2})])[0]["value"] == 0.3
    assert len(newest([*old, *versioned(2, 0.3, {"metric fd_digits": 2, "solver heun": 2}, solver="heun")])) == 3


def test_rows_of_an_earlier_schema_are_left_out_beside_current_ones() -> None:
    old = cell_rows(values={"fd_digits": 1.0}, nfe=10)
    assert newest([*old, *euler(0.4)]) == euler(0.4)
    assert newest(old) == old
