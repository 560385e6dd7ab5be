"""The configuration of a command: its own file, the members of groups that it takes, and what was typed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from bench.settings.budgets import with_budget
from bench.settings.files import CONF, SUFFIXES, WEIGHTS, folders, is_path, load, path_of, plain
from bench.settings.overrides import apply, split
from fewstep.errors import UsageError
from fewstep.nets.readers.hub import listed
from fewstep.plugins import load_modules

GROUPS = ("suite", "model")
CHOSEN = "chosen"  # what the member of a group is called while a configuration is composed: it may come from anywhere


def groups_of(name: str) -> dict[str, str | None]:
    """The configuration groups that conf/<name>.yaml takes a member of, and which it takes by itself."""
    items = load(CONF / f"{name}.yaml").get("defaults") or []
    return {group: member for item in items if isinstance(item, dict) for group, member in item.items()}


def configure(name: str, args: Sequence[str]) -> dict[str, Any]:
    """The configuration conf/<name>.yaml with `key=value` overrides (`+suite=x` and `suite=x` mean the same), as plain data.

    Imports the modules of `plugins=`, and finds suites and models in `conf=` too.
    **Raises**: UsageError for an unknown group member, field or value, with the near misses.
    """
    pairs, own = split(args), groups_of(name)
    typed = dict(pairs)
    load_modules(typed.get("plugins", ""))
    folders(typed.get("conf", ""))  # which says that there is no such one
    chosen = {group: member for group, member in {**own, **typed}.items() if group in own and member is not None}
    if typed.get("budget") and "suite" not in chosen:
        raise UsageError(f"budget={typed['budget']} is a suite's; add suite=NAME, or leave it out")
    asked = {"budget": typed.get("budget", ""), "device": typed.get("device", "cpu")}
    for group, member in chosen.items():
        ConfigStore.instance().store(group=group, name=CHOSEN, node=group_config(group, member, typed.get("conf", ""), **asked))
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base=None):
            config = plain(compose(name, overrides=[f"{group}={CHOSEN}" for group in chosen]))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as err:
        raise UsageError(f"conf/{name}.yaml with {chosen}: {str(err).splitlines()[0]}") from None
    for key, value in pairs:
        if key not in own:
            apply(config, key, value)
    return config


def group_config(group: str, name: str, conf: str = "", budget: str = "", device: str = "cpu") -> dict[str, Any]:
    """The values of a suite or a model, by name or by path; paths in its file are meant from the file's folder.

    A model may be weights, too: any file that is no YAML. A suite is under its `budget`, or the one that is the device's.
    **Raises**: UsageError with near misses, or naming the file and the line that is wrong.
    """
    found = _group_config(group, name, conf)
    return with_budget(found, budget, device) if group == "suite" else found


def _group_config(group: str, name: str, conf: str) -> dict[str, Any]:
    path = path_of(group, name, conf)
    if group == "model" and path.suffix not in SUFFIXES:
        return model_of_weights(path)
    found = load(path)
    if CONF in path.parents:  # ours mean the folder where the command runs
        return found
    return {"name": path.stem, **_from_here(found, path.parent)}


def _from_here(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The values with paths meant from a folder: of a suite's models (under each budget, too), of a model's weights and data. Weights that
    can be fetched are looked for there, too, and where they are not the name stays as it is."""

    def placed(value: Any) -> Any:
        if isinstance(value, list):
            return [placed(part) for part in value]
        if not isinstance(value, str) or not is_path(value):
            return value
        own = os.path.join(folder, os.path.normpath(value))
        return value if listed(value)[1] and not os.path.exists(own) else own

    found = {key: placed(value) if key in ("model", "data", "weights") else value for key, value in config.items()}
    budgets = found.get("budgets")
    if isinstance(budgets, dict):
        found["budgets"] = {name: _from_here(own, folder) if isinstance(own, dict) else own for name, own in budgets.items()}
    return found


def model_of_weights(path: Path) -> dict[str, Any]:
    """The configuration of a model that is weights: the file, or the folder where a training left one.

    **Raises**: UsageError for a folder with no weights or several, and for a card that does not say what data they are of.
    """
    from fewstep.nets.loading import described  # which needs torch, as no other configuration does
    from fewstep.nets.readers.hub import pipeline_of

    files = sorted(path.glob(f"*{WEIGHTS}")) if path.is_dir() and not pipeline_of(path) else [path]
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise UsageError(f"model={path} holds {found} of weights, and one is needed; give the file: model={path}/NAME{WEIGHTS}")
    card = described(files[0])
    if not isinstance(card.get("data"), str):
        raise UsageError(f"{files[0]} does not say what data it is of; write a model file with name, data and weights")
    return {"name": files[0].stem, "data": card.get("data_path", card["data"]), "weights": str(files[0])}
