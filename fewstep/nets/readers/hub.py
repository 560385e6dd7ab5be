"""Names of weights: which are among the files that can be fetched, which path is a pipeline of diffusers, and where a repository lies."""

from __future__ import annotations

import re
from pathlib import Path

from fewstep.assets import asking, pieces

CONFIG = "config.json"
FOLDER = "folder"  # in place of a suffix, of the reader of such folders
FETCHED = (".", "weights", "fid-refs")  # the folders in front of names that are looked for among what was fetched
PARTS = ("", "unet")  # of a folder, where its network may be
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_repository(name: str) -> bool:
    """Whether a name can be that of a hub's repository (`owner/name`), and is that of no file or folder here: a file's has a suffix."""
    return bool(REPOSITORY.fullmatch(name)) and not re.fullmatch(r"\.[a-z]+", Path(name).suffix) and not Path(name).exists()


def called(folder: Path) -> str:
    """The name of a pipeline's folder; of a copy in the hub's cache (models--OWNER--NAME/snapshots/REVISION) the repository's."""
    return folder.parents[1].name.rpartition("--")[2] if folder.parent.name == "snapshots" else folder.name


def network_folder(path: Path) -> Path | None:
    """The folder with the network's configuration, of a pipeline's folder (flat, or with `unet` in it); None where there is none."""
    return next((path / part for part in PARTS if (path / part / CONFIG).is_file()), None)


def pipeline_of(path: Path) -> Path | None:
    """The folder of a pipeline, given itself or the weights in it; None for anything else, and where a card is beside the weights."""
    if path.is_dir():
        return path if network_folder(path) else None
    beside = path.is_file() and path.suffix == ".safetensors" and not path.with_suffix(".json").is_file()
    return path.parent if beside and (path.parent / CONFIG).is_file() else None


def snapshot(name: str) -> Path | None:
    """The newest copy of a hub's repository in that library's cache; None where there is none, or no such library."""
    if not is_repository(name):
        return None
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        return None
    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):  # what it raises where nothing is there, and for names that are none
        return None


def listed(name: str | Path) -> tuple[Path, str]:
    """Among the files that can be fetched: where the one of a name would lie, and what to type to get it; nothing of other names.

    Meant are a file's bare name, that in `weights/` or `fid-refs/`, and a repository of the hub by its own name: a path that is mistyped
    leads nowhere.
    """
    path = Path(name)
    if str(path.parent) in FETCHED:
        for file in (path.name, f"{path.name}/{CONFIG}"):
            if command := asking(file):
                return Path(file), command
    own = f"{path.name}/{CONFIG}"
    if any(f"/{name}/" in url for piece in pieces() for file in piece.files if file.name == own for url in file.urls):
        return Path(own), asking(own)
    return Path(), ""


def asked_for(name: str | Path) -> str:
    """What to type to get the weights of a name (the whole pipeline, of which its configuration is one file); nothing for other names."""
    file, command = listed(name)
    return command.rpartition(".")[0] if file.name == CONFIG else command
