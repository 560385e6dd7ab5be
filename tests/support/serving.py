"""A publisher's server on this machine, and clients of packages that are scripts: what a fetch meets, well-behaved or not."""

from __future__ import annotations

import hashlib
import io
import json
import os
import threading
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Publisher:
    """Files by path, how they are sent, and what was asked for: (path, Range)."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    ranges: bool = True  # whether parts can be had
    cut: list[int] = field(default_factory=list)  # after how many bytes each answer breaks off; nothing: never
    kind: str = "application/octet-stream"
    tagged: bool = True  # whether answers say which state of a file they are of
    sized: bool = True  # whether they say how long they are
    pause: float = 0.0  # seconds after each piece of 64 KiB
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path, wanted = handler.path, handler.headers.get("Range")
        self.asked.append((path, wanted))
        if path not in self.files:
            handler.send_error(404)
            return
        data, first = self.files[path], 0
        tag = f'"{hashlib.sha256(data).hexdigest()[:16]}"'
        same = handler.headers.get("If-Range") in (None, tag)
        if wanted and self.ranges and same:
            first = int(wanted.removeprefix("bytes=").rstrip("-"))
            if first >= len(data):
                handler.send_error(416)
                return
        handler.send_response(206 if first else 200)
        handler.send_header("Content-Type", self.kind)
        if self.sized:
            handler.send_header("Content-Length", str(len(data) - first))
        if first:
            handler.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        if self.tagged:
            handler.send_header("ETag", tag)
        handler.end_headers()
        rest = data[first:]
        rest = rest[: self.cut.pop(0)] if self.cut else rest
        for at in range(0, len(rest), 65536):
            handler.wfile.write(rest[at : at + 65536])
            time.sleep(self.pause)


@contextmanager
def publishing(**how: Any) -> Iterator[Publisher]:
    """A server for as long as the block goes on."""
    publisher = Publisher(**how)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(OSError):  # whoever asked was killed
                publisher.answer(self)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    publisher.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield publisher
    finally:
        server.shutdown()
        server.server_close()


def listed(folder: Path, **pieces: Any) -> Path:
    """A list of assets with one asset `own` of these pieces: for each a list of files, or a mapping that is written as it stands."""
    made = {name: own if isinstance(own, dict) else {"files": own} for name, own in pieces.items()}
    path = folder / "assets.json"
    path.write_text(json.dumps({"own": {"what": "files of a test", "licence": "none", "pieces": made}}))
    return path


def client(folder: Path, name: str, script: str) -> Path:
    """An executable `npm` or `pip` that runs a shell script; $FILES is a folder of the test's own, where NAME.args has the arguments."""
    for needed in ("bin", "files"):
        (folder / needed).mkdir(exist_ok=True)
    path = folder / "bin" / name
    path.write_text(f'#!/bin/sh\nFILES="{folder / "files"}"\necho "$@" >> "$FILES/{name}.args"\n{script}\n')
    os.chmod(path, 0o755)
    return folder / "files"


def wheel(members: dict[str, bytes]) -> bytes:
    """A zip of these members."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return written.getvalue()
