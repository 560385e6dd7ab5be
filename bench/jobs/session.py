"""What the jobs that one process does share: models and what judges their samples, each loaded once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.evaluate.judge import Judge, make_judge
from bench.jobs.fits.teachers import teacher_fit, with_teacher
from bench.jobs.graph import Opened, Sweep, jobs_of
from bench.jobs.models import Model, load_model, statistics_of
from bench.jobs.resolve import resolve
from bench.jobs.solutions import truth_of
from bench.jobs.spec import Spec
from bench.jobs.suite import expand
from bench.store.addresses import digest
from bench.store.artefacts import Store
from bench.store.cell import NAIVE
from bench.store.rows import Rows
from bench.store.world import ALONE, World
from fewstep.errors import UsageError
from fewstep.plugins import load_module


@dataclass(eq=False)
class Session:
    """One process at work in a results folder; `world` are those that it does large jobs together with."""

    store: Store
    device: str
    batch: int
    say: Callable[[str], None]
    stale: frozenset[str] = frozenset()
    world: World = ALONE
    _models: dict[str, Model] = field(default_factory=dict)
    _trained: dict[str, Model] = field(default_factory=dict)
    _judges: dict[str, tuple[frozenset[str], Judge]] = field(default_factory=dict)
    _rows: dict[str, Rows] = field(default_factory=dict)
    _last: tuple[str, Opened] | None = None

    def model(self, config: Mapping[str, Any], trained: bool = True) -> Model:
        """The model of a configuration, with its teacher's weights (which are trained now if they are not there yet) unless told not to."""
        key = digest(dict(config))
        if key not in self._models:
            self._models[key] = load_model(config, self.device)
        if not (trained and self._models[key].in_store):
            return self._models[key]
        if key not in self._trained:
            self._trained[key] = with_teacher(self._models[key], self.store, self.device, self.say)
        return self._trained[key]

    def judge(self, model: Model, names: frozenset[str]) -> Judge:
        """What measures these metrics on samples of a model: of its weights, and of its data or their published statistics."""
        key = digest([model.digest, dict(model.config)])
        known, judge = self._judges.get(key, (frozenset[str](), None))
        if judge is None or not names <= known:
            known |= names
            judge = make_judge(model.data, model.teacher, set(known), self.store, self.device, statistics_of(model.config))
            self._judges[key] = known, judge
        return judge

    def rows(self, suite: str) -> Rows:
        """The rows of a suite."""
        return self._rows.setdefault(suite, Rows(self.store, suite, self.say))

    def open(self, spec: Spec) -> Opened:
        """The cell that a job belongs to.

        **Raises**: UsageError where its inputs are not in the store, and where here it would have another address.
        """
        if absent := spec.missing(self.store):
            raise UsageError(f"job {spec.name} needs {', '.join(absent)}, which {self.store.root} lacks; do the jobs that make them first")
        opened = self.cell(spec)
        names = [job.name for job in jobs_of(opened)]
        if spec.name not in names:
            raise UsageError(f"job {spec.name} is of other code or inputs: here its cell has the jobs {', '.join(names)}; plan it again")
        return opened

    def cell(self, spec: Spec) -> Opened:
        """The cell that a job belongs to, whatever is in the store; that of the last job is kept, since a cell's jobs follow each other."""
        for name in spec.params["plugins"]:
            load_module(name)
        first = teacher_fit(model := self.model(spec.params["model"], trained=False)) if spec.kind == "fit" else None
        untrained = first is not None and spec.key == first.key(model)  # the teacher's own training
        key = digest([dict(spec.params), untrained])
        if self._last is None or self._last[0] != key:
            self._last = None  # which frees its networks first
            self._last = key, self._opened(spec.params, not untrained)
        return self._last[1]

    def _opened(self, told: Mapping[str, Any], trained: bool) -> Opened:
        suite = expand(told["suite"], told["seed"], told["noise"])
        (cell,) = suite.cells
        model = self.model(told["model"], trained)
        job = None if cell.method == NAIVE else resolve(cell, suite, model)
        names = tuple(told["names"])
        judge = self.judge(model, frozenset(names))
        truths = {} if job is None else {cell.guidance: truth_of(suite, cell.guidance, model)}
        sweep = Sweep(suite, model, self.store, self.rows(suite.name), judge, truths, self.device, self.batch, self.stale)
        return Opened(sweep, cell if job is None else job.cell, job, names)
