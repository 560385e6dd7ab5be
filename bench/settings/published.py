"""Published settings of methods: for each data set a file of conf/settings, with where each number was read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.settings.files import CONF, load
from fewstep.errors import UsageError, near_misses

FIELDS = ("options", "source", "but", "none")
HEAD = ("data",)  # the keys of a file that are no methods


@dataclass(frozen=True)
class Published:
    """A method's settings on a data set. `none` says why there are no published ones, of which `options` are not then; `but` says in what
    ours stay different, `source` where the numbers were read, or those that stand in their place."""

    options: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    but: str = ""
    none: str = ""


def _plain(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def _read(path: Path) -> dict[str, Published]:
    """**Raises**: UsageError naming the file and the method whose entry is none."""
    found: dict[str, Published] = {}
    for method, entry in load(path).items():
        if method in HEAD:
            continue
        unknown = [key for key in entry if key not in FIELDS] if isinstance(entry, dict) else ["?"]
        if unknown:
            raise UsageError(f"{path}: settings of {method} are a mapping of {', '.join(FIELDS)}, got {', '.join(unknown)}")
        found[method] = Published(**entry)
        if not (found[method].source if found[method].options or not found[method].none else found[method].none):
            raise UsageError(f"{path}: settings of {method} have no source; say where they were read, or why there are none (none: ...)")
    return found


def settings_named(name: str) -> dict[str, Published]:
    """The settings of a file of conf/settings by method. **Raises**: UsageError with near misses."""
    path = CONF / "settings" / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.yaml"))
        raise UsageError(f"unknown settings '{name}'{near_misses(name, known)}")
    return _read(path)


def settings_for(data: str) -> dict[str, Published]:
    """The settings of the file that names this data set, up to case and punctuation; nothing where no file does."""
    for path in sorted((CONF / "settings").glob("*.yaml")):
        if _plain(data) in {_plain(name) for name in load(path)["data"]}:
            return _read(path)
    return {}


def options_for(data: str) -> dict[str, dict[str, Any]]:
    """The options of every method that has settings on a data set."""
    return {method: dict(found.options) for method, found in settings_for(data).items()}


DEFAULTS = "its defaults, which are for trainings of minutes"


def told(method: str, data: str) -> str:
    """In one line which settings a method has on a data set where no suite says other ones."""
    found = settings_for(data).get(method)
    if found is None:
        return f"{data} has no published settings of {method}: it has {DEFAULTS} (suite=NAME has others)"
    options = _shown(found.options)
    if found.none:
        instead = f"{options} ({found.source})" if found.options else DEFAULTS
        return f"no published settings of {method} on {data}: {found.none}; used instead: {instead}"
    but = f"; but {found.but}" if found.but else ""
    return f"{method} has its published settings on {data}: {options} ({found.source}){but}"


def untold(suite: str, budget: str, methods: Iterable[str], data: str) -> list[str]:
    """In a line each what a suite's methods have for which it has no settings, on a data set for which some are published."""
    if not settings_for(data):
        return []
    under = f" under budget={budget}" if budget else ""
    return [
        f"suite {suite}{under} has no settings of {method}: it has {DEFAULTS} (settings: NAME has published ones)" for method in methods
    ]


def telling(say: Callable[[str], None], lines: Sequence[str]) -> Callable[[str], None]:
    """`say` for a training whose command does not show its settings: what it says first comes after these lines. Where nothing is trained
    nothing is told."""
    lines = list(lines)

    def saying(text: str) -> None:
        while lines:
            say(lines.pop(0))
        say(text)

    return saying


def _shown(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in options.items())
