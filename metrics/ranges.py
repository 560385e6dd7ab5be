"""Are these images floats in [-1, 1]? Metrics have a number for others too, so what a user hands in is looked at first."""

from __future__ import annotations

import numpy as np

from fewstep.data.arrays import Images
from fewstep.errors import UsageError

# dtype -> what to type; of other integers nobody knows the largest.
CONVERSIONS = {"uint8": "images / 127.5 - 1", "uint16": "images / 32767.5 - 1", "bool": "2.0 * images - 1"}
# Another range, the factor f of f x - 1 that leads back from it, and what to type.
RANGES = (
    ("[0, 1]", 2.0, "2 * images - 1"),
    ("[0, 255]", 1 / 127.5, "images / 127.5 - 1"),
)
TAILS = (0.01, 0.99)  # few-step samples overshoot [-1, 1], in few pixels
NEAR = 0.5  # how far such a quantile of bad samples may lie from that of the data: half of what (x + 1) / 2 moves the darkest pixels by
LOOKED_AT = 1000  # images


def check_floats(images: np.ndarray) -> None:
    """**Raises**: UsageError for anything but a float32 or float64 array, which says what to type."""
    wanted = "images are a NumPy array of float32 or float64 in [-1, 1]"
    if not isinstance(images, np.ndarray):
        raise UsageError(f"{wanted}, got {type(images).__name__}; type images.cpu().numpy() of a tensor, np.asarray(images) of a list")
    name = images.dtype.name
    if name in ("float32", "float64"):
        return
    other = "images / 127.5 - 1 if they are levels from 0 to 255" if images.dtype.kind in "iu" else 'images.astype("float32")'
    raise UsageError(f"{wanted}, got {name}; type {CONVERSIONS.get(name, other)}")


def check_quantised(images: np.ndarray) -> None:
    """**Raises**: UsageError for images that `quantise` has not been through: of another type, or outside [-1, 1]."""
    check_floats(images)
    if images.size and float(np.abs(images).max()) > 1 + 1e-6:
        raise UsageError(
            f"extractors take images in [-1, 1], as metrics.quantise leaves them, got {images.min():g} to {images.max():g}; "
            "type quantise(images), of levels from 0 to 255 quantise(images / 127.5 - 1)"
        )


def check_range(images: Images, real: Images, name: str) -> None:
    """Refuse images that fit the range of the real ones (1% and 99% quantiles within a half) from another range only.

    Samples may be far from the data, and constant or huge where a sampler has failed: only what (x + 1) / 2 or 127.5 (x + 1) would have
    made of images like the real ones is taken for that. **Raises**: UsageError that says what to type.
    """
    check_floats(images if isinstance(images, np.ndarray) else images[:1])
    if not (len(images) and len(real)):
        return
    ours, theirs = (np.quantile(x[:: max(1, len(x) // LOOKED_AT)], TAILS) for x in (images, real))

    def near(quantiles: np.ndarray) -> bool:
        return bool((np.abs(quantiles - theirs) < NEAR).all())

    for bounds, scale, how in RANGES:
        if near(scale * ours - 1) and not near(ours):
            lie = f"98% of the pixels lie in {ours[0]:.3g} to {ours[1]:.3g}, those of {name} in {theirs[0]:.3g} to {theirs[1]:.3g}"
            raise UsageError(f"{lie}: images in {bounds}? type {how}; if they are meant to be so, say range_known=True")
