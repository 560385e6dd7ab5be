"""Models as the configuration names them: the teacher, its data, and the network a training starts from."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.settings.files import example, is_path
from bench.store.addresses import digest
from fewstep.data.arrays import Absent
from fewstep.data.folders import image_folder
from fewstep.data.images import ImageData
from fewstep.data.source import Source
from fewstep.data.streams import parts_folder, parts_of
from fewstep.data.zips import zip_set
from fewstep.denoiser import Denoiser, Preconditioned, check_null
from fewstep.errors import Unavailable, UsageError, near_misses
from fewstep.files import check_name
from fewstep.nets.loading import as_denoiser, build, described, load_weights, network_version, read
from fewstep.nets.own import identity_of
from fewstep.nets.readers.card import here, how_to_get
from fewstep.nets.readers.hub import asked_for
from fewstep.plugins import entries, get, known
from fewstep.sampling.memory import recalling
from fewstep.tasks.generation import task_for, task_name
from fewstep.tasks.task import Paired, Task
from fewstep.wrappers import Mapped, Prior
from methods.recipe import split
from metrics.features.statistics import Statistics, read_statistics

ZIPPED = ".zip"
TRAINED = "trained"  # in place of a weights file: the model is trained before its first use, as a fit in the store


def wrap_version(wrap: str) -> dict[str, int]:
    """What an address holds of a wrapper's version: nothing of the first, so that older addresses stay valid."""
    version = get("wrapper", wrap).version if wrap else 1
    return {} if version == 1 else {"wrap_version": version}


def wrapped(denoiser: Denoiser, wrap: str) -> Denoiser:
    """The denoiser with a named function of every D, after guidance; itself for the empty name."""
    return Mapped(denoiser, get("wrapper", wrap).target) if wrap else denoiser


def is_folder(name: str) -> bool:
    """Whether data are given by path: a folder of images, or a zip of them."""
    return is_path(name) or (not known("data", name) and Path(name).is_dir())


def load_data(name: str, shape: tuple[int, ...] | None = None) -> ImageData:
    """The data set of a name, of a folder of images, made of `shape`, of a folder of .npz parts, or of a zip as EDM makes them.

    **Raises**: UsageError for an unknown one, Unavailable for one whose files are not here.
    """
    if is_folder(name) and name.endswith(ZIPPED):
        return zip_set(name)
    if is_folder(name):
        return parts_folder(name) if parts_of(name) else image_folder(name, shape)
    found = get("data", name).make()
    if not isinstance(found, ImageData):
        raise UsageError(f"data set '{name}' gives a {type(found).__name__}; let it return a fewstep.ImageData")
    return found


def data_of(config: Mapping[str, Any]) -> ImageData:
    """The data of a model's configuration: a folder's images are made of its `shape`, or of that of its weights where they are here."""
    shape, weights = config.get("shape"), config.get("weights", TRAINED)
    if is_folder(config["data"]) and shape is None and (found := here(weights)):
        shape = described(found).get("shape") or read(found)[1]["shape"]
    return load_data(config["data"], None if shape is None else tuple(shape))


def augmented(config: Mapping[str, Any], data: ImageData) -> Source:
    """The data as a model's trainings see them: with the `augment` of its configuration, where it names one."""
    return get("augment", config["augment"]).make(source=data) if config.get("augment") else data


@dataclass(frozen=True, eq=False)
class Model:
    """A teacher, the digest of its numbers (weights and card), and its data; `config` is the `model` configuration it comes from.

    A teacher is a trained network, or a closed form, whose students start from the configured network after a warm start. One that is
    `in_store` is addressed by its recipe, and holds untrained weights until `bench.jobs.fits.teachers.with_teacher` has put in the trained
    ones. `sha256` is that of the file of the weights, where they are one. Of a task of pictures `prior` is the digest of the same model
    without it, and `asking` that of what students are trained on, whatever held-out images it is asked by.
    """

    name: str
    teacher: Denoiser
    digest: str
    data: ImageData
    config: Mapping[str, Any]
    sha256: str = ""
    prior: str = ""
    asking: str = ""

    @property
    def start(self) -> Mapping[str, Any] | None:
        """The warm start's options for a closed-form teacher, None for one with a network of its own."""
        return self.config["options"] if "closed_form" in self.config else None

    @property
    def in_store(self) -> bool:
        return self.config.get("weights") == TRAINED

    @cached_property
    def source(self) -> Source:
        """What trainings draw their batches from: the data, augmented as the configuration says."""
        return augmented(self.config, self.data)

    @cached_property
    def task(self) -> Task:
        """What it is asked for."""
        task = task_for(self.teacher, self.config.get("task", ""))
        return task.bound(self.data) if isinstance(task, Paired) else task

    @property
    def labelling(self) -> str:
        """The task that draws the labels of its samples; empty where they have none."""
        return task_name(self.teacher, self.config.get("task", "")) if self.teacher.classes else ""

    @cached_property
    def recalling(self) -> Denoiser:
        """The teacher with a memory of its calls, for samples; never for latencies."""
        return recalling(self.teacher)

    def untrained_card(self) -> dict[str, Any]:
        return card_of(self.config, self.data)

    def untrained(self, seed: int) -> Preconditioned:
        return untrained(self.config, self.data, seed)


STORED = {"float32": torch.float32, "float16": torch.float16}  # what the files of trained weights hold
TEXTS = ("data", "weights", "teacher", "arch", "pretrain", "task", "augment", "stored", "statistics")
KINDS: dict[str, type] = dict.fromkeys(TEXTS, str)
KINDS |= {**dict.fromkeys(("config", "options", "precond"), dict), **dict.fromkeys(("sigma_range", "shape"), list)}
NAMED = {"arch": "network", **{kind: kind for kind in ("closed_form", "teacher", "task", "augment")}}  # key -> kind of plugin
DRAWN = ("arch", "config", "sigma_range")  # what a network that is not read from a file needs beside its data,
BUILDING = (*DRAWN, "options")  # and to be trained


def check_config(config: Mapping[str, Any], training: bool = False) -> None:
    """**Raises**: UsageError for a `model` configuration that lacks a key or has a value of another kind, saying what belongs there.

    A closed form has no weights and no pretraining; one that is read from a file needs no more than that and its data.
    """
    check_name("model.name", config.get("name"), "model.name=mine")
    closed, trained = bool({"closed_form", "teacher"} & set(config)), training or config.get("weights") == TRAINED
    needed = {
        "data",
        *(() if closed else ("weights",)),
        *(BUILDING if "closed_form" in config or trained else ()),
        *(("pretrain",) if trained else ()),
    }
    for key, kind in KINDS.items():
        if key in needed | set(config) and not isinstance(config.get(key), kind):
            what = {str: "a name", dict: "a mapping", list: "a list"}[kind]
            raise UsageError(f"model {config['name']}: {key} must be {what}, got {config.get(key)!r}; e.g. {key}: {example(key, 'model')}")
    for key, kind in NAMED.items():
        if key in config and not (isinstance(config[key], str) and known(kind, config[key])):
            hint = near_misses(config[key], list(entries(kind))) or "; import what registers it with plugins=MODULE"
            raise UsageError(f"model {config['name']}: unknown {key} '{config[key]}'{hint}")
    if config.get("stored", "float32") not in STORED:
        raise UsageError(f"model {config['name']}: stored is what weights files hold, {' or '.join(STORED)}, got {config['stored']}")
    levels = config.get("sigma_range", [1, 2])
    numbers = all(isinstance(s, int | float) and not isinstance(s, bool) for s in levels)
    if not numbers or len(levels) != 2 or not 0 < levels[0] < levels[1] < math.inf:
        raise UsageError(f"model {config['name']}: sigma_range is two levels, the smaller above 0, got {levels}; e.g. [0.002, 80.0]")


def as_asked(teacher: Denoiser, task: Task) -> Denoiser:
    """A teacher as a task asks it: without pictures where the task has some, which are for students."""
    return Prior(teacher, task.channels(teacher.shape)) if isinstance(task, Paired) else teacher


def load_model(config: Mapping[str, Any], device: str) -> Model:
    """The model that a `model` configuration describes. **Raises**: UsageError, Unavailable naming every file that is not here."""
    check_config(config)
    found, labelled = _loaded(config, device), True
    if found.task.conditions(torch.arange(1), found.teacher).label is None and found.data.classes:
        check_null(found.teacher, f"model {found.name}: its task")
        teacher = replace(found.teacher, classes=0) if isinstance(found.teacher, Preconditioned) else found.teacher
        found, labelled = replace(found, teacher=teacher, data=found.data.unlabelled()), False
    if isinstance(found.task, Paired):
        prior = found.digest if labelled else digest({"unlabelled": found.digest})
        asking = digest({"asked": found.task.identity, "of": prior})
        told = digest({"sampled": repr(found.task), "heldout": found.data.heldout_digest(), "of": asking})
        return replace(found, teacher=as_asked(found.teacher, found.task), digest=told, prior=prior, asking=asking)
    if found.task == task_for(found.teacher) and found.task.version == 1:  # older addresses stay valid
        return found
    return replace(found, digest=digest({"task": [config.get("task", ""), found.task.version], "of": found.digest}))


def statistics_of(config: Mapping[str, Any]) -> Statistics | None:
    """The published statistics that a model's samples are measured against; None where it names none.

    **Raises**: Unavailable where they are not here, saying how to get them; UsageError for a file that is none.
    """
    if not (told := config.get("statistics")):
        return None
    if (file := here(told)) is None or not file.is_file():
        raise Unavailable(f"statistics {told} ({how_to_get(told)})")
    return read_statistics(file)


def unseen(config: Mapping[str, Any], teacher: Denoiser, statistics: Statistics) -> ImageData:
    """Data whose images are not here and whose statistics are, as far as their name and a model's weights tell of them."""
    place = Path(config["data"])
    name = place.stem if place.suffix == ZIPPED else place.name
    none = Absent(teacher.shape, f"the images of {name} are not here, only their statistics ({statistics.identity})")
    labels = np.zeros(0, np.int64)
    return ImageData(name, teacher.classes, none, labels, none, labels, how=f"no images, but statistics {statistics.identity}")


def _told_of_data(config: Mapping[str, Any]) -> tuple[ImageData | None, Statistics | None, list[str]]:
    """A model's data, or the statistics that stand in for images that are not here, or why there is neither."""
    try:
        return data_of(config), None, []
    except Unavailable as err:
        lacking = [str(err)]
    if config["weights"] == TRAINED:
        return None, None, lacking
    try:
        statistics = statistics_of(config)
    except Unavailable as err:
        return None, None, [f"{', '.join(lacking)}, or in their place {err}"]
    return None, statistics, [] if statistics is not None else lacking


def _loaded(config: Mapping[str, Any], device: str) -> Model:
    if "closed_form" in config:
        form = get("closed_form", config["closed_form"]).make()
        return Model(config["name"], form, form.identity(), data_of(config), config)
    if "teacher" in config:
        return _own_model(config, device)
    data, statistics, absent = _told_of_data(config)
    if config["weights"] == TRAINED and data is not None:
        fresh = untrained(config, data, 0)
        fresh.net.to(device).eval().requires_grad_(False)
        return Model(config["name"], fresh, recipe_digest(config, data), data, config)
    weights = str(config["weights"])
    if "/" in weights and here(weights) is None:
        ours = "pretrain" in config and not asked_for(weights)
        trains = f" with its card (copy them there, or run python -m bench.train model={config['name']})"
        absent.append(f"{weights}{trains if ours else f' ({how_to_get(weights)})'}")
    if absent:
        raise Unavailable(f"model {config['name']} lacks: {'; '.join(absent)}")
    teacher, identity, sha256 = load_weights(weights, device)
    if data is None:
        assert statistics is not None
        data = unseen(config, teacher, statistics)
    fitting(config["name"], teacher, data)
    if teacher.classes and not data.classes:  # a conditional network on data without labels: its own unconditional branch
        teacher, identity = replace(teacher, classes=0), digest({"unconditional": identity})
    return Model(config["name"], teacher, identity, data, config, sha256)


def fitting(name: str, teacher: Preconditioned, data: ImageData) -> None:
    """Whether a model's teacher goes with its data. **Raises**: UsageError for images of another shape or other classes, and for data
    without labels where the teacher was trained with labels only."""
    if data.shape != teacher.shape:
        both = f"{list(teacher.shape)} and {data.name} has {list(data.shape)}"
        raise UsageError(f"model {name}: the teacher makes images of {both}; both must agree")
    if data.classes and teacher.classes not in (0, data.classes):
        both = f"{teacher.classes} classes and {data.name} has {data.classes}"
        raise UsageError(f"model {name}: the teacher knows {both}; both must agree, or one have none")
    if not data.classes:
        check_null(teacher, f"model {name}: {data.name}, which has no labels,")


def _own_model(config: Mapping[str, Any], device: str) -> Model:
    """A model whose teacher a plugin makes. **Raises**: UsageError where it does not go with its data."""
    entry, name = get("teacher", config["teacher"]), config["name"]
    try:
        teacher = entry.make()
    except UsageError:
        raise
    except Exception as err:  # whatever a function of somebody else's raises
        raise UsageError(f"teacher '{entry.name}' cannot be made ({type(err).__name__}: {err})") from err
    if not isinstance(teacher, Preconditioned):
        raise UsageError(f"teacher '{entry.name}' gives a {type(teacher).__name__}; let it return fewstep.as_teacher(module, ...)")
    data = load_data(config["data"], teacher.shape)
    fitting(name, teacher, data)
    if teacher.classes and not data.classes:
        teacher = replace(teacher, classes=0)
    teacher.net.to(device)
    return Model(name, teacher, identity_of(teacher, entry), data, config)


def card_of(config: Mapping[str, Any], data: ImageData) -> dict[str, Any]:
    """What the weights of this configuration are: enough to build the network and its preconditioning."""
    options = dict(config["config"])
    if "shape" in inspect.signature(get("network", config["arch"]).target).parameters:
        options |= {"shape": list(data.shape), "classes": data.classes}
    return {
        **({"precond": dict(config["precond"])} if "precond" in config else {}),
        "arch": config["arch"],
        "config": options,
        "shape": list(data.shape),
        "classes": data.classes,
        "sigma_data": data.sigma_data,
        "sigma_range": config["sigma_range"],
        "data": data.name,
        "data_digest": data.digest(),
    }


def stand_in(config: Mapping[str, Any], device: str) -> Model | None:
    """The model with fresh weights, for estimates where its own are not here; None where its configuration does not say its network, or
    its data are not here."""
    check_config(config)
    try:
        data = data_of(config) if set(DRAWN) <= set(config) else None
    except Unavailable:
        data = None
    if data is None:
        return None
    data = data if config["config"].get("classes", data.classes) else data.unlabelled()
    fresh = untrained(config, data, 0)
    fresh.net.to(device).eval().requires_grad_(False)
    return Model(config["name"], fresh, digest({"stands in": card_of(config, data)}), data, config)


def recipe_digest(config: Mapping[str, Any], data: ImageData) -> str:
    """The address of a model that is trained from scratch: everything that can change its weights."""
    entry, (own, how) = get("pretrain", config["pretrain"]), split(config["options"])
    options = {k: v for k, v in own.items() if entry.fields.get(k) != v}
    version = entry.make(**options).version
    recipe = {"pretrain": config["pretrain"], "options": {**options, **how.changed()}, "version": version, "seed": 0}
    card, source = card_of(config, data), augmented(config, data).digest()
    drawn = {} if source == data.digest() else {"source": source}  # of data as they are nothing, so that older addresses stay valid
    return digest({**recipe, "card": card, **drawn, **network_version(card)})


def untrained(config: Mapping[str, Any], data: ImageData, seed: int) -> Preconditioned:
    """The model's network with fresh weights, a function of the seed alone."""
    card = card_of(config, data)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return as_denoiser(build(card), card)
