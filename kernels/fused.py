"""The update primitive on CUDA devices: one Triton launch, one read of each input and one write of each output, noise included.

A program computes BLOCK consecutive elements. Where every tensor has one memory order and all samples share their coefficients and no
noise is drawn, programs divide the memory of the whole batch; otherwise they divide the memory of each sample. Elements are visited in the
order in which most tensors lie in memory, the others are addressed element by element. Every load of a program comes before its first
store, so that an output may be an input. Nothing is read by the host: CUDA graphs can capture the launch.
"""

# Triton's loops, sizes and argument types are its own, not Python's:
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportInvalidTypeForm=false, reportOperatorIssue=false

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from kernels import philox
from kernels.primitive import Normals, batch_of

try:
    import triton
    import triton.language as tl
except ImportError:  # no build of it for this platform
    triton = None

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BLOCK = 1024  # elements of a program
GRAIN = 16  # counts that are multiples of it keep 128-bit accesses: the kernel gets count / GRAIN

if triton is not None:
    # Few globals, since every launch compares each of them with the value it was compiled with.
    WORDS = tl.constexpr((philox.MULTIPLIERS, philox.WEYL, philox.ROUNDS, philox.ONE, philox.SQRT_HALF))
    REALS = tl.constexpr((philox.LOG, philox.SIN, philox.COS, philox.LN2_HI, philox.LN2_LO))

    @triton.jit
    def philox4x32(c0, c1, k0, k1):
        """The words of counters (c0, c1, 0, 0) and keys (k0, k1), all uint32; c0 a block of them."""
        multipliers: tl.constexpr = WORDS[0]
        weyl: tl.constexpr = WORDS[1]
        rounds: tl.constexpr = WORDS[2]
        c2 = c0 * 0
        c3 = c2
        for _ in tl.static_range(rounds):
            p0, p1 = c0.to(tl.uint64) * multipliers[0], c2.to(tl.uint64) * multipliers[1]
            hi0, hi1 = (p0 >> 32).to(tl.uint32), (p1 >> 32).to(tl.uint32)
            c0, c1, c2, c3 = hi1 ^ c1 ^ k0, p1.to(tl.uint32), hi0 ^ c3 ^ k1, p0.to(tl.uint32)
            k0, k1 = k0 + weyl[0], k1 + weyl[1]
        return c0, c1, c2, c3

    @triton.jit
    def polynomial(x, coefficients: tl.constexpr):
        total = coefficients[len(coefficients) - 1]
        for i in tl.static_range(len(coefficients) - 1):
            total = total * x + coefficients[len(coefficients) - 2 - i]
        return total

    @triton.jit
    def radius(w):
        """`philox.radius`, operation by operation."""
        one: tl.constexpr = WORDS[3]
        sqrt_half: tl.constexpr = WORDS[4]
        upper = w > 0x7FFFFFFF
        f = (tl.where(upper, ~w, w).to(tl.float32) + 0.5) * 2.0**-32
        bits = tl.where(upper, 1.0 - f, f).to(tl.int32, bitcast=True) + (one - sqrt_half)
        e = (bits >> 23) - 127
        m = ((bits & 0x7FFFFF) + sqrt_half).to(tl.float32, bitcast=True)
        t = tl.where(upper & (e == 0), -f, m - 1.0)
        e = e.to(tl.float32)
        return tl.sqrt_rn((t * polynomial(t, REALS[0]) - e * REALS[4]) - e * REALS[3])

    @triton.jit
    def angle(w):
        """The quarter turn that is nearest to the angle of w, and (sin, cos) of what remains."""
        quarter = (w + (1 << 29)) >> 30
        t = (w - (quarter << 30)).to(tl.int32, bitcast=True).to(tl.float32) * 2.0**-30
        s = t * t
        return quarter, t * polynomial(s, REALS[1]), polynomial(s, REALS[2])

    @triton.jit
    def box_muller(a, b):
        """`philox.box_muller`, operation by operation."""
        r = radius(a)
        quarter, sin, cos = angle(b)
        odd = (quarter & 1) == 1
        x = tl.where(((quarter + 1) & 2) == 2, -r, r) * tl.where(odd, sin, cos)
        y = tl.where((quarter & 2) == 2, -r, r) * tl.where(odd, cos, sin)
        return x, y

    @triton.jit
    def normals_in_order(seed, slot, first, BLOCK: tl.constexpr):
        """Normals of the elements first ... first + BLOCK - 1 of a sample, `first` a multiple of 4: each counter is used for four."""
        counter = (first // 4).to(tl.uint32) + tl.arange(0, BLOCK // 4).to(tl.uint32)
        w0, w1, w2, w3 = philox4x32(counter, (seed >> 32).to(tl.uint32), seed.to(tl.uint32), slot)
        z0, z1 = box_muller(w0, w1)
        z2, z3 = box_muller(w2, w3)
        return tl.join(tl.join(z0, z2), tl.join(z1, z3)).reshape(BLOCK)

    @triton.jit
    def normals_at(seed, slot, index):
        """Normals of the elements `index` of a sample, in any order."""
        w0, w1, w2, w3 = philox4x32((index // 4).to(tl.uint32), (seed >> 32).to(tl.uint32), seed.to(tl.uint32), slot)
        upper = (index & 2) == 2
        x, y = box_muller(tl.where(upper, w2, w0), tl.where(upper, w3, w1))
        return tl.where((index & 1) == 1, y, x)

    @triton.jit(do_not_specialize=["slot", "units", "batch", "blocks", "channels", "plane"])
    def kernel(
        outputs,
        inputs,
        table,
        seeds,
        slot: tl.uint32,
        units: tl.int64,
        batch: tl.int32,
        blocks: tl.int32,
        channels: tl.int32,
        plane: tl.int32,
        UNIT: tl.constexpr,
        BLOCK: tl.constexpr,
        BY_SAMPLE: tl.constexpr,
        TABLES: tl.constexpr,
        NOISE: tl.constexpr,
        CHANNELS_LAST: tl.constexpr,
        OTHERS: tl.constexpr,
        REPEATS: tl.constexpr,
    ):
        """outputs, inputs: pointers. `blocks` programs divide the units * UNIT elements of each sample (BY_SAMPLE) or of the batch.

        TABLES: table is [M, K', batch], else [M, K']. The memory order is channels-last or contiguous; bit j of OTHERS: tensor j of
        inputs + outputs has the other one; two bits of REPEATS for each output: how often it is written, one batch after the other.
        """
        program = tl.program_id(0)
        if BY_SAMPLE:
            sample = (program // blocks).to(tl.int64)
            first = (program % blocks).to(tl.int64) * BLOCK
        else:
            sample = 0
            first = program.to(tl.int64) * BLOCK
        count = units.to(tl.int64) * UNIT
        origin = sample * count
        whole = count * batch if BY_SAMPLE else count  # elements of one batch
        lane = tl.arange(0, BLOCK)
        inside = lane < tl.minimum(count - first, BLOCK).to(tl.int32)
        if OTHERS != 0 or (NOISE and CHANNELS_LAST):
            index = first.to(tl.int32) + lane
            fast = channels if CHANNELS_LAST else plane  # the extent of what varies fastest, and of the rest
            slow = plane if CHANNELS_LAST else channels
            other = (index % fast) * slow + index // fast

        cs = ()  # before the first store: loads cannot move up across one
        for entry in tl.static_range(len(outputs) * (len(inputs) + NOISE)):
            cs += (tl.load(table + entry * batch.to(tl.int64) + sample) if TABLES else tl.load(table + entry),)
        terms = ()
        for k in tl.static_range(len(inputs)):
            if (OTHERS >> k) & 1:
                x = tl.load(inputs[k] + origin + other, mask=inside)
            else:
                x = tl.load(inputs[k] + (origin + first) + lane, mask=inside)
            terms += (x.to(tl.float32),)
        if NOISE:
            seed = tl.load(seeds + sample)
            if CHANNELS_LAST:
                terms += (normals_at(seed, slot.to(tl.uint32), other),)
            else:
                terms += (normals_in_order(seed, slot.to(tl.uint32), first, BLOCK),)

        for m in tl.static_range(len(outputs)):
            total = tl.full([BLOCK], 0.0, tl.float32)
            for k in tl.static_range(len(terms)):
                product = cs[m * len(terms) + k] * terms[k]
                total = product if k == 0 else total + product
            y = outputs[m]
            value = total.to(y.dtype.element_ty)
            for r in tl.static_range((REPEATS >> (2 * m)) & 3):
                if (OTHERS >> (len(inputs) + m)) & 1:
                    tl.store(y + (r * whole + origin) + other, value, mask=inside)
                else:
                    tl.store(y + (r * whole + origin + first) + lane, value, mask=inside)


@cache
def reason_unavailable(device: torch.device) -> str | None:
    """Why the kernel cannot run on the device; None where it can."""
    if triton is None:
        return "Triton is not installed"
    if device.type != "cuda":
        return f"it runs on CUDA devices, not on {device.type}"
    capability = torch.cuda.get_device_capability(device)
    return None if capability >= (8, 0) else f"it needs compute capability 8.0 or later, {device} has {capability[0]}.{capability[1]}"


def memory_order(tensors: Sequence[Tensor]) -> tuple[bool, int]:
    """Whether most of the tensors are channels-last (the last one decides a tie), and which ones are of the other order, as bits."""
    contiguous = [x.is_contiguous() for x in tensors]
    same = sum(contiguous)
    if same == len(tensors):
        return False, 0
    channels_last = 2 * same < len(tensors) or (2 * same == len(tensors) and not contiguous[-1])
    return channels_last, sum(1 << j for j, plain in enumerate(contiguous) if plain == channels_last)


@cache
def warps(dtypes: tuple[torch.dtype, ...], fours: bool) -> int:
    """Warps of a program: 8 elements a thread, but 4 where noise is made, addresses are computed (`fours`), or dtypes differ in width.

    With 8 of differing widths, the compiler would exchange elements between threads through shared memory.
    """
    return 8 if fours or len({x.itemsize for x in dtypes}) > 1 else 4


def update(outputs: Sequence[Tensor], inputs: Sequence[Tensor], coefficients: Tensor, normals: Normals | None = None) -> None:
    """The primitive (see `kernels.primitive`) on tensors of `DTYPES` on one CUDA device, each sample below 2^31 elements."""
    y, batch = outputs[0], batch_of(outputs, inputs, normals)
    elements = batch * y.shape[1:].numel()
    if elements == 0:
        return
    tensors = (*inputs, *outputs)
    channels_last, others = memory_order(tensors)
    seeds, slot = (None, 0) if normals is None else (normals.seeds.contiguous(), normals.slot)
    tables, noise = coefficients.ndim == 3, seeds is not None
    by_sample = tables or noise or others != 0
    channels = y.shape[1] if y.ndim == 4 else 1
    count = elements // batch if by_sample else elements
    unit = GRAIN if count % GRAIN == 0 else 1
    blocks = -(-count // BLOCK)
    repeats = sum(len(y) // batch << (2 * m) for m, y in enumerate(outputs))
    sizes = (count // unit, batch, blocks, channels, elements // (batch * channels))
    constants = (unit, BLOCK, by_sample, tables, noise, channels_last, others, repeats)
    arguments = (tuple(outputs), tuple(inputs), coefficients, seeds, slot, *sizes, *constants)
    launch: Any = kernel[(blocks * batch if by_sample else blocks,)]
    options = {"num_warps": warps(tuple(x.dtype for x in tensors), noise or others != 0), "enable_fp_fusion": not noise}
    if y.is_cuda and y.device.index != torch.cuda.current_device():
        with torch.cuda.device(y.device):
            launch(*arguments, **options)
    else:
        launch(*arguments, **options)
