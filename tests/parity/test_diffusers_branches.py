"""Networks with branches against diffusers' own: `UNet2DConditionModel` as its pipelines call it, with ControlNets and T2I-Adapters."""

import json

import pytest
import torch
from diffusers.models.adapter import T2IAdapter
from diffusers.models.controlnets.controlnet import ControlNetModel
from safetensors.torch import save_file

from fewstep.cond import Cond
from fewstep.errors import UsageError
from fewstep.nets.branches.published import read_adapter_folder
from fewstep.nets.published.diffusers_text_unet import DiffusersTextUNet
from support.branches import NETWORKS, RGB, WITHOUT_TEXT, awake, joined
from support.components import given_weights
from support.each import each
from support.published import X

T, TEXT, LABEL = torch.tensor([37.0, 640.0]), torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(2)), torch.tensor([1, 2])
IMAGE = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 2 - 1
COND = Cond(LABEL, TEXT, IMAGE, drops=("label", "text"))
LAST = X.contiguous(memory_format=torch.channels_last)  # the layout of our networks, which may choose another convolution
CROSSING = {  # both levels attend, which their own insertion of adapters needs
    **RGB,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}


def network(config, classes=3):
    return given_weights(DiffusersTextUNet((3, 8, 8), classes, config))


@each(
    "config", [RGB, CROSSING, {**RGB, "time_cond_proj_dim": 8, "num_class_embeds": None}, WITHOUT_TEXT, {**RGB, "layers_per_block": (1, 2)}]
)
@torch.no_grad()
def test_a_network_is_theirs_to_the_bit(config):
    """With and without text, class labels and a guidance weight's projection; labels past the embeddings add nothing."""
    labelled = config["num_class_embeds"] is not None
    net = network(config, 3 if labelled else 0)
    text = None if config is WITHOUT_TEXT else TEXT
    theirs = net.unet(LAST, T, text, class_labels=LABEL if labelled else None).sample
    assert torch.equal(net(X, T, COND), theirs)
    scaled = given_weights(DiffusersTextUNet((3, 8, 8), 3 if labelled else 0, config, time_scale=2.0))
    assert torch.equal(scaled(X, T / 2, COND), theirs)
    none = net.unet(LAST, T, None if text is None else torch.zeros(2, 1, 6), class_labels=torch.full((2,), 3) if labelled else None).sample
    assert torch.equal(net(X, T), none)


@each("scale", [1.0, 0.4])
@torch.no_grad()
def test_a_control_branch_is_their_controlnet_to_the_bit(scale):
    for config in (RGB, CROSSING, WITHOUT_TEXT, {**RGB, "time_cond_proj_dim": 8}):
        net, text = network(config), None if config is WITHOUT_TEXT else TEXT
        made = awake(joined(net, "control", 3, conditioning_scale=scale))
        control = made.branch.net
        assert type(control) is ControlNetModel
        down, middle = control(LAST, T, text, IMAGE.contiguous(memory_format=torch.channels_last), scale, LABEL, return_dict=False)
        own = made.branch(IMAGE.contiguous(memory_format=torch.channels_last), X, T, COND)
        assert all(torch.equal(a, b) for a, b in zip(own, (*down, middle), strict=True))
        theirs = net.unet(
            LAST, T, text, class_labels=LABEL, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        assert torch.equal(made(X, T, COND), theirs)
        assert not torch.equal(made(X, T, COND), net(X, T, COND))
    fresh = joined(network(RGB), "control", 3).branch.net
    untouched = ControlNetModel.from_unet(network(RGB).unet, conditioning_embedding_out_channels=(16,))
    same = {key for key, value in fresh.state_dict().items() if torch.equal(value, untouched.state_dict()[key])}
    assert {key for key in fresh.state_dict() if "cond_embedding" not in key} <= same


@each("light", [False, True])
@torch.no_grad()
def test_an_adapter_is_their_t2i_adapter_to_the_bit(light):
    """Where their insertion works: every level but the last attends. Elsewhere theirs adds a map to one of half its size."""
    net = network(CROSSING)
    made = joined(net, "t2i_light" if light else "t2i", 3, zero=False, factor=2)
    big = IMAGE.repeat(1, 1, 2, 2)
    maps = made.branch.adapter(big.contiguous(memory_format=torch.channels_last))
    assert type(made.branch.adapter) is T2IAdapter
    theirs = net.unet(LAST, T, TEXT, class_labels=LABEL, down_intrablock_additional_residuals=[m.clone() for m in maps]).sample
    cond = Cond(LABEL, TEXT, big)
    assert torch.equal(made(X, T, cond), theirs)
    assert torch.equal(made(X, T, made.prepared(cond)), theirs)
    assert not torch.equal(theirs, net(X, T, cond))
    other = joined(network(RGB), "t2i", 3, zero=False)
    assert other(X, T, COND).shape == X.shape


def written(folder, model):
    """The folder that diffusers writes."""
    model.save_pretrained(folder, safe_serialization=True)
    return folder


@torch.no_grad()
def test_their_folders_are_read(tmp_path):
    net = network(CROSSING)
    given = {key: CROSSING[key] for key in ("block_out_channels", "down_block_types", "norm_num_groups", "cross_attention_dim")}
    given |= {"in_channels": 3, "layers_per_block": 1, "attention_head_dim": 2, "num_class_embeds": 4}
    torch.manual_seed(1)
    control = given_weights(ControlNetModel(**given, conditioning_embedding_out_channels=(4, 8)))
    big = IMAGE.repeat(1, 1, 2, 2)
    made = read_adapter_folder(written(tmp_path / "control", control), net)
    down, middle = control(X, T, TEXT, big, 1.0, LABEL, return_dict=False)
    theirs = net.unet(X, T, TEXT, class_labels=LABEL, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample
    # float32 through some forty layers in another memory layout
    torch.testing.assert_close(made(X, T, Cond(LABEL, TEXT, big)), theirs, rtol=1e-4, atol=1e-4)
    for kind in ("full_adapter", "light_adapter"):  # the light one makes a map more than there are levels, which nobody reads
        adapter = T2IAdapter(3, [8, 16], 1, 2, kind)
        made = read_adapter_folder(written(tmp_path / kind, adapter), net)
        theirs = net.unet(X, T, TEXT, class_labels=LABEL, down_intrablock_additional_residuals=list(adapter(big))).sample
        torch.testing.assert_close(made(X, T, Cond(LABEL, TEXT, big)), theirs, rtol=1e-4, atol=1e-4)  # as above
        assert not torch.equal(theirs, net(X, T, COND))


def test_folders_that_are_refused(tmp_path):
    net, folder = network(CROSSING), tmp_path / "a"
    folder.mkdir()
    adapter = {"_class_name": "T2IAdapter", "channels": [8, 16], "num_res_blocks": 1, "downscale_factor": 2}
    control = {"_class_name": "ControlNetModel", "in_channels": 3, "layers_per_block": 1, "conditioning_embedding_out_channels": [4]}
    control |= {key: CROSSING[key] for key in ("block_out_channels", "down_block_types", "norm_num_groups", "cross_attention_dim")}
    control |= {"num_class_embeds": 4, "attention_head_dim": 2}
    cases = [
        ({"_class_name": "UNet2DModel"}, "is of a UNet2DModel, and adapters are ControlNetModel or T2IAdapter"),
        ({**adapter, "channels": [8, 32]}, r"makes maps of \[8, 32\] channels, and the network's levels have \[8, 16\]"),
        ({**adapter, "channels": 8}, "channels is a list of widths, got 8"),
        ({**adapter, "adapter_type": "full_adapter_xl"}, "adapter_type full_adapter_xl is not read"),
        ({**adapter, "downscale_factor": 10**6}, "downscale_factor is 1 to 64, got 1000000"),
        (adapter, "only safetensors in one file are read"),
        ({**control, "block_out_channels": [8, 8]}, r"is of a network with block_out_channels \[8, 8\], and this one has \(8, 16\)"),
        ({**control, "mine": 1}, "a ControlNetModel has no 'mine' in this version of diffusers"),
        (
            {**control, "controlnet_conditioning_channel_order": "bgr"},
            "a ControlNet with controlnet_conditioning_channel_order bgr is not read",
        ),
        (control, r"has no diffusion_pytorch_model\.safetensors but diffusion_pytorch_model\.bin"),
    ]
    (folder / "diffusion_pytorch_model.bin").write_bytes(b"")
    for config, message in cases:
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(UsageError, match=message) as found:
            read_adapter_folder(folder, net)
        assert "\n" not in str(found.value)
    (folder / "config.json").write_text(json.dumps(control))
    save_file({"a": torch.zeros(1)}, folder / "diffusion_pytorch_model.safetensors")
    with pytest.raises(UsageError, match="lack '"):
        read_adapter_folder(folder, net)
    with pytest.raises(UsageError, match=r"is an adapter of a UNet2DConditionModel, and the network is a UNet; give it its own"):
        read_adapter_folder(folder, NETWORKS["unet"]())
    with pytest.raises(UsageError, match=r"has no config.json, so it is no folder of an adapter"):
        read_adapter_folder(tmp_path, net)


@each(
    ("changed", "message"),
    [
        ({"mine": 1}, "a UNet2DConditionModel has no 'mine' in this version of diffusers"),
        (
            {"addition_embed_type": "text_time"},
            "with addition_embed_type text_time is not read; use one that is told levels, labels and text",
        ),
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "with mid_block_type UNetMidBlock2DSimpleCrossAttn is not read"),
        ({"down_block_types": ("KDownBlock2D", "DownBlock2D")}, "with down_block_types KDownBlock2D is not read; use DownBlock2D or Cross"),
        ({"cross_attention_dim": (6, 6)}, "reads one text, and cross_attention_dim is"),
        ({"num_class_embeds": 9}, "of 3 classes has as many class embeddings, or one more for none, not 9"),
    ],
)
def test_networks_that_are_not_read(changed, message):
    with pytest.raises(UsageError, match=message):
        DiffusersTextUNet((3, 8, 8), 3, {**RGB, **changed})
    with pytest.raises(UsageError, match="makes images of multiples of 2, got 7 x 8"):
        DiffusersTextUNet((3, 7, 8), 3, RGB)
    with pytest.raises(UsageError, match=r"cond\.text has width 5, and the network reads 6"):
        network(RGB)(X, T, Cond(text=torch.zeros(2, 1, 5)))
