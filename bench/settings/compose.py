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
from bench.settings.files import CONF, SUFFIXES, folders, is_path, load, path_of, plain
from bench.settings.overrides import apply, split
from bench.settings.weights import model_of_weights
from fewstep.errors import UsageError
from fewstep.nets.readers.hub import is_repository, listed
from fewstep.plugins import load_modules

GROUPS = ("suite", "model")
NOISE = "noise"  # a field of suites and of commands that sample
CHOSEN = "chosen"  # what the member of a group is called while a configuration is composed: it may come from anywhere


def groups_of(name: str) -> dict[str, str | None]:
    """The configuration groups that conf/<name>.yaml takes a member of, and which it takes by itself."""
    items = load(CONF / f"{name}.yaml").get("defaults") or []
    return {group: member for item in items if isinstance(item, dict) for group, member in item.items()}


def configure(name: str, args: Sequence[str]) -> dict[str, Any]:
    """The configuration conf/<name>.yaml with `key=value` overrides (`+suite=x` and `suite=x` mean the same), as plain data.

    Imports the modules of `plugins=`, and finds suites and models in `conf=` too. A noise that the suite says holds where none is typed.
    **Raises**: UsageError for an unknown group member, field or value, with the near misses.
    """
    pairs, own = split(args), groups_of(name)
    typed = dict(pairs)
    load_modules(typed.get("plugins", ""))
    folders(typed.get("conf", ""))  # which says that there is no such one
    chosen = {group: member for group, member in {**own, **typed}.items() if group in own and member is not None}
    if typed.get("budget") and "suite" not in chosen:
        raise UsageError(f"budget={typed['budget']} is a suite's; add suite=NAME, or leave it out")
    here = load(CONF / f"{name}.yaml").get("device") or ""  # of a command that computes; the others are about any device
    asked = {"budget": typed.get("budget", ""), "device": typed.get("device", here)}
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
    if NOISE in config and NOISE not in typed and isinstance(config.get("suite"), dict):
        config[NOISE] = config["suite"].get(NOISE, config[NOISE])
    return config


def group_config(group: str, name: str, conf: str = "", budget: str = "", device: str = "") -> dict[str, Any]:
    """The values of a suite or a model, by name or by path; paths in its file are meant from the file's folder.

    A model may be weights, too: any file that is no YAML. A suite is under its `budget`, or the one that is the device's (see
    `bench.settings.budgets.default_budget`).
    **Raises**: UsageError with near misses, or naming the file and the line that is wrong.
    """
    found = _group_config(group, name, conf)
    return with_budget(found, budget, device) if group == "suite" else found


def _group_config(group: str, name: str, conf: str) -> dict[str, Any]:
    if group == "model" and is_path(name) and Path(name).suffix not in SUFFIXES:
        return model_of_weights(name)
    path = path_of(group, name, conf)
    found = load(path)
    if CONF in path.parents:  # ours mean the folder where the command runs
        return found
    return {"name": path.stem, **_from_here(found, path.parent)}


def _placed(value: Any, folder: Path, hub: bool = True) -> Any:
    """A path, or each of a list, as it is meant from a folder. A name of the `hub`, or of what can be fetched, that is no path there stays
    what it is."""
    if isinstance(value, list):
        return [_placed(part, folder, hub) for part in value]
    if not isinstance(value, str) or not is_path(value):
        return value
    if hub and (is_repository(value) or listed(value)[1]) and not (folder / value).exists():
        return value
    return os.path.join(folder, os.path.normpath(value))


def _from_here(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The values with paths meant from a folder: of a suite's models and its students' weights (of blocks and budgets, too), of a model's
    weights, data and statistics. Students' weights and statistics are names of fetched files, too, unless they begin with a dot."""
    found = {key: _placed(value, folder, key != "data") if key in ("model", "data", "weights") else value for key, value in config.items()}
    if _dotted(found.get("statistics")):
        found["statistics"] = _placed(found["statistics"], folder)
    if isinstance(options := found.get("options"), dict):
        found["options"] = {name: _with_weights(own, folder) for name, own in options.items()}
    if isinstance(blocks := found.get("blocks"), list):
        found["blocks"] = [_from_here(block, folder) if isinstance(block, dict) else block for block in blocks]
    if isinstance(budgets := found.get("budgets"), dict):
        found["budgets"] = {name: _from_here(own, folder) if isinstance(own, dict) else own for name, own in budgets.items()}
    return found


def _dotted(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(("./", "../"))


def _with_weights(options: Any, folder: Path) -> Any:
    own = isinstance(options, dict) and _dotted(options.get("weights"))
    return {**options, "weights": _placed(options["weights"], folder)} if own else options
