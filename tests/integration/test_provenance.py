"""A row says which code made it: the right commit or none, with a mark of what was not committed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.store import provenance as module
from bench.store.provenance import code_digest, commit_of, made_by, other_code, provenance, version_of
from support.repository import ROOT

AUTHOR = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}


def git(folder: Path, *words: str) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | AUTHOR
    return subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True, env=env).stdout.strip()


def committed(folder: Path) -> str:
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "x")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with two packages, whose data are not code."""
    root = tmp_path / "checkout"
    for name in ("fewstep", "bench"):
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").write_text('"""A package."""\n\nX = 1  # one\n')
    (root / "README.md").write_text("read me\n")
    return root


def test_a_clean_checkout_is_its_commit_and_a_changed_one_is_marked(checkout: Path) -> None:
    head = committed(checkout)
    assert commit_of(checkout) == head
    (checkout / "README.md").write_text("another text\n")
    (checkout / "results").mkdir()
    (checkout / "results" / "table.csv").write_text("1\n")
    assert commit_of(checkout) == head  # what cannot move a number is no change of the code
    (checkout / "bench" / "new.py").write_text("Y = 2\n")
    assert commit_of(checkout) == f"{head}-dirty"
    (checkout / "bench" / "new.py").unlink()
    (checkout / "fewstep" / "__init__.py").write_text("X = 2\n")
    assert commit_of(checkout) == f"{head}-dirty"


def test_a_repository_around_an_installation_is_somebody_elses(checkout: Path, tmp_path: Path) -> None:
    """A virtual environment inside a user's own repository, ignored by it or even tracked."""
    (tmp_path / "theirs.py").write_text("pass\n")
    (tmp_path / ".gitignore").write_text("checkout/\n")
    committed(tmp_path)
    assert commit_of(checkout) == ""
    (tmp_path / ".gitignore").unlink()
    committed(tmp_path)
    assert commit_of(checkout) == ""


def test_a_repository_that_tracks_no_code_is_none(checkout: Path) -> None:
    """Somebody ran `git init` in site-packages."""
    (checkout / ".gitignore").write_text("fewstep\nbench\n")
    committed(checkout)
    assert commit_of(checkout) == ""


def test_variables_of_a_hook_do_not_name_another_repository(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head, other = committed(checkout), tmp_path / "other"
    other.mkdir()
    (other / "file").write_text("1")
    committed(other)
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert commit_of(checkout) == head


def test_without_git_there_is_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    committed(checkout)
    monkeypatch.setenv("PATH", "")
    assert commit_of(checkout) == ""


def test_the_digest_of_the_code_follows_what_it_says_and_no_comment(checkout: Path) -> None:
    before, file = code_digest(checkout), checkout / "fewstep" / "__init__.py"
    file.write_text('"""Another docstring."""\nX = 1   # another comment\n\n\n')
    assert code_digest(checkout) == before
    file.write_text("X = 2\n")
    changed = code_digest(checkout)
    assert changed != before
    shutil.move(file, checkout / "fewstep" / "other.py")
    assert code_digest(checkout) not in (before, changed)


def test_the_version_is_that_of_the_code_which_runs(checkout: Path) -> None:
    assert version_of(ROOT) == provenance()["version"] != ""
    (checkout / "pyproject.toml").write_text('[project]\nname = "fewstep"\nversion = "9.8.7"\n')
    assert version_of(checkout) == "9.8.7"
    (checkout / "pyproject.toml").unlink()
    assert version_of(checkout) == ""  # the distribution that is installed here is another one


def test_an_installation_inside_a_repository_records_no_commit_of_it(tmp_path: Path) -> None:
    """The packages copied to where a virtual environment of a user's own repository has them."""
    place = tmp_path / "venv" / "site-packages"
    for name in module.PACKAGES:
        shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors", "golden"))
    (tmp_path / "theirs.py").write_text("pass\n")
    committed(tmp_path)
    code = "from bench.store.provenance import provenance; found = provenance(); print(repr(found['commit']), found['code'])"
    env = {**os.environ, "PYTHONPATH": str(place)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["''", code_digest(ROOT)]


def row(**change: Any) -> dict[str, Any]:
    here = provenance()
    return {"commit": here["commit"], "protocol": {"version": here["version"], "code": here["code"], **change}}


def test_rows_of_other_code_are_counted_whoever_sampled_or_trained_for_them() -> None:
    other = {"commit": "0123456789abcdef-dirty", "version": "0.1.0", "code": "beef"}
    assert other_code([row(), row()]) == ""
    told = other_code([row(), row(samples_made_by=other), row(fit_made_by=other), {**row(code="cafe"), "commit": ""}])
    assert told.startswith("3 rows go back to other code than this")
    assert "2 by 012345678-dirty (code beef)" in told
    assert f"1 by version {provenance()['version']} (code cafe)" in told
    assert made_by(other) == "012345678-dirty (code beef)"
