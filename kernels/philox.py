"""The definition, in torch, of the sampler's noise: unit normals that are the same bits on every device and in every implementation.

Words: Philox4x32-10. Normals: Box-Muller on them, r cos(a) and r sin(a) with r = sqrt(-2 ln((w0 + 1/2) 2^-32)) and a = 2 pi w1 2^-32, in
float32 and only by what IEEE 754 and integers fix to the bit: +, -, *, sqrt, int32 to float32, selects, bits. No division, no libm, and
no product may be contracted with a sum. Over all 2^32 words r is within 1.8e-7 r of its float64 value (1.2e-7 r below w0 = 2^31, so
for r > 1.18), cos a and sin a within 0.9e-7, each within 1.8e-7 of itself: a normal z is within 3.5e-7 max(1, |z|).
**Source**: Salmon et al., SC 2011 (Philox); Box and Muller 1958.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

# Minimax polynomials, lowest power first, by linear programming on 801 Chebyshev points of 40-digit values, weighted to relative error.
# Each coefficient in turn, lowest first, was rounded to float32 and the higher ones fitted again. Relative error after rounding:
LOG = (  # -2 ln(1 + t) / t, for 1 + t from sqrt(1/2) to sqrt(2): 3.0e-8
    -2.0,
    0.9999998211860657,
    -0.6666789054870605,
    0.5000355243682861,
    -0.3992447853088379,
    0.33140626549720764,
    -0.29832711815834045,
    0.28615453839302063,
    -0.17477600276470184,
)
SIN = (1.5707963705062866, -0.6459649801254272, 0.07969201356172562, -0.0046287826262414455)  # sin(pi t / 2) / t in t^2, |t| <= 1/2: 2.8e-8
COS = (1.0, -1.2337005138397217, 0.25366854667663574, -0.020855596289038658, 0.0008944863802753389)  # cos(pi t / 2) in t^2: 4.4e-10
LN2_HI, LN2_LO = 1.38629150390625, 2.857213530660374e-06  # they sum to 2 ln 2; LN2_HI has 17 bits, so that its multiples up to 64 are exact
SQRT_HALF = 0x3F3504F3  # the bits of sqrt(1/2) in float32
ONE = 0x3F800000  # the bits of 1


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox4x32 on broadcastable int64 tensors holding 32-bit words: counter (4), key (2) -> 4 words.

    The 64-bit products wrap in int64; their high and low words are exact after masking.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        hi0, lo0 = (p0 >> 32) & MASK, p0 & MASK
        hi1, lo1 = (p1 >> 32) & MASK, p1 & MASK
        c0, c1, c2, c3 = hi1 ^ c1 ^ k0, lo1, hi0 ^ c3 ^ k1, lo0
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Horner's rule, lowest power first; one rounding per product and per sum."""
    total = torch.full_like(x, coefficients[-1])
    for c in reversed(coefficients[:-1]):
        total.mul_(x).add_(c)
    return total


def radius(w: Tensor) -> Tensor:
    """sqrt(-2 ln u), u = (w + 1/2) 2^-32, of words [...] int64 -> float32.

    u is 1 - f in the upper half, where f keeps the digits that u would lose. u = (1 + t) 2^e with 1 + t from sqrt(1/2) to sqrt(2).
    """
    upper = w > MASK >> 1
    f = (torch.where(upper, w ^ MASK, w).float() + 0.5) * 2.0**-32
    u = torch.where(upper, 1.0 - f, f)
    bits = u.view(torch.int32) + (ONE - SQRT_HALF)
    e = (bits >> 23) - 127
    m = ((bits & 0x7FFFFF) + SQRT_HALF).view(torch.float32)
    t = torch.where(upper & (e == 0), -f, m - 1.0)
    e = e.float()
    square = (t * polynomial(t, LOG) - e * LN2_LO) - e * LN2_HI
    return square.double().sqrt().float()  # correctly rounded; torch.sqrt of float32 is not where MKL computes it


def box_muller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two normals float32 from two words [...] int64: a gives the radius, b the angle (quarter + t) / 4 of a turn, |t| <= 1/2."""
    r = radius(a)
    quarter = (b + (1 << 29)) >> 30
    t = (b - (quarter << 30)).float() * 2.0**-30
    s = t * t
    sin, cos = t * polynomial(s, SIN), polynomial(s, COS)
    odd = (quarter & 1) == 1
    x = torch.where(((quarter + 1) & 2) == 2, -r, r) * torch.where(odd, sin, cos)
    y = torch.where((quarter & 2) == 2, -r, r) * torch.where(odd, cos, sin)
    return x, y


def normals(seeds: Tensor, slot: int, count: int) -> Tensor:
    """Unit normals [B, count] float32 of seeds [B] int64 >= 0 and a slot below 2^32; row i depends on seed i alone.

    Element j is lane j % 4 of the counter block j // 4: counter = (block, high word of the seed, 0, 0), key = (low word of the seed, slot).
    """
    seeds = seeds[:, None]
    blocks = torch.arange((count + 3) // 4, device=seeds.device)[None]
    zero = torch.zeros_like(blocks)
    w0, w1, w2, w3 = philox4x32((blocks, (seeds >> 32) & MASK, zero, zero), (seeds & MASK, torch.full_like(seeds, slot)))
    lanes = [*box_muller(w0, w1), *box_muller(w2, w3)]
    return torch.stack(lanes, dim=2).flatten(1)[:, :count].contiguous()
