"""The YAML files of the configuration: what is in them as plain data, or one line that names the file and the line."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fewstep.errors import UsageError, near_misses
from fewstep.plugins import plugin_folders

WEIGHTS = ".safetensors"  # of those that a training leaves; registered readers know other formats
SUFFIXES = (".yaml", ".yml")
CONF = Path(__file__).parents[1] / "conf"


def folders(conf: str = "") -> list[Path]:
    """Where suites and models are found by name: ours, `./conf`, those of installed plugins, and the folder `conf` that a command names.

    **Raises**: UsageError where that is none.
    """
    if conf and not Path(conf).is_dir():
        raise UsageError(f"conf={conf} is no folder; it holds suite/NAME.yaml and model/NAME.yaml")
    found = [CONF, Path("conf"), *plugin_folders(), *([Path(conf)] if conf else [])]
    return [folder for folder in {path.resolve(): path for path in found}.values() if folder.is_dir()]


def is_path(name: str) -> bool:
    """Whether a group's member is given by path: `./mine.yaml`, and weights or the folder of a training as a model."""
    return "/" in name or os.sep in name or name.endswith((*SUFFIXES, WEIGHTS)) or ("." in name and Path(name).is_file())


def choices(group: str, conf: str = "") -> list[str]:
    """The members of a configuration group that have a name."""
    return sorted({p.stem for folder in folders(conf) for p in (folder / group).glob("*.yaml")})


def path_of(group: str, name: str, conf: str = "") -> Path:
    """The file of a group's member, by name or by path. **Raises**: UsageError with near misses, or where a name has two files."""
    if is_path(name):
        if not Path(name).exists():
            raise UsageError(f"{group}={name} does not exist (looked from {Path.cwd()}); give the path of a {group}, or a name")
        return Path(name)
    found = [path for folder in folders(conf) if os.path.lexists(path := folder / group / f"{name}.yaml")]
    if not found:
        hint = near_misses(name, choices(group, conf))
        own = "" if "did you mean" in hint else f"; one of your own is a path: ./{name}.yaml"
        raise UsageError(f"unknown {group} '{name}'{hint}{own}")
    if len(found) > 1:
        raise UsageError(f"{group} '{name}' is both {found[0]} and {found[1]}; rename one, or give a path: {group}={found[1]}")
    return found[0]


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


@cache
def _examples() -> dict[str, dict[str, str]]:
    return load(CONF / "examples.yaml")


def example(field: str, of: str = "names") -> str:
    """What messages give as an example of a field of suites (`suite`) or models (`model`), or of a name (of a suite, a model, a method)."""
    return _examples()[of][field]
