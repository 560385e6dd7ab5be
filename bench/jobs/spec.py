"""A job as data: what a process that knows nothing else than the store and the plugins needs to do it. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.store.addresses import canonical
from bench.store.artefacts import Store
from fewstep.errors import UsageError

VERSION = 1  # raised when jobs are described in another way
ADVICE = "python -m bench.job +suite=NAME out=jobs.jsonl"
PARAMS = {"suite": dict, "model": dict, "seed": int, "noise": str, "names": list, "plugins": list}  # of every job, and what they are
ROWS, TIMING = "rows", "timing"  # the kinds that give rows; the others are kinds of artefacts


@dataclass(frozen=True)
class Spec:
    """One job. `kind` and `key` are the address of the artefact that it makes, or say that it gives rows (`rows`, `timing`).

    `params` describe a suite of one cell as a row's `config` does, with the plugins that it needs; every job of a cell has the same, and
    the address says which one it is. `inputs` are the addresses (kind, key) of the artefacts that must be there.
    """

    kind: str
    key: str
    params: Mapping[str, Any]
    inputs: tuple[tuple[str, str], ...] = ()
    version: int = VERSION

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.key}"

    @property
    def makes_rows(self) -> bool:
        return self.kind in (ROWS, TIMING)

    def missing(self, store: Store) -> list[str]:
        """The inputs that are not in the store."""
        return [f"{kind}-{key}" for kind, key in self.inputs if not store.has(kind, key)]

    def text(self) -> str:
        """As JSON, in one line."""
        return canonical(vars(self)).decode()


def read_spec(text: str, of: str | Path = "the job") -> Spec:
    """The job that a line of JSON describes. **Raises**: UsageError for text that is none, and for another version."""
    try:
        told = json.loads(text)
        version = told["version"]
        if version != VERSION:
            raise UsageError(f"{of} is of version {version}, and here jobs are of version {VERSION}; plan it again: {ADVICE}")
        found = Spec(told["kind"], told["key"], told["params"], tuple((kind, key) for kind, key in told["inputs"]), version)
        absent = [name for name in PARAMS if name not in found.params]
        if absent or not all(isinstance(word, str) for pair in ((found.kind, found.key), *found.inputs) for word in pair):
            raise TypeError(f"its params lack {', '.join(absent)}" if absent else "kinds and keys are names")
        for name, kind in PARAMS.items():
            if not isinstance(found.params[name], kind):
                raise TypeError(f"its {name} is {found.params[name]!r}")
        return found
    except (ValueError, KeyError, TypeError) as err:
        raise UsageError(f"{of} is no job ({type(err).__name__}: {err}); list some with {ADVICE}") from None
