"""Ranges of the fields that several commands share."""

from __future__ import annotations

from typing import Any

from fewstep.errors import UsageError


def check_device(name: str) -> None:
    """**Raises**: UsageError for a device that torch does not know or that is not on this machine."""
    import torch

    try:
        torch.ones(1, device=name).item()  # which a device that computes nothing, like meta, cannot give
    except (RuntimeError, AssertionError, ImportError, ValueError) as err:
        raise UsageError(f"device '{name}' cannot be used ({str(err).splitlines()[0]}); e.g. device=cpu") from None


MOST = 2**31 - 1
RANGES = {
    "threads": (0, 4096),
    "workers": (0, 1024),
    "batch": (1, MOST),
    "n": (1, MOST),
    "accumulate": (1, MOST),
    "batches": (1, MOST),
    "most": (0, MOST),
}
RANGES |= {"nfe": (-MOST, 10**5), "steps": (-MOST, 10**5)}  # which are too small says the solver


def check_settings(config: dict[str, Any]) -> None:
    """The fields that several entry points share. **Raises**: UsageError for a value out of its range."""
    for key, (least, most) in RANGES.items():
        value = config.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise UsageError(f"{key} must be at least {least}, got {value}; e.g. {key}={max(least, 1)}")
        if value is not None and value > most:
            raise UsageError(f"{key} must be at most {most}, got {value}; e.g. {key}={max(least, 1)}")
    for key in ("seed", "fit_seed"):
        if not 0 <= config.get(key, 0) < 2**62:
            raise UsageError(f"{key} must lie in 0..2^62, got {config[key]}; e.g. {key}=0")
    if not isinstance(config.get("afs"), bool | None):
        raise UsageError(f"afs must be true or false, got '{config['afs']}'; e.g. afs=true")
    if config.get("device") is not None:
        check_device(config["device"])
