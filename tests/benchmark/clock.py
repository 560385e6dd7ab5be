"""Time outside of the network: a network says when it is entered and left, and may do untimed work in between."""

from __future__ import annotations

import time
from pathlib import Path

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FALLBACK = 64 << 20


class HostClock:
    """Wall time less the time inside networks."""

    def __init__(self) -> None:
        self.excluded = self.entered = 0.0

    def enter(self) -> None:
        self.entered = time.perf_counter()

    def leave(self) -> None:
        self.excluded += time.perf_counter() - self.entered

    def now(self) -> float:
        return time.perf_counter() - self.excluded


class DeviceClock:
    """Time that the stream spends between leaving a network and entering the next, by events: kernels, and waiting for their launch."""

    def __init__(self) -> None:
        self.total, self.left = 0.0, None
        self.gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def _mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def enter(self) -> None:
        if self.left is not None:
            self.gaps.append((self.left, self._mark()))
        self.left = None

    def leave(self) -> None:
        self.left = self._mark()

    def now(self) -> float:
        self.enter()
        torch.cuda.synchronize()
        self.total += sum(left.elapsed_time(entered) for left, entered in self.gaps) / 1e3
        self.gaps.clear()
        self.leave()
        return self.total


CLOCK = HostClock() if DEVICE == "cpu" else DeviceClock()


def wall() -> float:
    """Seconds, with nothing left to do on the device."""
    if DEVICE != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def last_level_cache() -> int:
    """Bytes of the largest cache that a core or the device sees; 64 MiB where the system does not say."""
    if DEVICE != "cpu":
        return torch.cuda.get_device_properties(DEVICE).L2_cache_size or FALLBACK
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=FALLBACK)


def rotation(size: int) -> int:
    """Tensors of so many bytes that, used in turn, are out of every cache when they come round again: twice the last-level cache."""
    return -(-2 * last_level_cache() // max(size, 1))
