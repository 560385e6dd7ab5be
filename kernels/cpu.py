"""The update primitive on CPUs: one pass over memory, compiled by numba, noise included.

Blocks of elements that stay in the first-level cache are read, combined for every output, and only then written, so that an output may
be an input. One thread: a single core already moves about as many bytes as torch's copy on all of them, without waking the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from llvmlite import ir
from numba import types  # pyright: ignore[reportPrivateImportUsage]
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.unsafe.ndarray import to_fixed_tuple
from torch import Tensor

from kernels.compiled import compiled
from kernels.philox_cpu import fill
from kernels.primitive import MAX_INPUTS, MAX_OUTPUTS, Normals, batch_of

BLOCK = 1024
KINDS = {torch.float32: "f", torch.bfloat16: "b"}
DTYPES = tuple(KINDS)  # what the kernel reads and writes
# numba's cache on disk looks at this file alone: the others whose code a kernel contains are part of its key.
SOURCES = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("philox.py", "philox_cpu.py"))
STAMP = int.from_bytes(sha256(SOURCES).digest()[:4], "big") | 1
WORD, HALF, LONG, FLOAT = ir.IntType(32), ir.IntType(16), ir.IntType(64), ir.FloatType()


def form_of(inputs: Sequence[torch.dtype], outputs: Sequence[tuple[torch.dtype, int]]) -> str:
    """What a kernel is compiled for: a letter for each input, and for each output a letter and how often it is written, as "ffb:f1b2"."""
    return f"{''.join(KINDS[dtype] for dtype in inputs)}:{''.join(f'{KINDS[dtype]}{repeats}' for dtype, repeats in outputs)}"


def _parsed(form: str) -> tuple[str, list[tuple[str, int]]]:
    inputs, _, outputs = form.partition(":")
    return inputs, [(outputs[i], int(outputs[i + 1])) for i in range(0, len(outputs), 2)]


def _loaded(builder, address, kind: str, width: int):
    """A vector of float32 from an address; bfloat16 words are the upper halves of float32 words."""
    if kind == "f":
        return builder.load(builder.inttoptr(address, ir.VectorType(FLOAT, width).as_pointer()), align=4)
    words = builder.load(builder.inttoptr(address, ir.VectorType(HALF, width).as_pointer()), align=2)
    wide = ir.VectorType(WORD, width)
    return builder.bitcast(builder.shl(builder.zext(words, wide), ir.Constant(wide, [16] * width)), ir.VectorType(FLOAT, width))


def _rounded(builder, value, width: int):
    """float32 as bfloat16 words, to nearest even; not-a-number stays one."""
    wide, half = ir.VectorType(WORD, width), ir.VectorType(HALF, width)

    def all_of(number: int):
        return ir.Constant(wide, [number] * width)

    bits = builder.bitcast(value, wide)
    odd = builder.and_(builder.lshr(bits, all_of(16)), all_of(1))
    nearest = builder.lshr(builder.add(builder.add(bits, all_of(0x7FFF)), odd), all_of(16))
    strange = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(strange, all_of(0x7FC0), nearest), half)


@intrinsic(prefer_literal=True)
def _lanes(typing_context, inputs, outputs, coefficients, first, width, form):
    """`width` neighbouring elements of every output, from element `first` on; all inputs are loaded before anything is stored.

    inputs, outputs: tuples of addresses, one for each time an output is written; coefficients: a tuple of float32, output by output; width
    and form are constants.
    """
    count = width.literal_value
    kinds, targets = _parsed(form.literal_value)

    def generate(context, builder, signature, args):
        vector = ir.VectorType(FLOAT, count)

        def element(address, kind):
            return builder.add(address, builder.mul(args[3], LONG(4 if kind == "f" else 2)))

        def splat(value):
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, WORD(0))
            return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(WORD, count), [0] * count))

        scalars = cgutils.unpack_tuple(builder, args[2])
        made: list = [None] * len(targets)
        for k, (address, kind) in enumerate(zip(cgutils.unpack_tuple(builder, args[0]), kinds, strict=True)):
            x = _loaded(builder, element(address, kind), kind, count)
            for m in range(len(targets)):
                term = builder.fmul(splat(scalars[m * len(kinds) + k]), x, flags=("contract",))
                made[m] = term if k == 0 else builder.fadd(made[m], term, flags=("contract",))
        places = iter(cgutils.unpack_tuple(builder, args[1]))
        for value, (kind, repeats) in zip(made, targets):
            stored = value if kind == "f" else _rounded(builder, value, count)
            for _ in range(repeats):
                pointer = builder.inttoptr(element(next(places), kind), stored.type.as_pointer())
                builder.store(stored, pointer, align=4 if kind == "f" else 2)
        return context.get_dummy_value()

    return types.void(inputs, outputs, coefficients, types.int64, width, form), generate


@cache
def kernel(form: str, noisy: bool):
    """The primitive for a form, compiled once for each: (addresses, row, coefficients, size, seeds, slot).

    In the row of addresses, those of inputs lie from 0, of outputs from MAX_INPUTS. coefficients [M, K', S] with S = 1 or one per segment
    of `size` elements; there are len(seeds) segments: samples where noise is drawn or coefficients differ, else one.
    """
    kinds, targets = _parsed(form)
    inputs, outputs, columns = len(kinds), len(targets), len(kinds) + noisy
    places = [(m, 4 if kind == "f" else 2, r) for m, (kind, repeats) in enumerate(targets) for r in range(repeats)]
    outs, out_sizes, rounds = (tuple(column) for column in zip(*places))
    in_sizes, written, entries = (*(4 if kind == "f" else 2 for kind in kinds), 4), len(places), columns * outputs
    width = 32 if outputs < 3 else 16  # what the accumulators fill the registers with
    full = f"{kinds}{'f' * noisy}:{form.partition(':')[2]}"
    sources_of_noise = STAMP

    @compiled
    def launch(addresses, row, coefficients, size, seeds, slot):
        assert sources_of_noise  # compiled code on disk is found by the constants it uses
        drawn = np.empty(BLOCK if noisy else 1, np.float32)
        at, to = np.empty(columns, np.int64), np.empty(written, np.int64)
        flat = np.empty(entries, np.float32)
        total = size * len(seeds)
        for segment in range(len(seeds)):
            own = segment if coefficients.shape[2] > 1 else 0
            for m in range(outputs):
                for k in range(columns):
                    flat[m * columns + k] = coefficients[m, k, own]
            c = to_fixed_tuple(flat, entries)  # pyright: ignore[reportCallIssue] (an intrinsic: numba gives the first argument)
            for start in range(0, size, BLOCK):
                n, element = min(BLOCK, size - start), segment * size + start
                for k in range(inputs):
                    at[k] = addresses[row, k] + in_sizes[k] * element
                if noisy:
                    low, high = np.uint32(seeds[segment] & 0xFFFFFFFF), np.uint32(seeds[segment] >> 32)
                    fill(low, high, np.uint32(slot), np.uint32(start // 4), drawn[:n])
                    at[inputs] = drawn.ctypes.data
                for j in range(written):
                    to[j] = addresses[row, MAX_INPUTS + outs[j]] + out_sizes[j] * (element + rounds[j] * total)
                sources, places = to_fixed_tuple(at, columns), to_fixed_tuple(to, written)
                whole = n - n % width
                for i in range(0, whole, width):
                    _lanes(sources, places, c, i, width, full)
                for i in range(whole, n):
                    _lanes(sources, places, c, i, 1, full)

    return launch


def reason_unavailable(device: torch.device) -> str | None:
    """Why the kernel cannot run on tensors of a device; None where it can."""
    return None if device.type == "cpu" else f"the tensors are on {device}"


def laid_out(tensors: Sequence[Tensor], noisy: bool) -> bool:
    """Whether the tensors' elements lie in one order: all contiguous, or without noise all channels-last."""
    if all(x.is_contiguous() for x in tensors):
        return True
    return not noisy and all(x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) for x in tensors)


def segments(coefficients: Tensor, seeds: int, elements: int) -> tuple[np.ndarray, int, np.ndarray]:
    """What a kernel takes beside addresses: coefficients [M, K', S], the size of a segment, and zeros in place of seeds.

    `seeds` is the batch where noise is drawn, else 0.
    """
    c = coefficients.numpy()
    c = c if c.ndim == 3 else c[:, :, None]
    count = seeds or c.shape[2]
    return c, elements // max(count, 1), np.zeros(count, np.int64)


def update(outputs: Sequence[Tensor], inputs: Sequence[Tensor], coefficients: Tensor, normals: Normals | None = None) -> None:
    """The primitive (see `kernels.primitive`) on tensors of these dtypes that are `laid_out`."""
    batch = batch_of(outputs, inputs, normals)
    if batch == 0:
        return
    repeats = [len(y) // batch for y in outputs]
    c, size, seeds = segments(coefficients, 0 if normals is None else batch, outputs[0].numel() // repeats[0])
    addresses = np.zeros((1, MAX_INPUTS + MAX_OUTPUTS), np.int64)
    addresses[0, : len(inputs)] = [x.data_ptr() for x in inputs]
    addresses[0, MAX_INPUTS : MAX_INPUTS + len(outputs)] = [y.data_ptr() for y in outputs]
    form = form_of([x.dtype for x in inputs], [(y.dtype, r) for y, r in zip(outputs, repeats)])
    if normals is None:
        kernel(form, False)(addresses, 0, c, size, seeds, 0)
    else:
        kernel(form, True)(addresses, 0, c, size, normals.seeds.contiguous().numpy(), normals.slot)
