"""Statistics of real images that others have published: mean and covariance of features in an .npz file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fewstep.errors import UsageError
from fewstep.files import file_digest
from metrics.features.extractors import Extractor, file_of
from metrics.moments import exact_moments
from metrics.reference import FeatureSpace

EXAMPLE = "keys mu [d] and sigma [d, d], as EDM and clean-fid publish them"
# clean-fid's files are <data set>_<mode>_<split>_<side>.npz, with _<network> after the mode of one that is not Inception; EDM's are
# <data set>-<side>x<side>.npz.
SPLIT = r"train[a-z0-9]*|test[a-z0-9]*|val|custom"
CLEAN_FID = re.compile(rf"_(clean|legacy_tensorflow|legacy_pytorch)(_[a-z0-9_]+)?_(?:{SPLIT})_(\d+|na)$")
EDM = re.compile(r"-(\d+)x(\d+)(-|$)")
MODES = {"inception": "legacy_tensorflow", "inception_clean": "clean", "inception_legacy_pytorch": "legacy_pytorch"}

PLAIN = "legacy_tensorflow"  # which statistics without a mode are of
ROUNDING = 1e-6  # of the largest variance: what float32 leaves of the vanishing ones of few images


@dataclass(frozen=True, eq=False)
class Statistics:
    """Mean [d] and covariance [d, d] of a file, its digest, and what its name says: clean-fid's mode, its split, the side of its images."""

    path: Path
    digest: str
    mean: np.ndarray
    cov: np.ndarray
    mode: str = ""
    side: int = 0

    @property
    def identity(self) -> str:
        """`name-sha256[:16]`, as rows state it."""
        return f"{self.path.stem}-{self.digest[:16]}"


def _numbers(array: np.ndarray) -> np.ndarray:
    """**Raises**: TypeError for an array of anything but real numbers."""
    if array.dtype.kind not in "fiu":
        raise TypeError(f"an array of {array.dtype}")
    return array.astype(np.float64)


def read_statistics(path: str | Path) -> Statistics:
    """The statistics of a file. **Raises**: UsageError, one line, for one that is none, truncated, or not finite."""
    path = Path(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            names = set(file.files)
            found = {key: _numbers(file[key]) for key in ("mu", "sigma") if key in names}
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}; give an .npz of statistics ({EXAMPLE})") from None
    except Exception as err:  # whatever archive, compression and array header raise where bytes of theirs were changed
        raise UsageError(f"{path} is no .npz of statistics ({type(err).__name__}), or damaged; get it again ({EXAMPLE})") from None
    if "feats" in names and not found:
        raise UsageError(f"{path} holds features for KID, no statistics; give the file without _kid in its name ({EXAMPLE})")
    if len(found) < 2:
        raise UsageError(f"{path} lacks {', '.join({'mu', 'sigma'} - set(found))}; an .npz of statistics has {EXAMPLE}")
    mean, cov = found["mu"], found["sigma"]
    if mean.ndim != 1 or len(mean) == 0 or cov.shape != (len(mean),) * 2:
        raise UsageError(f"{path} has mu {list(mean.shape)} and sigma {list(cov.shape)}; an .npz of statistics has {EXAMPLE}")
    if not (np.isfinite(mean).all() and np.isfinite(cov).all() and np.allclose(cov, cov.T, atol=1e-6 * np.abs(cov).max())):
        raise UsageError(f"{path} has NaN, infinity or a covariance that is not symmetric; get it again")
    spread = np.linalg.eigvalsh((cov + cov.T) / 2)
    if spread[0] < -ROUNDING * np.abs(spread).max():
        raise UsageError(f"{path} has a covariance with negative variances (down to {spread[0]:.3g}), which none has; get it again")
    clean, edm = CLEAN_FID.search(path.stem), EDM.search(path.stem)
    mode = "" if clean is None else f"{clean[1]}{clean[2] or ''}"
    side = int(clean[3]) if clean is not None and clean[3] != "na" else 0 if edm is None else int(edm[1])
    return Statistics(path, file_digest(path), mean, (cov + cov.T) / 2, mode, side)


def another(found: Statistics, extractor: Extractor, dimensions: int) -> str:
    """Why statistics are not of an extractor's features [N, dimensions], as far as size and name of the file tell; empty where they are."""
    what = f"statistics {found.path.name} are"
    if len(found.mean) != dimensions:
        return f"{what} of {len(found.mean)} features, and {extractor.name} has {dimensions}; give those of the same network"
    own = MODES.get(extractor.name, "")
    if found.mode and found.mode != own:
        asked = f"{extractor.name} is {own}" if own else f"{extractor.name} is none of its modes"
        fits = {mode: f"fid_{mode}" for mode in MODES.values()}.get(found.mode, "")
        return f"{what} clean-fid's of mode {found.mode}, and {asked}; {f'measure {fits}' if fits else 'give those of that mode'}"
    if not found.mode and own and own != PLAIN:
        return f"{what} of no mode that the name tells, and {extractor.name} is clean-fid's {own}; give that file, or measure fid"
    return ""


def space_of(found: Statistics, extractor: Extractor, dimensions: int, side: int) -> FeatureSpace:
    """Published statistics as what features of an extractor are measured against. The number of their images is not known.

    `dimensions` are those of the extractor's features, `side` is that of the images that are measured.
    **Raises**: UsageError for statistics of another extractor, preparation (`another`) or resolution.
    """
    if wrong := another(found, extractor, dimensions):
        raise UsageError(wrong)
    if found.side and found.side != side:
        what = f"statistics {found.path.name} are of images of {found.side}x{found.side}"
        raise UsageError(f"{what}, and these are {side}x{side}; give those of the same resolution")
    moments = exact_moments(found.mean, found.cov)
    return FeatureSpace(
        extractor.name, extractor.version, extractor.digest, moments, statistics=found.identity, counted=False, file=file_of(extractor)
    )
