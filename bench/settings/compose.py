"""The configuration of a command: its own file, the members of groups that it takes, and what was typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from bench.settings.files import CONF, check_choice, load, plain
from bench.settings.overrides import apply, split
from fewstep.errors import UsageError

GROUPS = ("suite", "model")


def groups_of(name: str) -> dict[str, str | None]:
    """The configuration groups that conf/<name>.yaml takes a member of, and which it takes by itself."""
    items = load(CONF / f"{name}.yaml").get("defaults") or []
    return {group: member for item in items if isinstance(item, dict) for group, member in item.items()}


def configure(name: str, args: Sequence[str]) -> dict[str, Any]:
    """The configuration conf/<name>.yaml with `key=value` overrides (`+suite=x` and `suite=x` mean the same), as plain data.

    **Raises**: UsageError for an unknown group member, field or value, with the near misses.
    """
    pairs, own = split(args), groups_of(name)
    chosen = {key: value for key, value in pairs if key in own}
    for group, member in {**own, **chosen}.items():
        if member is not None:
            group_config(group, member)  # which says what is wrong with the file, and in which line
    members = [f"{group}='{member.replace(chr(39), chr(92) + chr(39))}'" for group, member in chosen.items()]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base=None):
            config = plain(compose(name, overrides=members))
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, UnicodeDecodeError) as err:
        raise UsageError(f"conf/{name}.yaml with {chosen}: {str(err).splitlines()[0]}") from None
    for key, value in pairs:
        if key not in own:
            apply(config, key, value)
    return config


def group_config(group: str, name: str) -> dict[str, Any]:
    """The values of conf/<group>/<name>.yaml. **Raises**: UsageError with near misses, or naming the file and the line that is wrong."""
    check_choice(group, name)
    return load(CONF / group / f"{name}.yaml")
