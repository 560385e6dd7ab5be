"""The update primitive on the CPU: numba and torch against float64, what may be given, which implementation runs."""

import itertools

import numpy as np
import pytest
import torch

import kernels
from kernels import KernelError, Normals, cpu, reference, table
from kernels.philox import normals
from support.each import each

IMPLEMENTATIONS = {"cpu": cpu.update, "reference": reference.update}
SEEDS = torch.tensor([3, 1 << 40, 77, 0, 12])


def fresh(shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def poisoned(shape, dtype=torch.float32):
    return torch.full(shape, torch.nan, dtype=dtype)


def exact(inputs, coefficients, noise=None):
    """The sums in float64, from the rounded coefficients."""
    terms = [x.double() for x in inputs] + ([] if noise is None else [noise.double()])
    c = coefficients.double()
    c = c[:, :, None] if c.ndim == 2 else c
    return [sum(row[k].view(-1, *[1] * (terms[0].ndim - 1)) * x for k, x in enumerate(terms)) for row in c]


def coefficients(m, k, batch=None, seed=0, dtype=torch.float32):
    size = (m, k) if batch is None else (m, k, batch)
    return table(np.random.default_rng(seed).normal(size=size), "cpu", dtype)


@each("name", IMPLEMENTATIONS)
@each("k", range(1, 9))
@each("m", range(1, 5))
def test_every_count_of_inputs_and_outputs(name, k, m):
    """Odd sizes, shared coefficients and one set for each sample, outputs poisoned before."""
    for shape, by_sample in itertools.product([(5, 3, 7, 11), (5, 2100), (5, 1)], [False, True]):
        xs = [fresh(shape, seed=j) for j in range(k)]
        c = coefficients(m, k, 5 if by_sample else None)
        ys = [poisoned(shape) for _ in range(m)]
        IMPLEMENTATIONS[name](ys, xs, c)
        for y, expected in zip(ys, exact(xs, c), strict=True):
            torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=k * 3e-7)  # k roundings of terms of size 1 to 3


@each("dtypes", list(itertools.product([torch.float32, torch.bfloat16], repeat=3)))
def test_each_tensor_has_its_own_dtype(dtypes):
    """One rounding to bfloat16: half a unit in the last of its 8 bits."""
    *inputs, out = dtypes
    xs, c = [fresh((4, 3, 9), dtype, seed) for seed, dtype in enumerate(inputs)], coefficients(1, 2)
    y = poisoned((4, 3, 9), out)
    cpu.update([y], xs, c)
    unit = 2.0**-8 if out is torch.bfloat16 else 2.0**-22
    torch.testing.assert_close(y.double(), exact(xs, c)[0], rtol=unit, atol=1e-6)  # and of float32 sums before


def test_bfloat16_rounds_to_even_and_keeps_what_is_not_a_number():
    words = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    every = words.view(torch.bfloat16).float()
    halves = torch.cat([every, (every.view(torch.int32) | 0x8000).view(torch.float32), torch.tensor([torch.nan, torch.inf, -torch.inf])])
    y = poisoned(halves.shape, torch.bfloat16)
    cpu.update([y[None]], [halves[None]], torch.ones(1, 1))
    expected = halves.bfloat16()
    same = (y.view(torch.int16) == expected.view(torch.int16)) | (y.isnan() & expected.isnan())
    assert same.all()


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("batch", [None, 5])
def test_noise_is_the_definition_bit_for_bit(name, batch):
    x, y, z = fresh((5, 3, 7, 9)), poisoned((5, 3, 7, 9)), poisoned((5, 3, 7, 9))
    c = coefficients(2, 2, batch)
    c[1, 0], c[1, 1] = 0, 1
    IMPLEMENTATIONS[name]([y, z], [x], c, Normals(SEEDS, 300))
    drawn = normals(SEEDS, 300, 189).view_as(x)
    assert torch.equal(z, drawn)
    torch.testing.assert_close(y.double(), exact([x], c, drawn)[0], rtol=1e-6, atol=1e-6)  # two roundings


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_noise_alone(name):
    y = poisoned((5, 1030))
    IMPLEMENTATIONS[name]([y], [], torch.full((1, 1), 2.0), Normals(SEEDS, 7))
    assert torch.equal(y, 2 * normals(SEEDS, 7, 1030))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_output_of_several_batches_is_written_so_often(name, dtype):
    """In place of an input, too: its first part."""
    xs, c = [fresh((5, 3, 7, 11), seed=j) for j in range(2)], coefficients(2, 3, 5)
    expected = exact(xs, c, normals(SEEDS, 9, 231).view(5, 3, 7, 11))
    twice, thrice = torch.cat([xs[0], poisoned((5, 3, 7, 11))]), poisoned((15, 3, 7, 11), dtype)
    IMPLEMENTATIONS[name]([twice, thrice], [twice[:5], xs[1]], c, Normals(SEEDS, 9))
    for part in twice.split(5):
        torch.testing.assert_close(part.double(), expected[0], rtol=1e-6, atol=1e-6)  # three roundings
    for part in thrice.split(5):
        assert torch.equal(part, thrice[:5])
        torch.testing.assert_close(
            part.double(), expected[1], rtol=2.0**-8 if dtype is torch.bfloat16 else 1e-6, atol=1e-6
        )  # and the dtype's


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_outputs_may_be_inputs(name):
    """Every output takes the place of an input that another output also reads."""
    xs = [fresh((5, 3, 16, 33), seed=j) for j in range(4)]
    c = coefficients(4, 4)
    expected = exact(xs, c)
    IMPLEMENTATIONS[name](xs, [xs[1], xs[2], xs[3], xs[0]], c[:, [1, 2, 3, 0]].contiguous())
    for y, e in zip(xs, expected, strict=True):
        torch.testing.assert_close(y.double(), e, rtol=1e-6, atol=2e-6)  # four roundings


def test_a_sample_does_not_depend_on_its_batch():
    xs, c = [fresh((5, 3, 7, 13), seed=j) for j in range(3)], coefficients(2, 4)
    whole, alone = [poisoned((5, 3, 7, 13)) for _ in range(2)], [poisoned((5, 3, 7, 13)) for _ in range(2)]
    cpu.update(whole, xs, c, Normals(SEEDS, 1))
    for b in range(5):
        cpu.update([y[b : b + 1] for y in alone], [x[b : b + 1] for x in xs], c, Normals(SEEDS[b : b + 1], 1))
    assert all(torch.equal(y, z) for y, z in zip(whole, alone, strict=True))


@each("dtype", [torch.float32, torch.bfloat16])
@each("k", [1, 2, 3, 5, 8])
def test_the_error_is_at_most_twice_that_of_the_eager_formula(k, dtype):
    xs, c = [fresh((16, 3, 32, 32), dtype, seed) for seed in range(k)], coefficients(1, k)
    y, expected = poisoned((16, 3, 32, 32), dtype), exact(xs, c)[0]
    eager = sum(float(v) * x for v, x in zip(c[0], xs, strict=True))
    cpu.update([y], xs, c)
    assert (y - expected).abs().max() <= 2 * (eager - expected).abs().max() + (k == 1) * 1e-7


def test_channels_last_and_mixed_layouts_are_served():
    x, y = fresh((5, 3, 8, 8)), fresh((5, 3, 8, 8), seed=1)
    last = y.contiguous(memory_format=torch.channels_last)
    c = coefficients(1, 2)
    for inputs in ([x, y], [x, last], [x.contiguous(memory_format=torch.channels_last), last]):
        for out in (poisoned(x.shape), poisoned(x.shape).contiguous(memory_format=torch.channels_last)):
            kernels.update([out], inputs, c)
            torch.testing.assert_close(out.double(), exact([x, y], c)[0], rtol=1e-6, atol=1e-6)  # two roundings


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_other_dtypes_take_the_reference(dtype):
    x, y = fresh((5, 9), dtype), poisoned((5, 9), dtype)
    kind = torch.float64 if dtype is torch.float64 else torch.float32
    kernels.update([y], [x], coefficients(1, 1, dtype=kind))
    assert torch.equal(y, (x.to(kind) * coefficients(1, 1, dtype=kind)[0, 0]).to(dtype))


X = torch.zeros(2, 3, 4, 4)
ONE = torch.ones(1, 1)


@each(
    ("outputs", "inputs", "c", "noise", "message"),
    [
        ([X] * 5, [X], torch.ones(5, 1), None, "1 to 4 outputs and up to 8 inputs, got 5 and 1"),
        ([X], [X] * 9, torch.ones(1, 9), None, "got 1 and 9"),
        ([], [X], torch.ones(0, 1), None, "got 0 and 1"),
        ([X], [X[:, :2]], ONE, None, r"input 0 has shape \[2, 2, 4, 4\] in an update of \[2, 3, 4, 4\]"),
        ([X[:1]], [X], ONE, None, r"output 0 has shape \[1, 3, 4, 4\] in an update of \[2, 3, 4, 4\]"),
        ([X.repeat(4, 1, 1, 1)], [X], ONE, None, "output 0 holds the batch 4 times; at most 3 are written at once"),
        ([X], [X.to("meta")], ONE, None, "input 0 is on meta and output 0 on cpu"),
        ([X], [X.int()], ONE, None, "input 0 is torch.int32; convert it"),
        ([X[:, :, :, ::2]], [X[:, :, :, ::2]], ONE, None, r"output 0 has strides .*; make it contiguous or channels-last"),
        ([X], [X], torch.ones(1, 2), None, r"table has shape \[1, 2\]; expected \[1, 1\] or, per sample, \[1, 1, 2\]"),
        ([X], [X], torch.ones(1, 1, 3), None, r"table has shape \[1, 1, 3\]"),
        ([X], [X], ONE, Normals(torch.zeros(2, dtype=torch.int64), 0), r"table has shape \[1, 1\]; expected \[1, 2\]"),
        ([X], [X], ONE.double(), None, "table is contiguous torch.float64; expected contiguous torch.float32"),
        ([X], [X], ONE.to("meta"), None, "table is on meta"),
        ([X], [X], torch.ones(1, 2), Normals(torch.zeros(3, dtype=torch.int64), 0), r"seeds are torch.int64 \[3\] on cpu; expected"),
        ([X], [X], torch.ones(1, 2), Normals(torch.zeros(2), 0), r"seeds are torch.float32 \[2\]"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(outputs, inputs, c, noise, message):
    with pytest.raises(KernelError, match=message):
        kernels.update(outputs, inputs, c, noise)


def test_memory_that_is_shared_in_part_is_refused():
    memory = torch.zeros(20)
    a, b = memory[None, :12], memory[None, 4:16]
    with pytest.raises(KernelError, match="input 0 shares a part of output 0's memory"):
        kernels.update([a], [b], ONE)
    with pytest.raises(KernelError, match="output 1 shares memory with an earlier output"):
        kernels.update([a, b], [torch.zeros(1, 12)], torch.ones(2, 1))


def test_gradients_are_refused_and_not_dropped():
    with pytest.raises(KernelError, match=r"an update has no gradients; use kernels.combine"):
        kernels.update([torch.zeros(2, 3)], [torch.ones(2, 3, requires_grad=True)], ONE)


def test_a_backend_that_is_asked_for_is_not_replaced():
    last = X.contiguous(memory_format=torch.channels_last)
    with pytest.raises(KernelError, match="backend=cpu cannot run: the tensors have several layouts"):
        kernels.update([X.clone()], [last], ONE, backend="cpu")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e39])
def test_a_coefficient_that_is_not_finite_is_named(value):
    with pytest.raises(KernelError, match=r"input 1 in output 0 is .*; every one must be finite in torch.float32"):
        table(np.array([[1.0, value]]), "cpu")
    if value == 1e39:
        assert table(np.array([[value]]), "cpu", torch.float64)[0, 0] == value


@pytest.mark.parametrize(
    ("backend", "dtype", "message"),
    [
        ("triton", torch.float32, "backend=triton cannot run: it runs on CUDA devices, not on cpu; use backend=auto"),
        ("cpu", torch.float64, "backend=cpu cannot run: it has no torch.float64"),
        ("cuda", torch.float32, "unknown backend 'cuda'; known: auto, reference, cpu, triton"),
    ],
)
def test_a_backend_that_cannot_run_is_refused_by_name_only(backend, dtype, message):
    x = torch.ones(2, 3, dtype=dtype)
    c = torch.full((1, 1), 2.0, dtype=kernels.accumulator(dtype))
    with pytest.raises(KernelError, match=message):
        kernels.update([x], [x], c, backend=backend)
    kernels.update([x], [x], c)
    assert (x == 2).all()


def test_choose_prefers_the_fastest():
    device = torch.device("cpu")
    assert kernels.choose("auto", device, [torch.float32, torch.bfloat16]) == "cpu"
    assert kernels.choose("auto", device, [torch.float16]) == "reference"
    assert kernels.choose("reference", device, [torch.float32]) == "reference"
