"""Files of others that are fetched, never shipped: what stands in assets.json, and where such files lie on this machine."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fewstep.errors import UsageError, near_misses

LIST = Path(__file__).with_name("assets.json")
FOLDER = "fetched"  # in the cache folder


@dataclass(frozen=True)
class File:
    """One way to have a piece: a file by its name, and where it comes from.

    `urls` are its publisher's addresses; `package` is (client, "name==version" as that client takes it, the file's name inside, or nothing
    where the package's archive itself is it). `sha256`, `md5` and `size` are empty where nobody publishes them.
    """

    name: str
    licence: str
    urls: tuple[str, ...] = ()
    package: tuple[str, str, str] | None = None
    size: int = 0
    sha256: str = ""
    md5: str = ""

    @property
    def source(self) -> str:
        """Where it comes from, for people."""
        return f"{self.package[0]} {self.package[1]}" if self.package else ", ".join(self.urls) or "by hand"


@dataclass(frozen=True)
class Piece:
    """One of several files that will do, the first that can be had: `serves` are names by kind of plugin that need it, `by_hand` says how
    it is made where nobody publishes it."""

    asset: str
    name: str
    files: tuple[File, ...]
    serves: Mapping[str, tuple[str, ...]]
    by_hand: str = ""

    @property
    def label(self) -> str:
        return self.asset if self.name == "files" else f"{self.asset}.{self.name}"


@dataclass(frozen=True)
class Asset:
    """What is asked for by name: its pieces, all of them."""

    name: str
    what: str
    pieces: tuple[Piece, ...]


def _file(told: Mapping[str, Any], licence: str) -> File:
    package = told.get("package")
    return File(
        told["file"],
        told.get("licence", licence),
        tuple(told.get("urls", ())),
        None if package is None else (package[0], package[1], package[2]),
        told.get("size", 0),
        told.get("sha256", ""),
        told.get("md5", ""),
    )


@cache
def _read(path: Path) -> Mapping[str, Asset]:
    found = {}
    for name, told in json.loads(path.read_bytes()).items():
        pieces = []
        for piece, own in told["pieces"].items():
            files = tuple(_file(file, told["licence"]) for file in own["files"])
            serves = {kind: tuple(names) for kind, names in own.get("serves", {}).items()}
            pieces.append(Piece(name, piece, files, serves, own.get("by_hand", "")))
        found[name] = Asset(name, told["what"], tuple(pieces))
    return found


def assets() -> Mapping[str, Asset]:
    """All assets by name."""
    return _read(LIST)


def pieces() -> list[Piece]:
    """The pieces of all assets."""
    return [piece for asset in assets().values() for piece in asset.pieces]


def named(name: str) -> list[Piece]:
    """The pieces of an asset (`lpips`), or one of them (`lpips.vgg16`). **Raises**: UsageError with near misses."""
    known = assets()
    if name in known:
        return list(known[name].pieces)
    if found := [piece for piece in pieces() if piece.label == name]:
        return found
    whole = name.partition(".")[0]
    near = [piece.label for piece in known[whole].pieces] if whole in known else {*known, *(piece.label for piece in pieces())}
    raise UsageError(f"unknown asset '{name}'{near_misses(name, sorted(near))}")


def asking(file: str) -> str:
    """What to type to get the file of that name; nothing for one that is in no list."""
    return next((f"python -m bench.fetch what={piece.label}" for piece in pieces() if any(own.name == file for own in piece.files)), "")


def record_of(name: str) -> Path:
    """The file that says which digest a file had when it came from its publisher, who publishes none."""
    place = fetched_folder() / name
    return place.with_name(f".{place.name}.json")


def recorded(name: str) -> str:
    """The SHA-256 that a file had when it came from its publisher; empty before."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        return str(json.loads(record_of(name).read_bytes())["sha256"])
    return ""


def held(path: str | Path) -> str:
    """The SHA-256 that a file of that name has to have: the published one, or what it had when it came from its publisher; empty where
    nobody says so. Files in a folder of their own (`ddpm-cifar10-32/config.json`) go by both names."""
    parts = Path(path).parts
    same = (file for piece in pieces() for file in piece.files if parts[-len(Path(file.name).parts) :] == Path(file.name).parts)
    return next((file.sha256 or recorded(file.name) for file in same), "")


def data_folder() -> Path:
    """Where one's own data lie: $FEWSTEP_DATA, by default data/."""
    return Path(os.environ.get("FEWSTEP_DATA") or "data")


def user_folder(own: str, base: str, usual: str) -> Path:
    """Where this user's files of one sort lie: the folder that the variable `own` names, else `fewstep` in that of `base`, else in `usual`
    of the home folder; whether it is there or private is another question."""
    named, above = os.environ.get(own), os.environ.get(base)
    return Path(named) if named else Path(above or Path(os.path.expanduser("~"), usual), "fewstep")


def cache_root() -> Path:
    """$FEWSTEP_CACHE, by default $XDG_CACHE_HOME/fewstep or ~/.cache/fewstep."""
    return user_folder("FEWSTEP_CACHE", "XDG_CACHE_HOME", ".cache")


def fetched_folder() -> Path:
    """Where everything lies that was fetched: `fetched` in the cache folder."""
    return cache_root().absolute() / FOLDER


def hub_folder() -> Path:
    """Where torch keeps weights that it downloads, and other tools look for them: $TORCH_HOME/hub/checkpoints. As torch says it, without
    torch, which lists and downloads do without."""
    base = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")
    return Path(os.path.expanduser(base), "hub", "checkpoints")


def places() -> tuple[Path, ...]:
    """Where a file is looked for, in this order: one's own folders come before what was fetched."""
    return data_folder(), hub_folder(), fetched_folder()


def located(name: str) -> Path | None:
    """The file of that name in the first place that has it."""
    return next((folder / name for folder in places() if (folder / name).is_file()), None)


def shown(path: Path) -> str:
    """A path with the home folder as ~."""
    home = Path(os.path.expanduser("~"))
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) and home.is_dir() else str(path)
