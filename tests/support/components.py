"""Numbers of what measures and of what networks compute, for the fingerprints: small, and from weights that a rule gives."""

import zlib
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from fewstep.cond import Cond
from fewstep.nets.adapters import GuidanceAdapter, with_scalars
from fewstep.nets.branches.adapted import with_branch
from fewstep.noise import PhiloxNoise, Rng, Slot
from fewstep.plugins import get
from fewstep.precond import EDMPrecond, ProcessPrecond
from fewstep.sampling.draw import start
from fewstep.schedule import EDM, VP, Cosine, RectifiedFlow, TrigFlow
from fewstep.tasks.generation import ClassConditional
from metrics import Evidence, metrics_by_name, quantise
from metrics.metric import Drawn
from metrics.moments import Moments
from metrics.reference import FeatureSpace, Reference

METRICS = metrics_by_name()

SMALL = {"channels": 8, "mult": (1, 2), "blocks": 1, "attention": (4,)}
DIFFUSERS = {
    "sample_size": 8,
    "in_channels": 2,
    "out_channels": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "num_class_embeds": 3,
}
TEXT = {
    **{key: value for key, value in DIFFUSERS.items() if key != "num_class_embeds"},
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": 6,
    "num_class_embeds": 4,
}
CONFIGS = {
    "unet": {"shape": (2, 8, 8), "classes": 3, "channels": (8, 16), "emb": 16},
    "unet2d": {"shape": (2, 8, 8), "classes": 3, "channels": (8, 16), "attention": (4,), "heads": 8, "groups": 4},
    "x0_eps": {"shape": (2, 8, 8), "classes": 3, "unet": {"channels": (8, 16), "emb": 16}},
    "song_unet": {"shape": (2, 8, 8), "classes": 3, "levels": SMALL, "kind": "ncsnpp", "augment": 2},
    "dhariwal_unet": {"shape": (2, 8, 8), "classes": 3, "levels": {**SMALL, "channels": 32}},
    "openai_unet": {"shape": (2, 8, 8), "classes": 3, "levels": {**SMALL, "channels": 32, "attention": (1,)}},
    "diffusers_unet2d": {"shape": (2, 8, 8), "classes": 3, "unet": DIFFUSERS},
    "diffusers_unet2d_condition": {"shape": (2, 8, 8), "classes": 3, "unet": TEXT},
    "digit_classifier": {},
}
# Of branches: what they are beside a unet of 2 channels that is told pictures of 3, image and mask.
BRANCHES = {
    **{name: {} for name in ("codi", "codi_told", "codi_one", "codi_additive", "t2i_light", "concat")},
    "control": {"widths": (4, 8)},
    "t2i": {"factor": 2},
    "lora": {"rank": 2},
}
CLASSES, EACH, DIM = 3, 6, 4


def given_weights(net):
    """The network with weights of its parameters' names and shapes: normal, over the root of the fan-in."""
    with torch.no_grad():
        for name, p in net.state_dict().items():
            drawn = Rng((zlib.crc32(name.encode()),)).normal(p.shape)
            p.copy_(drawn / np.prod(p.shape[1:]) ** 0.5 if p.ndim > 1 else 0.1 * drawn + (name.endswith("weight")))
    return net.eval()


@torch.inference_mode()
def network_numbers(arch):
    """What a network makes of two images: with a label and with the null one, its features, and a scalar where it has room for one."""
    net = given_weights(get("network", arch).make(**CONFIGS[arch]))
    if arch == "digit_classifier":
        features = net(Rng((8,)).normal((2, 1, 8, 8)))
        return [*features[:, ::9].flatten(), *net.logits(features).flatten()]
    x, c_noise, cond = Rng((8,)).normal((2, 2, 8, 8)), torch.tensor([0.2, 0.9]), Cond(torch.tensor([1, 3]), Rng((9,)).normal((2, 3, 6)))
    out, deep = net(x, c_noise, cond, features=True)
    found = [*out[:, :, 1, 2].flatten(), *deep.flatten()[:8], *net(x, c_noise)[:, :, 3, 4].flatten()]
    if arch in ("unet", "unet2d"):
        for adapter in ({}, {"adapter": GuidanceAdapter}):
            adapted = given_weights(with_scalars(net, ("w",), **adapter))
            found += [*adapted(x, c_noise, Cond(cond.label, scalars={"w": torch.tensor([0.5, 2.0])}))[:, :, 3, 4].flatten()]
    return found


@torch.inference_mode()
def branch_numbers(name):
    """What a network with a branch makes of two images and pictures, no weight of it zero."""
    base, factor = given_weights(get("network", "unet").make(**CONFIGS["unet"])), 2 if name in ("control", "t2i") else 1
    net = given_weights(with_branch(base, name, 3, BRANCHES[name]))
    x, c_noise = Rng((8,)).normal((2, 2, 8, 8)), torch.tensor([0.2, 0.9])
    image, mask = Rng((10,)).normal((2, 2, 8 * factor, 8 * factor)), (Rng((11,)).normal((2, 1, 8 * factor, 8 * factor)) > 0).float()
    return [*net(x, c_noise, Cond(torch.tensor([1, 3]), image=image, mask=mask))[:, :, 1::3, 2].flatten()]


def degradation_numbers(name):
    """Levels of six pictures that a degradation makes of a smooth one, and how much of each its mask hides."""
    at = torch.arange(24, dtype=torch.float64)
    waves = [torch.sin(at[:, None] / (3 + k) + k) * torch.cos(at[None] / (2 + k)) for k in range(3)]
    image = torch.stack(waves).expand(6, -1, -1, -1)
    told = get("degradation", name).make()(image, torch.tensor([5, 2**40 + 1, 0, 1, 2, 3]))
    shares = [] if told.mask is None else [*told.mask.flatten(1).mean(1)]
    return [*((told.image[:, :, 3::8, 3::8] + 1) * 127.5).flatten(), *shares]


class Asked:
    """What a task reads of a model."""

    shape, classes = (1, 2, 3), 10


def noise_numbers():
    """The first draws of both noise sources, and the classes of both rules."""
    seeds, found = torch.tensor([0, 7, 2**40 + 3]), []
    for kind in ("philox", "edm"):
        own = start(kind, seeds, Asked(), 1.0, ClassConditional("edm" if kind == "edm" else "balanced"))
        assert own.cond.label is not None
        found += [*own.x.flatten(), *own.cond.label, *own.source.normal(Slot(1, 0), (5,)).flatten()]
    return [*found, *PhiloxNoise(seeds).normal(Slot(4, 1), (5,)).flatten()]


def coefficient_numbers():
    """Levels of the schedules and coefficients of the preconditioners, in float64."""
    schedules = [Cosine(), VP(), EDM(), RectifiedFlow(), TrigFlow()]
    found = [v for s in schedules for part in (s.sigma([0.05, 0.5, 0.9]), *s.alpha_sigma([0.05, 0.9])) for v in np.ravel(part)]
    precs = [EDMPrecond(0.5), *(ProcessPrecond(Cosine(), form) for form in ("x0", "eps", "v", "x0_eps"))]
    return [*found, *(v for p in precs for part in p.coefficients(np.array([0.01, 1.0, 40.0])) for v in np.ravel(part))]


def evidence():
    """Samples, their teacher's solutions, real images of three classes that lie apart, and features of two extractors' names."""
    rng, labels = np.random.RandomState(0), np.arange(CLASSES * EACH) % CLASSES

    def images(labels):
        return (0.4 * (labels[:, None, None, None] - 1) + 0.2 * rng.standard_normal((len(labels), 1, 8, 8))).clip(-1, 1).astype(np.float32)

    def features(labels):
        return (labels[:, None] + rng.standard_normal((len(labels), DIM))).astype(np.float32)

    train_y, held_y = np.arange(36) % CLASSES, np.arange(24) % CLASSES
    spaces = {}
    for name in ("digits", "inception"):
        spaces[name] = FeatureSpace(name, 1, "0" * 64, Moments.of(features(train_y)))
    exact = Moments.of(rng.standard_normal((500, 64)))
    real = Reference("made_up", CLASSES, images(train_y), train_y, images(held_y), held_y, "0" * 64, spaces, exact)
    own, teacher = images(labels), images(labels)
    logits = np.eye(CLASSES)[labels] + rng.standard_normal((len(labels), CLASSES))
    ours = {name: features(labels) for name in spaces}
    for name in (*spaces, "inception_clean", "inception_legacy_pytorch", "efficientnet_lite0"):  # the others see what Inception sees
        theirs = {split: partial(np.asarray, features(y)) for split, y in (("train", train_y), ("heldout", held_y))}
        spaces[name] = replace(spaces.get(name, spaces["inception"]), rows=theirs)
        ours.setdefault(name, ours["inception"])
    told = dict.fromkeys(spaces, logits)
    return Evidence(own, labels, ours, told, teacher, real, own, teacher, 0.01, drawn=Drawn(0, "edm"), **asked_by_pictures(own))


def darker(images, rows):
    """What a made-up task tells of images: darker pictures."""
    return (images - 0.1).clip(-1, 1).astype(np.float32)


def asked_by_pictures(own):
    """True images near to samples, three samples for each, and the pictures and masks that they were asked by."""
    rng, groups = np.random.RandomState(1), np.arange(len(own)) // 3
    true = quantise(own[3 * groups] + 0.1 * rng.standard_normal(own[::3].shape).astype(np.float32)[groups])
    mask = (rng.uniform(size=(len(own) // 3, 1, *own.shape[2:])) < 0.5).astype(np.float32)[groups]
    return {"target": true, "condition": {"image": darker(true, groups), "mask": mask}, "groups": groups, "asked": darker}


# What metrics ask for more samples than these has them here.
SMALL = {
    "ssim": {"window": 5},
    "ssim_y": {"window": 5},
    "ssim_hidden": {"window": 5},
    "kid_subsets": {"size": 6, "subsets": 5},
    "fid_published": {"each": 18},
    "fid_published_min3": {"each": 6},
}


def metric_numbers(name):
    """Value, standard error and what a metric says beside them, of the same evidence."""
    found = replace(METRICS[name], **SMALL.get(name, {}))(evidence())
    more = [v for v in found.protocol.values() if isinstance(v, int | float)]
    return [
        found.value,
        -1.0 if found.std_error is None else found.std_error,
        found.samples,
        *more,
        *(found.protocol.get("resampled") or ()),
    ]
