"""Rows: what is written comes back or is reported, and later rows replace those of the same coordinates."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bench.store import rows as rows_module
from bench.store.addresses import canonical, digest, seal
from bench.store.artefacts import Store
from bench.store.rows import CELL_FAILED, COORDINATES, Rows, coordinates, current, parse_rows, read_rows
from bench.store.supersession import newest
from support.each import each


def row(**change: Any) -> dict[str, Any]:
    plain = {"model": "digits", "method": "teacher", "solver": "euler", "grid": "polynomial", "end": "zero", "afs": False, "guidance": 1.0}
    return plain | {"nfe": 4, "loss": "", "seed": 0, "metric": "fd_digits", "value": 1.5, "status": "ok"} | change


def lines_of(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(seal(r)) + "\n" for r in rows)


def silent(message: str) -> None:
    pass


NUMBERS = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(), lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(), v, max_size=3)
)
FREE_ROWS = st.dictionaries(st.text().filter(lambda k: k != "checksum"), VALUES, max_size=5)


@given(st.lists(FREE_ROWS, max_size=4))
def test_rows_come_back_as_they_were(rows: list[dict[str, Any]]) -> None:
    found, corrupt = parse_rows(lines_of(rows))
    assert not corrupt
    assert [{k: v for k, v in r.items() if k != "checksum"} for r in found] == rows


@given(st.dictionaries(st.text(), VALUES, max_size=5), st.randoms())
def test_the_address_of_a_spec_does_not_depend_on_its_order(spec: dict[str, Any], random: Any) -> None:
    keys = list(spec)
    random.shuffle(keys)
    assert digest({k: spec[k] for k in keys}) == digest(spec)
    assert json.loads(canonical(spec)) == spec


@given(FREE_ROWS.filter(bool), st.data())
def test_a_changed_value_does_not_match_the_checksum(body: dict[str, Any], data: st.DataObject) -> None:
    name, value = data.draw(st.sampled_from(sorted(body))), data.draw(VALUES)
    assume(canonical(value) != canonical(body[name]))
    text = lines_of([row()]) + json.dumps(seal(body) | {name: value}) + "\n" + lines_of([row(nfe=5)])
    found, corrupt = parse_rows(text)
    assert [r["nfe"] for r in found] == [4, 5]
    assert [(c.line, c.reason) for c in corrupt] == [(2, "its checksum does not match")]


@given(st.data())
def test_a_torn_line_is_no_row(data: st.DataObject) -> None:
    line = lines_of([row()]).strip()
    torn = line[: data.draw(st.integers(1, len(line) - 1))]
    found, corrupt = parse_rows(torn + "\n\n" + line)
    assert len(found) == 1
    assert [(c.line, c.text) for c in corrupt] == [(1, torn)]


@each("line", ["NaN", "[1]", "3", "null", "{}", '{"value": NaN, "checksum": "0"}', '{"checksum": null}', "no\x1ejson\x85here\u2028"])
def test_other_json_is_no_row(line: str) -> None:
    found, corrupt = parse_rows(line + "\n" + lines_of([row()]))
    assert (len(found), [c.text for c in corrupt]) == (1, [line])


OTHER = {"afs": True, "guidance": 2.0, "nfe": 9, "seed": 7}


def test_coordinates_are_what_a_row_measures() -> None:
    assert coordinates(row(value=2.0, status="failed", date="later")) == coordinates(row())
    for name in COORDINATES:
        assert coordinates(row(**{name: OTHER.get(name, "other")})) != coordinates(row())


def test_current_rows_are_the_last_of_each_coordinates_in_order_of_appearance() -> None:
    a1, b1, a2, c = row(value=1.0), row(nfe=5, value=2.0), row(value=3.0), row(nfe=1, value=4.0)
    assert current([a1, b1, a2, c]) == [a2, b1, c]


def made(date: int, **own: Any) -> dict[str, Any]:
    protocol = {name: own.pop(name, name) for name in ("model_digest", "recipe")}
    return row(**{"metric": "fid", "key": "samples", "date": str(date), "protocol": protocol, **own})


def test_rows_of_an_earlier_teacher_are_superseded() -> None:
    old, other, new = made(1, model_digest="a", nfe=5), made(1, model_digest="c", model="other"), made(2, model_digest="b")
    assert newest([old, other, new]) == [other, new]


def test_rows_of_earlier_samples_of_their_cell_are_superseded_also_by_a_failure() -> None:
    old = [made(1), made(1, metric="energy"), made(1, nfe=5)]
    assert newest([*old, made(2, key="anew")]) == [old[2], made(2, key="anew")]
    failed = made(2, key="anew", metric=CELL_FAILED, status="failed", value=None)
    assert newest([*old, failed]) == [old[2], failed]
    measured_again = made(2, metric="energy")  # a metric's new version, on the same samples
    assert newest([old[0], measured_again]) == [old[0], measured_again]


def test_students_trained_in_another_way_than_the_last_are_superseded_whatever_their_seed() -> None:
    old = [made(1, fit_seed=seed, recipe="long") for seed in (1, 2)]
    new = made(2, fit_seed=0, recipe="short")
    another = [made(1, fit_seed=0, recipe="long", **{axis: "other"}) for axis in ("method", "variant", "loss")]
    assert newest([*old, new, *another]) == [new, *another]
    assert newest([made(3, fit_seed=0, recipe="long"), *old]) == [made(3, fit_seed=0, recipe="long"), *old]
    elsewhere = [made(1, recipe="long", **{axis: value}) for axis, value in (("nfe", 8), ("guidance", 2.0), ("solver", "other"))]
    assert newest([*elsewhere, new]) == [new]  # the same student, at other points of its curve


def test_added_rows_replace_their_own_kind_and_forget_the_failure_of_their_cell(tmp_path: Path) -> None:
    rows = Rows(Store(tmp_path), "suite", silent)
    failures = [row(metric=CELL_FAILED, status="failed", value=None, nfe=n) for n in (4, 5)]
    rows.add([row(metric="fid", value=1.0), *failures])
    written = rows.add([row(metric="fid", value=2.0)])
    assert [(r["nfe"], r["metric"], r["value"]) for r in written] == [(4, "fid", 2.0), (5, CELL_FAILED, None)]
    assert rows.read() == written
    again = rows.add([failures[0] | {"error": "again"}])  # a failure forgets nothing that was measured
    assert [(r["nfe"], r["metric"]) for r in again] == [(4, "fid"), (5, CELL_FAILED), (4, CELL_FAILED)]
    assert rows.path.read_text().count("\n") == 3


def test_a_value_that_is_no_json_changes_nothing(tmp_path: Path) -> None:
    rows = Rows(Store(tmp_path), "suite", silent)
    rows.add([row()])
    before = rows.path.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        rows.add([row(nfe=5, value=float("nan"))])
    assert rows.path.read_bytes() == before


def test_corrupt_lines_are_reported_and_kept_aside(tmp_path: Path) -> None:
    said: list[str] = []
    rows = Rows(Store(tmp_path), "suite", said.append)
    rows.add([row(), row(nfe=5)])
    for torn in ('{"torn": 1', '{"torn": 2'):
        sound = rows.path.read_text()
        rows.path.write_text(torn + "\n" + sound)
        rows.add([row(nfe=6)])
        assert [r["nfe"] for r in rows.read()] == [4, 5, 6]
        assert not read_rows(rows.path)[1]
    assert (tmp_path / "suite" / "runs.corrupt.jsonl").read_text() == '{"torn": 1\n{"torn": 2\n'
    assert [s.count("runs.jsonl line 1: it is not valid JSON") for s in said] == [1, 1]


def test_only_what_another_process_added_is_parsed(tmp_path: Path, monkeypatch) -> None:
    parsed, said, parse = list[tuple[int, int]](), list[str](), rows_module.parse_rows

    def counting(text: str, first: int = 1):
        parsed.append((text.count("\n"), first))
        return parse(text, first)

    monkeypatch.setattr(rows_module, "parse_rows", counting)
    mine, other = Rows(Store(tmp_path), "suite", said.append), Rows(Store(tmp_path), "suite", silent)
    mine.add([row(nfe=n) for n in (4, 5)])
    other.add([row(nfe=6)])
    parsed.clear()
    assert [r["nfe"] for r in mine.read()] == [4, 5, 6] == [r["nfe"] for r in mine.read()]
    assert parsed == [(1, 3), (0, 4)]
    with open(mine.path, "a") as f:
        f.write("torn")
    parsed.clear()
    assert len(mine.read()) == len(mine.read()) == 3
    assert parsed == [(0, 4), (3, 1)]  # a last line that may still grow is read again
    with open(mine.path, "a") as f:
        f.write(" for good\n")
    mine.repair()
    assert [s.count("line 4: it is not valid JSON") for s in said] == [1]
    mine.path.write_text(mine.path.read_text().splitlines(keepends=True)[2])  # another file, as its first line shows
    assert [r["nfe"] for r in mine.read()] == [6]
