"""Artefacts: what is written comes back or is refused, and what processes leave is cleaned."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path
from typing import Any

import pytest

from bench.store.artefacts import Store
from fewstep import files
from fewstep.errors import UsageError
from support.artefacts import fill_with, silent
from support.each import each


def test_an_artefact_comes_back_with_the_record_of_its_files(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert not store.has("kind", "key")
    written = store.write("kind", "key", fill_with("a"))
    assert store.has("kind", "key")
    assert store.read("kind", "key") == written
    assert (written["made_of"], list(written["files"])) == ("a", ["data.txt"])
    assert (store.path("kind", "key") / "data.txt").read_text() == "a"


TAMPERS = {
    "file changed": lambda folder: (folder / "data.txt").write_text("b"),
    "file gone": lambda folder: (folder / "data.txt").unlink(),
    "record changed": lambda folder: (folder / "record.json").write_text((folder / "record.json").read_text().replace('"a"', '"b"')),
    "record torn": lambda folder: (folder / "record.json").write_text('{"made_of": '),
    "record no object": lambda folder: (folder / "record.json").write_text("[]"),
}


@each("tamper", TAMPERS)
def test_a_changed_artefact_is_refused(tamper: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.write("kind", "key", fill_with("a"))
    TAMPERS[tamper](store.path("kind", "key"))
    with pytest.raises(ValueError, match=r"does not match|Expecting value"):
        store.read("kind", "key")


@each("tamper", [*TAMPERS, "record gone"])
def test_a_changed_artefact_is_kept_aside_and_made_anew(tamper: str, tmp_path: Path) -> None:
    store, said = Store(tmp_path), list[str]()
    first = store.ensure("kind", "key", fill_with("a"), said.append)
    assert store.ensure("kind", "key", fill_with("not needed"), said.append) == first
    assert not said
    folder = store.path("kind", "key")
    {**TAMPERS, "record gone": lambda f: (f / "record.json").unlink()}[tamper](folder)
    left = {p.name: p.read_bytes() for p in folder.iterdir()}
    again = store.ensure("kind", "key", fill_with("a"), said.append)
    assert again == store.read("kind", "key")
    assert (again["made_of"], again["files"]) == (first["made_of"], first["files"])
    (aside,) = [p for p in store.root.rglob("*kind-key*") if p.is_dir()]
    assert "corrupt" in str(aside.relative_to(store.root))
    assert {p.name: p.read_bytes() for p in aside.iterdir()} == left
    assert len(said) == 1
    assert said[0].startswith("corrupt artefact: ")
    assert str(aside) in said[0]


def test_a_failed_artefact_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def fill(folder: Path) -> dict[str, Any]:
        (folder / "data.txt").write_text("half")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        store.ensure("kind", "key", fill, silent)
    assert not store.path("kind", "key").exists()
    assert not list(store.root.glob(".making-*"))
    store.ensure("kind", "key", fill_with("a"), silent)  # the lock is free again


def test_a_results_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("")
    with pytest.raises(UsageError, match=r"cannot be written .* give another with results=PATH"):
        Store(tmp_path / "results")


def test_what_has_no_lock_is_kept_for_a_day(tmp_path: Path) -> None:
    """Neither a folder of an earlier version, nor one whose maker is about to lock it."""
    store, day = Store(tmp_path), 24 * 3600
    own = store.root / f".making-{os.getpid()}-x"
    own.mkdir()
    (own / "half.txt").write_text("half")
    for age, kept in ((0, True), (0.9 * day, True), (1.1 * day, False)):
        os.utime(own, times=(time.time() - 2 * day,) * 2)
        os.utime(own / "half.txt", times=(time.time() - age,) * 2)
        store.clean_leavings()
        assert own.exists() == kept, age


def test_a_file_that_is_cleaned_before_it_is_locked_is_begun_again(tmp_path: Path, monkeypatch) -> None:
    locks = files._lock

    def late(handle: int) -> bool | None:
        monkeypatch.setattr(files, "_lock", locks)
        files.clean(tmp_path)
        return locks(handle)

    for make in (lambda: files.write_atomic(tmp_path / "table.md", b"text"), lambda: Store(tmp_path).write("kind", "key", fill_with("a"))):
        monkeypatch.setattr(files, "_lock", late)
        make()
    assert (tmp_path / "table.md").read_bytes() == b"text"
    assert Store(tmp_path).read("kind", "key")["made_of"] == "a"


def test_a_file_system_without_locks_is_refused_for_results_and_good_enough_for_a_file(tmp_path: Path, monkeypatch) -> None:
    def none(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    files.write_atomic(tmp_path / "grid.png", b"picture")
    assert (tmp_path / "grid.png").read_bytes() == b"picture"
    with pytest.raises(UsageError, match=r"is on a file system without file locks; give another with results=PATH"):
        Store(tmp_path)


def test_folders_that_another_process_moves_meanwhile_are_passed_over(tmp_path, monkeypatch):
    """A sweep that starts while another finishes an artefact: the folder it is made in is listed, then gone."""
    store, scan = Store(tmp_path), os.scandir
    (store.root / f".making-{os.getpid()}-abc").mkdir(parents=True)

    def vanishing(path="."):
        if ".making-" in str(path):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", vanishing)
    store.clean_leavings()
