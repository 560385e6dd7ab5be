"""A file from its publisher's address: in one go, or from where an earlier attempt ended."""

from __future__ import annotations

import json
import shutil
import socket
import urllib.error
import urllib.request
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from tqdm import tqdm

from bench.fetching.folder import Refused, take_in
from fewstep.assets import File
from fewstep.errors import UsageError
from fewstep.files import write_atomic
from fewstep.progress import bar_settings

CHUNK = 1 << 20
TIMEOUT = 20.0  # seconds without an answer, or without a byte
ATTEMPTS = 3  # of a transfer that has begun and breaks off


class Failed(Exception):
    """Why a source did not give a file."""


def _state(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _begun(part: Path, url: str, file: File) -> tuple[int, str]:
    """How much of the same file is here from an earlier attempt, and what the server called its state then (ETag or date).

    Without either, a part is only gone on with where a published digest will tell whether both ends belong together.
    """
    told: dict[str, str] = {}
    with suppress(OSError, ValueError):
        told = json.loads(_state(part).read_bytes())
    same = told.get("url") == url and (told.get("state") or file.sha256 or file.md5)
    if not (same and part.is_file()):
        part.unlink(missing_ok=True)
        return 0, ""
    return part.stat().st_size, told.get("state", "")


def _opened(url: str, have: int, state: str) -> HTTPResponse:
    headers = {"User-Agent": "fewstep", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        headers |= {"If-Range": state} if state else {}
    return cast("HTTPResponse", urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT))


def _goes_on(answer: HTTPResponse, have: int, url: str) -> int:
    """Where the answer goes on: `have`, or 0 where the server sends all of it again. **Raises**: Failed for some other part of it."""
    if answer.status == 206 and not (answer.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
        raise Failed(f"{url} sends another part than it was asked for")
    return have if answer.status == 206 else 0


def _transfer(url: str, part: Path, file: File) -> bool:
    """One attempt at the rest of a file: whether the server said where that ends.

    **Raises**: Failed, or an OSError or HTTPException where the connection broke.
    """
    have, state = _begun(part, url, file)
    try:
        answer = _opened(url, have, state)
    except urllib.error.HTTPError as err:
        if err.code == 416 and have:  # there is nothing after what is here
            return True
        raise Failed(f"{url} answers {err.code} {err.reason}") from None
    with answer:
        at = _goes_on(answer, have, url)
        left = int(answer.headers.get("Content-Length") or 0)
        if "text/html" in (answer.headers.get("Content-Type") or ""):
            raise Failed(f"{url} answers with a web page")
        if file.size and left and at + left != file.size:
            raise Failed(f"{url} offers {at + left:,} bytes, expected {file.size:,}")
        if (free := shutil.disk_usage(part.parent).free) < left:
            raise UsageError(f"{file.name} needs {left / 1e6:,.0f} MB more and {part.parent} has {free / 1e6:,.0f}; free some space")
        told = {"url": url, "state": answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""}
        write_atomic(_state(part), json.dumps(told).encode())
        bar = tqdm(desc=file.name, total=at + left or None, initial=at, unit="B", unit_scale=True, **bar_settings())
        with bar, open(part, "r+b" if at else "wb", buffering=0) as into:
            into.seek(at)
            into.truncate()
            while chunk := answer.read1(CHUNK):  # what is there, however slow the rest
                into.write(chunk)
                bar.update(len(chunk))
        if left and part.stat().st_size != at + left:
            raise ConnectionError(f"it ended after {part.stat().st_size:,} of {at + left:,} bytes")
        return bool(left or answer.chunked)


def _why(err: Exception) -> str:
    reason = err.reason if isinstance(err, urllib.error.URLError) else err
    if isinstance(reason, socket.gaierror):
        return "its host is unknown here (offline?)"
    return "no answer" if isinstance(reason, TimeoutError) else str(reason) or type(reason).__name__


def download(url: str, file: File, folder: Path) -> Path:
    """The file, verified and in place. What has come stays beside it as `.NAME.part`, and the next attempt goes on from there.

    **Raises**: Failed, saying why; UsageError where the disk is too small.
    """
    into = folder / file.name
    into.parent.mkdir(parents=True, exist_ok=True)
    part = into.with_name(f".{into.name}.part")
    for attempt in range(ATTEMPTS):
        before = part.stat().st_size if part.is_file() else 0
        try:
            whole = _transfer(url, part, file)
            found = take_in(part, file, folder, url, whole)
            _state(part).unlink(missing_ok=True)
            return found
        except Refused as err:
            part.unlink(missing_ok=True)
            if not before:  # all of it came just now
                raise Failed(f"what {url} gives {err}") from None
        except (OSError, HTTPException) as err:
            grown = part.is_file() and part.stat().st_size > before
            if attempt == ATTEMPTS - 1 or not grown:
                kept = ", and what has come is kept: run the same command to go on" if part.is_file() else ""
                raise Failed(f"{urlsplit(url).hostname}: {_why(err)}{kept}") from None
    raise Failed(f"{url} breaks off again and again; run the same command to go on")
