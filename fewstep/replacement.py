"""Inpainting without training: what is known of an image put into every D of any denoiser or distilled generator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.cond import NULL, Cond
from fewstep.denoiser import Around, Denoiser, Jump, Sigma, feature_size, jump_of, with_features
from fewstep.errors import UsageError
from fewstep.wrappers import without_picture


@dataclass(frozen=True, eq=False)
class Replaced(Around):
    """D' = (1 - mask) image + mask D(x, sigma): the known part of `cond.image` in place of what the base says of it.

    `base` is told neither image nor mask. Under ancestral steps the known part of a state is spread as image + sigma n at every level, as
    RePaint's is (there of new noise each time, here of what the steps leave of the old); under re-noising it is algorithm 4 of
    consistency models with A = I, but for the clip of D in its code. A flow map's jump moves the known part along its own noise:
    image + (sigma_to / sigma) (x - image). **Raises**: UsageError for a condition without image or mask.
    **Source**: arXiv 2201.09865, equation 8; arXiv 2303.01469, algorithm 4.
    """

    base: Denoiser

    @property
    def features(self) -> int:
        return feature_size(self.base)

    def _mixed(self, d: Tensor, known: Tensor, cond: Cond) -> Tensor:
        assert cond.mask is not None
        return torch.where(cond.mask > 0.5, d, known.to(d.dtype))

    def _asked(self, x: Tensor, cond: Cond) -> Cond:
        """What the base is told. **Raises**: UsageError where there is nothing to put in."""
        lacking = [name for name in ("image", "mask") if getattr(cond, name) is None]
        if lacking or cond.image is None or cond.mask is None:
            raise UsageError(
                f"replacement puts in what is known of an image, and the condition has no {' and no '.join(lacking)}; give both"
            )
        if cond.image.shape != x.shape or cond.mask.shape != (len(x), 1, *x.shape[2:]):
            found = f"image {list(cond.image.shape)} and mask {list(cond.mask.shape)}"
            raise UsageError(f"replacement needs a picture like x {list(x.shape)} and a mask of one channel, got {found}")
        return without_picture(cond, x)

    def __call__(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> Tensor:
        asked = self._asked(x, cond)
        assert cond.image is not None
        return self._mixed(self.base(x, sigma, asked), cond.image, cond)

    def with_features(self, x: Tensor, sigma: Sigma, cond: Cond = NULL) -> tuple[Tensor, Tensor]:
        d, features = with_features(self.base, x, sigma, self._asked(x, cond))
        assert cond.image is not None
        return self._mixed(d, cond.image, cond), features

    def wrapped_jump(self) -> Jump | None:
        inner = jump_of(self.base)
        if inner is None:
            return None

        def jump(x: Tensor, sigma: Sigma, sigma_to: Sigma, cond: Cond) -> Tensor:
            asked = self._asked(x, cond)
            assert cond.image is not None
            ratio = torch.as_tensor(sigma_to, dtype=torch.float64) / torch.as_tensor(sigma, dtype=torch.float64)
            share = ratio.to(x.device, x.dtype).reshape(-1, *[1] * (x.ndim - 1))
            known = cond.image.to(x.dtype)
            return self._mixed(inner(x, sigma, sigma_to, asked), known + share * (x - known), cond)

        return jump
