"""The YAML files of the configuration: what is in them as plain data, or one line that names the file and the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fewstep.errors import UsageError, near_misses

CONF = Path(__file__).parents[1] / "conf"


def choices(group: str) -> list[str]:
    """The members of a configuration group."""
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def check_choice(group: str, name: str) -> None:
    """**Raises**: UsageError with near misses for what is no member of a group."""
    if name not in choices(group):
        raise UsageError(f"unknown {group} '{name}'{near_misses(name, choices(group))}")


def text_of(path: Path) -> str:
    """A file's text. **Raises**: UsageError for one that cannot be read or is not UTF-8."""
    try:
        data = path.read_bytes()
    except OSError as err:
        raise UsageError(f"{path} cannot be read ({err.strerror or err})") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        utf16 = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        line = 1 if utf16 else data.count(b"\n", 0, err.start) + 1
        raise UsageError(f"{path} line {line} is not UTF-8{' but UTF-16' if utf16 else ''}; save the file as UTF-8") from None


def _plain(value: Any) -> Any:
    """The value with keys that are text."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def plain(config: Any) -> dict[str, Any]:
    """An OmegaConf mapping as dicts, lists and values, keys as text."""
    return _plain(OmegaConf.to_container(config, resolve=True))


def _wrong(text: str, err: Exception) -> tuple[int, str]:
    """Where a YAML text is wrong, counted from 1, and how."""
    if isinstance(err, yaml.MarkedYAMLError):
        mark = err.problem_mark or err.context_mark
        what = " ".join(part for part in (err.context, err.problem) if part)
        return (mark.line + 1 if mark else 1), what.replace("'\\t' that cannot start any token", "a tab, where YAML takes spaces")
    if isinstance(err, yaml.reader.ReaderError):
        return text.count("\n", 0, err.position) + 1, f"the character {err.character!r} is not allowed"
    return 1, str(err).splitlines()[0] if str(err) else type(err).__name__


def load(path: Path) -> dict[str, Any]:
    """What a YAML file holds, a mapping. **Raises**: UsageError with the file and the line for anything else."""
    text = text_of(path)
    try:
        found = OmegaConf.create(text)
        values = plain(found) if OmegaConf.is_dict(found) else None
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as err:
        line, what = _wrong(text, err)
        raise UsageError(f"{path} line {line} is not valid YAML: {what}") from None
    if not values or list(values.values()) == [None]:  # a lone word is read as a key without a value
        raise UsageError(f"{path} line 1: the file must be a mapping, lines of 'key: value', and is {'empty' if not values else 'none'}")
    return values
