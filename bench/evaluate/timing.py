"""Latency and memory of sampling, on this machine."""

from __future__ import annotations

import functools
import platform
import time
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.store.measures import BATCHES, MEMORY, QUANTILES, latency, timings_of
from fewstep.denoiser import Denoiser
from fewstep.halving import Halving
from fewstep.noise import LATENT, PhiloxNoise
from fewstep.progress import say
from fewstep.sampling.plan import Plan
from fewstep.sampling.runner import run
from fewstep.tasks.task import Task

VERSION = 2
BUDGET_SECONDS = 0.3
CALL_SECONDS, FEW = 0.5, 4  # of one call where a pass is estimated, and images that say how many fit into it
MIN_REPEATS, MAX_REPEATS = 7, 50
ATTEMPTS, QUIET = 3, 0.1
T = TypeVar("T")


class Timed(NamedTuple):
    """A figure of a machine: its value, of how many repeats, and the load of other processes meanwhile."""

    value: float
    repeats: int
    load: float


def machine(device: str) -> dict[str, Any]:
    """What a timing depends on beside the code: part of the address of every timing."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else _processor()
    return {"device": name, "threads": torch.get_num_threads(), "torch": torch.__version__, "system": platform.system()}


@functools.cache
def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as f:
            names = {line.partition(":")[2].strip() for line in f if line.startswith("model name")}
        return ", ".join(sorted(names)) or platform.processor()
    except OSError:
        return platform.processor() or platform.machine()


def _synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def repeat(call: Callable[[], object], device: str) -> np.ndarray:
    """Seconds of each of several calls after two warm-up calls: at least 7, at most 50, about 0.3 s in all."""
    call()
    _synchronise(device)
    started = time.perf_counter()
    call()
    _synchronise(device)
    once = time.perf_counter() - started
    times = []
    for _ in range(int(np.clip(BUDGET_SECONDS / max(once, 1e-6), MIN_REPEATS, MAX_REPEATS))):
        started = time.perf_counter()
        call()
        _synchronise(device)
        times.append(time.perf_counter() - started)
    return np.array(times)


@torch.inference_mode()
def seconds_per_pass(denoiser: Denoiser, device: str, batch: int = 250) -> float:
    """Seconds that one sample takes in one evaluation of a full batch, or of one so small that a call takes half a second or has room."""

    def call(count: int) -> Callable[[], object]:
        x = torch.zeros(count, *denoiser.shape, device=device)
        return lambda: denoiser(x, 1.0)

    def each(count: int) -> float:
        return float(repeat(call(count), device).mean()) / count

    few, first = min(batch, FEW), call(min(batch, FEW))
    first()
    _synchronise(device)
    started = time.perf_counter()
    first()
    _synchronise(device)
    fits = int(few * CALL_SECONDS / max(time.perf_counter() - started, 1e-9))
    count = min(batch, max(few, fits))
    return Halving(count, device, "a pass", say).of(count, each)


class _LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that operations made and that are still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key not in self.known:
                    self.known.add(key)
                    self.live += size
                    weakref.finalize(storage, self._freed, key, size)
        self.peak = max(self.peak, self.live)
        return out

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def peak_bytes(call: Callable[[], object], device: str) -> int:
    """Peak bytes of tensors that `call` allocates: the allocator's count on CUDA, live tensors of all operations on CPU."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    with _LiveBytes() as counter:
        call()
    return counter.peak


def foreign_load(call: Callable[[], T]) -> tuple[T, float]:
    """The result of `call` and the share of the machine's cores that other processes used meanwhile."""

    def busy() -> tuple[float, float]:
        system, own = psutil.cpu_times(), psutil.Process().cpu_times()
        return system.user + system.system + system.nice, own.user + own.system

    (all_before, own_before), started = busy(), time.perf_counter()
    result = call()
    elapsed = time.perf_counter() - started
    all_after, own_after = busy()
    others = (all_after - all_before) - (own_after - own_before)
    return result, max(0.0, others / (elapsed * (psutil.cpu_count() or 1)))


def undisturbed(call: Callable[[], T]) -> tuple[T, float]:
    """`call` again, up to `ATTEMPTS` times, while others use more than `QUIET` of the machine; the quietest attempt and its load."""
    attempts: list[tuple[T, float]] = []
    while len(attempts) < ATTEMPTS and (not attempts or attempts[-1][1] > QUIET):
        attempts.append(foreign_load(call))
    return min(attempts, key=lambda a: a[1])


@torch.inference_mode()
def measure(plan: Plan, denoiser: Denoiser, sigma_max: float, device: str, task: Task) -> dict[str, Timed | str]:
    """Latency per image and peak memory of the whole sampling loop, its noise included; a reason for those of a batch that has no room.

    **Units**: `latency_ms_p50_b1` etc. in milliseconds per image (the batch's time over its size); `peak_memory_mb` in MiB at the
    largest batch, activations only.
    """
    results: dict[str, Timed | str] = {}
    for batch in BATCHES:
        try:
            results |= _of_batch(batch, plan, denoiser, sigma_max, device, task)
        except torch.OutOfMemoryError:
            reason = f"{device} has no room for {batch} images at once, which it is measured with; take a device with more memory"
            results |= dict.fromkeys(timings_of(batch), reason)
    return results


def _of_batch(batch: int, plan: Plan, denoiser: Denoiser, sigma_max: float, device: str, task: Task) -> dict[str, Timed]:
    """The figures of one batch."""
    seeds = torch.arange(batch, device=device)
    noise, cond = PhiloxNoise(seeds), task.conditions(seeds, denoiser)

    def call() -> object:
        return run(plan, denoiser, noise.normal(LATENT, denoiser.shape) * sigma_max, noise, cond)

    times, load = undisturbed(lambda: repeat(call, device) / batch * 1e3)
    found = {latency(q, batch): Timed(float(np.percentile(times, q)), len(times), load) for q in QUANTILES}
    return found | ({MEMORY: Timed(peak_bytes(call, device) / 2**20, 1, load)} if batch == BATCHES[-1] else {})
