"""Feature extractors: images in, float64 features (and class logits where there are any) out, under a digest of the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fewstep.data.arrays import Images, part_size, parts
from fewstep.errors import Unavailable, UsageError
from fewstep.files import file_digest
from fewstep.halving import Halving
from fewstep.plugins import get, register
from fewstep.progress import say
from metrics.ranges import check_quantised
from metrics.streaming import BLOCK

if TYPE_CHECKING:
    from fewstep.nets.features import DigitClassifier


class Extractor(Protocol):
    """Maps images [N, C, H, W] in [-1, 1] (as `quantise` leaves them) to features [N, d] and logits [N, k] or None, both of float64, or of
    float32 where the network is: they are kept as they are.

    **Raises**: UsageError for images of another type or outside [-1, 1].
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def digest(self) -> str: ...

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]: ...


@dataclass(frozen=True, eq=False)
class DigitsExtractor:
    """The recorded digit classifier: penultimate features [N, 64] and logits [N, 10]."""

    module: DigitClassifier
    digest: str
    name: str = "digits"
    version: int = 1
    batch: int = 512

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        check_quantised(images)
        if images.shape[1:] != (1, 8, 8):
            raise Unavailable(f"the digit classifier sees grey images of 8x8, not {list(images.shape[1:])}")
        import torch

        device = next(self.module.parameters()).device
        features, logits = [], []
        with torch.inference_mode():
            for start in range(0, len(images), self.batch):
                x = torch.tensor(images[start : start + self.batch], dtype=torch.float32, device=device)
                f = self.module(x)
                features.append(f.double().cpu().numpy())
                logits.append(self.module.logits(f).double().cpu().numpy())
        return np.concatenate(features), np.concatenate(logits)


def digits_classifier(module: DigitClassifier, digest: str) -> DigitsExtractor:
    """The extractor around a loaded classifier and the SHA-256 of its weights; switches the module to evaluation (no dropout)."""
    return DigitsExtractor(module.eval(), digest)


def at_once(images: Images) -> int:
    """How many images are shown to an extractor at once: a power of two up to 1,024, so that batches are whole and memory is bounded."""
    return 1 << (part_size(images.shape[1:], BLOCK).bit_length() - 1)


@dataclass(frozen=True, eq=False)
class Looking:
    """An extractor that is shown fewer images at once where its device has no room for all of them; from then on so few."""

    extractor: Extractor
    halving: Halving

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return self.halving.of(len(images), lambda size: _together([self.extractor(part) for part in parts(images, size)]))


def looking(extractor: Extractor, say: Callable[[str], None] = say) -> Looking:
    """The extractor for one pass over images."""
    device = extractor.device if isinstance(extractor, Deferred) else "its device"
    return Looking(extractor, Halving(BLOCK, device, f"extractor {extractor.name}", say))


def _together(found: Sequence[tuple[np.ndarray, np.ndarray | None]]) -> tuple[np.ndarray, np.ndarray | None]:
    if len(found) == 1:
        return found[0]
    logits = [classes for _, classes in found if classes is not None]
    return np.concatenate([features for features, _ in found]), np.concatenate(logits) if logits else None


def extracted(extractor: Extractor, images: Images) -> tuple[np.ndarray, np.ndarray | None]:
    """The extractor's features and logits of all images, which are read part by part."""
    return _together([*map(looking(extractor), parts(images, at_once(images)))])


def three_channels(images: np.ndarray) -> np.ndarray:
    """Grey images [N, 1, H, W] repeated to three channels; colour unchanged. **Raises**: UsageError for other channel counts."""
    if images.shape[1] not in (1, 3):
        raise UsageError(f"Inception and LPIPS take grey or RGB images, got {images.shape[1]} channels; decode latents to pixels first")
    return np.repeat(images, 3 // images.shape[1], axis=1)


@dataclass(frozen=True, eq=False)
class Deferred:
    """An extractor whose network is loaded, on `device`, when it first sees images: its name, version and the digest of its weights are
    known before. `file`: name and SHA-256 of where they are read, for weights that are published in several files."""

    name: str
    version: int
    digest: str
    load: Callable[[str], Extractor]
    device: str = "cpu"
    file: str = ""

    @cached_property
    def loaded(self) -> Extractor:
        """**Raises**: UsageError where the weights are others than they were when the digest was taken."""
        found = self.load(self.device)
        if (found.version, found.digest) != (self.version, self.digest):
            raise UsageError(f"the weights of extractor '{self.name}' were changed meanwhile; start again")
        return found

    def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return self.loaded(images)


def file_of(extractor: Extractor) -> str:
    """`Deferred.file`; empty for other extractors."""
    return extractor.file if isinstance(extractor, Deferred) else ""


@register("extractor", "digits", "this project")
def digits() -> Deferred:
    """The recorded digit classifier, loaded when it is needed."""
    from fewstep.nets.loading import load_digit_classifier
    from fewstep.nets.readers.card import resolve

    name, version = DigitsExtractor.name, DigitsExtractor.version
    return Deferred(
        name, version, file_digest(resolve("digits_classifier")), lambda device: digits_classifier(*load_digit_classifier(device))
    )


def load_extractor(name: str, device: str = "cpu") -> Extractor:
    """The extractor of that name with its recorded weights, on a device where it can be told.

    **Raises**: UsageError (unknown, broken file), Unavailable (absent file).
    """
    found = get("extractor", name).make()
    return replace(found, device=device) if isinstance(found, Deferred) else found
