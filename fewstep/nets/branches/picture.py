"""The picture of a condition as branches read it: image and mask side by side; one line for each fault."""

from __future__ import annotations

import torch
from torch import Tensor

from fewstep.cond import Cond
from fewstep.errors import UsageError

MOST = 8.0  # of a picture's values: in [-1, 1], or latents of a few units; levels of bytes are larger


def picture_of(cond: Cond, dtype: torch.dtype) -> Tensor:
    """Image [B, C, H, W] and, where there is one, mask [B, 1, H, W] as one tensor of a network's type."""
    assert cond.image is not None
    both = cond.image if cond.mask is None else torch.cat([cond.image, cond.mask.to(cond.image.dtype)], dim=1)
    return both.to(dtype).contiguous(memory_format=torch.channels_last)


def check_picture(cond: Cond, channels: int, size: tuple[int, int], name: str) -> None:
    """**Raises**: UsageError unless the condition has a picture of so many channels (image and mask together) and this size, of floats."""
    told, mask = f"a network with branch {name} is told", cond.mask
    wanted = f"{channels} channels of {size[0]} x {size[1]}"
    if cond.image is None:
        drops = "; guidance that is to keep it needs Cond(..., drops=('label', 'text'))"
        raise UsageError(f"{told} pictures ({wanted}) and cond.image is missing; give Cond(image=...){drops}")
    for what, value in (("image", cond.image), ("mask", mask)):
        if value is not None and not value.is_floating_point():
            hint = "image / 127.5 - 1 of uint8" if what == "image" else "mask.float(), 1 where the image is hidden"
            raise UsageError(f"cond.{what} is {value.dtype}, and pictures are floats; use {hint}")
    found = cond.image.shape[1] + (0 if mask is None else mask.shape[1])
    if mask is None and found == channels - 1:
        raise UsageError(f"{told} {channels} channels, an image's {found} and a mask, and cond.mask is missing; give Cond(image=, mask=)")
    if mask is not None and found == channels + 1:
        raise UsageError(
            f"{told} {channels} channels and no mask, and cond.mask is given; leave it out, or add a branch of {found} channels"
        )
    if found != channels:
        raise UsageError(f"{told} {channels} channels, and the picture has {found}; give it pictures as it was made for")
    for what, value in (("image", cond.image), ("mask", mask)):
        if value is not None and tuple(value.shape[2:]) != size:
            raise UsageError(f"cond.{what} is {value.shape[2]} x {value.shape[3]}, and {told} {size[0]} x {size[1]}; resize it to that")


def check_values(cond: Cond) -> None:
    """Values that are on the host. **Raises**: UsageError for an image that is not finite or has levels of bytes, and for a mask of other
    values than 0 to 1."""
    image, mask = cond.image, cond.mask
    if image is not None and image.device.type == "cpu" and image.numel():
        low, high = (float(v) for v in image.detach().aminmax())
        if not (low >= -MOST and high <= MOST):
            raise UsageError(f"cond.image has values from {low:g} to {high:g}, and pictures are in [-1, 1]; use image / 127.5 - 1 of bytes")
    if mask is not None and mask.device.type == "cpu" and mask.numel():
        low, high = (float(v) for v in mask.detach().aminmax())
        if not (low >= 0 and high <= 1):
            raise UsageError(
                f"cond.mask has values from {low:g} to {high:g}, and a mask is 1 where the image is hidden, 0 where it is known"
            )
