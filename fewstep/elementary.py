"""Elementary functions of noise levels known when a plan is made (floats, numpy) or only when it runs (predicted tensors).

Solvers whose coefficients need them can then be planned at fixed levels and at predicted ones by the same formula.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def log(x: Any) -> Any:
    """Natural logarithm; -inf at 0."""
    if isinstance(x, Tensor):
        return torch.log(x)
    with np.errstate(divide="ignore"):
        return np.log(x)


def expm1(x: Any) -> Any:
    """e^x - 1 without cancellation at small x."""
    return torch.expm1(x) if isinstance(x, Tensor) else np.expm1(x)


def sqrt(x: Any) -> Any:
    """Square root."""
    return torch.sqrt(x) if isinstance(x, Tensor) else np.sqrt(x)
