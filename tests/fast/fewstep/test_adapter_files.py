"""Adapters as files: alone, on their own backbone, on a student of it, and what is refused."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.cond import Cond
from fewstep.denoiser import Preconditioned
from fewstep.errors import UsageError
from fewstep.files import file_digest
from fewstep.guidance import guide
from fewstep.nets.adapters import with_scalars
from fewstep.nets.branches.files import adapter_card, backbone_digest, load_adapter, own_part, save_adapter, with_adapter
from fewstep.nets.unet import UNet
from fewstep.precond import EDMPrecond
from fewstep.wrappers import WithScalars
from support.branches import BRANCHES, CALL, IMAGE, NETWORKS, PICTURED, awake, joined
from support.components import given_weights
from support.each import each
from support.published import C_NOISE, X
from support.tiny import mixture_data


@each("branch", BRANCHES)
@torch.no_grad()
def test_an_adapter_is_kept_alone_and_computes_the_same(branch, tmp_path):
    for name in ("unet", "ncsnpp", "text"):
        net = NETWORKS[name]()
        made = awake(joined(net, branch))
        save_adapter(tmp_path / f"{name}.safetensors", own_part(made) if name == "unet" else made, {"task": "superres_x2"})
        kept = load_file(tmp_path / f"{name}.safetensors")
        assert set(kept) == set(own_part(made).state_dict())
        assert all(key.startswith("branch.") or "lora_" in key for key in kept)
        card = adapter_card(tmp_path / f"{name}.safetensors")
        assert (card["branch"], card["channels"], card["notes"]) == (branch, 4, {"task": "superres_x2"})
        assert card["backbone"] == backbone_digest(net) == backbone_digest(made) == backbone_digest(own_part(made))
        assert torch.equal(load_adapter(tmp_path / f"{name}.safetensors", net)(*CALL), made(*CALL))


@torch.no_grad()
def test_an_adapter_on_a_student_of_its_backbone(tmp_path):
    """Deliberately, with the student's own scalars, under whatever wraps it; by mistake it is one clear line."""
    file, net = tmp_path / "adapter.safetensors", NETWORKS["unet"]()
    made = awake(joined(net, "control", 3, widths=(4,), conditioning_scale=0.5))
    save_adapter(file, made)
    student, retrained = with_scalars(net, ["w"]), NETWORKS["unet"]()
    student.conv_in.weight.mul_(1.1)
    retrained.conv_out.bias[0] += 1e-3
    with pytest.raises(UsageError, match="belongs to another backbone"):
        load_adapter(file, retrained)
    with pytest.raises(
        UsageError, match=r"belongs to another backbone \(its weights are .*\.\.\., this one's .*\); load that one, or say other=True"
    ):
        load_adapter(file, student)
    found = load_adapter(file, student, other=True)
    assert found.branch.scale == 0.5
    cond = Cond(PICTURED.label, image=IMAGE)
    assert torch.equal(found.branch(IMAGE, X, C_NOISE, cond)[0], made.branch(IMAGE, X, C_NOISE, cond)[0])
    denoiser = guide(WithScalars(Preconditioned(student, EDMPrecond(0.5), (3, 8, 8), 3, (0.02, 20.0)), {"w": 1.0}), 2.0)
    cond = replace(cond, drops=("label",))
    assert not torch.equal(with_adapter(denoiser, file, other=True)(X, 1.0, cond), denoiser(X, 1.0, cond))


def test_files_that_are_refused(tmp_path):
    net = NETWORKS["unet"]()
    made, file = joined(net, "concat"), tmp_path / "a.safetensors"
    save_adapter(file, made)
    card = json.loads(file.with_suffix(".json").read_text())

    def write(**changed):
        file.with_suffix(".json").write_text(json.dumps(card | changed))

    wide = given_weights(UNet((3, 8, 8), 3, (16, 16), emb=16))
    cases = [
        ({"branch": 3}, net, "is none of an adapter: it has no valid 'branch'"),
        ({"branch": "mine"}, net, "needs the branch 'mine', which is not installed here"),
        ({"version": 9}, net, "has version 9 of branch concat, here is version 1"),
        ({"sha256": "0"}, net, "does not match its card"),
        ({}, torch.nn.Linear(2, 2), "belongs to another backbone"),
        ({"options": {"rank": 3}}, net, "branch 'concat' has no field 'rank'"),
    ]
    for changed, of, message in cases:
        write(**changed)
        with pytest.raises(UsageError, match=message) as found:
            load_adapter(file, of)
        assert "\n" not in str(found.value)
    write()
    with pytest.raises(UsageError, match=r"'branch.conv.weight' has shape \[8, 4, 3, 3\], the network needs \[16, 4, 3, 3\]"):
        load_adapter(file, wide, other=True)
    save_file({"other": torch.zeros(2)}, file)
    write(sha256=file_digest(file))
    with pytest.raises(UsageError, match=r"lack 'branch\.conv\.weight'; they belong to another architecture"):
        load_adapter(file, net)
    file.write_bytes(b"PK" * 9)
    with pytest.raises(UsageError, match="is truncated or not safetensors"):
        load_adapter(file, net)
    file.with_suffix(".json").write_text("{")
    with pytest.raises(UsageError, match="is not valid JSON"):
        load_adapter(file, net)
    file.with_suffix(".json").unlink()
    with pytest.raises(UsageError, match=r"has no card a\.json that can be read"):
        load_adapter(file, net)
    with pytest.raises(UsageError, match="a UNet has no branch to keep as an adapter"):
        save_adapter(file, net)
    with pytest.raises(UsageError, match=r"kept as safetensors, got a.pt; use a.safetensors"):
        save_adapter(tmp_path / "a.pt", made)
    with pytest.raises(UsageError, match="is for a network, and a GaussianMixture has none; distil it first"):
        with_adapter(mixture_data()[0], file)
