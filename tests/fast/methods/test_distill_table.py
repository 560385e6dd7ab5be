"""The table of defaults in docs/distillation.md: it has every field of every distiller, once, with the default that the code has."""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

import pytest

from bench.settings.compose import group_config
from fewstep.plugins import Entry, entries, get
from methods.recipe import split
from support.repository import ROOT

DOC = ROOT / "docs" / "distillation.md"
HEAD = ["method", "field", "ours", "paper", "released code", "why"]
SHIPPED = {name: e for name, e in entries("distiller").items() if e.cls.__module__.startswith("methods.distill.")}


def rows() -> list[tuple[list[str], str, str]]:
    """(methods, field, default as it is written) of each row of the tables with that head."""
    found, inside = [], False
    for line in DOC.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
        if not cells or cells == HEAD:
            inside = cells == HEAD
        elif inside and not set(line) <= set("|- "):
            assert len(cells) == len(HEAD), line
            assert all(cells), f"an empty cell: {line}"
            ((field, ours),) = zip(re.findall("`([^`]+)`", cells[1]), re.findall("`([^`]+)`", cells[2]), strict=True)
            found.append((re.findall("`([^`]+)`", cells[0]), field, ours))
    return found


ROWS = rows()


def fields_of(entry: Entry) -> dict[str, Any]:
    """What the table has of a method: all but its version."""
    return {name: default for name, default in entry.fields.items() if name != "version"}


def same(written: str, default: Any) -> bool:
    """Whether a default is what is written: true, 5e-4, l2, or "" for nothing."""
    if isinstance(default, bool | str):
        return written == (str(default).lower() if isinstance(default, bool) else default or '""')
    return float(written) == default


@pytest.mark.parametrize("name", SHIPPED)
def test_every_default_is_in_the_table_once_and_right(name: str) -> None:
    written = [(field, ours) for methods, field, ours in ROWS if name in methods]
    twice = [field for field, count in Counter(field for field, _ in written).items() if count > 1]
    assert not twice, f"{name} has several rows for {twice}"
    expected = fields_of(SHIPPED[name])
    missing, unknown = set(expected) - {field for field, _ in written}, {field for field, _ in written} - set(expected)
    assert (missing, unknown) == (set(), set()), f"docs/distillation.md, {name}: no row for {missing}, rows for {unknown} that it has not"
    wrong = {field: (ours, expected[field]) for field, ours in written if not same(ours, expected[field])}
    assert not wrong, f"docs/distillation.md, {name}: written and true default of {wrong}"


def test_the_table_names_registered_methods_only() -> None:
    assert len(ROWS) > 100
    assert {name for methods, _, _ in ROWS for name in methods} == set(SHIPPED)


def test_a_wrong_default_shows() -> None:
    """The comparison itself: other numbers, words and truths are not the same."""
    assert same("5e-4", 0.0005)
    assert same('""', "")
    assert same("true", True)
    assert not any([same("5e-4", 0.0004), same("l1", "l2"), same('""', "l1"), same("true", False), same("l2", "")])


def test_the_cifar_suite_has_the_published_options_that_the_defaults_have_not() -> None:
    """CD's code for CIFAR-10 keeps no target network, and the paper's PD begins at 4,096 steps and trains its last two students twice as
    long."""
    options = group_config("suite", "cifar", budget="paper")["options"]
    own = {name: split(options[name])[0] for name in ("cd", "pd")}
    assert [e.decay for e in get("distiller", "cd").make(**own["cd"]).phases()[0].emas.values()] == [0.0, 0.9999]
    phases = get("distiller", "pd").make(**own["pd"]).phases()
    assert [phase.name for phase in phases] == [str(2**k) for k in range(12, -1, -1)]
    assert [phase.batches for phase in phases] == [50_000] * (len(phases) - 2) + [100_000] * 2
