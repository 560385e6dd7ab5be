"""What a suite needs of other people's files: its data, its weights, the networks of its metrics and losses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.fetching.folder import present
from bench.fetching.getting import read_by_data
from bench.jobs.resolve import student_of
from bench.jobs.suite import expand, models_of
from bench.settings.compose import group_config
from fewstep.assets import Piece, pieces
from fewstep.errors import UsageError
from fewstep.nets.readers.hub import listed, snapshot
from fewstep.plugins import known
from metrics import declared, metric_named


def _texts(value: Any) -> set[str]:
    """The words in all texts of nested values, and the names of paths."""
    if isinstance(value, Mapping):
        return {word for pair in value.items() for part in pair for word in _texts(part)}
    if isinstance(value, list | tuple):
        return {word for part in value for word in _texts(part)}
    return {*re.findall(r"\w+", value), Path(value).name} if isinstance(value, str) else set()


@dataclass(frozen=True)
class Names:
    """What a suite names: plugins by kind, files of its metrics, and `weights` of its models and students and their statistics, which lie
    in no place of their own, by the name of the file or folder."""

    plugins: Mapping[str, set[str]]
    files: set[str]
    weights: set[str]

    def serves(self, piece: Piece, kinds: Iterable[str]) -> bool:
        """Whether a piece is needed by a plugin of one of these kinds."""
        return any(self.plugins.get(kind, set()) & set(piece.serves.get(kind, ())) for kind in kinds)

    def weighs(self, piece: Piece) -> bool:
        """Whether it is some of the weights, or a file of a folder that is."""
        return any(self.weights & set(Path(file.name).parts) for file in piece.files)


def _elsewhere(name: str) -> bool:
    """Whether weights are where they are said to be, or in the hub's cache, and nothing has to be fetched for them."""
    return Path(name).exists() or snapshot(name) is not None


def _names(config: Mapping[str, Any]) -> Names:
    told = config["suite"]
    study = "blocks" not in told
    suite = None if study else expand(told, 0, "philox")
    cells, named = ((), ()) if suite is None else (suite.cells, filter(None, suite.models))
    trained = [] if suite is None else [cell for cell in cells if cell.trained and not student_of(cell, suite).weights_file]
    models = [group_config("model", name, config["conf"]) for name in dict.fromkeys([*models_of(told), *named])]
    metrics = [declared(metric_named(name)) for name in {n for c in cells for n in c.metrics} if known("metric", name)]
    plugins = {
        "data": {str(model.get("data")) for model in models},
        "extractor": {metric.extractor for metric in metrics if metric.extractor},
        "distance": {word for cell in trained for word in _texts(cell.loss)} | _texts(told.get("options", {})),
    }
    given = [own for own in (told.get("options") or {}).values() if isinstance(own, Mapping)]
    weights = {str(own[key]) for own in (*models, *given) for key in ("weights", "statistics") if own.get(key)}
    lying = {Path(name).name for name in weights if listed(name)[1] and not _elsewhere(name)}
    return Names(plugins, {file.name for metric in metrics for file in metric.files}, lying)


def wanted(config: Mapping[str, Any]) -> list[Piece]:
    """The pieces that the suite of a configuration can use, wherever they are."""
    names = _names(config)
    named = {piece.label for piece in pieces() for file in piece.files if file.name in names.files}
    return [piece for piece in pieces() if piece.label in named or names.serves(piece, names.plugins) or names.weighs(piece)]


def needed(config: Mapping[str, Any]) -> list[Piece]:
    """Those of which a sweep gets what is not here: all that it can use, where its data or weights are among them. A suite on
    data that come along, such as digits, does without: its rows say what they lack."""
    names, found = _names(config), wanted(config)
    own = [piece for piece in found if names.serves(piece, ("data",)) or names.weighs(piece)]
    return found if own else []


def absent(found: Iterable[Piece]) -> list[Piece]:
    """Those of which nothing is here."""
    return [piece for piece in found if not present(piece) and not _read(piece)]


def _read(piece: Piece) -> bool:
    """Whether its data set reads other files of the same images; of broken ones it says so itself when it is asked."""
    try:
        return bool(read_by_data(piece))
    except UsageError:
        return True
