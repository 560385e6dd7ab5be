"""The plugin registry: solvers, distillers and the trainings of the shipped networks, by name.

A method registers itself with a decorator when its module is imported; modules come from this package's folders and from installed
distributions through the entry-point group `fewstep.methods` (each entry point names a module).
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, TypeVar

from fewstep.errors import UsageError, near_misses

GROUP = "fewstep.methods"
KINDS = ("solver", "distiller", "pretrain")
PACKAGES = ("methods.solvers", "methods.distill", "methods.pretrain")
T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Entry:
    """One registered method: a frozen dataclass whose constructor arguments are its configuration."""

    kind: str
    name: str
    paper: str
    cls: type
    preset: Mapping[str, Any]

    @property
    def fields(self) -> dict[str, Any]:
        """Configurable fields and their defaults."""
        own = {f.name: f.default for f in dataclasses.fields(self.cls) if f.init}
        return {**own, **self.preset}

    def make(self, **options: Any) -> Any:
        """An instance. **Raises**: UsageError for an unknown field or a value the class refuses."""
        for key in options:
            if key not in self.fields:
                raise UsageError(f"{self.kind} '{self.name}' has no field '{key}'{near_misses(key, list(self.fields))}")
            what = f"{self.kind} '{self.name}': {key}"
            _check_type(what, self.fields[key], options[key])
            if self.kind == "solver" and isinstance(options[key], float) and math.isnan(options[key]):  # others say more of their bounds
                raise UsageError(f"{what} must be a number like {self.fields[key]!r}, got nan")
        return self.cls(**{**self.preset, **options})


def _check_type(what: str, default: Any, value: Any) -> None:
    """A value is of its default's type; an integer may stand for a float."""
    allowed = (int, float) if isinstance(default, float) else type(default)
    if not isinstance(value, allowed) or (isinstance(value, bool) and not isinstance(default, bool)):
        raise UsageError(f"{what} must be like {default!r}, got {value!r}")


_entries: dict[tuple[str, str], Entry] = {}
_loaded: list[str] = []


def register(kind: str, name: str, paper: str, **preset: Any) -> Callable[[T], T]:
    """Class decorator: `@register("solver", "heun", "arXiv 2206.00364")`. Presets fix fields, so one class may serve several names.

    **Raises**: UsageError for an unknown kind, a class that is not a frozen dataclass, or a name that is taken.
    """
    if kind not in KINDS:
        raise UsageError(f"unknown kind '{kind}'{near_misses(kind, list(KINDS))}")

    def add(cls: T) -> T:
        params = getattr(cls, "__dataclass_params__", None)
        if params is None or not params.frozen:
            raise UsageError(f"{kind} '{name}' must be a frozen dataclass; put @dataclass(frozen=True) below @register")
        taken = _entries.get((kind, name))
        again = taken is not None and (taken.cls.__qualname__, taken.cls.__module__) == (cls.__qualname__, cls.__module__)
        if taken is not None and not (again and taken.preset == preset):
            raise UsageError(f"{kind} '{name}' is registered already by {taken.cls.__module__}; choose another name")
        _entries[kind, name] = Entry(kind, name, paper, cls, preset)
        return cls

    return add


def load() -> None:
    """Import every method of this package and every installed plugin, once."""
    if _loaded:
        return
    for package in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            importlib.import_module(module.name)
    for point in entry_points(group=GROUP):
        try:
            point.load()
        except Exception as err:
            raise UsageError(f"plugin '{point.name}' ({point.value}) fails to import: {err}; fix or uninstall it") from err
    _loaded.append("all")


def entries(kind: str) -> dict[str, Entry]:
    """All methods of a kind, by name."""
    load()
    return {name: e for (k, name), e in sorted(_entries.items()) if k == kind}


def get(kind: str, name: str) -> Entry:
    """The method registered under a name. **Raises**: UsageError with near misses."""
    if kind not in KINDS:
        raise UsageError(f"unknown kind '{kind}'{near_misses(kind, list(KINDS))}")
    known = entries(kind)
    if name not in known:
        raise UsageError(f"unknown {kind} '{name}'{near_misses(name, list(known))}")
    return known[name]
