"""Models that are given as weights: a file, the folder of a training, a pipeline of diffusers or its name on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.settings.files import CONF, WEIGHTS, load
from fewstep.errors import UsageError
from fewstep.nets.readers.hub import is_repository, pipeline_of
from fewstep.plugins import get, known

OF_USE = ("data", "augment", "task", "statistics")  # what a model file says of weights beside what they are


def model_of_weights(name: str) -> dict[str, Any]:
    """The configuration of a model that is weights: the file, the folder where a training left one, or a repository of the hub; what is
    done with it as the model file of ours says that names them, else as the data set does.

    **Raises**: UsageError for weights that are not here and in no model of ours, a folder with none or several, and a card that does not
    say what data they are of.
    """
    from fewstep.nets.loading import described  # which needs torch, as no other configuration does
    from fewstep.nets.readers.card import here, how_to_get

    told, place = _naming(Path(name).name), here(name)
    if place is None and not told:
        told = f"(looked from {Path.cwd()}); give the path of a model, or a name"
        raise UsageError(f"model={name} does not exist {f'here; {how_to_get(name)}' if is_repository(name) else told}")
    if place is None:  # whoever loads it says how to get it
        return {"name": _called(Path(name)), **told, "weights": name}
    file = _weights_in(place, name)
    card = described(file)
    if not isinstance(card.get("data"), str):
        raise UsageError(f"{file} does not say what data it is of; write a model file with name, data and weights")
    same = told if Path(told.get("data", "")).name == Path(card["data"]).name else {}
    data = {"data": card.get("data_path", same.get("data", card["data"]))}
    weights = name if place != Path(name) else str(file)
    return {"name": _called(Path(weights)), **_usual(card["data"]), **same, **data, "weights": weights}


def _called(path: Path) -> str:
    """What a model of these weights is called: their name without the suffix, which a folder or a repository has none of."""
    return path.name if path.is_dir() or is_repository(str(path)) else path.stem


def _weights_in(place: Path, name: str) -> Path:
    """The file itself, a pipeline's folder, or the one file that a training left in its folder. **Raises**: UsageError."""
    files = sorted(place.glob(f"*{WEIGHTS}")) if place.is_dir() and not pipeline_of(place) else [place]
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise UsageError(f"model={name} holds {found} of weights, and one is needed; give the file: model={name}/NAME{WEIGHTS}")
    return files[0]


def _naming(file: str) -> dict[str, Any]:
    """What the model of ours says that names weights of this name; nothing where none does, or several."""
    models = [load(path) for path in sorted((CONF / "model").glob("*.yaml"))]
    found = [model for model in models if Path(str(model.get("weights"))).name == file]
    return {key: found[0][key] for key in OF_USE if key in found[0]} if len(found) == 1 else {}


def _usual(data: str) -> dict[str, Any]:
    """How trainings on a data set of a name see it, where the data set says so."""
    augment = get("data", data).preset.get("augment") if known("data", data) else None
    return {} if augment is None else {"augment": augment}
