"""Branches: the identity at the start, what they learn, what they compute, and how often they are called."""

import pytest
import torch
from torch import nn

from fewstep.cond import Cond
from fewstep.errors import UsageError
from fewstep.grid import make_grid
from fewstep.guidance import guide
from fewstep.nets.adapters import with_scalars
from fewstep.nets.branches.adapted import with_branch
from fewstep.nets.branches.counting import branch_passes
from fewstep.nets.own import as_teacher
from fewstep.nets.reduced import reduced
from fewstep.noise import PhiloxNoise
from fewstep.plugins import get
from fewstep.sampling.lower import lower
from fewstep.sampling.memory import recalling
from fewstep.sampling.plan import interpret
from fewstep.sampling.prepare import prepared
from fewstep.sampling.program import Update
from fewstep.sampling.runner import run
from support.branches import BRANCHES, CALL, DROPS, IMAGE, MASK, NETWORKS, PEFT, PICTURED, RANGE, awake, branched, joined
from support.each import each
from support.published import C_NOISE, X


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_an_adapted_network_is_its_network_to_the_bit_and_learns(name):
    """Each architecture with each branch, asked as it is and with what is made of the picture once; then after one step of the branch."""
    net = NETWORKS[name]()
    expected, deepest = net(*CALL, features=True)
    for branch in BRANCHES:
        made = joined(net, branch)
        assert torch.equal(made(*CALL), expected), branch
        assert torch.equal(made(X, C_NOISE, made.prepared(PICTURED)), expected), branch
        out, deep = made(*CALL, features=True)
        assert torch.equal(out, expected)
        assert torch.equal(deep, deepest)
        assert (made.form, made.version, made.classes, made.feature_size) == (net.form, net.version, 3, net.feature_size)
        assert made.emb_channels == net.emb_channels
        own = [p.requires_grad_() for key, p in made.named_parameters() if any(key == at or key.startswith(f"{at}.") for at in made.own)]
        with torch.enable_grad():
            made(*CALL).square().sum().backward()
        torch.optim.Adam(own, 1e-2).step()
        assert not torch.equal(made(*CALL), expected), branch
    assert torch.equal(net(*CALL), expected)  # which nobody touched


@each(
    "options",
    [{"join": join, "mu": mu, "told": told} for join in ("interpolate", "additive") for mu in ("level", "one") for told in (0, 1)],
)
@torch.no_grad()
def test_codi_joins_as_its_equation_says(options):
    """With mu = 0 any conditional features change nothing; else every map is mixed as equation 10 says, and the decoder reads that."""
    options = {**options, "told": bool(options["told"])}
    net = NETWORKS["ncsnpp"]()
    made = joined(net, "codi", **options)
    for p in made.branch.encoder.parameters():
        p.normal_()
    assert torch.equal(made(*CALL), net(*CALL))
    made = joined(net, "codi", **options)
    made.branch.mu.copy_(torch.tensor([0.3, -0.2])[: len(made.branch.mu)])
    context, picture = net.context(*CALL), torch.cat([IMAGE, MASK], 1)
    encoder = made.branch.encoder
    own = encoder.encode(
        picture, encoder.context(picture, C_NOISE, PICTURED) if options["told"] else encoder.context(picture, 0 * C_NOISE, Cond())
    )
    mus = [0.3, 0.3, -0.2, -0.2, -0.2] if options["mu"] == "level" else [0.3] * 5
    maps = net.encode(X, context)
    assert len(mus) == len(maps) == len(own) == len(net.maps.widths)
    assert [h.shape[1] for h in maps] == list(net.maps.widths)
    share = 1 if options["join"] == "interpolate" else 0
    mixed = [(1 - share * mu) * h + mu * c for mu, h, c in zip(mus, maps, own)]
    torch.testing.assert_close(made(*CALL), net.decode(mixed, context))
    assert not torch.equal(made(*CALL), net(*CALL))


@torch.no_grad()
def test_a_copied_encoder_reads_the_image_as_the_network_does_and_the_mask_not_at_all():
    for name in ("unet", "ddpmpp", "adm", "openai", "diffusers", "text"):
        net = NETWORKS[name]()
        encoder = net.encoder(4)
        context = net.context(IMAGE, C_NOISE, PICTURED)
        same = zip(net.encode(IMAGE, context), encoder.encode(torch.cat([IMAGE, MASK], 1), context), strict=True)
        for own, copied in same:
            torch.testing.assert_close(own, copied, rtol=1e-4, atol=1e-5)  # float32 through a few layers, summed in another order


@torch.no_grad()
def test_features_are_added_before_a_level_is_halved():
    """What is added to a level's last map is in the map that the decoder joins, and in what the next level is made of."""
    for name in NETWORKS:
        net = NETWORKS[name]()
        context, maps = net.context(*CALL), net.encode(X, net.context(*CALL))
        added = [torch.zeros_like(maps[end]) for end in net.maps.ends]
        added[0] += 1.0
        found = net.encode(X, context, added=added)
        assert [torch.equal(a, b) for a, b in zip(found, maps)] == [i < net.maps.ends[0] for i in range(len(maps))], name
        torch.testing.assert_close(found[net.maps.ends[0]], maps[net.maps.ends[0]] + 1)
        hinted = net.encode(X, context, hint=torch.ones_like(maps[0]))
        torch.testing.assert_close(hinted[0], maps[0] + 1)


def asked(name, of, steps=4, **given):
    plan = get("solver", name).make().plan(make_grid("polynomial", steps, RANGE))
    with torch.no_grad():
        return run(plan, of, 20 * X, PhiloxNoise(torch.tensor([3, 4])), PICTURED, **given)[plan.states[-1]]


@each("branch", BRANCHES)
def test_an_adapter_runs_once_for_a_trajectory(branch):
    """Counted apart from the network, under guidance and in reduced types too; a branch that reads the state is called with it."""
    once = branch != "control"
    for of in (branched(branch), guide(branched(branch), 2.0), recalling(branched(branch)), reduced(branched(branch), "bf16")):
        with branch_passes(of) as seen:
            asked("dpmpp_2m", of)
        doubled = 2 if of.cost(1.0) == 2 else 1
        assert seen[0] == (2 if once else 2 * 4 * doubled), branch
    of = branched(branch)
    plan = get("solver", "dpmpp_2m_sde").make().plan(make_grid("polynomial", 4, RANGE))
    with torch.no_grad():
        expected = interpret(plan, of, 20 * X, PhiloxNoise(torch.tensor([3, 4])), PICTURED)[plan.states[-1]]
    torch.testing.assert_close(asked("dpmpp_2m_sde", of), expected, rtol=1e-4, atol=1e-4)  # float32 through four passes


def test_what_was_made_is_for_its_own_module_and_goes_with_the_picture():
    one, two = branched("t2i"), branched("codi")
    cond = prepared(two, prepared(one, PICTURED))
    assert [len(made.maps) for made in cond.made] == [2, 5]
    assert cond.made_by(one.net.branch) is cond.made[0].maps
    assert cond.made_by(two.net.branch) is cond.made[1].maps
    assert cond.made_by(branched("t2i").net.branch) is None
    assert prepared(one, cond).made[-1].by is one.net.branch
    assert len(prepared(one, cond).made) == 2
    assert prepared(guide(one, 2.0, two), PICTURED).names()[-2:] == ("made 2", "made 5")
    both = cond.map(lambda v: torch.cat([v, v]))
    assert {len(v) for v in both.tensors()} == {4}
    assert cond[:1].made[0].maps[0].shape[0] == 1
    for without in (cond.without_picture(), Cond(image=IMAGE, made=cond.made).unconditional()):
        assert not without.made
    assert cond.unconditional().made == cond.made  # which drops label and text alone


@each(("name", "branch"), [(name, branch) for name in ("euler", "heun", "dpmpp_2m", "dpmpp_2m_sde") for branch in BRANCHES])
def test_a_branch_takes_no_launch_of_its_own(name, branch):
    """The program of a plan is that of the network without: as many updates, of as many tensors."""
    plan = get("solver", name).make().plan(make_grid("polynomial", 5, RANGE))

    def updates(of, cond):
        found = lower(plan, of, torch.float32, cond).instructions
        return [(len(op.inputs), len(op.outputs)) for op in found if isinstance(op, Update)], len(found)

    for scale in (1.0, 2.0):
        with_one, without = guide(branched(branch), scale), guide(branched(""), scale)
        assert updates(with_one, prepared(with_one, PICTURED)) == updates(without, PICTURED.without_picture())


def test_scalars_and_branches_go_together():
    net = joined(with_scalars(NETWORKS["unet"](), ["w"]), "control")
    assert not any("embed_scalars" in key for key in net.branch.state_dict())
    told = with_scalars(net, ["steps"])
    assert set(told.embed_scalars) == {"w", "steps"}
    nn.init.normal_(told.embed_scalars["steps"][-1].weight)
    cond = Cond(image=IMAGE, mask=MASK, scalars={"steps": torch.ones(2)})
    assert not torch.equal(told(X, C_NOISE, cond), net(X, C_NOISE, cond))


@pytest.mark.skipif(not PEFT, reason="peft is not installed: LoRA was not checked")
@torch.no_grad()
def test_lora_adapts_any_network_without_a_picture():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(8, 8)

        def forward(self, z, t):
            return self.act(self.conv(z)) * t[:, None, None, None]

    teacher = as_teacher(Mine(), "eps", "vp", (3, 8, 8))
    made = joined(teacher.net, "lora", 0, rank=2)
    assert torch.equal(made(X, C_NOISE), teacher.net(X, C_NOISE))
    assert all("lora_" in name for name in made.own)
    assert not torch.equal(awake(made)(X, C_NOISE), teacher.net(X, C_NOISE))
    with pytest.raises(UsageError, match="joins a network between its encoder and its decoder, and a Own has none; unet, "):
        with_branch(teacher.net, "lora", 3)
    sizes = {key: tuple(p.shape) for key, p in joined(NETWORKS["adm"](), "lora", rank=3).named_parameters() if "lora_A" in key}
    assert {shape[0] for shape in sizes.values()} == {3}
    assert any("map_layer0" in key for key in sizes)
    assert not any("8x8_up" in key and "conv0" in key for key in sizes)  # which resamples


@each(
    ("branch", "channels", "options", "message"),
    [
        ("codo", 3, {}, "unknown branch 'codo'; did you mean codi"),
        ("codi", 3, {"tolld": True}, "branch 'codi' has no field 'tolld'; did you mean told"),
        ("codi", 3, {"join": "sum"}, "join of branch codi is interpolate or additive, got 'sum'"),
        ("codi", 3, {"mu": "all"}, "mu of branch codi is level or one, got 'all'"),
        ("codi", 0, {}, "branch codi reads a picture, and channels is 0"),
        ("codi", 2.5, {}, "the channels of a branch's pictures is an integer >= 0, got 2.5"),
        ("control", 3, {"widths": []}, "the number of widths of branch control is an integer >= 1"),
        ("control", 3, {"conditioning_scale": float("nan")}, "conditioning_scale of branch control is a finite number above 0"),
        ("t2i", 3, {"factor": 0}, "factor of a T2I-Adapter is an integer >= 1, got 0"),
    ],
)
def test_branches_that_cannot_be(branch, channels, options, message):
    with pytest.raises(UsageError, match=message):
        with_branch(NETWORKS["unet"](), branch, channels, options)


@each(
    ("cond", "message"),
    [
        (Cond(drops=DROPS), "cond.image is missing; give Cond"),
        (Cond(image=IMAGE), "told 4 channels, an image's 3 and a mask, and cond.mask is missing"),
        (Cond(image=IMAGE[:, :1], mask=MASK), "told 4 channels, and the picture has 2"),
        (Cond(image=torch.cat([IMAGE, MASK], 1), mask=MASK), "told 4 channels and no mask, and cond.mask is given"),
        (Cond(image=IMAGE[:, :, :6], mask=MASK), "cond.image is 6 x 8, and a network with branch .* is told 8 x 8; resize"),
        (Cond(image=IMAGE, mask=MASK[:, :, :, :4]), "cond.mask is 8 x 4"),
        (Cond(image=(127 * IMAGE).byte(), mask=MASK), "cond.image is torch.uint8, and pictures are floats; use image / 127.5 - 1 of uint8"),
        (Cond(image=IMAGE, mask=MASK.bool()), "cond.mask is torch.bool, and pictures are floats; use mask.float"),
        (Cond(image=127.5 * (IMAGE + 1), mask=MASK), r"pictures are in \[-1, 1\]; use image / 127.5 - 1"),
        (Cond(image=IMAGE / 0, mask=MASK), "cond.image has values from -inf to inf"),
        (Cond(image=IMAGE, mask=2 * MASK), "cond.mask has values from 0 to 2, and a mask is 1 where the image is hidden"),
    ],
)
def test_pictures_that_cannot_be(cond, message):
    plan = get("solver", "euler").make().plan(make_grid("polynomial", 2, RANGE))
    for branch in ("codi", "control"):
        with pytest.raises(UsageError, match=message) as found:
            run(plan, branched(branch), 20 * X, cond=cond)
        assert "\n" not in str(found.value)


def test_larger_pictures():
    for branch, options in (("control", {"widths": (4, 8)}), ("t2i", {"factor": 2})):
        net = awake(joined(NETWORKS["unet"](), branch, **options))
        big = Cond(image=IMAGE.repeat(1, 1, 2, 2), mask=MASK.repeat(1, 1, 2, 2))
        assert net(X, C_NOISE, big).shape == X.shape
        with pytest.raises(UsageError, match=r"cond.image is 8 x 8, and a network with branch .* is told 16 x 16"):
            net(*CALL)
