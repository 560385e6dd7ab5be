"""Weights that the field downloads once: found where whoever fetched them put them, checked, and read without running what is inside."""

from __future__ import annotations

import hashlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.assets import asking, located, places, shown
from fewstep.errors import Unavailable, UsageError
from fewstep.files import file_digest

if TYPE_CHECKING:
    from torch import Tensor


def _nowhere() -> str:
    *others, last = map(shown, places())
    return f"{', '.join(others)} or {last}"


@dataclass(frozen=True)
class WeightsFile:
    """A published weights file: its name, its SHA-256 or the start of it that its publisher states, and where to get it.

    `package` is where it lies in an installed distribution (`module/folder/file`), which is looked at last and never imported.
    `scripted`: a TorchScript archive, whose tensors are taken out.
    """

    name: str
    sha256: str
    url: str
    package: str = ""
    scripted: bool = False

    def found(self) -> Path | None:
        """The file where others are looked for (`assets.places`), or in the package that brings it; None where there is none."""
        module, _, rest = self.package.partition("/")
        spec = importlib.util.find_spec(module) if module else None
        inside = [Path(folder) / rest for folder in (spec.submodule_search_locations or ())] if spec else []
        return located(self.name) or next((path for path in inside if path.is_file()), None)

    def path(self) -> Path:
        """The file (see `found`). **Raises**: Unavailable, saying how to get it."""
        if (place := self.found()) is None:
            raise Unavailable(f"{self.name} is not in {_nowhere()}; {_how(self)}")
        return place

    def digest(self) -> str:
        """The file's SHA-256, as it is. **Raises**: Unavailable."""
        return file_digest(self.path())

    def load(self) -> tuple[Mapping[str, Tensor], str]:
        """Its named tensors and the file's SHA-256. Nothing is downloaded, and no code in the file is run.

        The bytes are read once, so what is checked is what is parsed; 32 published bits are no proof against forgery, so the parser
        admits tensors only. **Raises**: Unavailable; UsageError for an unreadable, truncated or altered file.
        """
        path = self.path()
        again = f"delete it and get it again from {self.url}"
        try:
            raw = path.read_bytes()
        except OSError as err:
            raise UsageError(f"cannot read {path}: {err.strerror}; {again}") from err
        digest = hashlib.sha256(raw).hexdigest()
        if not digest.startswith(self.sha256):
            raise UsageError(f"{path} has SHA-256 {digest[:16]}..., expected {self.sha256[:16]}...; {again}")
        return (_scripted(raw, path) if self.scripted else _state(raw, path, again)), digest


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of named tensors, whatever file they came from: names, shapes, and numbers as float32."""
    import torch

    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu", torch.float32).contiguous()
        found.update(f"{name} {list(value.shape)};".encode())
        found.update(value.numpy().astype("<f4", copy=False).data)
    return found.hexdigest()


def _how(file: WeightsFile) -> str:
    command = asking(file.name)
    return f"get it from {file.url}{f', or type {command}' if command else ''}"


def _scripted(raw: bytes, path: Path) -> Mapping[str, Tensor]:
    """The tensors of a TorchScript archive."""
    from fewstep.nets.readers.torchscript import read_torchscript

    return read_torchscript(raw, str(path))


def _state(raw: bytes, path: Path, again: str) -> Mapping[str, Tensor]:
    """The tensors of a state dict as torch saves one."""
    import torch

    try:
        state = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as err:
        raise UsageError(f"{path} is not a plain file of tensors ({type(err).__name__}); {again}") from err
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise UsageError(f"{path} holds something else than named tensors; {again}")
    return state


def first_of(files: Sequence[WeightsFile]) -> WeightsFile:
    """The first that is here of some files with the same weights. **Raises**: Unavailable, naming all of them and a place to get one."""
    for file in files:
        if file.found() is not None:
            return file
    first, *others = files
    also = f" (or one of {', '.join(file.name for file in others)})" if others else ""
    raise Unavailable(f"{first.name}{also} is not in {_nowhere()}; {_how(first)}")
