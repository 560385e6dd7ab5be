"""What tests of fetching share."""

from pathlib import Path

import pytest

from bench.fetching import packages


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder, home and data folder of the test's own, where fetching is allowed, with no client of packages."""
    monkeypatch.setenv("FEWSTEP_OFFLINE", "0")
    (tmp_path / "bin").mkdir()
    for name, value in (("FEWSTEP_CACHE", "cache"), ("FEWSTEP_DATA", "data"), ("TORCH_HOME", "torch"), ("PATH", "bin")):
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    return tmp_path
