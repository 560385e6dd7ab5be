"""What fits will cost, before they are made: measured on a few batches of a throw-away training. `Fit.estimates` says it of each."""

from __future__ import annotations

import tempfile
import time
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

from bench.evaluate.timing import peak_bytes
from bench.store.world import ALONE
from bench.training.engine import Diverged, Engine, Settings
from fewstep.data.source import Source
from fewstep.denoiser import Denoiser
from methods.start import start_of
from methods.training import Trainable

FEW, LONG = 8, 20.0  # images of a batch that tells what one costs that takes longer than so many seconds
GROWS = 0.01  # a peak of memory that is larger by less than this has not grown: the allocator's order alone moves it by a ten-thousandth


class Cost(NamedTuple):
    """What a fit will cost: in one line for people, in seconds, in bytes of memory at once, and in bytes that are kept of it."""

    text: str
    seconds: float
    memory: int = 0
    disk: int = 0


def probe_seconds(method: Trainable, teacher: Denoiser, data: Source, settings: Settings) -> float:
    """Seconds of one training batch, measured on a throw-away engine; one that diverges at once is left to the training to report.

    Of a batch that would take long, by a small one: its seconds times as many images. Of processes that share the steps: of one's share.
    """
    method, settings = _own(method, settings)
    small, size = smaller(method, FEW, settings)
    times = size / _size(small)
    seconds = _seconds(small, teacher, data, settings) * times
    return seconds if small is method or seconds > LONG else _seconds(method, teacher, data, settings)


def _seconds(method: Trainable, teacher: Denoiser, data: Source, settings: Settings) -> float:
    with tempfile.TemporaryDirectory() as folder, suppress(Diverged):
        engine = Engine(method, teacher, data, Path(folder), replace(settings, progress=False, tracker=None, world=ALONE))
        engine.run(stop_after=1)
        started = time.monotonic()
        engine.run(stop_after=3)
        return (time.monotonic() - started) / 2
    return 0.0


def _own(method: Trainable, settings: Settings) -> tuple[Trainable, Settings]:
    """What one of the processes that share a training has to do in each step, as a training of its own."""
    recipe, size, world = settings.recipe, _size(method), settings.world.size
    if world == 1:
        return method, settings
    if recipe.accumulate % world == 0:
        recipe = replace(recipe, accumulate=recipe.accumulate // world)
    least = max(1, size // world // recipe.accumulate) * recipe.accumulate
    return _sized(method, least), replace(settings, recipe=recipe, world=ALONE)


def _sized(method: Trainable, size: int) -> Trainable:
    """The method with batches of so many images, where it has them in a field `batch_size`."""
    has = is_dataclass(method) and any(f.name == "batch_size" for f in fields(method))
    return replace(cast("Any", method), batch_size=size) if has else method


def _size(method: Trainable) -> int:
    return max(phase.batch_size for phase in method.phases())


def smaller(method: Trainable, count: int, settings: Settings) -> tuple[Trainable, int]:
    """The method with batches of so many images in each microbatch, where its own are larger and it has them in a field `batch_size`; and
    its own size."""
    size, few = _size(method), count * settings.recipe.accumulate
    whole = size > few and size % settings.recipe.accumulate == 0  # others are for the engine to refuse
    return _sized(method, few) if whole else method, size


def parameters(teacher: Denoiser) -> int:
    """Parameters of the network that students of a teacher start from."""
    return sum(p.numel() for p in start_of(teacher, "an estimate").net.parameters())


def probe_memory(method: Trainable, teacher: Denoiser, data: Source, settings: Settings) -> int:
    """Bytes of tensors that a training batch has alive at once, beside those that were there: measured on small batches, from
    which the whole batch's follow. The peak of the smallest is often the optimizer's step, which no batch size changes: sizes double until
    the peak has grown twice, and the second growth, which is the batch's own, goes on in a line."""

    def peak(of: Trainable) -> int:
        with tempfile.TemporaryDirectory() as folder, suppress(Diverged):
            engine = Engine(of, teacher, data, Path(folder), replace(settings, progress=False, tracker=None, world=ALONE))
            return peak_bytes(lambda: engine.run(stop_after=1), settings.device)
        return 0

    sizes, peaks, few = list[int](), list[int](), FEW // 4
    while len(peaks) < 3 or not all(more > (1 + GROWS) * less for less, more in pairwise(peaks[-3:])):
        small, size = smaller(method, few, settings)
        sizes.append(_size(small))
        peaks.append(peak(small))
        if small is method:
            return peaks[-1]
        few *= 2
    return int(peaks[-1] + (peaks[-1] - peaks[-2]) * (size - sizes[-1]) / (sizes[-1] - sizes[-2]))


def cost(label: str, method: Trainable, seconds_per_batch: float, memory: int = 0, params: int = 0) -> Cost:
    """What a training will cost; `params` are those of what each phase exports, in single precision."""
    phases = method.phases()
    batches, images = sum(p.batches for p in phases), sum(p.batches * p.batch_size for p in phases)
    seconds = batches * seconds_per_batch
    text = f"{label}: {batches} batches in {len(phases)} phase(s), {images:,} images, about {seconds:.0f} s"
    return Cost(text, seconds, memory, 4 * params * len(phases))
