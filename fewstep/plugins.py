"""The registry of every kind of plugin: solvers, distillers, networks, data sets, metrics and the rest, by name.

A plugin registers itself with a decorator when its module is imported. Our own modules are imported when their kind is first asked for;
others come from installed distributions through the entry-point group `fewstep.plugins` (each entry point names a module; the older group
`fewstep.methods` works too), or from `plugins=my_module` on the command line. Imports nothing but errors: rooms above are found by name.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import math
import pkgutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from fewstep.errors import UsageError, near_misses

GROUPS = ("fewstep.plugins", "fewstep.methods")
T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Kind:
    """A kind of plugin: what it is, the modules and packages of ours that register some, and the attributes that each must have.

    `configured`: a frozen dataclass, whose constructor arguments are its configuration. `declares`: what a function says of itself in
    @register. `called`: how messages name the kind.
    """

    what: str
    rooms: tuple[str, ...]
    needs: tuple[str, ...] = ()
    configured: bool = False
    declares: tuple[str, ...] = ()
    called: str = ""


ASKED = ("conditions", "example", "null", "pixels")
TRAINED = ("version", "build", "phases", "losses")
KINDS: dict[str, Kind] = {
    "solver": Kind("a time grid in, a plan out", ("methods.solvers",), ("version", "claims", "plan"), configured=True),
    "distiller": Kind("trains a student", ("methods.distill",), (*TRAINED, "phase_for", "student", "sampling"), configured=True),
    "pretrain": Kind("trains a model's own network", ("methods.pretrain",), TRAINED, configured=True),
    "distance": Kind("(a, b) -> [B], of two images per sample", ("methods.losses.distances",), called="loss"),
    "weight": Kind("sigma -> [B], of squared errors on x0", ("methods.losses.weights",)),
    "network": Kind("a torch module that a card can name", ("fewstep.nets",), ("version", "forward"), called="architecture"),
    "reader": Kind(
        "a weights file in, its tensors and the card that says what they are out", ("fewstep.nets.readers",), declares=("suffixes",)
    ),
    "schedule": Kind(
        "a noise schedule: native time and sigma", ("fewstep.schedule", "fewstep.discrete"), ("alpha_sigma", "sigma", "t"), configured=True
    ),
    "grid": Kind("(nodes, sigma_min, sigma_max) -> falling levels", ("fewstep.grid",)),
    "noise": Kind("seeds and a number of classes in, a source of pinned noise out", ("fewstep.noise",), ("normal",)),
    "task": Kind("what a model is asked for", ("fewstep.tasks",), ("version", *ASKED), configured=True),
    "degradation": Kind(
        "true images and seeds in, what a model is told of them out",
        ("fewstep.data.degradations",),
        ("version", "channels", "__call__"),
        configured=True,
    ),
    "branch": Kind(
        "a network and the channels of a picture in, what tells it the picture out",
        ("fewstep.nets.branches",),
        ("version", "__call__"),
        configured=True,
    ),
    "wrapper": Kind("a function of every D", ("fewstep.wrappers",), called="wrap"),
    "data": Kind("gives an image set", ("fewstep.data",), called="data set"),
    "augment": Kind(
        "a source of batches in, one that changes what it draws out",
        ("fewstep.data.augment",),
        ("version", "digest", "draw"),
        called="augmentation",
    ),
    "teacher": Kind("gives a denoiser made of a network of one's own", ()),
    "closed_form": Kind("gives a denoiser with exact ground truth", ("fewstep.arenas",), called="closed form"),
    "metric": Kind(
        "evidence in, one measurement out", ("metrics.families",), ("version", "unit", "higher_is_better", "__call__"), configured=True
    ),
    "extractor": Kind("gives a network of features", ("metrics.features.extractors", "metrics.features.networks")),
    "optimiser": Kind("(parameters, lr, weight_decay) -> a torch optimiser", ("bench.training.optimisers",)),
    "executor": Kind("goes through the jobs of a sweep, a graph", ("bench.execute",)),
    "check": Kind("what a target holds a suite to: (cells, parameters) -> named values", ("bench.reports.checks",)),
    "study": Kind("runs a suite that is no table of cells", ("bench.studies",)),
}


@dataclass(frozen=True)
class Entry:
    """One registered plugin. `target` is its class or function; of a class, `preset` are defaults, of a function facts that it declares."""

    kind: str
    name: str
    paper: str
    target: Callable[..., Any]
    preset: Mapping[str, Any]
    function_version: int = 1

    @property
    def cls(self) -> Any:
        """The target, of a kind whose plugins are classes."""
        return self.target

    @property
    def fields(self) -> dict[str, Any]:
        """Configurable fields and their defaults."""
        if not KINDS[self.kind].configured:
            return {}
        own = {f.name: f.default for f in dataclasses.fields(self.cls) if f.init}
        return {**own, **self.preset}

    @property
    def version(self) -> int:
        """What rises when its numbers change: its default instance's own, or that which a function was registered with."""
        if KINDS[self.kind].configured:
            return int(getattr(self.make(), "version", 1))
        return int(getattr(self.target, "version", self.function_version))

    def make(self, **options: Any) -> Any:
        """An instance, or what a function gives. **Raises**: UsageError for an unknown field or a value the class refuses."""
        if not KINDS[self.kind].configured:
            return self.target(**options)
        fields = self.fields
        for key in options:
            if key not in fields:
                raise UsageError(f"{self.kind} '{self.name}' has no field '{key}'{near_misses(key, list(fields))}")
            what = f"{self.kind} '{self.name}': {key}"
            _check_type(what, fields[key], options[key])
            if self.kind == "solver" and isinstance(options[key], float) and math.isnan(options[key]):  # others say more of their bounds
                raise UsageError(f"{what} must be a number like {fields[key]!r}, got nan")
        return self.cls(**{**self.preset, **options})


def _check_type(what: str, default: Any, value: Any) -> None:
    """A value is of its default's type; an integer may stand for a float."""
    allowed = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, allowed) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise UsageError(f"{what} must be like {default!r}, got {value!r}")


_entries: dict[tuple[str, str], Entry] = {}
_loaded: set[str] = set()  # rooms, and GROUPS once the installed ones were imported
_modules: dict[str, str] = {}  # those of `plugins=`, with their files


def _kind(kind: str) -> Kind:
    if kind not in KINDS:
        raise UsageError(f"unknown kind '{kind}'{near_misses(kind, list(KINDS))}")
    return KINDS[kind]


def _has(target: Any, attribute: str) -> bool:
    """Whether a class has an attribute that is not what all classes and all torch modules have."""
    if attribute not in ("__call__", "forward") or not isinstance(target, type):
        return hasattr(target, attribute)
    return any(attribute in vars(c) for c in target.__mro__ if c.__module__.partition(".")[0] not in ("builtins", "torch"))


def _check(kind: str, name: str, target: Any, preset: Mapping[str, Any]) -> None:
    """**Raises**: UsageError for what lacks something that its kind needs."""
    wanted = KINDS[kind]
    params = getattr(target, "__dataclass_params__", None)
    if wanted.configured and (params is None or not params.frozen):
        raise UsageError(f"{kind} '{name}' must be a frozen dataclass; put @dataclass(frozen=True) below @register")
    if not callable(target):
        raise UsageError(f"{kind} '{name}' must be a class or a function ({wanted.what}), got {type(target).__name__}")
    declared = set(getattr(target, "__dataclass_fields__", ()))
    fields = getattr(target, "__dataclass_fields__", {}).values() if wanted.configured else ()
    given = {*preset, "name"}
    bare = [f.name for f in fields if f.init and f.default is f.default_factory is dataclasses.MISSING and f.name not in given]
    if bare:
        raise UsageError(f"{kind} '{name}': {', '.join(bare)} has no default; give it one, or a preset in @register")
    if lacking := [attribute for attribute in wanted.needs if attribute not in declared and not _has(target, attribute)]:
        has = ", ".join(wanted.needs)
        raise UsageError(f"{kind} '{name}' lacks {', '.join(lacking)}; a {wanted.called or kind} ({wanted.what}) has {has}")
    if unsaid := [fact for fact in wanted.declares if fact not in preset]:
        raise UsageError(f"{kind} '{name}' does not say its {unsaid[0]}; e.g. @register('{kind}', '{name}', {unsaid[0]}=('.ext',))")


def register(kind: str, name: str, paper: str = "", *, version: int = 1, **preset: Any) -> Callable[[T], T]:
    """Decorator: `@register("solver", "heun", "arXiv 2206.00364")` above a frozen dataclass, `@register("data", "mine")` above a function.

    Presets fix fields, so one class may serve several names (a field `name` is told the registered one); of a function they are facts
    that it declares. `version` is that of a function: a class has its own.
    **Raises**: UsageError for an unknown kind, what lacks something that the kind needs, or a name that is taken.
    """
    wanted = _kind(kind)

    def add(target: T) -> T:
        _check(kind, name, target, preset)
        own = dict(preset)
        if "name" in getattr(target, "__dataclass_fields__", ()) and wanted.configured:
            own["name"] = name
        taken = _entries.get((kind, name))
        there = getattr(target, "__qualname__", ""), getattr(target, "__module__", "")
        again = taken is not None and (getattr(taken.target, "__qualname__", ""), getattr(taken.target, "__module__", "")) == there
        if taken is not None and not (again and taken.preset == own):
            raise UsageError(f"{kind} '{name}' is registered already by {taken.target.__module__}; choose another name")
        _entries[kind, name] = Entry(kind, name, paper, target, own, version)
        return target

    return add


def _import(room: str) -> None:
    """A module of ours, and all modules of a package. Once."""
    if room in _loaded:
        return
    _loaded.add(room)
    try:
        found = importlib.import_module(room)
        for module in pkgutil.walk_packages(getattr(found, "__path__", ()), f"{room}."):
            importlib.import_module(module.name)
    except BaseException:  # the next to ask is told why, too
        _loaded.discard(room)
        raise


def _import_plugin(what: str, load: Callable[[], Any]) -> None:
    try:
        load()
    except UsageError as err:
        raise UsageError(f"{what}: {err}") from err
    except Exception as err:
        told = str(err) or type(err).__name__
        raise UsageError(f"{what} fails to import: {told}; fix or uninstall it") from err


def load_module(name: str) -> None:
    """Import a module that registers plugins, by its name on the import path. **Raises**: UsageError where that fails."""
    if name not in _modules:
        if importlib.util.find_spec(name.partition(".")[0]) is None and Path(f"{name}.py").is_file():
            sys.path.append(str(Path.cwd()))  # where a script does not look by itself
        _import_plugin(f"plugins={name}", lambda: importlib.import_module(name))
        _modules[name] = getattr(importlib.import_module(name), "__file__", None) or ""


def load_modules(names: str) -> None:
    """`load_module` for names that commas part, as `plugins=` has them."""
    for name in filter(None, names.split(",")):
        load_module(name)


def modules() -> dict[str, str]:
    """The modules that `plugins=` named, and their files."""
    return dict(_modules)


def _load_installed() -> None:
    """Every plugin of an installed distribution, once."""
    for group in GROUPS:
        if group not in _loaded:
            _loaded.add(group)
            try:
                for point in entry_points(group=group):
                    _import_plugin(f"plugin '{point.name}' ({point.value})", point.load)
            except BaseException:
                _loaded.discard(group)
                raise


@cache
def plugin_folders() -> tuple[Path, ...]:
    """The folders `conf` beside the modules that installed plugins name: their suites and models."""
    found = []
    for point in (point for group in GROUPS for point in entry_points(group=group)):
        package = importlib.util.find_spec(point.value.partition(":")[0].partition(".")[0])
        places = () if package is None else package.submodule_search_locations or ()
        found += [Path(place) / "conf" for place in places]
    return tuple(folder for folder in found if folder.is_dir())


def load(kinds: Iterable[str] = tuple(KINDS)) -> None:
    """Import what registers plugins of these kinds: rooms of ours, and every installed plugin."""
    for kind in kinds:
        for room in _kind(kind).rooms:
            _import(room)
    _load_installed()


def entries(kind: str) -> dict[str, Entry]:
    """All plugins of a kind, by name."""
    load([kind])
    return {name: e for (k, name), e in sorted(_entries.items()) if k == kind}


def known(kind: str, name: str) -> bool:
    """Whether a plugin of this kind has this name."""
    load([kind])
    return (kind, name) in _entries


def get(kind: str, name: str) -> Entry:
    """The plugin registered under a name. **Raises**: UsageError with near misses."""
    if not known(kind, name):
        raise UsageError(f"unknown {_kind(kind).called or kind} '{name}'{near_misses(name, list(entries(kind)))}")
    return _entries[kind, name]


def made(kind: str) -> dict[str, Any]:
    """The default instance of every plugin of a kind, by name."""
    return {name: entry.make() for name, entry in entries(kind).items()}
