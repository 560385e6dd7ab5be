"""A set of 50,000 images is never a copy in memory, and what is computed of it is computed once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from support.many import SAMPLES, SIZE, TRAIN, asked, bare, prepare, started


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc: what a large set needs was not checked")
def test_a_large_set_is_read_where_it_lies_and_its_features_once(tmp_path: Path) -> None:
    prepare(tmp_path)
    first = started(tmp_path, "first")
    seen = asked(tmp_path)
    assert seen.count(1) == 3  # does it see such images, and how many features are there, of the real ones and of samples
    assert sum(seen) == 3 + TRAIN + SAMPLES
    second = started(tmp_path, "second", "suite.blocks.0.nfe=2")
    assert asked(tmp_path)[len(seen) :] == [SAMPLES]  # no image of the reference again
    allowed = 1.3 * SIZE + bare(tmp_path, "second").memory
    assert first.memory < allowed
    assert second.memory < allowed
