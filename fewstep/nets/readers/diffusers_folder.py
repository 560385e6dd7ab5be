"""Pipelines of diffusers: a folder with a `UNet2DModel`, its safetensors, and a scheduler whose configuration becomes a schedule of ours.

No class that a file names is imported: the network is always `UNet2DModel`, and a scheduler's name only says which process it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fewstep.discrete import Discrete
from fewstep.errors import UsageError, near_misses
from fewstep.files import file_digest
from fewstep.nets.readers.card import identity
from fewstep.nets.readers.hub import CONFIG, FOLDER, called, network_folder, pipeline_of
from fewstep.nets.readers.layouts import MOST, check_layout
from fewstep.nets.readers.opened import AGAIN, check_file, check_held, opened
from fewstep.plugins import register

WEIGHTS = "diffusion_pytorch_model.safetensors"
SCHEDULER = ("scheduler_config.json", "scheduler/scheduler_config.json")
FAMILIES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}
FORMS = {"epsilon": "eps", "v_prediction": "v", "sample": "x0"}
MOST_NUMBER = 1e30  # of a setting
EDM, CONSISTENCY = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"), "CMStochasticIterativeScheduler"
BETAS = (
    "DDPM",
    "DDIM",
    "PNDM",
    "DPMSolver",
    "EulerDiscrete",
    "EulerAncestral",
    "Heun",
    "LMS",
    "UniPC",
    "DEIS",
    "KDPM2",
    "TCD",
    "SASolver",
)
OLD = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}  # of attention, before diffusers 0.15
NULL = "_fewstep_null_class"  # in a network's configuration: its last class embedding stands for no class
DATA = ("cifar10", "ffhq64", "afhqv2", "imagenet64")


def json_of(path: Path) -> dict[str, Any]:
    """A configuration. **Raises**: UsageError for a file that is no JSON object."""
    try:
        found = json.loads(opened(path).decode("utf-8"))
    except (ValueError, RecursionError) as err:
        raise UsageError(f"{path} is no JSON ({err}); {AGAIN}") from None
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds no configuration but a {type(found).__name__}; {AGAIN}")
    return found


def number(config: Mapping[str, Any], key: str, otherwise: float, where: Path) -> float:
    """A setting that is a finite number. **Raises**: UsageError for another."""
    value = config.get(key, otherwise)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MOST_NUMBER:
        raise UsageError(f"{where}: {key} is a finite number, got {str(value)[:80]!r}; e.g. {otherwise:g}")
    return float(value)


def process_of(config: Mapping[str, Any], where: Path) -> dict[str, Any]:
    """What a card says of the process of a scheduler: preconditioning, range of levels and, of a consistency model, that it is a student.

    **Raises**: UsageError for a scheduler of an unknown process, and betas that are no family of ours.
    """
    name, form = str(config.get("_class_name", "")), str(config.get("prediction_type", "epsilon"))
    if form not in FORMS:
        raise UsageError(f"{where}: unknown prediction_type '{form}'{near_misses(form, list(FORMS))}")
    if name in EDM or name == CONSISTENCY:
        known = (("sigma_min", 0.002), ("sigma_max", 80.0), ("sigma_data", 0.5))
        lo, hi, data = (number(config, key, other, where) for key, other in known)
        told: dict[str, Any] = {"sigma_range": [lo, hi], "sigma_data": data}
        if name == CONSISTENCY:
            return told | {"precond": {"kind": "consistency", "sigma_min": lo}, "student": {"published": True, "method": "cd"}}
        if form != "epsilon":
            raise UsageError(f"{where}: {name} with prediction_type {form} is not read; EDM's own networks have epsilon")
        return told
    if not name.startswith(BETAS):
        raise UsageError(f"{where}: {name or 'no class'} is no scheduler whose process is known; e.g. DDPMScheduler, EDMEulerScheduler")
    if config.get("trained_betas") is not None:
        raise UsageError(f"{where} lists its own betas (trained_betas), which no schedule of ours has; register a reader for it")
    if config.get("timestep_type") == "continuous":
        raise UsageError(f"{where}: its network is told levels (timestep_type continuous), and only one that is told timesteps is read")
    betas = str(config.get("beta_schedule", "linear"))
    if betas not in FAMILIES:
        raise UsageError(f"{where}: unknown beta_schedule '{betas[:80]}'{near_misses(betas[:80], list(FAMILIES))}")
    steps = number(config, "num_train_timesteps", 1000, where)
    if not 2 <= steps <= MOST["timesteps"]:
        raise UsageError(f"{where}: num_train_timesteps is 2 to {MOST['timesteps']}, got {steps:g}; the published schedules have 1000")
    schedule: dict[str, Any] = {
        "family": FAMILIES[betas],
        "start": number(config, "beta_start", 0.0001, where),
        "end": number(config, "beta_end", 0.02, where),
        "steps": int(steps),
        "zero_snr": bool(config.get("rescale_betas_zero_snr", False)),
    }
    if schedule["zero_snr"] and form == "epsilon":
        raise UsageError(f"{where}: eps says nothing of the image at zero SNR; a network on such betas predicts v or the sample")
    found = Discrete(**schedule)
    return {"precond": {"kind": "betas", "form": FORMS[form], **schedule}, "sigma_range": list(found.sigma_range), "sigma_data": 0.5}


def check_sizes(config: Mapping[str, Any], where: Path) -> None:
    """**Raises**: UsageError for a network of a size that nobody builds, which would take forever to find out."""
    widths = config.get("block_out_channels", ())
    levels = widths if isinstance(widths, list | tuple) else ()
    for what, value, most in (
        ("block_out_channels", len(levels), MOST["levels"]),
        *(("block_out_channels", width, MOST["channels"]) for width in levels[: MOST["levels"]]),
        ("layers_per_block", config.get("layers_per_block", 2), MOST["blocks"]),
    ):
        if not isinstance(value, int) or not 0 < value <= most:
            raise UsageError(f"{where}: {what} has {str(value)[:80]}, and 1 to {most} is what is read")


def modern(name: str) -> str:
    """A tensor's name as diffusers has it today."""
    for old, new in OLD.items():
        name = name.replace(old, new) if ".attentions." in name else name
    return name


def weights_in(folder: Path) -> dict[str, Tensor]:
    """The weights beside a configuration of diffusers, in float32. **Raises**: UsageError where there are none that are safetensors."""
    path = folder / WEIGHTS
    if not path.is_file():
        others = sorted(p.name for p in folder.glob("diffusion_pytorch_model*"))
        instead = f" but {', '.join(others)}" if others else ""
        raise UsageError(f"{folder} has no {WEIGHTS}{instead}; only safetensors in one file are read: get that file from its publisher")
    check_file(path)
    try:
        with safe_open(path, framework="pt") as f:
            found = {key: f.get_tensor(key) for key in f.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as err:
        raise UsageError(f"weights {path} are truncated or not safetensors ({err}); {AGAIN}") from None
    return {name: value.float() if value.is_floating_point() else value for name, value in found.items()}


def tensors_of(folder: Path) -> dict[str, Tensor]:
    """The weights of a `UNet2DModel`, under the names that our network has for them. **Raises**: as `weights_in`."""
    return {f"unet.{modern(name)}": value for name, value in weights_in(folder).items()}


def data_named(path: Path) -> dict[str, str]:
    """The data set that a pipeline's name has in it, as a card has it; nothing for another name."""
    plain = called(pipeline_of(path) or path).replace("-", "").replace("_", "")
    return next(({"data": name} for name in DATA if name in plain), {})


@register("reader", "diffusers", suffixes=(FOLDER,), told=data_named)
def read_pipeline(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and card of a pipeline's folder: flat, or with `unet` and `scheduler` in it.

    **Raises**: UsageError for a folder that lacks a part, for another network than `UNet2DModel`, and for a scheduler that is not known.
    """
    whole = pipeline_of(path)
    folder = None if whole is None else network_folder(whole)
    if whole is None or folder is None:
        raise UsageError(f"{path} is no folder of a diffusers pipeline; it has {CONFIG} in it, or unet/{CONFIG}")
    config = json_of(folder / CONFIG)
    if config.get("_class_name") != "UNet2DModel":
        raise UsageError(
            f"{folder / CONFIG} is of a {config.get('_class_name')}, and only UNet2DModel is read; register a reader for others"
        )
    place = next((base / part for base in (whole, folder, folder.parent) for part in SCHEDULER if (base / part).is_file()), None)
    if place is None:
        raise UsageError(f"{whole} has no {SCHEDULER[0]}, which says what its network predicts; get it from its publisher")
    check_sizes(config, folder / CONFIG)
    process, own = process_of(json_of(place), place), {key: value for key, value in config.items() if not key.startswith("_")}
    size, channels, classes = own.get("sample_size"), own.get("in_channels", 3), own.get("num_class_embeds") or 0
    shape = [channels, *(size if isinstance(size, list) else [size, size])]
    if classes and config.get(NULL):
        classes -= 1
    if len(shape) != 3 or not all(isinstance(n, int) and 0 < n <= 4096 for n in shape) or not isinstance(classes, int):
        raise UsageError(f"{folder / CONFIG} does not say the size of its images (sample_size {size!r}, in_channels {channels!r})")
    timed = {} if process.get("precond", {}).get("kind") == "betas" else {"time_scale": 1000.0 if "student" in process else 1.0}
    card = {
        "arch": "diffusers_unet2d",
        "config": {"shape": shape, "classes": classes, "unet": own, **timed},
        "shape": shape,
        "classes": classes,
        **process,
        "source": called(whole),
        **({"null": False} if classes and not config.get(NULL) else {}),
        **data_named(whole),
    }
    tensors = tensors_of(folder)
    check_layout(card, tensors, f"weights {folder / WEIGHTS}")
    card["sha256"] = file_digest(folder / WEIGHTS)
    check_held(f"{called(whole)}/{WEIGHTS}", card["sha256"], f"weights {folder / WEIGHTS}")
    return tensors, {**card, "identity": identity(card)}
