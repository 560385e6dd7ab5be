"""The noise of the kernels: published words, frozen bits, numba equal to torch to the bit, and its distance from exact arithmetic."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numba import njit
from torch import Tensor

from kernels import Normals, cpu, philox, philox_cpu
from support.each import each

ONES = 0xFFFFFFFF
# Known answers of Philox4x32-10 in the Random123 distribution (kat_vectors): counter, key, output.
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([ONES] * 4, [ONES] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],  # the digits of pi
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]
# (seed, slot, first element) and the bits of the next seven normals. They may never change: every recorded sample depends on them.
FROZEN = [
    (0, 0x0, 0, [0x3F7DBB31, 0xBF6CB6AF, 0xBF1E1B9E, 0xBEF6D1B1, 0xBE1D5358, 0x3E392A6D, 0x3F54EC98]),
    (12345, 0x201, 0, [0xBF03B50E, 0x3F45633E, 0x3EAD4658, 0x3F111EE0, 0xBF11D60A, 0xBF153542, 0x3F474FB0]),
    (4294967303, 0x201, 3069, [0xBE905250, 0x3EFD3563, 0xBEB18882, 0x3FA0E70F, 0xBF628DDE, 0x3EF71ACE, 0x4001970F]),
    (9223372036854775807, 0xFFFFFFFF, 1000001, [0xBFA5C778, 0xBED182AF, 0x3F4D132D, 0xBF514515, 0xBF402233, 0x3E256EC2, 0xC02FFAAB]),
]
HALF = 1 << 31
# Words about both ends, about the half where the logarithm changes sides and about the powers of 2 and sqrt(2) where it is reduced.
RADII = sorted(
    {
        min(max(w + d, 0), ONES)
        for w in [0, HALF, ONES, *(int(2.0 ** (k / 2)) for k in range(64)), int(2**32 - 2**31.5)]
        for d in range(-3, 4)
    }
)
# Words about every sixteenth of a turn, octant borders included.
TURNS = sorted({(k * (1 << 28) + d) & ONES for k in range(16) for d in (-129, -128, -65, -64, -3, -2, -1, 0, 1, 2, 3, 64, 65, 128, 129)})


def numba_normals(seeds, slot, count):
    """The noise alone, through the CPU kernel."""
    drawn = torch.empty(len(seeds), count)
    cpu.update([drawn], [], torch.ones(1, 1), Normals(seeds, slot))
    return drawn


def _bits(x: Tensor) -> Tensor:
    """The bits of float32, where equality tells 0 from -0."""
    return x.view(torch.int32)


def _words(values):
    return [torch.tensor([v]) for v in values]


@njit
def _pairs(a, b, out):
    for i in range(len(a)):
        out[i, 0], out[i, 1] = philox_cpu._normals(a[i], b[i])


def _numba_pairs(a: Tensor, b: Tensor) -> Tensor:
    out = torch.empty(len(a), 2)
    _pairs(a.numpy().astype(np.uint32), b.numpy().astype(np.uint32), out.numpy())
    return out


def _exact(a: Tensor, b: Tensor) -> Tensor:
    """Box-Muller in float64 by its formula: [n] and [n] words -> [n, 2]."""
    r = torch.where(
        a < HALF, -2 * torch.log((a.double() + 0.5) * 2.0**-32), -2 * torch.log1p(-((ONES - a).double() + 0.5) * 2.0**-32)
    ).sqrt()
    angle = b.double() * (2 * math.pi * 2.0**-32)
    return torch.stack([r * torch.cos(angle), r * torch.sin(angle)], dim=1)


def _edges() -> tuple[Tensor, Tensor]:
    pairs = torch.cartesian_prod(torch.tensor(RADII), torch.tensor(TURNS))
    return pairs[:, 0], pairs[:, 1]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN)
def test_known_answers_in_torch(counter, key, answer):
    assert [int(w) for w in philox.philox4x32(_words(counter), _words(key))] == answer


def test_known_answer_in_numba():
    # The compiled words have a counter that ends in two zeros; the other vectors are reached through torch, which is equal to the bit.
    assert [int(w) for w in philox_cpu._words(*[np.uint32(0)] * 4)] == KNOWN[0][2]


@each("normals", [philox.normals, numba_normals])
@each(("seed", "slot", "first", "bits"), FROZEN)
def test_frozen_bits(normals, seed, slot, first, bits):
    found = normals(torch.tensor([seed]), slot, first + len(bits))[0, first:]
    assert [b & ONES for b in _bits(found).tolist()] == bits


@given(
    st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3),
    st.integers(0, ONES),
    st.integers(0, 70),
)
def test_numba_is_torch_to_the_bit(seeds, slot, count):
    seeds = torch.tensor(seeds)
    found = numba_normals(seeds, slot, count)
    assert found.shape == (len(seeds), count)
    assert torch.equal(_bits(found), _bits(philox.normals(seeds, slot, count)))


@pytest.mark.parametrize("count", [1023, 3072, 1_000_003])
def test_numba_is_torch_to_the_bit_at_length(count):
    seeds = torch.tensor([7, 2**32 + 7, 2**63 - 1])[:: 1 if count < 10_000 else 2]
    assert torch.equal(_bits(numba_normals(seeds, 513, count)), _bits(philox.normals(seeds, 513, count)))


def test_numba_is_torch_to_the_bit_at_edge_words():
    a, b = _edges()
    assert torch.equal(_bits(_numba_pairs(a, b)), _bits(torch.stack(philox.box_muller(a, b), dim=1)))


def test_edge_words_are_accurate():
    # Over all words r is within 1.8e-7 r, cos and sin within 1.8e-7 of themselves, the product within 0.6e-7: see `kernels.philox`.
    a, b = _edges()
    found, exact = _numba_pairs(a, b).double(), _exact(a, b)
    assert float(((found - exact).abs() / exact.abs().clamp(min=1)).max()) < 3.5e-7
    assert bool(found.isfinite().all())
    assert float(found.abs().max()) == pytest.approx(math.sqrt(66 * math.log(2)), rel=1e-6)  # the largest normal: word 0


def test_many_draws_are_accurate():
    g = torch.Generator().manual_seed(0)
    for _ in range(4):
        a, b = torch.randint(0, ONES + 1, (2, 1 << 19), generator=g)
        found, exact = _numba_pairs(a, b).double(), _exact(a, b)
        assert float(((found - exact).abs() / exact.abs().clamp(min=1)).max()) < 3.5e-7


@pytest.mark.parametrize("normals", [philox.normals, numba_normals], ids=["torch", "numba"])
def test_rows_do_not_depend_on_the_batch_nor_elements_on_the_count(normals):
    seeds = torch.arange(2**33, 2**33 + 12)
    whole = normals(seeds, 3, 50)
    assert torch.equal(torch.cat([normals(s, 3, 50) for s in seeds.split(5)]), whole)
    assert torch.equal(normals(seeds, 3, 13), whole[:, :13])
    assert torch.equal(normals(seeds[::2], 3, 50), whole[::2])
    assert normals(seeds[:0], 3, 50).shape == (0, 50)


@each("count", [1, 2, 3, 4, 1022, 1024])
def test_fill_starts_at_any_block_and_writes_nothing_beyond(count):
    buffer = np.full(2048, 9, np.float32)
    seed, slot = 2**40 + 3, 258
    philox_cpu.fill(np.uint32(seed & ONES), np.uint32(seed >> 32), np.uint32(slot), np.uint32(100), buffer[:count])
    whole = philox.normals(torch.tensor([seed]), slot, 400 + count)[0, 400:]
    assert torch.equal(_bits(torch.from_numpy(buffer[:count])), _bits(whole))
    assert bool((buffer[count:] == 9).all())


@pytest.mark.gpu
def test_the_definition_has_the_same_bits_on_a_gpu():
    seeds = torch.tensor([7, 2**32 + 7, 2**63 - 1])
    found = philox.normals(seeds.cuda(), 513, 100_003).cpu()
    assert torch.equal(_bits(found), _bits(numba_normals(seeds, 513, 100_003)))
    a, b = _edges()
    found = torch.stack(philox.box_muller(a.cuda(), b.cuda()), dim=1).cpu()
    assert torch.equal(_bits(found), _bits(_numba_pairs(a, b)))
