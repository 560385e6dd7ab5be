"""Readers: weights of another format come in through one function that a plugin registers."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.settings.compose import group_config
from fewstep import load_teacher, register
from fewstep.errors import UsageError
from fewstep.nets.loading import load_denoiser, read
from fewstep.nets.readers.card import SHIPPED, read_weights
from support.registered import put


def read_npz(path: Path):
    """Tensors of a NumPy archive, whose entry `card` is the card as JSON."""
    with np.load(path) as found:
        tensors = {name: torch.from_numpy(found[name]) for name in found.files if name != "card"}
        return tensors, json.loads(str(found["card"]))


@pytest.fixture
def npz(tmp_path, monkeypatch):
    tensors, card = read_weights(SHIPPED / "digits_edm.safetensors")
    path = tmp_path / "mine.npz"
    np.savez(path, card=json.dumps(card), **{name: value.numpy() for name, value in tensors.items()})
    put(monkeypatch, "reader", "npz", read_npz, suffixes=(".npz",))
    return path


def test_weights_of_a_registered_format_are_a_teacher_and_a_model_by_path(npz):
    ours, identity = load_denoiser("digits_edm")
    theirs, same = load_denoiser(npz)
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(x, 1.0), theirs(x, 1.0))
    assert identity == same
    assert torch.equal(load_teacher(npz)(x, 1.0), ours(x, 1.0))
    assert group_config("model", str(npz)) == {"name": "mine", "data": "digits", "weights": str(npz)}


def test_a_format_that_no_reader_knows_is_named(tmp_path):
    path = tmp_path / "mine.ckpt"
    path.write_bytes(b"")
    for call in (read, load_denoiser, lambda p: group_config("model", str(p))):
        with pytest.raises(UsageError, match=r"no reader for weights .*mine\.ckpt.*\.safetensors"):
            call(path)


def test_a_reader_says_the_suffixes_that_it_reads():
    with pytest.raises(UsageError, match="reader 'mine' does not say its suffixes"):
        register("reader", "mine")(read_npz)
