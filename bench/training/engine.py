"""The generic training engine: optimisers, EMAs, precision, accumulation, progress, checkpoints and exact resume.

It never asks which method it runs. Randomness is a function of (seed, phase, batch), so a checkpoint between batches is all the state.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import AutocastKwargs, KwargsHandler
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm

import kernels
from bench.store.addresses import digest
from bench.training.accounting import PassCounter, PeakMemory, Spent
from fewstep.analytic import Analytic
from fewstep.data.source import Batch, Source
from fewstep.denoiser import Denoiser, Preconditioned, layers
from fewstep.errors import UsageError
from fewstep.files import write_atomic
from fewstep.nets.flat import flatten
from fewstep.noise import Rng
from fewstep.plugins import get
from fewstep.progress import bar_settings
from fewstep.tasks.generation import task_for
from fewstep.tasks.task import Task
from methods.recipe import DEFAULT, Recipe
from methods.start import starts
from methods.training import Optim, Phase, State, Trainable, described

DATA, METHOD, DROPOUT, TASK, CONDITION = range(5)  # the separate random streams of one batch


@dataclass(frozen=True)
class Settings:
    """How to run a training: the task of the model (generation where none is given) and the recipe are part of what it gives. A checkpoint
    is written every `checkpoint_seconds`."""

    seed: int = 0
    device: str = "cpu"
    recipe: Recipe = DEFAULT
    task: Task | None = None
    checkpoint_seconds: float = 10.0
    progress: bool = True


@dataclass
class Result:
    """What a finished training leaves: exported weights by phase, the log, and what it took up to the end of each phase.

    `peak_bytes` is the most memory that the process held (on CUDA devices: that tensors held).
    """

    exports: dict[str, dict[str, Tensor]]
    log: list[dict[str, float]]
    spent: dict[str, Spent]
    peak_bytes: int

    @property
    def whole(self) -> Spent:
        """What all of it took."""
        return list(self.spent.values())[-1]


class Diverged(UsageError):
    """A loss or a gradient that is not finite: the checkpoint of the last good state is kept. `finished` is what the phases before left."""

    finished: Result | None = None


@dataclass
class _Progress:
    """Everything that a checkpoint holds beside tensors."""

    phase: int = 0
    batch: int = 0
    seconds: float = 0.0
    peak_bytes: int = 0
    passes: dict[str, int] = field(default_factory=dict)
    finished: dict[str, dict[str, Any]] = field(default_factory=dict)  # `Spent` by phase
    log: list[dict[str, float]] = field(default_factory=list)


def _own(value: Tensor) -> Tensor:
    """A copy in memory of its own, which a file can hold."""
    return value.detach().cpu().clone(memory_format=torch.contiguous_format)


def _optimiser(spec: Optim, net: nn.Module) -> torch.optim.Optimizer:
    return get("optimiser", spec.name).make(params=net.parameters(), lr=spec.lr, weight_decay=spec.weight_decay)


def _of_teacher(teacher: Denoiser) -> list[str]:
    """What a checkpoint must share with the teacher it goes on with: its layers' settings, a closed form's numbers, and the network that
    students start from."""

    def said(value: Any) -> str:
        return str(getattr(value, "__qualname__", value.tolist() if isinstance(value, Tensor) else value))

    told, networks = list[str](), starts(teacher)
    for layer in layers(teacher):
        kept = (str, int, float, tuple, dict, Tensor, FunctionType)
        told += [type(layer).__name__, *(f"{k} {said(v)}" for k, v in vars(layer).items() if isinstance(v, kept))]
        if isinstance(layer, Analytic):
            told.append(str(layer.identity()))
        if isinstance(layer, Preconditioned):
            networks.append(layer)
    for own in networks:
        told += [repr(own.precond), hashlib.sha256(save({k: _own(v) for k, v in own.net.state_dict().items()})).hexdigest()]
    return told


def _pack_optimiser(name: str, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    states = optimiser.state_dict()["state"]
    return {f"optim/{name}/{i}/{k}": torch.as_tensor(v) for i, s in states.items() for k, v in s.items()}


def _unpack_optimiser(name: str, optimiser: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    packed = optimiser.state_dict()
    for key, value in tensors.items():
        kind, owner, *rest = key.split("/")
        if kind == "optim" and owner == name:
            packed["state"].setdefault(int(rest[0]), {})[rest[1]] = value
    optimiser.load_state_dict(packed)


@contextmanager
def _global_generators(rng: Rng):
    """Dropout reads the global generators: seed them from the batch's stream, and give them back untouched."""
    with torch.random.fork_rng(enabled=True):
        rng.seed_global()
        yield


class Engine:
    """One training of one method. `run` continues from the checkpoint in `folder` when there is one."""

    def __init__(self, method: Trainable, teacher: Denoiser, data: Source, folder: Path, settings: Settings) -> None:
        self.method, self.data, self.settings = method, data, settings
        self.counter, self.given = PassCounter(), teacher
        self.teacher = self.counter.watched(teacher)
        self.file = folder / "checkpoint.safetensors"
        self.recipe, self.task = settings.recipe, settings.task or task_for(teacher)
        for phase in method.phases():
            if self.recipe.accumulate < 1 or phase.batch_size % self.recipe.accumulate:
                raise UsageError(f"accumulate={self.recipe.accumulate} does not divide the batch size {phase.batch_size}; use a divisor")
        # Copies of weights that autocast keeps go stale with the first of a batch's steps, and carry no gradient when made without one.
        handlers: list[KwargsHandler] = [AutocastKwargs(cache_enabled=False)]
        AcceleratorState._reset_state()  # which remembers the precision of this process's first training
        self.accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision=self.recipe.precision, kwargs_handlers=handlers)
        with _global_generators(self._rng(0, 0, 0, METHOD)):
            self.nets = {k: v.to(self.accelerator.device) for k, v in method.build(teacher).items()}
        self.phases = list(method.phases())
        recipe = (type(method).__qualname__, described(method), repr(self.phases), settings.seed, self.recipe, self.task)
        self.identity = digest([*map(str, recipe), data.digest(), *_of_teacher(teacher)])
        self.progress = _Progress()
        self.exports: dict[str, dict[str, Tensor]] = {}
        self.emas: dict[str, nn.Module] = {}
        self.flats: dict[str, list[Tensor]] = {}  # the memory of all parameters of each net and EMA
        self.optimisers: dict[str, Any] = {}

    def _rng(self, phase: int, batch: int, micro: int, stream: int) -> Rng:
        return Rng((self.settings.seed, phase, batch, micro, stream), self.accelerator.device)

    def _enter(self, phase: Phase) -> None:
        """Start a phase: copy nets as it asks, then make its EMAs and optimisers new."""
        sources = {**self.nets, **self.emas}
        for target, source in phase.copies.items():
            self.nets[target].load_state_dict(sources[source].state_dict())
        self._prepare(phase)

    def _prepare(self, phase: Phase) -> None:
        self.counter.release()  # an EMA is a copy without the hooks of its net
        for name, net in self.nets.items():
            trained = name in phase.optims
            net.requires_grad_(trained).train(trained)
        self.flats = {name: flatten(net) for name, net in self.nets.items()}
        self.emas = {name: copy.deepcopy(self.nets[e.net]).requires_grad_(False).eval() for name, e in phase.emas.items()}
        self.flats |= {name: flatten(net) for name, net in self.emas.items()}
        built = {name: _optimiser(spec, self.nets[name]) for name, spec in phase.optims.items()}
        self.optimisers = {name: self.accelerator.prepare(optimiser) for name, optimiser in built.items()}
        self.counter.watch({**self.nets, **self.emas})

    def _drawn(self, phase: Phase, size: int, batch: int, micro: int) -> Batch:
        """A microbatch as the task makes examples of data, with what is dropped of their conditions."""

        def rng(stream: int) -> Rng:
            return self._rng(self.progress.phase, batch, micro, stream)

        drawn = self.task.example(self.data.draw(size, rng(DATA)), rng(TASK)).to(self.accelerator.device)
        if not (phase.drops and self.recipe.condition_dropout):
            return drawn
        chosen = rng(CONDITION).uniform((size,)) < self.recipe.condition_dropout
        return replace(drawn, cond=drawn.cond.where(chosen, self.task.null(drawn.cond, self.given)), whole=drawn.cond)

    def _step(self, phase: Phase, batch: int) -> dict[str, float]:
        """One batch: the microbatches' loss iterators advance in lockstep, and each loss steps its own net."""
        state = State(self.teacher, self.nets, self.emas, phase, batch)
        index, parts = self.progress.phase, self.recipe.accumulate
        size = phase.batch_size // parts
        logs: dict[str, float] = {}
        with _global_generators(self._rng(index, batch, 0, DROPOUT)), self.accelerator.autocast():
            iterators = []
            for micro in range(parts):
                iterators.append(self.method.losses(state, self._drawn(phase, size, batch, micro), self._rng(index, batch, micro, METHOD)))
            for losses in zip(*iterators, strict=True):
                name = losses[0].net
                spec, optimiser, net = phase.optims[name], self.optimisers[name], self.nets[name]
                for group in optimiser.param_groups:
                    group["lr"] = spec.lr_at(batch, phase.batches)
                optimiser.zero_grad()
                for loss in losses:
                    self.accelerator.backward(loss.value / parts, inputs=list(net.parameters()))
                norm = self.accelerator.clip_grad_norm_(net.parameters(), spec.clip)
                assert norm is not None
                value = sum(float(loss.value.detach()) for loss in losses) / parts
                if not (math.isfinite(value) and math.isfinite(float(norm))):
                    what = f"gradient norm {float(norm)}" if math.isfinite(value) else f"loss {value}"
                    raise Diverged(f"training diverged: {what} at batch {batch} of phase {phase.name}; lower lr")
                optimiser.step()
                logs |= {f"loss/{name}": value, f"grad_norm/{name}": float(norm), **losses[0].logs}
        for name, ema in phase.emas.items():
            self._update_ema(name, ema.net, ema.decay_at(batch))
        return logs

    @torch.no_grad()
    def _update_ema(self, name: str, net: str, decay: float) -> None:
        """ema <- decay ema + (1 - decay) net: one update of all parameters at once."""
        decay = float(np.float32(decay))  # rounded once, so that both weights add up to 1
        for mine, theirs in zip(self.flats[name], self.flats[net], strict=True):
            weights = kernels.table(np.array([[decay, 1 - decay]]), mine.device, kernels.accumulator(mine.dtype))
            kernels.update([mine[None]], [mine[None], theirs[None]], weights)
        for mine, theirs in zip(self.emas[name].buffers(), self.nets[net].buffers()):
            mine.copy_(theirs)

    def save(self) -> None:
        """Write the checkpoint: one file, atomically."""
        tensors: dict[str, Tensor] = {}
        for kind, group in (("net", self.nets), ("ema", self.emas)):
            for name, net in group.items():
                tensors |= {f"{kind}/{name}/{k}": _own(v) for k, v in net.state_dict().items()}
        for name, optimiser in self.optimisers.items():
            tensors |= {k: v.detach().cpu().contiguous() for k, v in _pack_optimiser(name, optimiser.optimizer).items()}
        for phase, weights in self.exports.items():
            tensors |= {f"export/{phase}/{k}": v for k, v in weights.items()}
        write_atomic(self.file, save(tensors, metadata={"progress": json.dumps(vars(self.progress)), "identity": self.identity}))

    def _restore(self) -> bool:
        """Continue from the checkpoint, if there is one. **Raises**: UsageError for the checkpoint of another training, or a broken one."""
        if not self.file.exists():
            return False
        try:
            self._load()
        except (SafetensorError, KeyError, TypeError, ValueError) as err:
            raise UsageError(f"checkpoint {self.file} is broken ({err}); delete it to train from the start") from err
        return True

    def _load(self) -> None:
        with safe_open(self.file, framework="pt") as f:
            told = f.metadata() or {}
            if told.get("identity") != self.identity:
                of = "another training (its method, options, seed, data or teacher differ)"
                raise UsageError(f"{self.file} is the checkpoint of {of}; delete it to train from the start")
            self.progress = _Progress(**json.loads(told["progress"]))
            tensors = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (not a dict)
        if self.progress.phase < len(self.phases):
            self._prepare(self.phases[self.progress.phase])

        def under(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        for kind, group in (("net", self.nets), ("ema", self.emas)):
            for name, net in group.items():
                try:
                    net.load_state_dict(under(f"{kind}/{name}/"))
                except RuntimeError as err:
                    raise ValueError(f"its {name} does not fit: {err}".splitlines()[0]) from err
        for name, optimiser in self.optimisers.items():
            _unpack_optimiser(name, optimiser.optimizer, tensors)
        for phase in self.phases:
            weights = under(f"export/{phase.name}/")
            if weights:
                self.exports[phase.name] = weights

    def run(self, stop_after: int | None = None) -> Result:
        """Train to the end (or up to `stop_after` batches, leaving a checkpoint) and return the result.

        **Raises**: Diverged with what its phases left until then, and a checkpoint of the last good state.
        """
        if not self._restore():
            self._enter(self.phases[0])
        done = sum(p.batches for p in self.phases[: self.progress.phase]) + self.progress.batch
        try:
            self._train(done, sum(p.batches for p in self.phases) if stop_after is None else stop_after)
        except Diverged as err:
            err.finished = self._result() if self.exports else None
            raise
        finally:
            self.counter.release()
        if stop_after is not None:
            self.save()
        return self._result()

    def _result(self) -> Result:
        spent = {name: Spent(**of) for name, of in self.progress.finished.items()}
        return Result(self.exports, self.progress.log, spent, self.progress.peak_bytes)

    def _train(self, done: int, stop: int) -> None:
        """The batches from number `done` on, up to `stop` or the end."""
        total = sum(p.batches for p in self.phases)
        bar = tqdm(total=total, initial=done, desc="train", unit="batch", **bar_settings(self.settings.progress))
        saved = started = time.monotonic()
        before, memory, writing = self.progress.seconds, PeakMemory(self.accelerator.device), 0.0
        self.counter.passes = self.progress.passes
        with bar:
            while self.progress.phase < len(self.phases) and done < stop:
                phase = self.phases[self.progress.phase]
                try:
                    logs = self._step(phase, self.progress.batch)
                except Diverged:
                    self._keep_good(done)
                    raise
                self.progress.batch += 1
                bar.update()
                done += 1
                if self.progress.batch % 50 == 0 or self.progress.batch == phase.batches:
                    self.progress.log.append({"phase": self.progress.phase, "batch": self.progress.batch, **logs})
                    bar.set_postfix({k: f"{v:.4g}" for k, v in logs.items() if k.startswith("loss")}, refresh=False)
                self.progress.seconds = before + time.monotonic() - started - writing  # of training, not of keeping it
                self.progress.peak_bytes = max(self.progress.peak_bytes, memory.bytes())
                if self.progress.batch == phase.batches:
                    self._leave(phase)
                if time.monotonic() - saved > self.settings.checkpoint_seconds:
                    began = time.monotonic()
                    self.save()
                    saved = time.monotonic()
                    writing += saved - began

    def _keep_good(self, done: int) -> None:
        """Leave the checkpoint after `done` batches, when some nets may already have taken a step of the next one.

        Resume is exact: the batches since the last checkpoint, or since the start, are done once more, and no state is copied meanwhile.
        """
        self.counter.release()
        Engine(self.method, self.given, self.data, self.file.parent, replace(self.settings, progress=False)).run(done)

    def _leave(self, phase: Phase) -> None:
        source = {**self.nets, **self.emas}[phase.export]
        self.exports[phase.name] = {k: _own(v) for k, v in source.state_dict().items()}
        samples = sum(p.batches * p.batch_size for p in self.phases[: self.progress.phase + 1])
        self.progress.finished[phase.name] = vars(Spent(self.progress.seconds, samples, dict(self.progress.passes)))
        self.progress.phase, self.progress.batch = self.progress.phase + 1, 0
        if self.progress.phase < len(self.phases):
            self._enter(self.phases[self.progress.phase])
