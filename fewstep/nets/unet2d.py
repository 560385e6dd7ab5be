"""diffusers' `UNet2DModel` as a raw network of ours, so that weights trained here can leave in its format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.checks import check_count
from fewstep.cond import NULL, Cond
from fewstep.errors import UsageError
from fewstep.nets.encoding import Context, both_ways, halved
from fewstep.nets.published.diffusers_blocks import down, maps_of, without_decoder
from fewstep.nets.unet import ScalarAdapter, check_scalars, told, zero_init
from fewstep.plugins import register


def unet2d_config(
    shape: Sequence[int],
    classes: int,
    channels: Sequence[int],
    blocks: int,
    attention: Sequence[int],
    heads: int,
    groups: int,
) -> dict[str, Any]:
    """The keyword arguments of `UNet2DModel`: `attention` are the sizes of maps that attend, `heads` the channels of one head.

    With classes there is one embedding more, the null label. **Raises**: UsageError for sizes that no such network has.
    """
    for what, values in (("shape", shape), ("channels", channels), ("attention", attention)):
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise UsageError(
                f"{what} of a unet2d are integers, got {values!r}; e.g. shape (3, 32, 32), channels (64, 128), attention (16,)"
            )
        for value in values:
            check_count(f"each number in {what} {tuple(values)} of a unet2d", value, 1, "e.g. channels (64, 128) and attention (16,)")
    if len(shape) != 3 or not channels:
        raise UsageError(
            f"a unet2d makes images of shape (C, H, W) on one level or more, got {tuple(shape)} and channels {tuple(channels)}"
        )
    halved = 2 ** (len(channels) - 1)
    if any(n % halved for n in shape[1:]):
        size = f"{shape[1]} x {shape[2]}"
        raise UsageError(f"a unet2d with {len(channels)} levels halves {size} images {len(channels) - 1} times; use multiples of {halved}")
    for what, value, least in (("classes", classes, 0), ("blocks", blocks, 1), ("heads", heads, 1), ("groups", groups, 1)):
        check_count(f"the number of {what} of a unet2d", value, least, "e.g. 10 classes, 1 block, 32 channels a head, 32 groups")
    for width in channels:
        if width % groups or width % heads:
            raise UsageError(f"channels {tuple(channels)} of a unet2d are not multiples of its {groups} groups and {heads} channels a head")
    attends = [shape[1] >> level in attention for level in range(len(channels))]
    return {
        "sample_size": shape[1] if shape[1] == shape[2] else tuple(shape[1:]),
        "in_channels": shape[0],
        "out_channels": shape[0],
        "down_block_types": tuple("AttnDownBlock2D" if at else "DownBlock2D" for at in attends),
        "up_block_types": tuple("AttnUpBlock2D" if at else "UpBlock2D" for at in reversed(attends)),
        "block_out_channels": tuple(channels),
        "layers_per_block": blocks,
        "attention_head_dim": heads,
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups,
        "resnet_time_scale_shift": "scale_shift",
        "num_class_embeds": classes + 1 if classes else None,
    }


@register("network", "unet2d", "arXiv 2006.11239; diffusers UNet2DModel")
class UNet2D(nn.Module):
    """F(c_in x, c_noise, label) by a `UNet2DModel` whose timestep is c_noise and whose last class is the null label.

    Its schedulers for EDM feed ln(sigma) / 4 too, so the inner `unet` alone, saved by `save_pretrained`, is a model of that library.
    **Shapes**: x [B, C, H, W], c_noise [B], label [B] int64 in 0..classes -> like x. `scalars` are read as in `UNet`, beside the inner
    network; with `features` also the deepest map. **Raises**: UsageError for sizes that no such network has.
    """

    form = "edm"
    version: ClassVar[int] = 1  # of what the same weights compute

    def __init__(
        self,
        shape: Sequence[int],
        classes: int,
        channels: Sequence[int] = (64, 128, 128),
        blocks: int = 1,
        attention: Sequence[int] = (16,),
        heads: int = 32,
        groups: int = 32,
        scalars: Sequence[str] = (),
    ) -> None:
        super().__init__()
        check_scalars(scalars)
        config = unet2d_config(shape, classes, channels, blocks, attention, heads, groups)
        from diffusers.models.unets.unet_2d import UNet2DModel

        self.shape, self.classes, self.emb_channels, self.maps = tuple(shape), classes, 4 * channels[0], maps_of(config)
        self.feature_size = math.prod(n >> (len(channels) - 1) for n in shape[1:])
        self.unet = UNet2DModel(**config)
        for name, module in self.unet.named_modules():
            if name.endswith((".conv2", ".to_out.0")) or name == "conv_out":
                zero_init(module)  # residual branches start as the identity
        self.embed_scalars = nn.ModuleDict({name: ScalarAdapter(self.emb_channels) for name in scalars})
        self.to(memory_format=torch.channels_last)

    def context(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Context:
        unet: Any = self.unet  # a library's class, whose parts are typed as any module
        emb = unet.time_embedding(unet.time_proj(c_noise).to(x.dtype))
        if self.classes:
            label = cond.label if cond.label is not None else torch.full_like(c_noise, self.classes, dtype=torch.int64)
            emb = emb + unet.class_embedding(label)
        return Context(told(self.embed_scalars, cond, emb))

    def encode(self, x: Tensor, context: Context, hint: Tensor | None = None, added: Sequence[Tensor] = ()) -> list[Tensor]:
        unet: Any = self.unet
        h = unet.conv_in(x.contiguous(memory_format=torch.channels_last))
        maps = [h if hint is None else h + hint]
        for level, block in enumerate(unet.down_blocks):
            h, made = down(block, maps[-1], context.emb, added=added[level] if added else None)
            maps += made
        return [*maps, unet.mid_block(maps[-1], context.emb)]

    def decode(self, maps: Sequence[Tensor], context: Context) -> Tensor:
        unet: Any = self.unet
        *skips, h = maps
        for block in unet.up_blocks:
            own = len(block.resnets)
            h = block(h, tuple(skips[-own:]), context.emb)
            del skips[-own:]
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(h))).contiguous()

    def encoder(self, channels: int = 0) -> UNet2D:
        made = halved(self, ())
        without_decoder(made.unet, channels)
        return made

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond = NULL, features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        return both_ways(self, x, c_noise, cond, features)
