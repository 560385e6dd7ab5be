"""From a cell to its job: the solver, the grid, the number of steps, and everything that can change its samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from bench.jobs.fits.fit import Fit, changed
from bench.jobs.fits.solvers import SolverFit
from bench.jobs.fits.students import Student
from bench.jobs.models import Model, wrap_version
from bench.jobs.suite import Suite
from bench.store.addresses import digest
from bench.store.cell import NAIVE, TEACHER, Cell
from fewstep.errors import Unreachable, UsageError, near_misses
from fewstep.grid import GIVEN, TimeGrid, make_grid
from fewstep.guidance import guide
from fewstep.nets.reduced import reduced
from fewstep.plugins import get, known
from fewstep.sampling.draw import SAMPLER_VERSION
from fewstep.sampling.plan import Plan, content, with_afs
from fewstep.strength import check_strength, grid_from
from fewstep.tasks.task import Paired, Started
from methods.conditional import Branched
from methods.distiller import Paired as LearnsFromPairs
from methods.distiller import Sampling
from methods.solver import Learned, Solver, draft, steps_for_nfe


@dataclass(frozen=True, eq=False)
class Job:
    """A cell made concrete (a student's own solver and grid filled in): its steps, solver and grid, and what can change its samples.

    `solver` is not yet bound when it is a learned one (`plan_of` binds it); `fits` must be in the store before the job can run.
    """

    cell: Cell
    steps: int
    solver: Solver
    grid: TimeGrid
    spec: dict[str, Any]
    student: Student | None
    learned: SolverFit | None

    @cached_property
    def key(self) -> str:
        return digest(self.spec)

    @property
    def sigma_max(self) -> float:
        return float(self.grid.sigmas[0])

    def solved_by(self, model: Model) -> bool:
        """Whether the teacher's own solution is one of this cell's question: not of a student that is told pictures, which the teacher is
        not, and not of samples that start from pictures or have parts of them put in."""
        told = self.student is not None and (self.student.told_pictures or self.student.adapter is not None)
        return not (told or self.cell.replaced or (isinstance(model.task, Started) and model.task.starts))

    @property
    def fits(self) -> tuple[Fit, ...]:
        adapter = None if self.student is None else self.student.adapter
        return tuple(fit for fit in (self.student, adapter, self.learned) if fit is not None)


TAUGHT, TAUGHT_STEPS, ADAPTER = "taught_by", "taught_steps", "adapter"  # of a student's options: what other students have to do with it


def student_of(cell: Cell, suite: Suite) -> Student:
    """The student a cell samples: the suite's options for its distiller and variant, the cell's loss, and its seed.

    **Raises**: UsageError for a variant that the suite has no options for, and for students that wait for each other.
    """
    return _student(cell.method, cell.variant, {"loss": cell.loss} if cell.loss else {}, cell.fit_seed, suite, ())


def _student(method: str, variant: str, loss: dict[str, Any], seed: int, suite: Suite, before: tuple[str, ...]) -> Student:
    options, name = dict(suite.options.get(method, {})), f"{method}/{variant}" if variant else method
    if name in before:
        raise UsageError(f"suite.options: {' waits for '.join((*before, name))}; let one of them be taught by the model's teacher")
    if variant:
        if name not in suite.options:
            raise UsageError(f"suite.options has no '{name}'{near_misses(name, [k for k in suite.options if '/' in k])}")
        options |= suite.options[name]
    others = {role: options.pop(role, "") for role in (TAUGHT, ADAPTER)}
    steps, made = options.pop(TAUGHT_STEPS, 0), dict[str, Student | None]()
    for role, other in others.items():
        if not isinstance(other, str):
            raise UsageError(f"suite.options.{name}: {role} names a student as method or method/variant, got {other!r}")
        first, _, its = other.partition("/")
        made[role] = _student(first, its, {}, seed, suite, (*before, name)) if other else None
    if (taught := made[TAUGHT]) is not None:
        made[TAUGHT] = _teaching(taught, method, steps)
    if (adapter := made[ADAPTER]) is not None and not (isinstance(own := adapter.distiller(), Branched) and own.frozen):
        raise UsageError(
            f"suite.options.{name}: the branch of {adapter.method} is not one beside a frozen network; name one that is `frozen`"
        )
    return Student(method, options | loss, seed, taught_by=made[TAUGHT], taught_steps=steps, adapter=made[ADAPTER])


def _teaching(student: Student, method: str, steps: int) -> Student:
    """A student as the teacher of another in so many steps. **Raises**: UsageError for one that is told more than its teacher is, and for a
    method that learns from pairs, which are the model's own teacher's."""
    own = student.distiller().sampling()
    if own.w is not None or own.tells_steps:
        raise UsageError(f"{student.method} cannot teach {method}: it is told the guidance weight or the number of steps; name another")
    if isinstance(get("distiller", method).make(), LearnsFromPairs):
        raise UsageError(f"{method} learns from pairs of the model's own teacher; leave taught_by out, or use a method without pairs")
    return student.at(steps) if steps else student


def options_used(cell: Cell, suite: Suite) -> list[str]:
    """The names in a suite's options that a student's cell has to do with: its own, and those of the students that it was made by."""
    found, left = list[str](), [cell.method, f"{cell.method}/{cell.variant}"]
    while left:
        name = left.pop(0)
        if name in suite.options and name not in found:
            found.append(name)
            others = [str(suite.options[name][role]) for role in (TAUGHT, ADAPTER) if suite.options[name].get(role)]
            left += [part for other in others for part in (other.partition("/")[0], other)]
    return found


def grid_of_student(cell: Cell, own: Sampling) -> str:
    """The grid that a student's cell is sampled on: its distiller's, or levels by hand.

    **Raises**: UsageError for those where the student is for its own intervals, and for another family.
    """
    if cell.grid in ("", own.grid):
        return own.grid
    if not cell.grid.startswith(GIVEN):
        raise UsageError(f"{cell.method} has its own {own.grid} grid, not {cell.grid}; leave grid out")
    if not own.any_level:
        raise UsageError(f"{cell.method} has students for its own {own.grid} grid, not for levels by hand; leave grid '{cell.grid}' out")
    return cell.grid


def student_cell(config: Mapping[str, Any], suite: Suite) -> Cell:
    """The cell of the student that a command's fields describe: `method`, `loss` (the first that the suite trains it with where empty),
    `variant`, `fit_seed`, and `solver` and `grid` where it has them."""
    method, variant = config["method"], config["variant"]
    trained = (c.loss for c in suite.cells if (c.method, c.variant) == (method, variant))
    solver, grid = (config.get(axis) or "" for axis in ("solver", "grid"))
    return Cell(method, solver, grid, loss=config["loss"] or next(trained, ""), variant=variant, fit_seed=config["fit_seed"])


@dataclass(frozen=True)
class Draft:
    """A plan before any fit: what it is made of. `spacing` is what the grid's name stands for, which another plugin may take.

    `own`: the grid is that of a student for its own levels alone, of which a `strength` below 1 leaves the last.
    """

    solver: Solver
    grid: str
    spacing: Any
    end: str
    sigma_range: tuple[float, float]
    afs: bool
    steps: int
    strength: float = 1.0
    own: bool = False

    def levels_down(self) -> TimeGrid:
        """Its grid. From a strength down it is one of `steps` intervals, or what is left of a student's `own` grid of so many."""
        return grid_from(self.grid, self.steps, self.sigma_range, self.strength, self.end, self.own)

    def plan(self) -> Plan:
        """**Raises**: Unreachable for a number of steps that the solver does not have."""
        made = draft(self.solver).plan(self.levels_down())
        return with_afs(made) if self.afs else made

    def levels(self) -> tuple[float, ...]:
        """The levels that it evaluates, counted once for all cells that share the plan."""
        return _levels(self) if _hashable(self.solver) else self.plan().levels

    def computed(self) -> str | None:
        """The digest of what it computes; None where it applies functions."""
        return _computed(self) if _hashable(self.solver) else _computed.__wrapped__(self)


def _hashable(solver: Solver) -> bool:
    """Not one with a field such as a list."""
    try:
        hash(solver)
    except TypeError:
        return False
    return True


@lru_cache(maxsize=2**14)
def _levels(of: Draft) -> tuple[float, ...]:
    return of.plan().levels


@lru_cache(maxsize=2**14)
def _computed(of: Draft) -> str | None:
    found = content(of.plan())
    return None if found is None else digest(found)


def resolve(cell: Cell, suite: Suite, model: Model) -> Job:
    """The job of a cell; a student's solver, grid and end are its distiller's.

    **Raises**: UsageError for unknown names; Unreachable for an NFE that the solver or the student cannot have.
    """
    student = None if cell.method == TEACHER else student_of(cell, suite)
    scale, sigma_range = cell.guidance, model.teacher.sigma_range
    if student is not None:
        own = student.distiller().sampling()
        if cell.solver not in ("", own.solver, *own.solvers):
            takes = " or ".join((own.solver, *own.solvers))
            raise UsageError(f"{cell.method} is sampled with {takes}, not with '{cell.solver}'; use one of those, or none")
        cell = replace(cell, solver=cell.solver or own.solver, grid=grid_of_student(cell, own), end=own.end, afs=own.afs)
        scale, sigma_range = 1.0 if own.w else scale, own.range_in(sigma_range)
    options = suite.options.get(cell.solver, {})
    solver: Solver = get("solver", cell.solver).make(**options)
    guided = guide(reduced(model.teacher, cell.dtype), scale)
    if cell.guidance != 1 and not model.teacher.classes:
        raise UsageError(f"guidance {cell.guidance:g} needs classes, and model {model.name} has none; use guidance=1")

    check_edit(cell, solver, model, student)
    spacing = get("grid", cell.grid).target if known("grid", cell.grid) else None  # levels by hand have no name

    own_levels = student is not None and not student.distiller().sampling().any_level

    def drafted(steps: int) -> Draft:
        return Draft(solver, cell.grid, spacing, cell.end, sigma_range, cell.afs, steps, cell.strength, own_levels)

    def count(steps: int) -> int:
        if cell.strength != 1 and own_levels and student is not None:
            student.distiller().phase_for(steps)  # some numbers of steps have no student
        return sum(guided.cost(level) for level in drafted(steps).levels())

    ending = cell.end.replace("zero_last", "0").replace("zero", "0")
    label = f"{cell.solver if student is None else cell.method} ending at {ending}{' with AFS' if cell.afs else ''}"
    label += (f" under guidance {scale:g}" if scale != 1 else "") + (f" at strength {cell.strength:g}" if cell.strength != 1 else "")
    left = cell.strength != 1 and own_levels  # several numbers of steps may leave as many
    steps = fewest_steps(count, cell.nfe, label) if left else steps_for_nfe(count, cell.nfe, label)
    student = student.at(steps) if student else None
    axes = {"grid": cell.grid, "end": cell.end, "steps": steps, "afs": cell.afs, "guidance": cell.guidance, "wrap": cell.wrap}
    learned, computed, grid = None, None, drafted(steps).levels_down()
    if isinstance(solver, Learned):  # its plan is not known yet
        solver.check(steps, lambda n: make_grid(cell.grid, n, sigma_range, cell.end), cell.afs)
        learned = SolverFit(cell.solver, options, **axes, student=student)
    else:
        computed = drafted(steps).computed()
    spec = {
        "model": model.digest,
        "fit": student.key(model) if student else None,
        "phase": student.distiller().phase_for(steps) if student else None,
        "sampler_version": SAMPLER_VERSION,
        "guidance": cell.guidance,
        **drawn(suite),
        "dtype": "float32",
    }
    adapter = None if student is None or student.adapter is None else student.adapter.key(model)
    other: dict[str, Any] = {
        "adapter": adapter,
        "replaced": cell.replaced,
        "wrap": cell.wrap,
        **wrap_version(cell.wrap),
        "computed_in": cell.dtype,
    }
    if computed is not None:  # whatever the solver is called: some are the same at few steps
        spec |= {"plan": computed, "sigma_max": rounded(grid)[0]}
        other |= {"steps": steps if student else None}  # some students read their number
    else:
        spec |= {"solver": cell.solver, "solver_version": solver.version, "levels": rounded(grid), "afs": cell.afs}
        other |= {"solver_options": changed("solver", cell.solver, options), "solver_fit": learned.key(model) if learned else None}
    spec |= {k: v for k, v in other.items() if v}  # only what is not the default: older addresses stay valid
    return Job(cell, steps, solver, grid, spec, student, learned)


def check_edit(cell: Cell, solver: Solver, model: Model, student: Student | None) -> None:
    """**Raises**: UsageError for a strength outside of 0 to 1, of a task that does not start from pictures, or of what starts at noise
    alone; for replacement in a task that hides nothing; for a learned solver around either or another's branch, which its fit does not
    know; and for a student that is told the pictures that sampling starts from."""
    if isinstance(solver, Learned) and (cell.replaced or (student is not None and student.adapter is not None)):
        raise UsageError(f"{cell.solver} is fitted to a network as it is, not to a branch of another or a replacement; use another solver")
    if student is not None and student.told_pictures and isinstance(model.task, Started) and model.task.starts:
        raise UsageError(f"{cell.method} is told pictures, and the task of {model.name} starts from them; use a task such as superres_x4")
    strength = check_strength(cell.strength)
    if strength != 1 and not (isinstance(model.task, Started) and model.task.starts):
        raise UsageError(
            f"strength={strength:g} is where a task starts that starts from pictures, and {model.name}'s does not; use edit_strokes"
        )
    if strength != 1 and (cell.afs or isinstance(solver, Learned)):
        what = "its first step is the analytical one" if cell.afs else f"{cell.solver} is fitted to its own levels"
        raise UsageError(f"strength={strength:g} does not start at noise alone, and {what}; use strength=1, or another solver")
    if cell.replaced and not hides(model):
        raise UsageError(f"replaced puts in what a mask leaves of an image, and {model.name}'s task has no masks; use task=inpaint_half")


def hides(model: Model) -> bool:
    """Whether a model's task has masks."""
    task, shape = model.task, model.teacher.shape
    return isinstance(task, Paired) and task.channels(shape) > shape[0]


def fewest_steps(count: Callable[[int], int], nfe: int, label: str) -> int:
    """The smallest number of steps that costs `nfe` passes. **Raises**: Unreachable where none of the first hundred does."""
    for steps in range(1, 101):
        with suppress(UsageError):  # nothing is left of so few, or no student has so many
            if count(steps) == nfe:
                return steps
    raise Unreachable(f"{label} has no number of steps that costs {nfe} passes; use another strength or NFE")


def drawn(suite: Suite) -> dict[str, Any]:
    """What an address holds of where samples begin: their noise, seeds and number; nothing of a noise's first version."""
    version = get("noise", suite.noise).version
    later = {} if version == 1 else {"noise_version": version}
    return {"noise": suite.noise, "seed": suite.seed, "count": suite.samples, **later}


def rounded(grid: TimeGrid) -> list[float]:
    """The levels of a grid, to the digits that addresses and rows have."""
    return [float(f"{s:.10g}") for s in grid.sigmas]


def options_of(cell: Cell, suite: Suite) -> str:
    """The non-default options of a cell's solver, as text: part of what the row is about. A student's own are in its recipe."""
    given = suite.options.get(cell.solver, {}) if cell.method != NAIVE else {}
    own = changed("solver", cell.solver, given) if given else {}
    return ", ".join(f"{name}={value}" for name, value in sorted(own.items()))
