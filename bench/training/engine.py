"""The generic training engine: optimisers, EMAs, precision, accumulation, progress, checkpoints, signals and exact resume.

It never asks which method it runs. Randomness is a function of (seed, phase, batch), so a checkpoint between batches is all the state.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

import kernels
from bench.store.addresses import digest
from bench.store.world import ALONE, World
from bench.training import checkpoints
from bench.training.accounting import PassCounter, PeakMemory, Spent, no_room
from bench.training.checkpoints import Progress, own_copy, under
from bench.training.compiling import check_compiles, compile_forward, release_forward
from bench.training.freezing import STUDENT, freeze, restore, trained
from bench.training.optimisers import optimiser_of
from bench.training.precision import LEAST, autocast, check_precision, scaler
from bench.training.sharing import Part, Wish, agreed, parts_of, why_alone
from bench.training.signals import Noted, noting
from bench.training.snapshots import Snapshots
from bench.training.tracking import Tracker
from fewstep.data.source import Batch, Source
from fewstep.denoiser import Denoiser, knows_null
from fewstep.errors import UsageError
from fewstep.nets.flat import flatten
from fewstep.nets.loading import load_strict
from fewstep.noise import Rng
from fewstep.progress import bar_settings
from fewstep.tasks.generation import task_for
from fewstep.tasks.task import Coded, Task
from methods.initial import initial_tensors
from methods.recipe import DEFAULT, Recipe
from methods.training import IDENTITY, Loss, Phase, State, Trainable, described

DATA, METHOD, DROPOUT, TASK, CONDITION = range(5)  # the separate random streams of one batch


@dataclass(frozen=True)
class Settings:
    """How to run a training: the task of the model (generation where none is given) and the recipe are part of what it gives.

    A checkpoint is written when both `checkpoint_seconds` and the share `checkpoint_share` of the phase's batches have passed since the
    last one, and at a signal. `tracker` is told what the log is, `snapshots` what the weights are on the way. The processes of `world` are
    at each step together (see `bench.training.sharing`) and `as_one`; the first keeps what has to be kept.
    """

    seed: int = 0
    device: str = "cpu"
    recipe: Recipe = DEFAULT
    task: Task | None = None
    checkpoint_seconds: float = 180.0
    checkpoint_share: float = 0.01
    progress: bool = True
    tracker: Tracker | None = None
    snapshots: Snapshots | None = None
    world: World = ALONE


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
        self.file = folder / checkpoints.FILE
        self.recipe, self.task, self.device = settings.recipe, settings.task or task_for(teacher), torch.device(settings.device)
        for phase in method.phases():
            if self.recipe.accumulate < 1 or phase.batch_size % self.recipe.accumulate:
                raise UsageError(f"accumulate={self.recipe.accumulate} does not divide the batch size {phase.batch_size}; use a divisor")
        self.world = settings.world
        if why := why_alone(method, self.recipe, self.world.size):
            raise UsageError(f"{self.world.size} processes cannot share the steps of a training: {why}")
        check_precision(self.recipe.precision, self.device)
        if self.recipe.compile:
            check_compiles(settings.device)
        with _global_generators(self._rng(0, 0, 0, METHOD)):
            self.nets = {k: v.to(self.device) for k, v in method.build(teacher).items()}
        if self.recipe.init_from:
            load_strict(self.nets[STUDENT], initial_tensors(self.recipe.init_from), f"the weights of init={self.recipe.init_from}")
        self.phases = list(method.phases())
        recipe = (type(method).__qualname__, described(method), repr(self.phases), settings.seed, self.recipe.identity(), self.task)
        self.identity = digest([*map(str, recipe), data.digest(), *checkpoints.of_teacher(teacher)])
        self.progress = Progress()
        self.exports: dict[str, dict[str, Tensor]] = {}
        self.emas: dict[str, nn.Module] = {}
        self.flats: dict[str, list[Tensor]] = {}  # the memory of all parameters of each net and EMA
        self.optimisers: dict[str, torch.optim.Optimizer] = {}
        self.scalers: dict[str, torch.amp.GradScaler] = {}
        self.wish: Callable[[], Wish] = Wish
        self.sums = Wish().numbers()  # of what all processes wished at the last step

    def _rng(self, phase: int, batch: int, micro: int, stream: int, rows: tuple[int, int, int] | None = None) -> Rng:
        return Rng((self.settings.seed, phase, batch, micro, stream), self.device, rows)

    def _enter(self, phase: Phase) -> None:
        """Start a phase: copy nets as it asks, then make its EMAs and optimisers new."""
        sources = {**self.nets, **self.emas}
        for target, source in phase.copies.items():
            self.nets[target].load_state_dict(sources[source].state_dict())
        self._prepare(phase)

    def _prepare(self, phase: Phase) -> None:
        self._release()  # an EMA is a copy without the hooks and the compiled code of its net
        for name, net in self.nets.items():
            own = name in phase.optims
            net.requires_grad_(own).train(own)
            if own and name == STUDENT and self.recipe.freeze:
                freeze(net, self.recipe.freeze)
        self.flats = {name: flatten(net) for name, net in self.nets.items()}
        self.emas = {name: copy.deepcopy(self.nets[e.net]).requires_grad_(False).eval() for name, e in phase.emas.items()}
        self.flats |= {name: flatten(net) for name, net in self.emas.items()}
        self.optimisers = {name: optimiser_of(spec, self.nets[name]) for name, spec in phase.optims.items()}
        self.scalers = {name: scaler(self.recipe.precision, self.device) for name in phase.optims}
        for name in phase.optims if self.recipe.compile else ():
            compile_forward(self.nets[name])
        self.counter.watch({**self.nets, **self.emas})

    def _release(self) -> None:
        """Leave networks as they are without a training: not counted, not compiled."""
        self.counter.release()
        for net in self.nets.values():
            release_forward(net)

    def _drawn(self, phase: Phase, part: Part, batch: int) -> Batch:
        """A part of a microbatch as the task makes examples of data, with what is dropped of their conditions."""

        def rng(stream: int) -> Rng:
            return self._rng(self.progress.phase, batch, part.micro, stream, part.rows)

        drawn = self.task.example(self.data.draw(part.size, rng(DATA)), rng(TASK)).to(self.device)
        if not (phase.drops and self.recipe.condition_dropout and knows_null(self.given)):  # a teacher teaches what it knows
            return drawn
        chosen = rng(CONDITION).uniform((part.size,)) < self.recipe.condition_dropout
        return replace(drawn, cond=drawn.cond.where(chosen, self.task.null(drawn.cond, self.given)), whole=drawn.cond)

    def _step(self, phase: Phase, batch: int) -> dict[str, float]:
        """One batch: the microbatches' loss iterators advance in lockstep, and each loss steps its own net."""
        state = State(self.teacher, self.nets, self.emas, phase, batch, self.task if isinstance(self.task, Coded) else IDENTITY)
        index, microbatches = self.progress.phase, self.recipe.accumulate
        parts = parts_of(self.world, microbatches, phase.batch_size // microbatches)
        logs: dict[str, float] = {}
        with _global_generators(self._rng(index, batch, self.world.rank, DROPOUT)), autocast(self.recipe.precision, self.device):
            iterators = []
            for part in parts:
                rng = self._rng(index, batch, part.micro, METHOD, part.rows)
                iterators.append(self.method.losses(state, self._drawn(phase, part, batch), rng))
            for losses in zip(*iterators, strict=True):
                logs |= self._update(phase, batch, losses, parts[0].share)
        for name, ema in phase.emas.items():
            self._update_ema(name, ema.net, ema.decay_at(batch, self.recipe.ramp))
        return logs

    def _update(self, phase: Phase, batch: int, losses: Sequence[Loss], share: float) -> dict[str, float]:
        """One step of a net on the mean of its microbatches' losses, of which this process has a share of each; none where float16
        overflows at this scale, which then falls."""
        name, parts = losses[0].net, self.recipe.accumulate
        spec, optimiser, net, scale = phase.optims[name], self.optimisers[name], self.nets[name], self.scalers[name]
        for group in optimiser.param_groups:
            group["lr"] = spec.lr_at(batch, phase.batches)
        optimiser.zero_grad()
        for loss in losses:
            scale.scale(loss.value * share / parts).backward(inputs=trained(net))
        told = share * sum(float(loss.value.detach()) for loss in losses)
        own = [told, *self.wish().numbers()] if self.world.size > 1 else [told]
        told, *self.sums = self.world.add_up([p.grad for p in net.parameters() if p.grad is not None], own)
        scale.unscale_(optimiser)
        norm = float(clip_grad_norm_(net.parameters(), spec.clip))
        value = told / parts
        overflown = not math.isfinite(norm) and scale.is_enabled() and scale.get_scale() > LEAST
        if not (math.isfinite(value) and (math.isfinite(norm) or overflown)):
            what = f"gradient norm {norm}" if math.isfinite(value) else f"loss {value}"
            raise Diverged(f"training diverged: {what} at batch {batch} of phase {phase.name}; lower lr")
        scale.step(optimiser)
        scale.update()
        told = {f"grad_norm/{name}": norm} if math.isfinite(norm) else {}
        told |= {f"loss_scale/{name}": scale.get_scale()} if scale.is_enabled() else {}
        return {f"loss/{name}": value, **told, **losses[0].logs}

    @torch.no_grad()
    def _update_ema(self, name: str, net: str, decay: float) -> None:
        """ema <- decay ema + (1 - decay) net: one update of all parameters at once."""
        decay = float(np.float32(decay))  # rounded once, so that both weights add up to 1
        for mine, theirs in zip(self.flats[name], self.flats[net], strict=True):
            weights = kernels.table(np.array([[decay, 1 - decay]]), mine.device, kernels.accumulator(mine.dtype))
            kernels.update([mine[None]], [mine[None], theirs[None]], weights)
        for mine, theirs in zip(self.emas[name].buffers(), self.nets[net].buffers()):
            mine.copy_(theirs)
        restore(self.emas[name], self.nets[net], self.recipe.freeze)

    def save(self) -> None:
        """Write the checkpoint: one file, atomically."""
        passes = self._passes()
        if not self.world.first:
            return
        tensors: dict[str, Tensor] = {}
        for kind, group in (("net", self.nets), ("ema", self.emas)):
            for name, net in group.items():
                tensors |= {f"{kind}/{name}/{k}": own_copy(v) for k, v in net.state_dict().items()}
        for name, optimiser in self.optimisers.items():
            tensors |= checkpoints.pack_optimiser(name, optimiser)
        for phase, weights in self.exports.items():
            tensors |= {f"export/{phase}/{k}": v for k, v in weights.items()}
        self.progress.scalers = {name: own.state_dict() for name, own in self.scalers.items() if own.is_enabled()}
        checkpoints.write(self.file, tensors, replace(self.progress, passes=passes), self.identity)

    def _restore(self) -> bool:
        """Continue from the checkpoint, if there is one. **Raises**: UsageError for the checkpoint of another training, or a broken one."""
        if not self.world.told(self.file.exists):
            return False
        try:
            self._load()
        except checkpoints.BROKEN as err:
            raise UsageError(f"checkpoint {self.file} is broken ({err}); delete it to train from the start") from err
        return True

    def _load(self) -> None:
        self.progress, tensors = checkpoints.read(self.file, self.identity)
        if not self.world.first:
            self.progress.passes = {}  # which the first goes on counting
        if self.progress.phase < len(self.phases):
            self._prepare(self.phases[self.progress.phase])

        for kind, group in (("net", self.nets), ("ema", self.emas)):
            for name, net in group.items():
                try:
                    net.load_state_dict(under(tensors, f"{kind}/{name}/"))
                except RuntimeError as err:
                    raise ValueError(f"its {name} does not fit: {err}".splitlines()[0]) from err
        for name, optimiser in self.optimisers.items():
            checkpoints.unpack_optimiser(name, optimiser, tensors)
        for name, own in self.scalers.items():
            if own.is_enabled():
                own.load_state_dict(self.progress.scalers[name])
        for phase in self.phases:
            weights = under(tensors, f"export/{phase.name}/")
            if weights:
                self.exports[phase.name] = weights

    def run(self, stop_after: int | None = None) -> Result:
        """Train to the end (or up to `stop_after` batches, leaving a checkpoint) and return the result.

        **Raises**: Diverged with what its phases left until then, and a checkpoint of the last good state; KeyboardInterrupt (of SIGTERM:
        Terminated) for a signal, after the batch that it came in and a checkpoint; UsageError for a batch that has no room.
        """
        if self.recipe.compile:
            torch.compiler.reset()  # or what trainings before compiled would count against how often one function may be
        with noting() as noted:
            if not self._restore():
                self._enter(self.phases[0])
            done = sum(p.batches for p in self.phases[: self.progress.phase]) + self.progress.batch
            try:
                self._train(done, sum(p.batches for p in self.phases) if stop_after is None else stop_after, noted)
            except Diverged as err:
                err.finished = self._result() if self.exports else None
                raise
            finally:
                self._release()
            if stop_after is not None or self._agreed().signal:
                self.save()
            return self._result()

    def _result(self) -> Result:
        spent = {name: Spent(**of) for name, of in self.progress.finished.items()}
        return Result(self.exports, self.progress.log, spent, self.progress.peak_bytes)

    def _agreed(self) -> Wish:
        """What all processes wished at the last step: of one by itself, what it wishes now."""
        return self.wish() if self.world.size == 1 else agreed(self.sums)

    def _train(self, done: int, stop: int, noted: Noted) -> None:
        """The batches from number `done` on, up to `stop`, a signal or the end."""
        total = sum(p.batches for p in self.phases)
        bar = tqdm(total=total, initial=done, desc="train", unit="batch", **bar_settings(self.settings.progress))
        saved, kept = time.monotonic(), done  # when, and after how many batches, the last checkpoint was written
        started = saved
        before, memory, writing = self.progress.seconds, PeakMemory(self.device), 0.0
        self.counter.passes = self.progress.passes

        def wish() -> Wish:
            waited, share = time.monotonic() - saved, self.settings.checkpoint_share * phase.batches
            due = waited >= self.settings.checkpoint_seconds and done - kept >= share
            return Wish(noted.number, due and self.world.first)

        phase, self.wish = self.phases[min(self.progress.phase, len(self.phases) - 1)], wish
        with bar:
            while self.progress.phase < len(self.phases) and done < stop and not self._agreed().signal:
                phase = self.phases[self.progress.phase]
                try:
                    logs = self._step(phase, self.progress.batch)
                except Diverged:
                    self._keep_good(done)
                    raise
                except torch.OutOfMemoryError as err:
                    raise UsageError(no_room(phase, self.recipe.accumulate, self.world.size, self.device)) from err
                self.progress.batch += 1
                self._snapshot(phase)
                bar.update()
                done += 1
                if self.progress.batch % 50 == 0 or self.progress.batch == phase.batches:
                    self.progress.log.append({"phase": self.progress.phase, "batch": self.progress.batch, **logs})
                    if self.settings.tracker is not None:
                        self.settings.tracker.log(logs, step=done)
                    bar.set_postfix({k: f"{v:.4g}" for k, v in logs.items() if k.startswith("loss")}, refresh=False)
                self.progress.seconds = before + time.monotonic() - started - writing  # of training, not of keeping it
                self.progress.peak_bytes = max(self.progress.peak_bytes, memory.bytes())
                if self.progress.batch == phase.batches:
                    self._leave(phase)
                began = time.monotonic()
                if self._agreed().checkpoint:
                    self.save()
                    saved, kept = time.monotonic(), done
                    writing += saved - began
        noted.number = noted.number or self._agreed().signal  # which came to another process

    def _keep_good(self, done: int) -> None:
        """Leave the checkpoint after `done` batches, when some nets may already have taken a step of the next one.

        Resume is exact: the batches since the last checkpoint, or since the start, are done once more, and no state is copied meanwhile.
        """
        self._release()
        Engine(
            self.method, self.given, self.data, self.file.parent, replace(self.settings, progress=False, tracker=None, snapshots=None)
        ).run(done)

    def _passes(self) -> dict[str, int]:
        """The passes of all processes, by network."""
        found: dict[str, int] = {}
        for own in self.world.together(lambda: dict(self.progress.passes)):
            found = {name: found.get(name, 0) + own.get(name, 0) for name in {**found, **own}}
        return found

    def _exported(self, phase: Phase) -> dict[str, Tensor]:
        source = {**self.nets, **self.emas}[phase.export]
        return {k: own_copy(v) for k, v in source.state_dict().items()}

    def _images(self) -> int:
        """The training images seen so far."""
        before = sum(p.batches * p.batch_size for p in self.phases[: self.progress.phase])
        return before + self.progress.batch * self.phases[self.progress.phase].batch_size

    def _snapshot(self, phase: Phase) -> None:
        own = self.settings.snapshots
        if own is not None and self.world.first and own.due(self.progress.batch, phase.batches):
            own.write(self._images(), self._exported(phase))

    def _leave(self, phase: Phase) -> None:
        self.exports[phase.name] = self._exported(phase)
        samples = self._images()
        self.progress.finished[phase.name] = vars(Spent(self.progress.seconds, samples, self._passes()))
        self.progress.phase, self.progress.batch = self.progress.phase + 1, 0
        if self.progress.phase < len(self.phases):
            self._enter(self.phases[self.progress.phase])
