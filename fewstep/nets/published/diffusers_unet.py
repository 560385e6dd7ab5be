"""Any `UNet2DModel` of diffusers, from its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fewstep.cond import NULL, Cond
from fewstep.errors import UsageError
from fewstep.nets.encoding import Context, both_ways, halved
from fewstep.nets.published.diffusers_blocks import down, embeddings_of, labelled, maps_of, without_decoder
from fewstep.nets.unet import ScalarAdapter, check_scalars, told
from fewstep.plugins import register

REFUSED = {"time_embedding_type": ("learned",), "class_embed_type": ("timestep", "identity")}


def check_config(config: Mapping[str, Any]) -> None:
    """**Raises**: UsageError for a key that diffusers does not know here, and for networks that are told something else than we tell."""
    import inspect

    from diffusers.models.unets.unet_2d import UNet2DModel

    known = [name for name in inspect.signature(UNet2DModel.__init__).parameters if name != "self"]
    for key, value in config.items():
        if key not in known:
            raise UsageError(f"a UNet2DModel has no '{key}' in this version of diffusers")
        if value in REFUSED.get(key, ()):
            raise UsageError(f"a UNet2DModel with {key} {value} is not read; use one that is told continuous times, and labels as indices")


@register("network", "diffusers_unet2d", "arXiv 2006.11239; diffusers UNet2DModel")
class DiffusersUNet(nn.Module):
    """F(c_in x, c_noise, label) by a `UNet2DModel` of this configuration, told c_noise times `time_scale` as its timestep.

    **Shapes**: x [B, C, H, W], c_noise [B], label [B] int64 in 0..classes, output like x: the first C channels of the model's. The null
    label, and no label, is the embedding after those of the classes where the model has one more, and adds nothing where it has not.
    `scalars` start without effect; with `features` also the deepest map. **Raises**: UsageError for a configuration that diffusers does
    not know, or with fewer embeddings than classes.
    """

    form = "eps"
    version: ClassVar[int] = 1  # of what the same weights compute

    def __init__(
        self, shape: Sequence[int], classes: int, unet: Mapping[str, Any], time_scale: float = 1.0, scalars: Sequence[str] = ()
    ) -> None:
        super().__init__()
        check_scalars(scalars)
        check_config(unet)
        from diffusers.models.unets.unet_2d import UNet2DModel

        embeddings_of(unet, classes, "UNet2DModel")
        self.unet = UNet2DModel(**unet)
        self.shape, self.maps = tuple(shape), maps_of(self.unet.config)
        self.classes, self.channels, self.time_scale = classes, shape[0], time_scale
        self.emb_channels = int(self.unet.time_embedding.linear_2.out_features)
        self.feature_size = math.prod(n >> (len(unet["block_out_channels"]) - 1) for n in shape[1:])
        self.embed_scalars = nn.ModuleDict({name: ScalarAdapter(self.emb_channels) for name in scalars})
        self.to(memory_format=torch.channels_last)

    def context(self, x: Tensor, c_noise: Tensor, cond: Cond) -> Context:
        t = self.time_scale * c_noise
        emb = self.unet.time_embedding(self.unet.time_proj(t).to(x.dtype))
        emb = labelled(self.unet.class_embedding, cond, self.classes, emb)
        return Context(told(self.embed_scalars, cond, emb), time=t)

    def encode(self, x: Tensor, context: Context, hint: Tensor | None = None, added: Sequence[Tensor] = ()) -> list[Tensor]:
        unet: Any = self.unet
        image = 2 * x - 1 if unet.config["center_input_sample"] else x
        image = image.contiguous(memory_format=torch.channels_last)
        h = unet.conv_in(image)
        maps = [h if hint is None else h + hint]
        for level, (block, kind) in enumerate(zip(unet.down_blocks, unet.config["down_block_types"], strict=True)):
            if kind in ("SkipDownBlock2D", "AttnSkipDownBlock2D") and not added:
                _, made, image = block(maps[-1], context.emb, skip_sample=image)
            else:
                _, made = down(block, maps[-1], context.emb, added=added[level] if added else None)
            maps += made
        return [*maps, maps[-1] if unet.mid_block is None else unet.mid_block(maps[-1], context.emb)]

    def decode(self, maps: Sequence[Tensor], context: Context) -> Tensor:
        unet: Any = self.unet
        *skips, h = maps
        aside = None
        for block, kind in zip(unet.up_blocks, unet.config["up_block_types"], strict=True):
            own = len(block.resnets)
            joined = tuple(skips[-own:])
            del skips[-own:]
            if kind in ("SkipUpBlock2D", "AttnSkipUpBlock2D"):
                h, aside = block(h, joined, context.emb, aside)
            else:
                h = block(h, joined, context.emb)
        out = unet.conv_out(unet.conv_act(unet.conv_norm_out(h)))
        if aside is not None:
            out = out + aside
        if unet.config["time_embedding_type"] == "fourier":
            assert context.time is not None
            out = out / context.time[:, None, None, None].to(out.dtype)
        return out[:, : self.channels].contiguous()

    def encoder(self, channels: int = 0) -> DiffusersUNet:
        if channels not in (0, self.unet.config["in_channels"]) and any("Skip" in kind for kind in self.unet.config["down_block_types"]):
            raise UsageError(
                f"an encoder whose image goes along reads {self.unet.config['in_channels']} channels, not {channels}; use concat"
            )
        made = halved(self, ())
        without_decoder(made.unet, channels)
        return made

    def forward(self, x: Tensor, c_noise: Tensor, cond: Cond = NULL, features: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        return both_ways(self, x, c_noise, cond, features)
