"""What every entry point shares: composing the configuration, one-line errors, exit codes, and process-wide settings."""

from __future__ import annotations

import ctypes
import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fewstep.errors import Unavailable, UsageError, near_misses

CONF = Path(__file__).parent / "conf"
GROUPS = ("suite", "model")
OPEN = "suite.options."  # a method's options: any of its fields may be added, and the registry checks them


def say(message: str) -> None:
    """A line for the person who waits, on stderr."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)


def bar_settings(shown: bool = True) -> dict[str, Any]:
    """How progress bars look: gone when done, and a line every ten seconds where the output is no terminal."""
    watched = sys.stderr.isatty()
    return {"disable": not shown, "leave": False, "mininterval": 0.2 if watched else 10.0, "delay": 0.0 if watched else 10.0}


def choices(group: str) -> list[str]:
    """The members of a configuration group."""
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def groups_of(name: str) -> list[str]:
    """The configuration groups that conf/<name>.yaml takes a member of."""
    config = OmegaConf.load(CONF / f"{name}.yaml")
    defaults = (config.get("defaults") if isinstance(config, DictConfig) else None) or []
    return [group for item in defaults if isinstance(item, DictConfig) for group in map(str, item)]


def _split(args: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for arg in args:
        key, equals, value = arg.lstrip("+").partition("=")
        if not equals or not key:
            raise UsageError(f"argument '{arg}' is not of the form key=value; type e.g. {key or 'suite'}=digits, or --help")
        pairs.append((key, value))
    return pairs


def _find(config: Any, key: str) -> Any:
    """The node at a dotted key. **Raises**: UsageError naming the near misses of the first unknown part."""
    seen = []
    for part in key.split("."):
        keys = list(map(str, config)) if isinstance(config, DictConfig) else list(map(str, range(len(config or []))))
        if not isinstance(config, DictConfig | ListConfig) or part not in keys:
            where = ".".join(seen)
            raise UsageError(f"unknown field '{part}'{f' in {where}' if where else ''}{near_misses(part, keys)}")
        seen.append(part)
        config = config[part] if isinstance(config, DictConfig) else config[int(part)]
    return config


def _check_type(key: str, old: Any, new: Any) -> None:
    """A value must be of its default's type (an integer may stand for a float)."""
    if old is None or isinstance(old, DictConfig | ListConfig):
        return
    expected = (int, float) if isinstance(old, float) else type(old)
    if not isinstance(new, expected) or (isinstance(new, bool) and not isinstance(old, bool)):
        names = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
        raise UsageError(f"{key} must be {names.get(type(old), type(old).__name__)}, got '{new}'; e.g. {key}={str(old).lower()}")


def configure(name: str, args: Sequence[str]) -> dict[str, Any]:
    """The configuration conf/<name>.yaml with `key=value` overrides (`+suite=x` and `suite=x` mean the same), as plain data.

    **Raises**: UsageError for an unknown group member, field or value, with the near misses.
    """
    pairs, own = _split(args), groups_of(name)
    for key, value in pairs:
        if key in own and value not in choices(key):
            raise UsageError(f"unknown {key} '{value}'{near_misses(value, choices(key))}")
    groups = [f"{k}={v}" for k, v in pairs if k in own]
    fields = [(k, v) for k, v in pairs if k not in own]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(CONF), version_base=None):
            config = compose(name, overrides=groups)
        parsed = OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in fields])
        for override, (key, _) in zip(parsed, fields):
            old = None if key.startswith(OPEN) else _find(config, key)
            OmegaConf.update(config, key, override.value(), merge=True, force_add=key.startswith(OPEN))
            _check_type(key, old, OmegaConf.select(config, key))
    except (HydraException, OmegaConfBaseException) as err:
        raise UsageError(str(err).splitlines()[0]) from None
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items()}


def group_config(group: str, name: str) -> dict[str, Any]:
    """The values of conf/<group>/<name>.yaml. **Raises**: UsageError with near misses."""
    if name not in choices(group):
        raise UsageError(f"unknown {group} '{name}'{near_misses(name, choices(group))}")
    container = OmegaConf.to_container(OmegaConf.load(CONF / group / f"{name}.yaml"))
    assert isinstance(container, dict)
    return {str(k): v for k, v in container.items()}


def check_device(name: str) -> None:
    """**Raises**: UsageError for a device that torch does not know or that is not on this machine."""
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as err:
        raise UsageError(f"device '{name}' cannot be used ({str(err).splitlines()[0]}); e.g. device=cpu") from None


def check_settings(config: dict[str, Any]) -> None:
    """The fields that several entry points share. **Raises**: UsageError for a value out of its range."""
    for key, least in (("threads", 0), ("workers", 0), ("batch", 1), ("n", 1), ("accumulate", 1), ("batches", 1)):
        value = config.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise UsageError(f"{key} must be at least {least}, got {value}; e.g. {key}={max(least, 1)}")
    if "device" in config:
        check_device(config["device"])


def tune_process(threads: int) -> None:
    """Torch threads, and a C allocator that keeps large blocks: on Linux that makes small convolutional networks 1.5 times faster."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_threshold, large = -1, -3, 32 << 20
        libc.mallopt(m_mmap_threshold, large)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def full_disk(err: OSError) -> bool:
    """Whether a write failed for want of space or quota."""
    return err.errno in (errno.ENOSPC, errno.EDQUOT)


def _help(name: str, doc: str) -> str:
    listing = "\n".join(f"  {group}: {', '.join(choices(group))}" for group in groups_of(name))
    return f"{doc.strip()}\n\nfields and defaults (override with key=value):\n\n{(CONF / f'{name}.yaml').read_text()}\n{listing}"


def entry(name: str, doc: str, run: Callable[[dict[str, Any]], int], args: Sequence[str] | None = None) -> int:
    """Run an entry point: exit code 2 and one line for bad input, 130 for Ctrl-C, the function's own code otherwise."""
    args = list(sys.argv[1:] if args is None else args)
    if {"-h", "--help"} & set(args):
        print(_help(name, doc))
        return 0
    try:
        config = configure(name, args)
        check_settings(config)
        return run(config)
    except (UsageError, Unavailable) as err:
        say(f"error: {err}")
        return 2
    except KeyboardInterrupt:
        say("interrupted: finished work is kept; run the same command to go on")
        return 130
    except OSError as err:
        if full_disk(err):
            say("error: no space left on the device; finished work is kept; free some space and run the same command to go on")
        else:
            say(f"error: {err.filename or 'a file'} cannot be used ({err.strerror or err}); give another path with results= or out=")
        return 2
