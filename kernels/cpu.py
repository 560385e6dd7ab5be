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
from numba import carray, njit, types  # pyright: ignore[reportPrivateImportUsage]
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.unsafe.ndarray import to_fixed_tuple
from torch import Tensor

from kernels.philox_cpu import fill
from kernels.primitive import MAX_INPUTS, MAX_OUTPUTS, Normals

BLOCK = 1024
# numba's cache on disk looks at this file alone: the others whose code a kernel contains are part of its key.
SOURCES = b"".join(Path(__file__).with_name(name).read_bytes() for name in ("philox.py", "philox_cpu.py"))
STAMP = int.from_bytes(sha256(SOURCES).digest()[:4], "big") | 1
CODES = {torch.float32: 0, torch.bfloat16: 1}
DTYPES = tuple(CODES)  # what the kernel reads and writes


def _pointer_to(kind: types.Type):
    @intrinsic
    def pointer(typing_context, address):
        def generate(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.int64), generate

    return pointer


_uint16_at = _pointer_to(types.uint16)


@njit(nogil=True, cache=True, error_model="numpy")
def _widen(source, out):
    """bfloat16 words as float32: the words are the upper halves."""
    bits = out.view(np.uint32)
    for i in range(len(source)):
        bits[i] = np.uint32(source[i]) << np.uint32(16)


@njit(nogil=True, cache=True, error_model="numpy")
def _narrow(source, out):
    """float32 rounded to bfloat16 words, to nearest even; not-a-number stays one."""
    bits = source.view(np.uint32)
    for i in range(len(source)):
        word = bits[i]
        rounded = (word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
        out[i] = np.uint16(rounded) if source[i] == source[i] else np.uint16(0x7FC0)


@intrinsic(prefer_literal=True)
def _lanes(typing_context, inputs, outputs, coefficients, first, width):
    """`width` neighbouring elements of every output, from element `first` on; all inputs are loaded before anything is stored.

    inputs, outputs: tuples of addresses; coefficients: a tuple of float32, output by output; width a constant.
    """
    count = width.literal_value

    def generate(context, builder, signature, args):
        vector, lane = ir.VectorType(ir.FloatType(), count), ir.IntType(32)
        moved = builder.mul(args[3], ir.IntType(64)(4))

        def pointers(addresses):
            found = cgutils.unpack_tuple(builder, addresses)
            return [builder.inttoptr(builder.add(address, moved), vector.as_pointer()) for address in found]

        def splat(value):
            one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, lane(0))
            return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(lane, count), [0] * count))

        at, to = pointers(args[0]), pointers(args[1])
        scalars = cgutils.unpack_tuple(builder, args[2])
        made: list = [None] * len(to)
        for k, address in enumerate(at):
            x = builder.load(address, align=4)
            for m in range(len(to)):
                term = builder.fmul(splat(scalars[m * len(at) + k]), x, flags=("contract",))
                made[m] = term if k == 0 else builder.fadd(made[m], term, flags=("contract",))
        for address, value in zip(to, made):
            builder.store(value, address, align=4)
        return context.get_dummy_value()

    return types.void(inputs, outputs, coefficients, types.int64, width), generate


@cache
def kernel(inputs: int, outputs: int, noisy: bool):
    """The primitive for so many inputs and outputs, compiled once for each: (addresses, codes, coefficients, size, seeds, slot).

    Addresses and dtype codes of inputs lie from 0, of outputs from MAX_INPUTS. coefficients [M, K', S] with S = 1 or one per segment of
    `size` elements; there are len(seeds) segments: samples where noise is drawn or coefficients differ, else one.
    """
    columns = inputs + noisy
    entries, lower = columns * outputs, MAX_INPUTS
    width = 32 if outputs < 3 else 16  # what the accumulators fill the registers with
    sources_of_noise = STAMP

    @njit(nogil=True, cache=True, error_model="numpy")
    def launch(addresses, codes, coefficients, size, seeds, slot):
        assert sources_of_noise  # compiled code on disk is found by the constants it uses
        wide = np.empty((MAX_INPUTS + 1, BLOCK), np.float32)
        made = np.empty((MAX_OUTPUTS, BLOCK), np.float32)
        at, to = np.empty(columns, np.int64), np.empty(outputs, np.int64)
        flat = np.empty(entries, np.float32)
        for segment in range(len(seeds)):
            own = segment if coefficients.shape[2] > 1 else 0
            for m in range(outputs):
                for k in range(columns):
                    flat[m * columns + k] = coefficients[m, k, own]
            c = to_fixed_tuple(flat, entries)  # pyright: ignore[reportCallIssue] (an intrinsic: numba gives the first argument)
            for start in range(0, size, BLOCK):
                n, element = min(BLOCK, size - start), segment * size + start
                for k in range(inputs):
                    at[k] = addresses[k] + 4 * element
                    if codes[k] != 0:
                        _widen(carray(_uint16_at(addresses[k] + 2 * element), n), wide[k])
                        at[k] = wide[k].ctypes.data
                if noisy:
                    low, high = np.uint32(seeds[segment] & 0xFFFFFFFF), np.uint32(seeds[segment] >> 32)
                    fill(low, high, np.uint32(slot), np.uint32(start // 4), wide[inputs, :n])
                    at[inputs] = wide[inputs].ctypes.data
                for m in range(outputs):
                    to[m] = made[m].ctypes.data if codes[lower + m] != 0 else addresses[lower + m] + 4 * element
                sources, targets = to_fixed_tuple(at, columns), to_fixed_tuple(to, outputs)
                whole = n - n % width
                for i in range(0, whole, width):
                    _lanes(sources, targets, c, i, width)
                for i in range(whole, n):
                    _lanes(sources, targets, c, i, 1)
                for m in range(outputs):
                    if codes[lower + m] != 0:
                        _narrow(made[m, :n], carray(_uint16_at(addresses[lower + m] + 2 * element), n))

    return launch


def reason_unavailable(device: torch.device) -> str | None:
    """Why the kernel cannot run on tensors of a device; None where it can."""
    return None if device.type == "cpu" else f"the tensors are on {device}"


def laid_out(tensors: Sequence[Tensor], noisy: bool) -> bool:
    """Whether the tensors' elements lie in one order: all contiguous, or without noise all channels-last."""
    if all(x.is_contiguous() for x in tensors):
        return True
    return not noisy and all(x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) for x in tensors)


def segments(coefficients: Tensor, normals: Normals | None, elements: int) -> tuple[np.ndarray, int, np.ndarray]:
    """What `launch` takes beside addresses: coefficients [M, K', S], the size of a segment, and a seed for each segment."""
    c = coefficients.numpy()
    c = c if c.ndim == 3 else c[:, :, None]
    seeds = np.zeros(c.shape[2], np.int64) if normals is None else normals.seeds.contiguous().numpy()
    return c, elements // max(len(seeds), 1), seeds


def addresses_of(inputs: Sequence[int], outputs: Sequence[int]) -> np.ndarray:
    """Numbers of inputs and outputs (addresses, codes) where `launch` looks for them."""
    found = np.zeros(MAX_INPUTS + MAX_OUTPUTS, np.int64)
    found[: len(inputs)], found[MAX_INPUTS : MAX_INPUTS + len(outputs)] = inputs, outputs
    return found


def update(outputs: Sequence[Tensor], inputs: Sequence[Tensor], coefficients: Tensor, normals: Normals | None = None) -> None:
    """The primitive (see `kernels.primitive`) on tensors of these dtypes that are `laid_out`."""
    c, size, seeds = segments(coefficients, normals, outputs[0].numel())
    addresses = addresses_of([x.data_ptr() for x in inputs], [y.data_ptr() for y in outputs])
    codes = addresses_of([CODES[x.dtype] for x in inputs], [CODES[y.dtype] for y in outputs])
    launch = kernel(len(inputs), len(outputs), normals is not None)
    launch(addresses, codes, c, size, seeds, 0 if normals is None else normals.slot)
