"""Numbers from outside, without torch: one line for each that cannot be."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import UsageError


def check_level_values(values: float | NDArray[Any], what: str = "sigma", positive: bool = False) -> None:
    """**Raises**: UsageError for levels on the host that are not finite, or below 0 (`positive`: or 0)."""
    low, high = (values.min(initial=1.0), values.max(initial=1.0)) if isinstance(values, np.ndarray) else (values, values)
    if (low > 0 or (low == 0 and not positive)) and high < math.inf:  # neither is so for what is not a number
        return
    kept = np.ravel(np.asarray(values, dtype=np.float64))
    wrong = next(v for v in kept.tolist() if not math.isfinite(v) or v < 0 or (positive and v == 0))
    limit = "above 0, where the model has no D" if positive else ">= 0"
    raise UsageError(f"{what} is {wrong:g}; noise levels are finite and {limit}: check where it comes from")


def check_count(what: str, value: int, least: int, hint: str) -> None:
    """**Raises**: UsageError for a number of things that is no integer, or below `least`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool | np.bool_) or value < least:
        raise UsageError(f"{what} is an integer >= {least}, got {value!r}; {hint}")


def check_number(what: str, value: float, above: float, hint: str) -> None:
    """**Raises**: UsageError for what is no finite number above `above`."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value) or value <= above:
        limit = "" if above == -math.inf else f" above {above:g}"
        raise UsageError(f"{what} is a finite number{limit}, got {value!r}; {hint}")


def check_range(sigma_range: tuple[float, float], zero: bool = False) -> tuple[float, float]:
    """(sigma_min, sigma_max) as floats. **Raises**: UsageError unless 0 < sigma_min < sigma_max (`zero`: sigma_min may be 0)."""
    try:
        lo, hi = (float(level) for level in sigma_range)
    except (TypeError, ValueError):
        raise UsageError(f"sigma_range is two levels (sigma_min, sigma_max), got {sigma_range!r}; e.g. (0.002, 80.0)") from None
    if not (0 < lo < hi or (zero and 0 == lo < hi)) or not math.isfinite(hi * hi):
        raise UsageError(f"sigma_range (sigma_min, sigma_max) has 0 < sigma_min < sigma_max, got ({lo:g}, {hi:g}); e.g. (0.002, 80.0)")
    return lo, hi


def check_model(shape: Sequence[int], classes: int, sigma_range: tuple[float, float]) -> None:
    """What a denoiser says of itself. **Raises**: UsageError for a shape, a number of classes or a range that none has."""
    if not isinstance(shape, Sequence) or not shape or not all(isinstance(n, numbers.Integral) and n > 0 for n in shape):
        raise UsageError(f"shape is the model's without the batch, integers above 0, got {shape!r}; e.g. (3, 32, 32)")
    check_count("the number of classes", classes, 0, "use 0 for a model without any")
    check_range(sigma_range, zero=True)
