"""openai's U-Net against EDM's of the same weights, which golden outputs hold, and its published files."""

import torch
from torch.testing import assert_close

from fewstep.cond import Cond
from fewstep.nets.loading import load_strict
from fewstep.nets.published.edm import DhariwalUNet
from fewstep.nets.published.openai_unet import OpenaiUNet
from support.published import golden_state

BLOCK = {
    "norm0": "in_layers.0",
    "conv0": "in_layers.2",
    "affine": "emb_layers.1",
    "norm1": "out_layers.0",
    "conv1": "out_layers.3",
    "skip": "skip_connection",
}
ATTENTION = {"norm2": "norm", "qkv": "qkv", "proj": "proj_out"}


def renamed(net, heads):
    """The state dict of an ADM network of EDM's under openai's names; of attention the order of q, k and v differs."""
    state, found = net.state_dict(), {}
    enc, dec = list(net.enc), list(net.dec)
    groups = [f"input_blocks.{i}" for i in range(len(enc))]
    where = dict(zip([f"enc.{name}" for name in enc], groups, strict=True))
    output = -1
    for name in dec:
        if name.endswith(("in0", "in1")):
            where[f"dec.{name}"] = "middle_block"
        else:
            output += not name.endswith("up")
            where[f"dec.{name}"] = f"output_blocks.{output}"
    for key, value in state.items():
        part, _, rest = key.partition(".")
        if part in ("enc", "dec"):
            module, _, rest = rest.partition(".")
            place, name = where[f"{part}.{module}"], rest.partition(".")[0]
            if rest.endswith("resample_filter"):
                continue
            if module.endswith("conv"):
                found[f"{place}.0.{rest}"] = value
                continue
            index = {"in0": 0, "in1": 2}.get(module[-3:], 0)
            if module.endswith("up"):
                index = 1 + (f"{place}.1.qkv.weight" in found)
            kinds = ATTENTION if name in ATTENTION else BLOCK
            if name == "qkv":
                value = value.unflatten(0, (heads(value), -1, 3)).movedim(2, 0).flatten(0, 2)
            found[f"{place}.{index + (name in ATTENTION)}.{kinds[name]}.{rest.partition('.')[2]}"] = value
        else:
            named = {
                "map_layer0": "time_embed.0",
                "map_layer1": "time_embed.2",
                "map_label": "label_emb",
                "out_norm": "out.0",
                "out_conv": "out.2",
            }
            found[f"{named[part]}.{rest}"] = value.T if part == "map_label" else value
    return found


@torch.inference_mode()
def test_it_is_adm():
    levels = {"channels": 128, "mult": [1, 2], "blocks": 2}
    adm = DhariwalUNet((3, 8, 8), 7, {**levels, "attention": [4]}).eval()
    adm.load_state_dict(golden_state(adm))
    net = OpenaiUNet((3, 8, 8), 7, {**levels, "attention": [1]})
    load_strict(net, renamed(adm, lambda qkv: qkv.shape[0] // 3 // 64), "them")
    x, c_noise = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, -1.2])
    for cond in (Cond(label=torch.tensor([1, 3])), Cond(label=torch.tensor([7, 2])), Cond()):
        # phases of a thousand radians, whose frequencies the two make in different ways: 1e-4 of a radian in float32
        assert_close(net(x, c_noise, cond), adm(x, 1000 * c_noise, cond), rtol=0, atol=3e-5)


def test_published_sizes():
    """ImageNet-64 has the parameters of EDM's network of the same architecture; LSUN's is that of 256 pixels."""
    for shape, classes, levels, shifted, parameters in (
        ((3, 64, 64), 1000, {"channels": 192, "mult": [1, 2, 3, 4], "blocks": 3, "attention": [1, 2, 3]}, True, 295_899_267),
        ((3, 256, 256), 0, {"channels": 256, "mult": [1, 1, 2, 2, 4, 4], "blocks": 2, "attention": [3, 4, 5]}, False, None),
    ):
        with torch.device("meta"):
            net = OpenaiUNet(shape, classes, levels, shifted)
        count = sum(p.numel() for p in net.parameters())
        assert parameters in (None, count)
        assert count < 6e8
