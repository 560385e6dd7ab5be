"""Calls that are answered from memory: the same bits, and nothing else, give the same bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.jobs.models import Model
from bench.jobs.resolve import resolve
from bench.jobs.samples import Bound, ensure_samples
from bench.jobs.suite import Suite
from bench.store.artefacts import Store
from bench.store.cell import Cell
from fewstep.cond import Cond
from fewstep.sampling.memory import Recalled
from support.tiny import mixture_data, network

DATA = mixture_data()[1]
SUITE = Suite("test", 6, 0, "philox", "dpmpp_2m", 4, {}, ())


@pytest.fixture
def asked():
    """A network that remembers, and the inputs of the calls that have come through to it."""
    net, calls = network(DATA).net, list[torch.Tensor]()
    net.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0]))
    return Recalled(net), calls


def call(n: int = 4, level: float = 0.5, label: int = 1) -> tuple[torch.Tensor, torch.Tensor, Cond]:
    x = torch.sin(torch.arange(n * np.prod(DATA.shape), dtype=torch.float32)).view(n, *DATA.shape)
    return x, torch.full((n,), level), Cond(label=torch.full((n,), label))


@torch.no_grad()
def test_the_same_bits_are_asked_once(asked):
    recalled, calls = asked
    first = recalled(*call())
    expected = first.clone()
    first.zero_()  # what a caller does to an output is his own affair
    second = recalled(*call())
    assert torch.equal(second, expected)
    second.zero_()
    assert torch.equal(recalled(*call()), expected)
    assert len(calls) == 1
    assert torch.equal(recalled.net(*call()), expected)


@torch.no_grad()
def test_any_other_bit_is_another_call(asked):
    recalled, calls = asked
    x, time, cond = call()
    nearly = x.clone()
    nearly[-1, 0, -1, -1] = torch.nextafter(nearly[-1, 0, -1, -1], torch.tensor(9.0))
    zero, negative = torch.zeros_like(x), -torch.zeros_like(x)
    inputs = [(x, time, cond), (nearly, time, cond), (x, time.nextafter(torch.tensor(9.0)), cond), call(label=2), (x, time, Cond())]
    inputs += [(zero, time, cond), (negative, time, cond), (x, time, Cond(scalars={"w": time})), (x, time, Cond(scalars={"v": time}))]
    inputs += [call(3), (x.transpose(2, 3).contiguous().transpose(2, 3), time, cond)]
    for arguments in inputs:
        assert torch.equal(recalled(*arguments), recalled.net(*arguments))
    assert len(calls) == 2 * len(inputs)
    for arguments in inputs:
        recalled(*arguments)
    assert len(calls) == 2 * len(inputs)


@torch.no_grad()
def test_the_least_recently_used_go_when_the_memory_is_full(asked):
    recalled, calls = asked
    recalled.limit = 2 * call()[0].nbytes
    for level in (0.1, 0.2, 0.1, 0.3, 0.1, 0.2):  # 0.2 was asked longest ago when 0.3 comes
        recalled(*call(level=level))
    assert len(calls) == 4
    assert recalled.held == sum(raw.nbytes for raw in recalled.known.values()) == recalled.limit


def test_gradients_features_and_training_are_not_remembered(asked):
    recalled, calls = asked
    for _ in range(2):
        assert recalled(*call()).requires_grad
    with torch.no_grad():
        for _ in range(2):
            assert recalled(*call(), features=True)[1].shape[0] == 4
        recalled.train()
        for _ in range(2):
            recalled(*call())
    assert len(calls) == 6
    assert not recalled.known
    assert recalled.feature_size == recalled.net.feature_size


@pytest.mark.parametrize("axes", [{}, {"guidance": 2.0, "nfe": 10}, {"wrap": "clip"}, {"afs": True}], ids=repr)
def test_solvers_sample_the_same_with_a_memory_and_count_the_same_passes(axes, tmp_path):
    cells = [Cell("teacher", solver, **{"grid": "polynomial", "end": "sigma_min", "nfe": 5} | axes) for solver in ("dpmpp_2m", "dpmpp_3m")]
    through = list[torch.Tensor]()

    def sampled(model: Model, name: str, cell: Cell) -> tuple[np.ndarray, int]:
        job, store = resolve(cell, SUITE, model), Store(tmp_path / name)
        through.clear()
        images = ensure_samples(Bound(job, model, store, "cpu"), 3, lambda text: None).images[:]
        assert store.read("samples", job.key)["network_passes"] == cell.nfe
        return images, len(through)

    one = Model("mixture", network(DATA), "0" * 64, DATA, {})
    one.teacher.net.register_forward_pre_hook(lambda module, inputs: through.append(inputs[0]))
    alone = [sampled(replace(one), f"alone{i}", cell) for i, cell in enumerate(cells)]
    together = [sampled(one, "together", cell) for cell in cells]
    assert all(np.array_equal(a, b) for (a, _), (b, _) in zip(alone, together))
    assert together[0][1] == alone[0][1] == alone[1][1] == 2 * 5
    alike = 2 if "afs" in axes else 3  # the states that a third-order step has not made yet
    assert together[1][1] == 2 * (5 - alike)  # in two batches
    assert not np.array_equal(together[0][0], together[1][0])
