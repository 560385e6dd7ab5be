"""What the store holds, while others write to it; what its artefacts cost; and what prune leaves."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from bench.space.keeping import let_go
from bench.space.pruning import Wanted, prune
from bench.space.usage import Artefact, artefacts, cost_of, needed, size_of
from bench.store.addresses import seal
from bench.store.artefacts import Store
from bench.store.parts import TRUTH, Parted, ensure_parts
from fewstep.files import write_atomic
from support.artefacts import fill_with, silent
from support.each import each

FIT = "ab" * 8


def refer(results: Path, **protocol: Any) -> None:
    """A finished sweep whose one row refers to artefacts."""
    row = {"suite": "mine", "key": "cd" * 8, "guidance": 1.0, "seed": 0, "samples": 20, "protocol": protocol}
    write_atomic(results / "mine" / "runs.jsonl", json.dumps(seal(row)).encode() + b"\n")


def test_sizes_are_told_while_files_are_written_and_artefacts_go(tmp_path: Path) -> None:
    store, done = Store(tmp_path), threading.Event()

    def write() -> None:
        while not done.is_set():
            for i in range(20):
                write_atomic(tmp_path / "busy" / f"{i}.json", b"1")
            store.write("samples", FIT, fill_with("a"))
            os.replace(store.path("samples", FIT), tmp_path / "gone")
            (tmp_path / "gone" / "record.json").unlink()
            (tmp_path / "gone" / "data.txt").unlink()
            (tmp_path / "gone").rmdir()

    writers = [threading.Thread(target=write)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(300):
            size_of(tmp_path / "busy")
            artefacts(store)
    finally:
        done.set()
        for writer in writers:
            writer.join()
    assert size_of(tmp_path / "busy") == 20


COSTS: dict[str, tuple[str, dict[str, Any], str]] = {
    "samples": ("samples", {"spec": {"count": 20}, "network_passes": 5.0, "seconds": 3.0}, "100 network passes, 3 s"),
    "training": ("fit", {"seconds": 300.0, "train_seconds": {"a": 100.0, "b": 300.0}}, "5 min of training"),
    "old training": ("fit", {"train_seconds": {"a": 100.0, "b": 300.0}}, "5 min of training"),
    "old learned solver": ("fit", {"train_seconds": 42.5}, "42 s of training"),
    "reference": ("reference", {"seconds": 7200.0}, "2 h"),
    "old reference": ("reference", {}, "not recorded"),
    "old features": ("features", {}, "its samples"),
}


@each("what", COSTS)
def test_what_it_costs_to_make_an_artefact_again(what: str) -> None:
    kind, record, told = COSTS[what]
    assert cost_of(kind, record) == told


def test_every_record_says_how_long_it_took(tmp_path: Path) -> None:
    """Those that say it themselves, and the others."""
    store = Store(tmp_path)
    assert store.write("reference", FIT, fill_with("a"))["seconds"] >= 0
    assert store.write("fit", FIT, lambda folder: {"seconds": 7.0})["seconds"] == 7.0
    parted = Parted("x", 5, 2, lambda first, last: ({"x": np.zeros(last - first)}, {"seconds": 2.0}), lambda notes: {})
    assert ensure_parts(store, "features", FIT, parted, silent)["seconds"] == 6.0
    parted = Parted("x", 5, 2, lambda first, last: ({"x": np.zeros(last - first)}, {}), lambda notes: {})
    assert 0 <= ensure_parts(store, "features", "cd" * 8, parted, silent)["seconds"] < 1


def listed(store: Store, kind: str) -> list[str]:
    return sorted(artefact.key for artefact in artefacts(store, [kind]))


def test_a_fit_whose_sweep_ends_after_the_store_was_listed_stays(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key in (FIT, "ef" * 8):
        store.ensure("fit", key, fill_with("a"), silent)
    found: list[Artefact] = artefacts(store)
    refer(tmp_path, fit=FIT)  # which gives up its claim when its rows are there
    went, left = prune(store, found, Wanted("fit"), dry=False)
    assert ([artefact.key for artefact in went], left) == (["ef" * 8], [])
    assert listed(store, "fit") == [FIT]


def test_fits_that_others_were_made_of_are_needed_however_far_back(tmp_path: Path) -> None:
    """A solver fitted to a student, whose pairs a trained teacher made: whatever the order of their addresses."""
    store, chain = Store(tmp_path), ["3", "1", "2", "0"]
    for key, first in zip(chain, [*chain[1:], "none"]):
        store.write("fit", key, lambda folder, first=first: {"spec": {"student": first, "options": {}}})
    refer(tmp_path, solver_fit={"key": "3"})
    assert all(needed(store).by("fit", key, {}) == ("mine",) for key in chain)


def test_exact_solutions_go_with_the_samples(tmp_path: Path) -> None:
    spec = {"model": "m", "guidance": 1.0, "noise": "philox", "seed": 0, "count": 20}
    store = Store(tmp_path)
    refer(tmp_path, teacher_solution={"solver": "closed_form"}, model_digest="m", noise="philox")
    for keep in ("features", "none"):
        store.write(TRUTH, FIT, lambda folder: {"spec": spec})
        (artefact,) = artefacts(store, [TRUTH])
        assert artefact.suites == ("mine",)
        assert prune(store, [artefact], Wanted(), dry=False) == ([], [])  # rows are compared with it
        assert [a.key for a in prune(store, [artefact], Wanted(keep=keep), dry=False)[0]] == [FIT]
        store.write(TRUTH, FIT, lambda folder: {"spec": spec})
        assert let_go(store, FIT, "samples", [])
        assert listed(store, TRUTH) == [FIT]
        assert let_go(store, FIT, keep, [])
        assert listed(store, TRUTH) == []
