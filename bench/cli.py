"""What every entry point shares: composing the configuration, one-line errors, exit codes, and process-wide settings."""

from __future__ import annotations

import ctypes
import errno
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from bench.settings.files import CONF, check_choice, choices, load, plain, text_of
from bench.settings.overrides import apply, split
from fewstep.errors import Unavailable, UsageError

GROUPS = ("suite", "model")


def say(message: str) -> None:
    """A line for the person who waits, on stderr."""
    from tqdm import tqdm

    tqdm.write(message, file=sys.stderr)


def bar_settings(shown: bool = True) -> dict[str, Any]:
    """How progress bars look: gone when done, and a line every ten seconds where the output is no terminal."""
    watched = sys.stderr.isatty()
    return {"disable": not shown, "leave": False, "mininterval": 0.2 if watched else 10.0, "delay": 0.0 if watched else 10.0}


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


def check_device(name: str) -> None:
    """**Raises**: UsageError for a device that torch does not know or that is not on this machine."""
    import torch

    try:
        torch.ones(1, device=name).item()  # which a device that computes nothing, like meta, cannot give
    except (RuntimeError, AssertionError, ImportError, ValueError) as err:
        raise UsageError(f"device '{name}' cannot be used ({str(err).splitlines()[0]}); e.g. device=cpu") from None


MOST = 2**31 - 1
RANGES = {"threads": (0, 4096), "workers": (0, 1024), "batch": (1, MOST), "n": (1, MOST), "accumulate": (1, MOST), "batches": (1, MOST)}
RANGES |= {"nfe": (-MOST, 10**5), "steps": (-MOST, 10**5)}  # which are too small says the solver


def check_settings(config: dict[str, Any]) -> None:
    """The fields that several entry points share. **Raises**: UsageError for a value out of its range."""
    for key, (least, most) in RANGES.items():
        value = config.get(key)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise UsageError(f"{key} must be at least {least}, got {value}; e.g. {key}={max(least, 1)}")
        if value is not None and value > most:
            raise UsageError(f"{key} must be at most {most}, got {value}; e.g. {key}={max(least, 1)}")
    for key in ("seed", "fit_seed"):
        if not 0 <= config.get(key, 0) < 2**62:
            raise UsageError(f"{key} must lie in 0..2^62, got {config[key]}; e.g. {key}=0")
    if not isinstance(config.get("afs"), bool | None):
        raise UsageError(f"afs must be true or false, got '{config['afs']}'; e.g. afs=true")
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
    return f"{doc.strip()}\n\nfields and defaults (override with key=value):\n\n{text_of(CONF / f'{name}.yaml')}\n{listing}"


def _streams() -> None:
    """Output that can be written to, whatever the locale and whatever the caller closed: names and tables are not all ASCII."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open as long as the process)
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _closed_pipe() -> int:
    """Whoever read the output has ended (`| head`): so does this, with the exit code of the signal for it, and nothing more to say."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # Python writes what is left when it ends
            os.dup2(null, stream.fileno())
    return 128 + signal.SIGPIPE


def guarded(run: Callable[[], int], hint: str = "give another path with results= or out=") -> int:
    """The exit code of `run`: 2 and one line for bad input, 130 for Ctrl-C, its own otherwise; `hint` is for files that cannot be used."""
    _streams()
    try:
        code = run()
        sys.stdout.flush()
        return code
    except (UsageError, Unavailable) as err:
        message, code = f"error: {err}", 2
    except KeyboardInterrupt:
        message, code = "interrupted: finished work is kept; run the same command to go on", 130
    except BrokenPipeError:
        return _closed_pipe()
    except OSError as err:
        message, code = f"error: {err.filename or 'a file'} cannot be used ({err.strerror or err}); {hint}", 2
        if full_disk(err):
            message = "error: no space left on the device; finished work is kept; free some space and run the same command to go on"
    try:
        say("".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message))
    except BrokenPipeError:
        return _closed_pipe()
    return code


def entry(name: str, doc: str, run: Callable[[dict[str, Any]], int], args: Sequence[str] | None = None) -> int:
    """Run an entry point with its configuration (see `guarded`)."""
    args = list(sys.argv[1:] if args is None else args)

    def whole() -> int:
        if {"-h", "--help"} & set(args):
            print(_help(name, doc))
            return 0
        config = configure(name, args)
        check_settings(config)
        return run(config)

    return guarded(whole)
