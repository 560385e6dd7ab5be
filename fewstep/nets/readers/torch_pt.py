"""Weights that the field downloads once: found where torch or `bench.fetch` puts them, checked, and read without running what is inside."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fewstep.assets import asking, fetched_folder, shown
from fewstep.errors import Unavailable, UsageError
from fewstep.files import file_digest

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WeightsFile:
    """A published weights file: its name, the start of its SHA-256 (all that its publisher states), and where to get it."""

    name: str
    sha256: str
    url: str

    def path(self) -> Path:
        """The file in torch's hub folder (`$TORCH_HOME/hub/checkpoints`), or where `bench.fetch` puts it. **Raises**: Unavailable, saying
        how to get it."""
        import torch

        folders = Path(torch.hub.get_dir()) / "checkpoints", fetched_folder()
        found = next((folder / self.name for folder in folders if (folder / self.name).is_file()), None)
        if found is None:
            command = asking(self.name)
            how = f"get it from {self.url}{f', or type {command}' if command else ''}"
            raise Unavailable(f"{self.name} is not in {' or '.join(map(shown, folders))}; {how}")
        return found

    def digest(self) -> str:
        """The file's SHA-256, as it is. **Raises**: Unavailable."""
        return file_digest(self.path())

    def load(self) -> tuple[Mapping[str, Tensor], str]:
        """The state dict and the file's SHA-256. Nothing is downloaded, and no code in the file is run.

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
            raise UsageError(f"{path} has SHA-256 {digest[:16]}..., expected {self.sha256}...; {again}")
        import torch

        try:
            state = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        except Exception as err:
            raise UsageError(f"{path} is not a plain file of tensors ({type(err).__name__}); {again}") from err
        if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
            raise UsageError(f"{path} holds something else than named tensors; {again}")
        return state, digest
