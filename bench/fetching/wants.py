"""What a suite needs of other people's files: its data, its weights, the networks of its metrics and losses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.fetching.folder import present
from bench.fetching.getting import read_by_data
from bench.jobs.suite import expand
from bench.settings.compose import group_config
from fewstep.assets import Piece, pieces
from fewstep.errors import UsageError
from fewstep.plugins import known
from metrics import declared, metric_named


def _texts(value: Any) -> set[str]:
    """The words in all texts of nested values, and the names of paths."""
    if isinstance(value, Mapping):
        return {word for pair in value.items() for part in pair for word in _texts(part)}
    if isinstance(value, list | tuple):
        return {word for part in value for word in _texts(part)}
    return {*re.findall(r"\w+", value), Path(value).name} if isinstance(value, str) else set()


def wanted(config: Mapping[str, Any]) -> list[Piece]:
    """The pieces that the suite of a configuration needs, wherever they are."""
    told = config["suite"]
    if "blocks" not in told:  # a study
        told, cells = {**told, "model": told.get("model", [])}, ()
    else:
        cells = expand(told, 0, "philox").cells
    models = told["model"] if isinstance(told["model"], list) else [told["model"]]
    made = [group_config("model", name, config["conf"]) for name in models]
    metrics = [declared(metric_named(name)) for name in {n for c in cells for n in c.metrics} if known("metric", name)]
    names = {
        "data": {str(model.get("data")) for model in made},
        "extractor": {metric.extractor for metric in metrics},
        "distance": {word for cell in cells for word in _texts(cell.loss)} | _texts(told.get("options", {})),
    }
    files = {file.name for metric in metrics for file in metric.files} | {Path(str(model.get("weights"))).name for model in made}
    return [piece for piece in pieces() if _serves(piece, names, files)]


def _serves(piece: Piece, names: Mapping[str, set[Any]], files: set[str]) -> bool:
    by_name = any(names.get(kind, set()) & set(own) for kind, own in piece.serves.items())
    return by_name or any(file.name in files for file in piece.files)


def absent(found: Iterable[Piece]) -> list[Piece]:
    """Those of which nothing is here."""
    return [piece for piece in found if not present(piece) and not _read(piece)]


def _read(piece: Piece) -> bool:
    """Whether its data set reads other files of the same images; of broken ones it says so itself when it is asked."""
    try:
        return bool(read_by_data(piece))
    except UsageError:
        return True
