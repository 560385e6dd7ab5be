"""`key=value` arguments: what each value means, set in a configuration of plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString, Sweep
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from fewstep.errors import UsageError, near_misses

OPEN = "suite.options."  # a method's options: any of its fields may be added, and the registry checks them
LITERAL = ("out", "grid", "method", "solver", "end", "device")  # text whose default is null
FOLDERS = ("results", "out", "conf")
KINDS = {bool: "true or false", int: "an integer", float: "a number", str: "text"}


def split(args: Sequence[str]) -> list[tuple[str, str]]:
    """Arguments as pairs; `+key=value` and `key=value` mean the same. **Raises**: UsageError for one that is no pair."""
    pairs = []
    for arg in args:
        key, equals, value = arg.lstrip("+").partition("=")
        if not equals or not key:
            raise UsageError(f"argument '{arg}' is not of the form key=value; type e.g. {key or 'suite'}=NAME, or --help")
        pairs.append((key, value))
    return pairs


def _inside(node: Any, part: str, seen: Sequence[str]) -> Any:
    """The key of a part in a dict or list. **Raises**: UsageError naming the near misses."""
    keys = list(node) if isinstance(node, dict) else [str(i) for i in range(len(node))] if isinstance(node, list) else []
    if part not in keys:
        where = ".".join(seen)
        raise UsageError(f"unknown field '{part}'{f' in {where}' if where else ''}{near_misses(part, keys)}")
    return part if isinstance(node, dict) else int(part)


def _check_type(key: str, old: Any, new: Any, typed: str) -> None:
    """A value must be of its default's type (an integer may stand for a float)."""
    if isinstance(new, float) and not math.isfinite(new):
        raise UsageError(f"{key} must be a finite number, got '{typed}'" + (f"; e.g. {key}={old}" if isinstance(old, int | float) else ""))
    if old is None or isinstance(old, dict | list):
        return
    expected = (int, float) if isinstance(old, float) else type(old)
    if not isinstance(new, expected) or (isinstance(new, bool) and not isinstance(old, bool)):
        raise UsageError(f"{key} must be {KINDS.get(type(old), type(old).__name__)}, got '{typed}'; e.g. {key}={str(old).lower()}")


def _plain(value: Any) -> Any:
    """A parsed value without the parser's own types. **Raises**: ValueError for several values where one belongs."""
    if isinstance(value, dict):
        return {str(_plain(k)): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, QuotedString):
        return value.text
    if isinstance(value, Sweep | set):
        raise ValueError("it stands for several values")
    return value


def _parsed(key: str, old: Any, typed: str) -> Any:
    """The value that Hydra's grammar reads. **Raises**: UsageError where it reads none."""
    try:
        return _plain(OverridesParser.create().parse_override(f"value={typed}").value())
    except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as err:
        if isinstance(old, bool | int | float):
            raise UsageError(f"{key} must be {KINDS[type(old)]}, got '{typed}'; e.g. {key}={str(old).lower()}") from None
        why = (str(err).splitlines() or [type(err).__name__])[0]
        like = "write text in quotes, lists as [a, b] and mappings as {key: value}"
        raise UsageError(f"{key}: the value '{typed}' cannot be read ({why}); {like}") from None


def _value(key: str, old: Any, typed: str) -> Any:
    """What was typed, as the value of a field with this default: text as it stands, anything else by Hydra's grammar.

    **Raises**: UsageError for a folder that is not named, or that begins with the `~` that the shell left as it is.
    """
    if key in FOLDERS and old and not typed:
        raise UsageError(f"{key} names a folder or file and is empty; e.g. {key}={old}")
    if key in FOLDERS and (typed == "~" or typed.startswith("~/")):
        raise UsageError(f"{key}={typed}: '~' stands for no folder here; write $HOME{typed[1:]}, or ./{typed} for one of that name")
    if isinstance(old, str) or (old is None and key in LITERAL):
        return None if old is None and typed == "null" else typed
    return _parsed(key, old, typed)


def _merged(old: Any, new: Any) -> Any:
    """A mapping goes into a mapping; anything else takes the place of what was there."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    return {**old, **{k: _merged(old.get(k), v) for k, v in new.items()}}


def apply(config: dict[str, Any], key: str, typed: str) -> None:
    """Set one field of a configuration. **Raises**: UsageError for an unknown field or a value it does not take."""
    parts, node = key.split("."), config
    added = key.startswith(OPEN)
    for i, part in enumerate(parts[:-1]):
        if added and isinstance(node, dict) and not isinstance(node.get(part), dict) and i > 0:
            node[part] = {}  # an option of a method that the suite does not name
        node = node[_inside(node, part, parts[:i])]
    last = parts[-1]
    if added and isinstance(node, dict):
        node[last] = _merged(node.get(last), _parsed(key, None, typed))
        return
    at = _inside(node, last, parts[:-1])
    value = _value(key, node[at], typed)
    _check_type(key, node[at], value, typed)
    node[at] = _merged(node[at], value)
