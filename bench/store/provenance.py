"""Who made a number: commit, a digest of the code, and versions of this distribution, of its plugins and of libraries. Imports no torch."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import tomllib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fewstep.files import file_digest
from fewstep.plugins import GROUPS, modules

NAME = "fewstep"
ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("fewstep", "kernels", "methods", "metrics", "bench")
LIBRARIES = ("torch", "numpy", "scipy", "triton", "numba")
DIRTY = "-dirty"


def _git(root: Path, *words: str) -> str | None:
    """What git prints in a folder; None where it fails or is not there. GIT_* variables (a hook's, say) would name another repository."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True, env=clean)
    except (OSError, subprocess.CalledProcessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()


def commit_of(root: Path, packages: Iterable[str] = PACKAGES) -> str:
    """The commit whose checkout `root` is, with `-dirty` behind it where files of the packages were changed or added since.

    Empty where `root` is not the top of a checkout that tracks the packages: a repository around an installation is somebody else's.
    """
    top, folders = _git(root, "rev-parse", "--show-toplevel"), [f"{name}/" for name in packages]
    if top is None or Path(top).resolve() != root.resolve() or not _git(root, "ls-files", "--", *folders):
        return ""
    head = _git(root, "rev-parse", "--verify", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *folders)
    return "" if head is None else head + (DIRTY if changed != "" else "")


def installed_from(root: Path) -> str:
    """The commit that an installation was made from, where the installer recorded one; empty otherwise."""
    found = _distribution(root)
    told = json.loads(found.read_text("direct_url.json") or "{}") if found is not None else {}
    return str(told.get("vcs_info", {}).get("commit_id", ""))


def _distribution(root: Path) -> importlib.metadata.Distribution | None:
    """The installed distribution whose files are those in `root`, rather than another one of the same name."""
    try:
        found = importlib.metadata.distribution(NAME)
    except importlib.metadata.PackageNotFoundError:
        return None
    return found if Path(str(found.locate_file(PACKAGES[0]))).resolve() == (root / PACKAGES[0]).resolve() else None


def version_of(root: Path) -> str:
    """The version of the code in `root`: a checkout's own, or that of the distribution which installed it; empty where neither says."""
    try:
        return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])
    except (OSError, KeyError, tomllib.TOMLDecodeError):
        found = _distribution(root)
        return "" if found is None else found.version


def _said(value: Any) -> str:
    """What a syntax tree says, written alike by every version of Python: fields that are empty (some versions lack them) left out."""
    if isinstance(value, ast.AST):
        fields = ((name, getattr(value, name, None)) for name in sorted(value._fields))
        return f"{type(value).__name__}({' '.join(f'{name}={_said(own)}' for name, own in fields if own is not None and own != [])})"
    return f"[{' '.join(map(_said, value))}]" if isinstance(value, list) else repr(value)


def code_digest(root: Path, packages: Iterable[str] = PACKAGES) -> str:
    """12 hex digits over what the packages' Python files say, comments, docstrings and layout apart."""
    seen = hashlib.sha256()
    for path in sorted(p for name in packages for p in (root / name).rglob("*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if documented and ast.get_docstring(node, clean=False):
                del node.body[0]
        seen.update(f"{path.relative_to(root).as_posix()} {_said(tree)}\n".encode())
    return seen.hexdigest()[:12]


def _versions() -> dict[str, str]:
    """Those of Python, of the libraries that compute, and of the distributions of plugins."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    own = (point.dist for group in GROUPS for point in importlib.metadata.entry_points(group=group))
    found |= {dist.name: dist.version for dist in own if dist is not None and dist.name != NAME}
    return found | {f"plugins={name}": file_digest(Path(file))[:12] for name, file in modules().items() if file}


@functools.cache
def provenance() -> dict[str, Any]:
    """`commit` (see `commit_of`), `version` of this distribution, `code` (see `code_digest`) and `versions` of what else computes."""
    commit = commit_of(ROOT) or installed_from(ROOT)
    return {"commit": commit, "version": version_of(ROOT), "code": code_digest(ROOT), "versions": _versions()}


def made_by(made: Mapping[str, Any]) -> str:
    """In a few words who made a row or an artefact: its commit, or its version, with the digest of the code."""
    commit = str(made.get("commit") or "")
    name = commit[:9] + (DIRTY if commit.endswith(DIRTY) else "") if commit else f"version {made.get('version') or 'unknown'}"
    return f"{name} (code {made.get('code') or 'unknown'})"


def other_code(rows: Iterable[Mapping[str, Any]]) -> str:
    """One line that counts the rows which other code than this made, or measured on samples or fits that other code made; empty without.

    They count all the same: no later row has another version of one of their components.
    """
    here, found = provenance(), Counter[str]()
    for row in rows:
        protocol = row["protocol"]
        makers = [{"commit": row["commit"], **protocol}, *(protocol[by] for by in ("samples_made_by", "fit_made_by") if by in protocol)]
        others = [made for made in makers if made.get("code") != here["code"]]
        if others:
            found[made_by(others[0])] += 1
    if not found:
        return ""
    told = ", ".join(f"{count} by {name}" for name, count in found.most_common(3)) + (", ..." if len(found) > 3 else "")
    why = "they count, no later row having another version of what they came through"
    again = "to measure one again, raise the version of what changed, or delete its row and artefacts"
    return f"{found.total()} rows go back to other code than this, {made_by(here)}: {told}; {why} ({again})"
