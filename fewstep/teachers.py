"""Teachers by name or by path: weights with a card, and closed forms."""

from __future__ import annotations

from pathlib import Path

from fewstep.denoiser import Denoiser, Preconditioned
from fewstep.errors import UsageError, near_misses
from fewstep.nets.loading import formats, load_denoiser
from fewstep.nets.readers.card import shipped
from fewstep.nets.readers.hub import pipeline_of
from fewstep.plugins import entries, get, known


def load_teacher(name: str | Path, device: str = "cpu") -> Denoiser:
    """A denoiser D(x, sigma): shipped weights (`digits_edm`), a file that a reader knows (safetensors with a card beside it, EDM's `.pkl`,
    openai's `.pt`), a diffusers pipeline (its folder, or its name on the hub where a copy is here), a registered closed form or teacher.

    **Raises**: UsageError for a name that is none of them, and for weights that are missing, truncated, changed or no denoiser.
    """
    path = Path(name)
    if path.suffix in formats() or str(name) in shipped() or "/" in str(name) or pipeline_of(path):
        return load_denoiser(name, device)[0]
    for kind in ("closed_form", "teacher"):
        if known(kind, str(name)):
            found = get(kind, str(name)).make()
            if isinstance(found, Preconditioned):
                found.net.to(device)
            return found
    names = [*shipped(), *entries("closed_form"), *entries("teacher")]
    raise UsageError(f"no teacher '{name}'{near_misses(name, names)}; weights are a path: {name}.safetensors")
