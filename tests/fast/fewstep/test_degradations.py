"""Degradations: the printed fixtures of the Real-ESRGAN degradation, and what each part and the whole do to pictures."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import special, stats
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from fewstep.data.degradations.bicubic import Bicubic, resized, resized_levels, rounded_levels
from fewstep.data.degradations.canvas import MODES, Canvas, filtered, resized_to, whole
from fewstep.data.degradations.draws import Draws
from fewstep.data.degradations.jpeg import compressed
from fewstep.data.degradations.kernels import KINDS, WEIGHTS, Kernels, bessel_j1, blur_kernels, sinc_kernels
from fewstep.data.degradations.noise import distinct, noise, poisson
from fewstep.data.degradations.realesrgan import RealESRGAN
from fewstep.data.degradations.sharpening import sharpened
from fewstep.data.degradations.strokes import few_colours, smoothed
from fewstep.data.digits import digits
from fewstep.errors import UsageError
from fewstep.noise import LATENT, PhiloxNoise
from fewstep.plugins import entries, get

NAMES = list(entries("degradation"))


def scenes(count: int = 6, size: int = 32, channels: int = 3) -> Tensor:
    """Smooth pictures with edges and flat parts [count, channels, size, size] in [-1, 1], at 8-bit levels."""
    g = torch.Generator().manual_seed(5)
    coarse = torch.randn(count, channels, 5, 5, generator=g)
    smooth = F.interpolate(coarse, size=(size, size), mode="bicubic").clamp(-1, 1)
    smooth[:, :, size // 3 : size // 2, size // 4 :] *= -1
    return rounded_levels(smooth)


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


def kernel(kind: str, x: float, y: float, angle: float = 0.0, beta: float = 1.0, size: int = 7) -> Tensor:
    chosen, own = torch.tensor([KINDS.index(kind)]), torch.tensor([size])
    return blur_kernels(chosen, (one(x), one(y)), one(angle), one(beta), own, size)[0]


def test_kernels_to_their_printed_digits() -> None:
    aniso = kernel("aniso", 2, 1, math.pi / 6)
    sinc, wide = (sinc_kernels(one(math.pi / w), torch.tensor([k]), k)[0] for w, k in ((2, 7), (3, 21)))
    found = [
        *(kernel("iso", 2, 2)[at] for at in ((3, 3), (0, 0))),
        *(aniso[at] for at in ((3, 3), (3, 4), (4, 3), (0, 0), (0, 6))),
        *(kernel("generalized_iso", 2, 2, beta=0.5)[at] for at in ((3, 3), (0, 0))),
        *(kernel("plateau_iso", 2, 2, beta=2.0)[at] for at in ((3, 3), (0, 0))),
        *(sinc[at] for at in ((3, 3), (3, 4), (0, 0))),
        *(wide[at] for at in ((10, 10), (10, 11))),
    ]
    printed = [0.04670178, 0.00492233, 0.08406819, 0.06755069, 0.05600149, 0.00563763, 0.00001631, 0.03839120, 0.01329208]
    printed += [0.06049597, 0.00284687, 0.23575877, 0.17014778, -0.00749881, 0.08775810, 0.07626569]
    assert_close(torch.stack(found), torch.tensor(printed, dtype=torch.float64), rtol=0, atol=5.1e-9)  # eight printed decimals


def test_the_bessel_function_is_that_of_scipy() -> None:
    x = torch.linspace(0, 80, 5001, dtype=torch.float64)
    assert_close(bessel_j1(x), torch.from_numpy(special.j1(x.numpy())), rtol=0, atol=1e-14)  # a mean of 32 numbers of at most 1


def test_a_kernel_is_padded_around_its_centre() -> None:
    small, own = kernel("iso", 2, 2), torch.tensor([7])
    large = blur_kernels(torch.tensor([0]), (one(2), one(2)), one(0), one(1), own, 21)[0]
    assert_close(large[7:14, 7:14], small)
    assert large.sum() == pytest.approx(1)


def test_drawn_kernels_have_their_sizes_shares_and_sums() -> None:
    draws, drawn = Draws(torch.arange(4000)), Kernels(7, 21, (0.2, 3.0))
    found = drawn.blurs(draws, 10)
    assert_close(found.sum((1, 2)), torch.ones(4000, dtype=torch.float64))
    own = (found.abs().sum(1) > 1e-300).sum(1)
    sizes = drawn.sizes(draws, 10)
    assert sorted(set(sizes.tolist())) == list(range(7, 22, 2))
    assert (own <= sizes).all()  # narrow Gaussians vanish before their edge
    shares = torch.bincount(draws.choice(13, WEIGHTS), minlength=6) / 4000
    assert_close(shares, torch.tensor(WEIGHTS), rtol=0, atol=0.03)  # four standard errors of a share of 4000
    ringing = (found.amin((1, 2)) < 0).double().mean()
    assert 0.07 < ringing < 0.13
    last = drawn.final(draws, 62)
    plain = (last == torch.eye(21, dtype=torch.float64)[10].outer(torch.eye(21, dtype=torch.float64)[10])).all(2).all(1)
    assert 0.17 < plain.double().mean() < 0.23


def test_filters_mirror_the_edge_and_are_those_of_a_plain_convolution() -> None:
    x = scenes(3).double()
    kernels = Kernels(7, 21, (0.2, 3.0)).blurs(Draws(torch.arange(3)), 10)
    kernels[2] = torch.linspace(0, 1, 21 * 21, dtype=torch.float64).view(21, 21) / 220  # not its own mirror image, as those of blurs are
    expected = [F.conv2d(F.pad(a[:, None], (10,) * 4, mode="reflect"), k[None, None])[:, 0] for a, k in zip(x, kernels)]
    assert_close(filtered(whole(x), kernels).pixels, torch.stack(expected))
    canvas = Canvas(F.pad(x, (0, 9, 0, 9), value=7.0), torch.full((3,), 32), torch.full((3,), 32))
    assert_close(filtered(canvas, kernels).pixels[..., :32, :32], torch.stack(expected))  # what lies beside a picture says nothing


@pytest.mark.parametrize("mode", MODES)
def test_resizing_is_that_of_torch(mode: str) -> None:
    x, code = scenes(1).double(), torch.tensor([MODES.index(mode)])
    how = {} if mode == "area" else {"mode": mode}
    for scale in (0.15, 0.5, 0.77, 1.0, 1.31, 1.5):
        new = torch.tensor([math.floor(32 * scale)])
        expected = F.interpolate(x, scale_factor=scale, **(how or {"mode": "area"}))
        found = resized_to(whole(x), new, new, code, (50, 50), one(scale))
        assert_close(found.pixels[..., : int(new), : int(new)], expected)
        assert not found.pixels[..., int(new) :, :].any()
        sized = resized_to(whole(x), new, new, code, (50, 50)).pixels[..., : int(new), : int(new)]
        assert_close(sized, F.interpolate(x, size=(int(new),) * 2, **(how or {"mode": "area"})), rtol=0, atol=2e-6)  # its ratio is float32


def test_sharpening_leaves_constants_and_raises_edges() -> None:
    flat = torch.full((1, 3, 40, 40), 0.3, dtype=torch.float64)
    assert_close(sharpened(flat), flat)
    edge = flat.clone()
    edge[..., 20:] = 0.6
    found = sharpened(edge, 7)
    assert found[0, 0, 20, 19] < 0.3
    assert found[0, 0, 20, 20] > 0.6
    assert_close(found[..., :10], flat[..., :10], rtol=0, atol=1e-8)  # the tail of a Gaussian ten pixels away


def test_jpeg_leaves_constants_nearly_as_they_are() -> None:
    for level in (0.1, 0.5, 0.737, 1.0):
        flat = torch.full((1, 3, 32, 32), level, dtype=torch.float64)
        found = compressed(whole(flat), one(95.0)).pixels
        assert (found - flat).abs().max() < 1 / 255
        grey = compressed(whole(flat[:, :1]), one(95.0)).pixels
        assert (grey - flat[:, :1]).abs().max() <= 1.6 / 8 / 2 / 255 + 1e-12


def test_jpeg_is_near_that_of_a_real_encoder() -> None:
    """Pillow's rounds tables and pixels, and interpolates colour: on CIFAR-10 it is 37 to 39 dB away, and its own loss 26 to 35 dB."""
    smooth = F.interpolate(scenes(12, 12), size=(48, 48), mode="bilinear").clamp(-1, 1) * 0.7
    for levels in (to_levels(smooth).double(), to_levels(smooth[:, :1]).double()):
        grey = levels.shape[1] == 1
        for quality in (30, 50, 75, 95):
            found = (compressed(whole(levels / 255), torch.full((12,), float(quality), dtype=torch.float64)).pixels * 255).round()
            real = []
            for picture in levels:
                file = io.BytesIO()
                image = Image.fromarray(picture.byte().permute(1, 2, 0).numpy().squeeze())
                image.save(file, "JPEG", quality=quality, **({} if grey else {"subsampling": 2}))
                real.append(torch.from_numpy(np.array(Image.open(file)).reshape(48, 48, -1)).permute(2, 0, 1))
            expected = torch.stack(real).double()
            between, lost = (float(((expected - other) ** 2).mean()) for other in (found, levels))
            assert 10 * math.log10(255**2 / between) > (40 if grey else 30), (quality, grey)
            assert between < lost or not grey


def test_jpeg_does_not_see_what_lies_beside_a_picture() -> None:
    x = (scenes(2, 20).double() + 1) / 2
    quality = torch.tensor([40.0, 80.0], dtype=torch.float64)
    for edge in (False, True):
        own = compressed(whole(x), quality, edge).pixels
        canvas = Canvas(F.pad(x, (0, 30, 0, 30), value=0.9), torch.full((2,), 20), torch.full((2,), 20))
        assert_close(compressed(canvas, quality, edge).pixels[..., :20, :20], own)
    assert not torch.equal(compressed(whole(x), quality, True).pixels, compressed(whole(x), quality).pixels)


def test_counts_are_quantiles_of_poisson() -> None:
    levels = torch.tensor([[[[0, 1, 20], [128, 200, 255]]]]).repeat(200, 1, 1, 1)
    u = Draws(torch.arange(200)).uniform(0, shape=levels.shape[1:])
    for vals in (1, 8, 256):
        found = poisson(levels, torch.full((200,), vals), u)
        assert torch.equal(found, torch.from_numpy(stats.poisson.ppf(u.numpy(), levels.numpy() * vals / 255).clip(min=0)))


def test_noise_has_its_sizes_and_grey_noise_is_one_pattern() -> None:
    x = torch.full((400, 3, 8, 8), 0.5, dtype=torch.float64)
    x[:, :, :, 4:] = 100 / 255
    canvas, draws, ones = whole(x), Draws(torch.arange(400)), torch.ones(400, dtype=torch.float64)
    always, never = ones > 0, ones < 0
    assert distinct(canvas, (x * 255).round().long()).tolist() == [2] * 400
    for greyed in (always, never):
        spread = noise(canvas, draws, 6, (always, greyed), (ones * 0.1, ones))
        assert float(spread.std()) == pytest.approx(0.1, rel=0.02)
        counted = noise(canvas, draws, 6, (never, greyed), (ones * 0.1, ones * 2))
        level = 128 / 255  # an image of 0.5 has the level 128 there; vals is 2, so a count n has the variance level / 2
        assert float(counted[..., :4].var()) == pytest.approx(4 * level / 2, rel=0.05)
        assert float(counted[..., :4].mean()) == pytest.approx(0, abs=0.05)
        for found in (spread, counted):
            assert bool((found[:, 0] == found[:, 1]).all()) == bool(greyed.all())
    corner = Canvas(x, torch.full((400,), 8), torch.full((400,), 4))
    assert distinct(corner, (x * 255).round().long()).tolist() == [1] * 400  # what lies beside a picture is not counted


def test_draws_are_uniform_and_none_of_the_sampler_s() -> None:
    seeds = torch.arange(20000)
    draws = Draws(seeds)
    assert float(draws.uniform(3).mean()) == pytest.approx(0.5, abs=0.01)
    assert float(draws.normal(3, (2,)).std()) == pytest.approx(1, abs=0.02)
    assert (draws.normal(0, (4,)) == PhiloxNoise(seeds).normal(LATENT, (4,)).double()).double().mean() < 1e-3  # chance has some
    assert torch.equal(Draws(seeds[7:9]).normal(2, (5,)), draws.normal(2, (5,))[7:9])
    far = Draws(torch.tensor([1, 1 + (1 << 35)]))
    assert far.uniform(0)[0] != far.uniform(0)[1]


def plainly(of: RealESRGAN, image: Tensor, seed: int) -> Tensor:
    """One image by torch's own functions, step by step at its own sizes: what the batched degradation has to give."""
    draws, (one_stage, two_stage) = Draws(torch.tensor([seed])), of._stages()
    n, low = image.shape[-1], image.shape[-1] // of.factor

    def blur(x: Tensor, weights: Tensor) -> Tensor:
        pad = weights.shape[-1] // 2
        return F.conv2d(F.pad(x.transpose(0, 1), (pad,) * 4, mode="reflect"), weights[None]).transpose(0, 1)

    def resize(x: Tensor, mode: int, **to) -> Tensor:
        return F.interpolate(x, mode=MODES[mode], **to)

    def scale(stage) -> float:
        way, u, (down, up) = int(draws.choice(stage.first, stage.ways)), float(draws.uniform(stage.first + 1)), stage.scales
        return (1 + (up - 1) * u, down + (1 - down) * u, 1.0)[way]

    def noisy(x: Tensor, stage, most: int) -> Tensor:
        coin, grey, u = (float(draws.uniform(stage.first + k)) for k in (3, 4, 5))
        size = x.shape[-1]
        low_g, high_g, low_p, high_p = *stage.gaussian, *stage.poisson
        amounts = (one((low_g + (high_g - low_g) * u) / 255), one(low_p + (high_p - low_p) * u))
        held = Canvas(F.pad(x, (0, most - size, 0, most - size)), torch.tensor([size]), torch.tensor([size]))
        drawn = noise(held, draws, stage.first + 6, (torch.tensor([coin < 0.5]), torch.tensor([grey < 0.4])), amounts, of.light)
        return (x + drawn[..., :size, :size]).clamp(0, 1)

    def jpeg(x: Tensor, number: int) -> Tensor:
        return compressed(whole(x.clamp(0, 1)), draws.uniform(number, 30, 95), of.edge).pixels

    x = sharpened((image[None].double() + 1) / 2, of.sharpen)
    x = blur(x, Kernels(of.least, of.largest, (0.2, of.blur)).blurs(draws, 10))
    x = resize(x, int(draws.choice(102, (1 / 3,) * 3)), scale_factor=scale(one_stage))
    x = jpeg(noisy(x, one_stage, int(1.5 * n)), 30)
    again = Kernels(of.least, of.largest, (0.2, of.blur_again))
    x = blur(x, again.blurs(draws, 40)) if float(draws.uniform(50)) < 0.8 else x
    x = resize(x, int(draws.choice(202, (1 / 3,) * 3)), size=(int(n / of.factor * scale(two_stage)),) * 2)
    x = noisy(x, two_stage, int(1.2 * low))
    mode, ringing = int(draws.choice(61, (1 / 3,) * 3)), again.final(draws, 62)
    if float(draws.uniform(65)) < 0.5:
        x = jpeg(blur(resize(x, mode, size=(low, low)), ringing), 60)
    else:
        x = blur(resize(jpeg(x, 60), mode, size=(low, low)), ringing)
    return (x.clamp(0, 1) * 255).round()[0]


@pytest.mark.parametrize(("name", "size"), [("realesrgan_x4", 96), ("realesrgan_x2_small", 32)])
def test_the_whole_degradation_is_its_steps_one_by_one(name: str, size: int) -> None:
    of, images, seeds = get("degradation", name).make(), scenes(8, size), torch.arange(40, 48)
    found = ((of.small(images, seeds) + 1) * 127.5).round()
    assert found.shape == (8, 3, size // of.factor, size // of.factor)
    for picture, image, seed in zip(found, images, seeds.tolist()):
        assert torch.equal(picture, plainly(of, image, seed))


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_a_function_of_its_image_and_its_seed(name: str) -> None:
    of, images, seeds = get("degradation", name).make(), scenes(), torch.tensor([3, 1 << 40, 5, 6, 7, 8])
    told = of(images, seeds)
    assert told.image.shape == images.shape
    assert told.image.dtype is images.dtype
    channels = of.channels(images.shape[1:])
    assert channels == images.shape[1] + (told.mask is not None)
    levels = told.image if told.mask is None else torch.where(told.mask > 0.5, images, told.image)
    assert_close(levels, rounded_levels(levels))
    for rows in (slice(0, 1), slice(1, 4), slice(4, 6)):
        part = of(images[rows], seeds[rows])
        assert torch.equal(part.image, told.image[rows])
        assert told.mask is None or torch.equal(part.mask, told.mask[rows])  # type: ignore[arg-type]
    grey, odd = of(scenes(2, 16, 1), seeds[:2]), of(scenes(1, 24)[..., :20], seeds[:1])
    assert grey.image.shape == (2, 1, 16, 16)
    assert odd.image.shape == (1, 3, 24, 20)
    assert of(images[:0], seeds[:0]).image.shape == (0, 3, 32, 32)


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("realesrgan", "hidden_h", "hidden_r", "hidden_s"))])
def test_another_seed_is_another_picture(name: str) -> None:
    image, of = scenes(1).expand(6, -1, -1, -1), get("degradation", name).make()
    found = of(image, torch.arange(6)).image
    assert len({tuple(picture.flatten().tolist()) for picture in found}) >= 3


def test_bicubic_is_that_of_pillow() -> None:
    """Of pictures of floats to rounding; of 8-bit ones level by level, which it rounds and clips between columns and rows."""
    for size in ((8, 8), (16, 16), (64, 64), (24, 24), (40, 40), (11, 11), (100, 100)):
        for image in scenes(2):
            own = resized(image[None], size)[0]
            pillow = [np.asarray(Image.fromarray(c.numpy()).resize(size[::-1], Image.Resampling.BICUBIC)) for c in image]
            assert_close(own, torch.from_numpy(np.stack(pillow)), rtol=0, atol=2e-6)  # sums of up to 64 products in float32
            assert torch.equal(to_levels(resized_levels(image[None], size)[0]), by_pillow(image, size))


def to_levels(images: Tensor) -> Tensor:
    return ((images + 1) * 127.5).round()


def by_pillow(image: Tensor, size: tuple[int, int]) -> Tensor:
    picture = to_levels(image).byte().permute(1, 2, 0).numpy()
    real = Image.fromarray(picture.squeeze()).resize(size[::-1], Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(real).reshape(*size, -1)).permute(2, 0, 1).float()


def test_bicubic_of_real_pictures_is_that_of_pillow() -> None:
    images = rounded_levels(torch.from_numpy(digits().heldout_x[:50]))
    told, small = Bicubic(2)(images, torch.arange(50)).image, Bicubic(2).small(images, torch.arange(50))
    for image, own, large in zip(images, small, told):
        assert torch.equal(to_levels(own), by_pillow(image, (4, 4)))
        assert torch.equal(to_levels(large), by_pillow(own, (8, 8)))


def test_halves_of_a_level_are_rounded_up_whatever_their_last_bits() -> None:
    halves = (torch.arange(254, dtype=torch.float64) + 0.5) / 127.5 - 1
    for noise_of_sums in (0.0, 1e-9, -1e-9):
        assert torch.equal(((rounded_levels(halves + noise_of_sums) + 1) * 127.5).round(), torch.arange(1.0, 255.0, dtype=torch.float64))
    assert rounded_levels(torch.tensor([-3.0, 3.0])).tolist() == [-1.0, 1.0]


def test_guides_have_few_colours_and_flat_patches() -> None:
    x = scenes(3)
    found = few_colours(x, 4)
    for picture in found:
        assert len(torch.unique(picture.flatten(1).T, dim=0)) <= 4
    assert ((found - x) ** 2).mean() < ((few_colours(x, 2) - x) ** 2).mean()
    speck = torch.zeros(1, 1, 9, 9)
    speck[..., 4, 4] = 1
    assert not smoothed(speck, 3).any()


def test_what_a_degradation_cannot_be_is_one_line() -> None:
    made = [
        (lambda: get("degradation", "realesrgan_x4").make(largest=8), "odd sizes"),
        (lambda: get("degradation", "realesrgan_x4").make(shrink=0.0), "shrinking scales"),
        (lambda: get("degradation", "realesrgan_x4").make(sharpen=4), "odd size from 3 on"),
        (lambda: get("degradation", "realesrgan_x4").make(light=100), "power of two up to 256"),
        (lambda: get("degradation", "realesrgan_x4").make().channels((2, 32, 32)), "grey or RGB"),
        (lambda: get("degradation", "realesrgan_x4").make().channels((3, 30, 32)), "no whole number of pixels"),
        (lambda: get("degradation", "strokes").make(smooth=4), "odd number of pixels"),
        (lambda: get("degradation", "posterised").make(colours=1), "number of colours"),
    ]
    for make, told in made:
        with pytest.raises(UsageError, match=told) as caught:
            make()
        assert "\n" not in str(caught.value)
