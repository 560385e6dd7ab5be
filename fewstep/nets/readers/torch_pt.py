"""Weights that the field downloads once: found in torch's hub folder, checked, and read without running what they embed."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
        """The file in torch's hub folder (`$TORCH_HOME/hub/checkpoints`). **Raises**: Unavailable, saying how to get it."""
        import torch

        folder = Path(torch.hub.get_dir()) / "checkpoints"
        if not (folder / self.name).is_file():
            home = os.path.expanduser("~")  # which is no folder where nobody has one
            shown = f"~/{folder.relative_to(home)}" if folder.is_relative_to(home) and os.path.isdir(home) else folder
            raise Unavailable(f"{self.name} is not in {shown}; get it from {self.url}")
        return folder / self.name

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
