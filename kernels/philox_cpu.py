"""`kernels.philox` in numba, bit for bit: the sampler's noise on CPUs.

Every value is an int32, uint32 or float32 and nothing is `fastmath`, so LLVM may neither reorder nor contract; the block loop has no
branches and its functions are inlined by numba itself (a call keeps its error branch), so it becomes vector code of the machine's width.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from kernels import philox
from kernels.compiled import compiled

_U0, _U1, _U2 = np.uint32(0), np.uint32(1), np.uint32(2)
_MASK, _HALF = np.uint32(philox.MASK), np.uint32(1 << 31)
_M0, _M1 = (np.uint64(m) for m in philox.MULTIPLIERS)
_W0, _W1 = (np.uint32(w) for w in philox.WEYL)
_ROUNDS = philox.ROUNDS
_32 = np.uint64(32)
_LOG = tuple(np.float32(c) for c in reversed(philox.LOG))
_SIN = tuple(np.float32(c) for c in reversed(philox.SIN))
_COS = tuple(np.float32(c) for c in reversed(philox.COS))
_LN2_HI, _LN2_LO = np.float32(philox.LN2_HI), np.float32(philox.LN2_LO)
_SQRT_HALF, _ONE_LESS = np.int32(philox.SQRT_HALF), np.int32(philox.ONE - philox.SQRT_HALF)
_FRACTION = np.int32(0x7FFFFF)
_23, _127 = np.int32(23), np.int32(127)
_F0, _F_HALF, _F1 = np.float32(0), np.float32(0.5), np.float32(1)
_2_32 = np.float32(2.0**-32)


@partial(compiled, inline="always")
def _words(c0, c1, k0, k1):
    """Philox4x32-10 of counter (c0, c1, 0, 0) and key (k0, k1): four words."""
    c2 = c3 = _U0
    for _ in range(_ROUNDS):
        p0, p1 = np.uint64(c0) * _M0, np.uint64(c2) * _M1
        c0, c2 = np.uint32(np.uint32(p1 >> _32) ^ c1 ^ k0), np.uint32(np.uint32(p0 >> _32) ^ c3 ^ k1)
        c1, c3 = np.uint32(p1), np.uint32(p0)
        k0, k1 = np.uint32(k0 + _W0), np.uint32(k1 + _W1)
    return c0, c1, c2, c3


@partial(compiled, inline="always")
def _normals(a, b):
    """Two normals of two words."""
    upper = a >= _HALF
    f = (np.float32(np.int32(a ^ _MASK if upper else a)) + _F_HALF) * _2_32
    u = _F1 - f if upper else f
    bits = np.int32(np.float32(u).view(np.int32) + _ONE_LESS)
    e = np.int32((bits >> _23) - _127)
    m = np.int32((bits & _FRACTION) + _SQRT_HALF).view(np.float32)
    t = -f if upper & (e == 0) else m - _F1
    p = _LOG[0]
    for c in _LOG[1:]:
        p = p * t + c
    n = np.float32(e)
    r = np.sqrt((t * p - n * _LN2_LO) - n * _LN2_HI)

    t = np.float32(np.int32(np.uint32(b << _U2))) * _2_32
    s = t * t
    sin, cos = _SIN[0], _COS[0]
    for c in _SIN[1:]:
        sin = sin * s + c
    for c in _COS[1:]:
        cos = cos * s + c
    sin = sin * t
    quarter = np.uint32(b + np.uint32(1 << 29)) >> np.uint32(30)
    odd = (quarter & _U1) != 0
    x = (-r if ((quarter + _U1) & _U2) != 0 else r) * (sin if odd else cos)
    y = (-r if (quarter & _U2) != 0 else r) * (cos if odd else sin)
    return x, y


@compiled
def fill(seed_lo, seed_hi, slot, first_block, out):
    """The normals of the blocks from `first_block` on, into out float32 [n]; the last block may be cut. Everything else is uint32."""
    whole = out.shape[0] // 4
    for i in range(whole):
        w0, w1, w2, w3 = _words(np.uint32(first_block + np.uint32(i)), seed_hi, seed_lo, slot)
        x, y = _normals(w0, w1)
        z, w = _normals(w2, w3)
        out[4 * i], out[4 * i + 1], out[4 * i + 2], out[4 * i + 3] = x, y, z, w
    rest = out.shape[0] - 4 * whole
    if rest > 0:
        w0, w1, w2, w3 = _words(np.uint32(first_block + np.uint32(whole)), seed_hi, seed_lo, slot)
        x, y = _normals(w0, w1)
        z, _ = _normals(w2, w3)
        out[4 * whole] = x
        if rest > 1:
            out[4 * whole + 1] = y
        if rest > 2:
            out[4 * whole + 2] = z
