"""Students as files: an exported student, ready to sample, without its teacher, its data or a results folder."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from fewstep.calls import check_seeds
from fewstep.denoiser import Denoiser, Preconditioned, leaf
from fewstep.errors import UsageError
from fewstep.flowmap import TwoTime
from fewstep.grid import TimeGrid, make_grid
from fewstep.guidance import guide
from fewstep.nets.branches.transplant import told_pictures
from fewstep.nets.loading import as_denoiser, build, formats, load_strict, read
from fewstep.nets.own import identity_of
from fewstep.nets.partial import load_part
from fewstep.nets.readers.card import SUFFIX, read_weights, resolve
from fewstep.plugins import entries, get
from fewstep.sampling.draw import SAMPLER_VERSION, sample
from fewstep.sampling.editing import check_guided, given, sample_given
from fewstep.sampling.plan import Plan, with_afs
from fewstep.strength import grid_at, grid_from
from fewstep.tasks.generation import task_for
from fewstep.tasks.task import Task
from fewstep.wrappers import Prior, WithScalars, picture_channels

FILE = "student.safetensors"
OWN = "own"  # in place of an architecture: the network of a registered teacher


class Sampling(Protocol):
    """What loading reads of how a student is sampled (`methods.distiller.Sampling`)."""

    @property
    def afs(self) -> bool: ...
    @property
    def tells_steps(self) -> bool: ...
    @property
    def w(self) -> tuple[float, float] | None: ...
    @property
    def solver(self) -> str: ...
    @property
    def grid(self) -> str: ...
    @property
    def any_level(self) -> bool: ...
    @property
    def end(self) -> str: ...
    def range_in(self, sigma_range: tuple[float, float]) -> tuple[float, float]: ...
    def warning(self, guidance: float, plan: Plan, sigma_range: tuple[float, float]) -> str: ...


class Trained(Protocol):
    """What loading asks of the method that a student was trained by (`methods.distiller.Distiller`)."""

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]: ...
    def student(self, net: nn.Module, teacher: Denoiser) -> Denoiser: ...
    def sampling(self) -> Sampling: ...


@runtime_checkable
class Alone(Protocol):
    """A method that builds more than its student, and offers that network alone."""

    def network(self, teacher: Denoiser) -> nn.Module:
        """What `build(teacher)["student"]` is."""
        ...


def student_network(method: Trained, teacher: Denoiser) -> nn.Module:
    """The network of a method's student as it starts, without critics and copies where the method can do without them."""
    return method.network(teacher) if isinstance(method, Alone) else method.build(teacher)["student"]


@dataclass(frozen=True, eq=False)
class Exported:
    """A student for one number of steps, with all that sampling it takes. `card` is what student.json says."""

    denoiser: Denoiser
    plan: Plan
    sampling: Sampling
    task: Task
    card: Mapping[str, Any]

    @property
    def sigma_max(self) -> float:
        return float(self.card["student"]["levels"][0])

    def guided(self, scale: float) -> Denoiser:
        """The student under guidance: as the scalar w = scale - 1 where it reads that, else from outside like its teacher; with a warning
        where it was not trained for that weight or its levels.

        **Raises**: UsageError without classes.
        """
        if scale != 1 and not self.denoiser.classes:
            raise UsageError(f"guidance {scale:g} needs classes, and this student has none; use guidance=1")
        if warning := self.sampling.warning(scale, self.plan, self.denoiser.sigma_range):
            warnings.warn(f"{self.card['student']['method']}: {warning}", stacklevel=2)
        if self.sampling.w is None:
            return guide(self.denoiser, scale)
        return WithScalars(self.denoiser, {"w": scale - 1})

    def at_strength(self, strength: float) -> tuple[Plan, float]:
        """The plan on the student's levels from that of a strength down, and its first. **Raises**: UsageError where none is left."""
        told, own = self.card["student"], TimeGrid(self.card["student"]["levels"])
        if self.sampling.afs:
            raise UsageError(f"{told['method']}'s first step is the analytical one, of states of noise alone; leave strength out")
        usual = make_grid(self.sampling.grid, own.steps, self.sampling.range_in(self.denoiser.sigma_range), self.sampling.end)
        if self.sampling.any_level and np.allclose(usual.sigmas, own.sigmas):
            grid = grid_from(self.sampling.grid, own.steps, self.sampling.range_in(self.denoiser.sigma_range), strength, self.sampling.end)
        else:
            grid = grid_at(own, 0, self.sampling.range_in(self.denoiser.sigma_range), strength)
        solver = get("solver", told.get("solver", self.sampling.solver)).make(**told.get("solver_options", {}))
        return solver.plan(grid), float(grid.sigmas[0])

    def sample(
        self,
        seeds: Tensor,
        guidance: float = 1.0,
        noise: str = "philox",
        batch: int = 250,
        condition: Tensor | None = None,
        mask: Tensor | None = None,
        strength: float | None = None,
        label: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Images [N, *shape] float32 and labels [N] of seeds [N] int64, to the bit what a sweep makes of them.

        `condition` [N, *shape] are pictures in [-1, 1] to be asked by, `mask` [N, 1, H, W] is 1 where they are hidden, and with `strength`
        from 0 to 1 sampling starts from them; `label` is their class. `fewstep.sampling.editing.given` says what a student makes of these
        that was not trained on pictures. **Raises**: UsageError for what does not fit the student.
        """
        check_seeds(seeds)
        net = leaf(self.denoiser)
        assert isinstance(net, Preconditioned)
        seeds, denoiser = seeds.to(next(net.net.parameters()).device), self.guided(guidance)
        if condition is None:
            if any(value is not None for value in (mask, strength, label)):
                raise UsageError("a mask, a strength and a label are of pictures; give them as condition=")
            return sample(self.plan, denoiser, self.sigma_max, seeds, noise, batch, task=self.task)
        reads = told_pictures(self.denoiser)
        check_guided(guidance, label, self.denoiser)
        around, asked = given(denoiser, self.task, condition, mask, strength, label, reads)
        plan, first = (self.plan, self.sigma_max) if strength is None else self.at_strength(strength)
        return sample_given(plan, around, first, seeds, asked, noise, batch)


def as_student(method: Trained, teacher: Denoiser, weights: Mapping[str, Tensor], steps: int, what: str, device: str = "cpu") -> Denoiser:
    """Trained weights as the denoiser that samples in `steps` steps; of the teacher only its network's architecture matters.

    **Raises**: UsageError for weights (`what`) that are not exactly those of the method's student.
    """
    with torch.random.fork_rng():
        fresh = student_network(method, teacher)
    net = load_part(fresh, weights, what).to(device)
    student = method.student(net.requires_grad_(False), teacher)
    return WithScalars(student, {"steps": float(steps)}) if method.sampling().tells_steps else student


def as_prior(student: Denoiser, teacher: Denoiser) -> Denoiser:
    """A student as the teacher of another, in its own teacher's place: one that is told no pictures is a prior of their task."""
    channels = picture_channels(teacher)
    return Prior(student, channels) if channels and not told_pictures(student) else student


def _taught(skeleton: Denoiser, told: Mapping[str, Any]) -> Denoiser:
    """What an exported student was taught by, as far as architectures matter: the network of its model, and students before it."""
    channels = told.get("pictures", 0)
    teacher: Denoiser = Prior(skeleton, channels) if channels else skeleton
    for before in told.get("taught", ()):
        method: Trained = get("distiller", before["method"]).make(**before["options"])
        with torch.random.fork_rng():
            teacher = as_prior(method.student(student_network(method, teacher), teacher), teacher)
    return teacher


def published_student(path: Path, tensors: Mapping[str, Tensor], card: Mapping[str, Any], device: str = "cpu") -> Denoiser:
    """The denoiser of somebody else's student, with its own boundary conditions; a flow map where its network reads a target level.

    **Raises**: UsageError for weights that are not exactly those of the card's network.
    """
    net = load_strict(build(card), tensors, f"weights {path}").to(device)
    denoiser = as_denoiser(net.requires_grad_(False), card)
    return TwoTime(denoiser) if card["config"].get("two_time") else denoiser


UNSAID = "its file does not say for which steps and settings it was trained"


def unsaid(told: Mapping[str, Any]) -> str:
    """A warning about a published student (`told` is what its card says) that was `trained` for some steps and does not say which."""
    return UNSAID if "trained" in told and "steps" not in told["trained"] else ""


def check_trained(told: Mapping[str, Any], steps: int, sampling: Sampling, sigma_range: tuple[float, float], what: str) -> None:
    """Whether a published student is sampled as it was trained, as far as its card says. **Raises**: UsageError naming what differs."""
    trained = told.get("trained", {})
    if steps not in trained.get("steps", [steps]):
        known = ", ".join(map(str, trained["steps"]))
        raise UsageError(f"{what} was trained for {known} step(s), not for {steps}; use steps={trained['steps'][0]}")
    low, high = sampling.range_in(sigma_range)
    asked = {"afs": sampling.afs, "solver": sampling.solver, "tells_steps": sampling.tells_steps, "grid": sampling.grid}
    asked |= {"sigma_min": low, "sigma_max": high}
    for name, value in asked.items():
        own = trained.get(name, value)
        if own != value:
            raise UsageError(f"{what} was trained with {name}={own}, and is sampled with {name}={value} here; its own settings go with it")


def _method_of(told: Mapping[str, Any]) -> Trained:
    """The method of a published student, with those of its settings that are ours to choose."""
    trained = told.get("trained", {})
    return get("distiller", told["method"]).make(**{key: trained[key] for key in ("afs", "sigma_min") if key in trained})


def _published(path: Path, steps: int, device: str) -> Exported:
    """A published student, sampled as its method's are, or as it says itself."""
    tensors, card = read(path)
    told = card.get("student")
    if not isinstance(told, Mapping):
        raise UsageError(f"{path} holds no student but a {card['arch']}; load a teacher with fewstep.load_teacher")
    denoiser, sampling = published_student(path, tensors, card, device), _method_of(told).sampling()
    check_trained(told, steps, sampling, denoiser.sigma_range, f"the student in {path}")
    grid = make_grid(sampling.grid, steps, sampling.range_in(denoiser.sigma_range), sampling.end)
    plan = get("solver", sampling.solver).make().plan(grid)
    bound = WithScalars(denoiser, {"steps": float(steps)}) if sampling.tells_steps else denoiser
    warned = {"warning": warning} if (warning := unsaid(told)) else {}
    named = {"student": {**told, **warned, "steps": steps, "levels": [float(s) for s in grid.sigmas]}}
    return Exported(bound, with_afs(plan) if sampling.afs else plan, sampling, task_for(denoiser), {**card, **named})


def load_student(path: str | Path, device: str = "cpu", steps: int = 1) -> Exported:
    """An exported student, from its folder or its weights file; or a published one, by a file of another format, for `steps` steps.

    **Raises**: UsageError for files that are missing, truncated, changed or of something else, and where its method (or the teacher whose
    network it copies) is not registered, or in another version.
    """
    if Path(path).suffix in formats() and Path(path).suffix != SUFFIX:
        return _published(resolve(path), steps, device)
    file = Path(path) / FILE if Path(path).suffix != ".safetensors" else Path(path)
    if not file.exists():
        raise UsageError(f"no exported student at {file}; write one with python -m bench.export method=NAME out={file.parent}")
    tensors, card = read_weights(file)
    told = card.get("student")
    if not isinstance(told, Mapping):
        raise UsageError(f"{file} holds no exported student but a {card['arch']}; load a teacher with fewstep.nets.loading.load_denoiser")
    for kind, name in (("distiller", told["method"]), ("solver", told["solver"])):
        if name not in entries(kind):
            raise UsageError(f"{file} needs the {kind} '{name}', which is not installed here; install the plugin that brings it")
    own = {name: value for name, value in told["options"].items() if name == "released"}  # some have a version of its own
    versions = [(told["method"], get("distiller", told["method"]).make(**own).version, told["version"])]
    for before in told.get("taught", ()):
        versions.append((before["method"], get("distiller", before["method"]).make(**before["options"]).version, before["version"]))
    versions += [(told["solver"], get("solver", told["solver"]).make().version, told["solver_version"])]
    for name, here, there in (*versions, ("the sampler", SAMPLER_VERSION, told["sampler_version"])):
        if here != there:
            raise UsageError(f"{file} was exported with version {there} of {name}, here is version {here}; export it again")
    method = get("distiller", told["method"]).make(**told["options"])
    solver = get("solver", told["solver"]).make(**told["solver_options"])
    if card["arch"] == OWN:
        entry = get("teacher", card["config"]["teacher"])
        skeleton = replace(entry.make(), classes=card["classes"])
        if identity_of(skeleton, entry) != card["config"]["identity"]:
            raise UsageError(f"{file} was exported with another teacher '{entry.name}' than the one registered here; export it again")
    else:
        skeleton = as_denoiser(build(card), card)
    denoiser = as_student(method, _taught(skeleton, told), tensors, told["steps"], f"weights {file}", device)
    plan = solver.plan(TimeGrid(told["levels"]))
    sampling, task = method.sampling(), task_for(denoiser, told.get("task", ""))
    if task.version != told.get("task_version", 1):
        raise UsageError(f"{file} was exported for another version of its task, here is version {task.version}; export it again")
    return Exported(denoiser, with_afs(plan) if sampling.afs else plan, sampling, task, card)
