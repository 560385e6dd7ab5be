"""Cells of many samples: memory that does not grow, kills that cost one part, parts that were changed, full disks, older artefacts."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from bench.store.artefacts import Store
from bench.store.parts import SAMPLES, work_folder
from support import large_cell
from support.repository import ROOT

SCRIPT = ROOT / "tests" / "support" / "large_cell.py"
COUNT = 2300  # three parts, the last shorter


def ran(*args: object) -> dict:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run([sys.executable, str(SCRIPT), *map(str, args)], env=env, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


SLOW = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("count", [10_000, pytest.param(50_000, marks=SLOW)])
def test_memory_does_not_grow_with_the_samples(count: int, tmp_path: Path) -> None:
    found = ran("memory", tmp_path, count)
    assert max(found["sampling"], found["all"]) < 300
    assert found["endpoint_error"] > 0
    assert 0 < found["psnr_teacher"] < 58


@pytest.mark.parametrize(("count", "kills"), [(10_000, 4), pytest.param(50_000, 20, marks=SLOW)])
def test_a_kill_costs_one_part(count: int, kills: int, tmp_path: Path) -> None:
    """The samples are the same, each kill has at most one part begun again, and passes are counted as ever."""
    found = ran("kills", tmp_path, count, kills)
    assert found["kills"] == kills
    assert found["killed"] == found["whole"]
    assert found["begun"] <= found["needed"] + kills
    assert found["passes"] == [large_cell.STEPS] * 2
    assert found["files"][0] == found["files"][1] == count // 1000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A results folder with the cell's samples, and their digest."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, large_cell.digest(large_cell.sampled(folder, COUNT))


def files_of(folder: Path) -> dict[str, int]:
    place = Store(folder).path(SAMPLES, large_cell.job_of(COUNT).key)
    return {path.name: path.stat().st_mtime_ns for path in place.glob("*.safetensors")}


@pytest.mark.parametrize("damage", ["a bit", "cut", "gone"])
def test_a_changed_part_alone_is_made_again(damage: str, whole: tuple[Path, str]) -> None:
    folder, digest = whole
    before, said = files_of(folder), []
    assert len(before) == 3
    path = Store(folder).path(SAMPLES, large_cell.job_of(COUNT).key) / "samples-00001000.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[: len(data) // 3] if damage == "cut" else data)
    assert large_cell.digest(large_cell.sampled(folder, COUNT, said)) == digest
    after = files_of(folder)
    assert {name for name in before if after[name] != before[name]} == {path.name}
    assert said[0].startswith("corrupt artefact: ")
    assert len(said) == (1 if damage == "gone" else 2)
    if damage != "gone":
        assert said[1].startswith("corrupt part: ")
        assert f"{path.name}" in said[1]
        (kept,) = Path(said[1].partition("set aside in ")[2].partition(",")[0]).iterdir()
        assert kept.name == path.name


def test_a_full_disk_in_the_middle_keeps_the_parts_before(whole: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fsync

    def full(handle: int) -> None:
        if "samples-00001000" in os.readlink(f"/proc/self/fd/{handle}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        large_cell.sampled(tmp_path, COUNT)
    store, key = Store(tmp_path), large_cell.job_of(COUNT).key
    assert not store.has(SAMPLES, key)
    (first,) = work_folder(store, SAMPLES, key).iterdir()
    made = first.stat().st_mtime_ns
    monkeypatch.setattr(os, "fsync", real)
    assert large_cell.digest(large_cell.sampled(tmp_path, COUNT)) == whole[1]
    assert files_of(tmp_path)[first.name] == made
    assert not work_folder(store, SAMPLES, key).exists()


def test_an_older_artefact_of_one_file_is_read(whole: tuple[Path, str], tmp_path: Path) -> None:
    samples, store = large_cell.sampled(whole[0], COUNT), Store(tmp_path)
    key = large_cell.job_of(COUNT).key

    def fill(folder: Path) -> dict[str, object]:
        save_file({"images": samples.images[:], "labels": samples.labels}, folder / "samples.safetensors")
        return {"network_passes": 3.0}

    store.write(SAMPLES, key, fill)
    said: list[str] = []
    assert large_cell.digest(large_cell.sampled(tmp_path, COUNT, said)) == whole[1]
    assert not said


def test_rows_are_read_by_any_index(whole: tuple[Path, str]) -> None:
    images = large_cell.sampled(whole[0], COUNT).images
    everything = images[:]
    assert images.shape == everything.shape == (COUNT, *large_cell.SHAPE)
    mixed = np.random.RandomState(0).randint(COUNT, size=40)
    for index in (slice(0, 5), slice(990, 1010), slice(2290, 9999), slice(None, None, 700), slice(5, 5), mixed, mixed[:0], -mixed - 1):
        assert np.array_equal(images[index], everything[index])
    with pytest.raises(IndexError, match=f"of {COUNT}"):
        images[np.array([COUNT])]
