"""python -m bench.ls: everything that is registered, and what suites and models there are.

    python -m bench.ls                 every kind with its names
    python -m bench.ls kind=metric     one kind, with what each is and its paper
    python -m bench.ls name=sfd        one entry: its fields and defaults, version, paper, and what it needs
    python -m bench.ls plugins=mine    ... with what the module mine registers

Suites and models are listed as kinds, too.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from bench.settings.cli import guarded
from bench.settings.compose import GROUPS
from bench.settings.files import choices, path_of, text_of
from bench.settings.overrides import split
from fewstep.errors import UsageError, near_misses
from fewstep.plugins import KINDS, Entry, entries, load_modules

WIDTH = 100
FIELDS = ("kind", "name", "plugins")


def _first_line(doc: str | None) -> str:
    line = (doc or "").strip().splitlines()[0] if doc else ""
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."


def _about(group: str, name: str) -> str:
    """The comment that a configuration file begins with."""
    lines = text_of(path_of(group, name)).splitlines()
    return lines[0].removeprefix("# ") if lines and lines[0].startswith("#") else ""


def listing(kind: str) -> list[tuple[str, str, str]]:
    """(name, what it is, paper) of everything of a kind. **Raises**: UsageError for an unknown kind."""
    if kind in GROUPS:
        return [(name, _first_line(_about(kind, name)), "") for name in choices(kind)]
    if kind not in KINDS:
        raise UsageError(f"unknown kind '{kind}'{near_misses(kind, [*KINDS, *GROUPS])}")
    return [(e.name, _first_line(inspect.getdoc(e.target)), e.paper) for e in entries(kind).values()]


def _one(kind: str) -> str:
    headers = [header for header, column in zip(("name", "what", "paper"), zip(*listing(kind))) if any(column)]
    lines = [[part for part, column in zip(line, zip(*listing(kind))) if any(column)] for line in listing(kind)]
    return f"{kind}\n{tabulate(lines, headers=headers, tablefmt='simple')}\n"


def _all() -> str:
    lines = [(kind, KINDS[kind].what if kind in KINDS else "", ", ".join(name for name, *_ in listing(kind))) for kind in (*KINDS, *GROUPS)]
    told = [f"{kind}{f' ({what})' if what else ''}\n    {names}" for kind, what, names in lines]
    return "\n".join([*told, "", "kind=NAME lists one kind with papers, name=NAME explains one entry"])


def needs(made: Any) -> list[str]:
    """What an entry needs beside its fields: features, the teacher's solutions, weights files."""
    found = [f"the features of {extractor}"] if (extractor := getattr(made, "extractor", None)) else []
    found += ["the teacher's own solutions"] if getattr(made, "needs_teacher", False) else []
    return found + [f"{file.name} ({file.url})" for file in getattr(made, "files", ())]


def explained(entry: Entry) -> str:
    """One entry in full: what it is, version, paper, fields with defaults, and what it needs."""
    lines = [
        f"{entry.kind} {entry.name}, version {entry.version}",
        f"paper: {entry.paper or 'none'}",
        "",
        inspect.getdoc(entry.target) or "",
    ]
    if entry.fields:
        lines += ["", "fields and defaults:", *(f"    {name}: {value!r}" for name, value in entry.fields.items() if name != "version")]
    configured: Mapping[str, Any] | Any = entry.make() if KINDS[entry.kind].configured else None
    if wanted := needs(configured):
        lines += ["", f"needs: {'; '.join(wanted)}"]
    return "\n".join(lines)


def _named(name: str) -> str:
    """Every entry of a name, whatever its kind."""
    found = [entry for kind in KINDS for entry in entries(kind).values() if entry.name == name]
    groups = [group for group in GROUPS if name in choices(group)]
    if not found and not groups:
        known = sorted({entry.name for kind in KINDS for entry in entries(kind).values()})
        raise UsageError(f"nothing is registered as '{name}'{near_misses(name, known)}")
    told = [explained(entry) for entry in found]
    return "\n\n".join([*told, *(f"{group} {name}\n\n{text_of(path_of(group, name))}" for group in groups)])


def main(args: Sequence[str]) -> int:
    def run() -> int:
        if {"-h", "--help"} & set(args):
            print(__doc__)
            return 0
        given = dict(split(args))
        for key in given:
            if key not in FIELDS:
                raise UsageError(f"unknown field '{key}'{near_misses(key, FIELDS)}")
        load_modules(given.get("plugins", ""))
        print(_named(given["name"]) if "name" in given else _one(given["kind"]) if "kind" in given else _all())
        return 0

    return guarded(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
