"""Samples against the true images that their conditions were made of: values by hand, invariances, errors over conditions."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.ndimage import correlate
from torch.testing import assert_close

from bench.evaluate.judge import Judge
from bench.evaluate.measuring import measured
from fewstep.errors import Unavailable, UsageError
from fewstep.plugins import get
from metrics import Evidence, Measurement, metric_named, metrics_by_name
from metrics.families.restoration.protocols import by_protocol, choices, protocol_text
from metrics.families.restoration.signal import decibels
from metrics.families.restoration.structure import ssim_map
from metrics.families.restoration.view import View, levels_of, luma, together
from metrics.pixels import LEVELS, quantise
from metrics.reference import Reference
from support.components import evidence as complete

CAP = 10 * math.log10(255**2 * 12)


def nothing(shape: tuple[int, ...]) -> Reference:
    none, labels = np.zeros((0, *shape), np.float32), np.zeros(0, np.int64)
    return Reference("none", 0, none, labels, none, labels, "", {})


def compared(ours: np.ndarray, true: np.ndarray, **told: Any) -> Evidence:
    """Evidence of levels 0 to 255."""
    a, b = (LEVELS[np.asarray(x, np.uint8)] for x in (ours, true))
    return Evidence(a, np.zeros(len(a), np.int64), {}, {}, None, nothing(a.shape[1:]), range_known=True, target=b, **told)


def levels(n: int = 6, channels: int = 3, side: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (n, channels, side, side))


def value(name: str, evidence: Evidence, **fields: Any) -> float:
    return get("metric", name).make(**fields)(evidence).value


def test_luma_is_that_of_the_standard() -> None:
    """White 235, black 16, and the printed values of red, green and blue: 65.481, 128.553 and 24.966 above black."""
    colours = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], float)[:, :, None, None]
    assert_close(luma(colours).ravel(), np.array([235, 16, 81.481, 144.553, 40.966]))
    assert luma(colours, rounded=True).ravel().tolist() == [235, 16, 81, 145, 41]
    grey = np.full((1, 1, 2, 2), 100.0)
    assert_close(luma(grey), luma(np.repeat(grey, 3, 1)))


def test_psnr_of_known_differences() -> None:
    true = np.full((3, 3, 8, 8), 100)
    off = true + np.array([1, 5, 10])[:, None, None, None]
    each = [20 * math.log10(255 / d) for d in (1, 5, 10)]
    found = metric_named("psnr")(compared(off, true))
    assert_close(found.value, np.mean(each))
    assert found.std_error is not None
    assert_close(found.std_error, np.std(each, ddof=1) / 3**0.5)
    assert_close(value("psnr", compared(off, true), over="set"), 10 * math.log10(255**2 / 42))  # (1 + 25 + 100) / 3
    # All channels off by d move Y by 219 / 255 d.
    assert_close(value("psnr_y", compared(off, true)), np.mean(each) + 20 * math.log10(255 / 219))
    # One channel alone: the error of RGB is a third of its square, that of Y has the channel's weight.
    green = true.copy()
    green[:, 1] += 10
    assert_close(value("psnr", compared(green, true)), 10 * math.log10(3 * 255**2 / 100))
    assert_close(value("psnr_y", compared(green, true)), 20 * math.log10(255**2 / (10 * 128.553)))


def test_equal_images_score_the_rounding_and_say_so() -> None:
    a, b = levels(seed=1), levels(seed=1)
    b[0, 0, 0, 0] ^= 128
    for name, expected in (("psnr", CAP), ("psnr_y", CAP), ("ssim", 1.0), ("ssim_y", 1.0)):
        found = metric_named(name)(compared(a, a.copy()))
        assert_close(found.value, expected)
        assert found.std_error is None  # nothing has been seen to vary
    assert metric_named("psnr")(compared(a, b)).protocol["saturated"] == 5
    assert_close(float(decibels(0.0)), CAP)


def test_borders_and_crops_leave_out_what_they_say() -> None:
    true, inside = levels(side=17), (slice(None), slice(None), slice(4, 12), slice(4, 12))
    noisy = true.copy()
    noisy[:, :, :4], noisy[:, :, 12:], noisy[:, :, :, :4], noisy[:, :, :, 12:] = 0, 0, 0, 0
    for name in ("psnr", "psnr_y"):  # 17 cut to 16, then 4 shaved of each side
        assert_close(value(name, compared(noisy, true), border=4, crop=4), CAP)
        assert value(name, compared(noisy, true), border=4) < 40
        assert value(name, compared(noisy, true), border=3, crop=4) < 40
    other = levels(side=17, seed=3)
    alone = compared(other[inside], true[inside])
    assert_close(value("psnr", compared(other, true), border=4, crop=4), value("psnr", alone))
    assert_close(value("ssim", compared(other, true), border=4, crop=4, window=5), value("ssim", alone, window=5))
    for fields, error in (({"border": 9}, Unavailable), ({"border": -1}, UsageError), ({"crop": 0.5}, UsageError)):
        with pytest.raises(error):
            value("psnr", compared(other, true), **fields)
    with pytest.raises(UsageError, match="channels are rgb or y, got 'Y'"):
        View("Y")
    with pytest.raises(UsageError, match="averaged over images or set"):
        get("metric", "psnr").make(over="all")


def reference_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004 as they write it, pixel by pixel, of one grey image [H, W] each."""
    g = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(g, g) / np.outer(g, g).sum()
    c1, c2, found = (0.01 * 255) ** 2, (0.03 * 255) ** 2, []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            x, y = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mx, my = (window * x).sum(), (window * y).sum()
            vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
            cov = (window * (x - mx) * (y - my)).sum()
            found.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(found))


def test_ssim_is_the_published_formula() -> None:
    true = levels(2, 3, 18).astype(float)
    true = np.stack([[correlate(c, np.ones((3, 3)) / 9, mode="nearest") for c in image] for image in true]).round()
    ours = np.clip(true + np.random.RandomState(1).normal(0, 12, true.shape), 0, 255).round()
    direct = np.array([np.mean([reference_ssim(a, b) for a, b in zip(x, y)]) for x, y in zip(ours, true)])
    assert 0.3 < direct.min() < direct.max() < 0.95
    assert_close(metric_named("ssim")(compared(ours, true)).value, direct.mean())
    grey = [reference_ssim(*(luma(z[None])[0, 0] for z in (x, y))) for x, y in zip(ours, true)]
    assert_close(value("ssim_y", compared(ours, true)), np.mean(grey))
    # Of constant images only the means count: (2 m n + C1) / (m^2 + n^2 + C1).
    flat = (2 * 100 * 150 + 6.5025) / (100**2 + 150**2 + 6.5025)
    assert_close(ssim_map(np.full((1, 1, 12, 12), 100.0), np.full((1, 1, 12, 12), 150.0)).ravel(), np.full(4, flat))
    with pytest.raises(Unavailable, match=r"images of 8 x 8 .* less than 11 pixels"):
        value("ssim", compared(levels(side=8), levels(side=8)))


def test_paired_metrics_do_not_change_when_both_are_flipped_or_reordered() -> None:
    a, b, order = levels(seed=1), levels(seed=2), np.random.RandomState(0).permutation(6)
    for name in ("psnr", "psnr_y", "ssim", "ssim_y"):
        for same in ((a[..., ::-1], b[..., ::-1]), (a[order], b[order]), (b, a), (a.swapaxes(2, 3), b.swapaxes(2, 3))):
            assert_close(value(name, compared(*same)), value(name, compared(a, b)))


def masked(**fields: Any) -> Evidence:
    """Left halves hidden, where images are off by 20; right halves off by 2."""
    true = levels(4, 3, 16) // 2 + 30
    mask = np.zeros((4, 1, 16, 16), np.float32)
    mask[..., :8] = 1
    ours = true + np.where(mask == 1, 20, 2).astype(int)
    return compared(ours, true, condition={"image": LEVELS[true.astype(np.uint8)], "mask": mask, **fields})


def test_hidden_and_known_pixels_are_told_apart() -> None:
    assert_close(value("psnr_hidden", masked()), 20 * math.log10(255 / 20))
    assert_close(value("rmse_known", masked()), 2.0)
    assert_close(value("rmse_known", masked(), border=4), 2.0)
    whole, hidden = value("ssim", masked(), window=3), value("ssim_hidden", masked(), window=3)
    known = ssim_map(*(levels_of(x) for x in (masked().images, masked().target)), window=3)[:, :, 9:].mean()  # pyright: ignore
    assert hidden < whole < known
    for mask, told in (
        (np.zeros((4, 1, 16, 16), np.float32), "of 4 of 4 samples leaves no such pixel"),
        (np.full((4, 1, 16, 16), 0.5, np.float32), "1 where the image is hidden and 0 elsewhere, got values from 0.5"),
    ):
        with pytest.raises(UsageError, match=told):
            value("psnr_hidden", masked(mask=mask))
    with pytest.raises(UsageError, match="leaves no such pixel"):
        value("rmse_known", masked(mask=np.ones((4, 1, 16, 16), np.float32)))
    edge = np.zeros((4, 1, 16, 16), np.float32)
    edge[..., 8:] = 1
    edge[0] = 0
    edge[0, :, :, 0] = 1  # no window of 11 has its middle there
    found = metric_named("ssim_hidden")(masked(mask=edge))
    assert (found.samples, found.protocol["left_out"], found.protocol["conditions"]) == (3, 1, 3)
    with pytest.raises(Unavailable, match="no mask leaves anything to compare"):
        value("psnr_hidden", masked(mask=np.repeat(edge[:1], 4, axis=0)), border=4)
    lacking = replace(masked(), condition={})
    for name in ("psnr_hidden", "ssim_hidden", "rmse_known"):
        with pytest.raises(Unavailable, match="what the masks of conditions hide, and these samples have none"):
            value(name, lacking)


def test_errors_are_over_conditions() -> None:
    """Copies of one condition's sample are no more evidence; the mean weighs conditions alike."""
    a, b = levels(4, seed=1), levels(4, seed=2)
    once = metric_named("psnr")(compared(a, b))
    groups = np.repeat(np.arange(4), 3)
    thrice = metric_named("psnr")(compared(a[groups], b[groups], groups=groups))
    assert_close((once.value, once.std_error), (thrice.value, thrice.std_error))
    assert (thrice.samples, thrice.protocol["conditions"]) == (12, 4)
    apart = metric_named("psnr")(compared(a[groups], b[groups]))  # as if they were independent
    assert apart.std_error is not None
    assert once.std_error is not None
    assert apart.std_error < 0.6 * once.std_error
    own = np.array([metric_named("psnr")(compared(a[[i, i]], b[[i, i]])).value for i in range(4)])
    uneven = np.array([0, 0, 0, 1, 2, 3])
    assert_close(value("psnr", compared(a[uneven], b[uneven], groups=uneven)), own.mean())
    alone = metric_named("psnr")(compared(a[[0, 0]], b[[0, 0]], groups=np.array([5, 5])))
    assert alone.std_error is None


def halved(images: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """A made-up task's pictures: half as bright, and darker by the sample's number."""
    return quantise((images + 1) / 2 - 1 - rows[:, None, None, None].astype(np.float32) / 255)


def test_consistency_makes_the_condition_again() -> None:
    true = levels(4, seed=1)
    told = {"condition": {"image": halved(LEVELS[true], np.arange(4))}, "asked": halved}
    assert_close(value("consistency", compared(true, true, **told)), CAP)
    off = compared(np.clip(true, 0, 235) + 20, np.clip(true, 0, 235), **told)
    told["condition"] = {"image": halved(LEVELS[np.clip(true, 0, 235)], np.arange(4))}
    off = replace(off, condition=told["condition"])
    assert_close(value("consistency", off), 20 * math.log10(255 / 10), rtol=0.01, atol=0)  # pictures are rounded to levels
    mask = np.zeros((4, 1, 16, 16), np.float32)
    mask[:, :, 4:] = 1
    there = np.clip(true, 0, 235)
    changed = there.copy()
    changed[:, :, 4:] = 0  # what is hidden may be anything
    assert_close(value("consistency", compared(changed, there, **{**told, "condition": {**told["condition"], "mask": mask}})), CAP)
    with pytest.raises(Unavailable, match="name the task"):
        value("consistency", replace(off, asked=None))


def test_diversity_is_of_one_condition_and_zero_without_noise() -> None:
    true, groups = levels(3, seed=1) // 2, np.repeat(np.arange(3), 4)
    told = {"groups": groups, "condition": {"image": LEVELS[true[groups]]}}
    assert value("diversity_condition", compared(true[groups], true[groups], **told)) == 0
    ours = true[groups] + np.tile([0, 0, 0, 12], 3)[:, None, None, None]  # of six pairs three differ, by 12
    found = metric_named("diversity_condition")(compared(ours, true[groups], **told))
    assert_close(found.value, 6.0)
    assert (found.samples, found.protocol["conditions"]) == (12, 3)
    order = np.random.RandomState(0).permutation(12)
    shuffled = {"groups": groups[order], "condition": {"image": LEVELS[true[groups[order]]]}}
    assert_close(value("diversity_condition", compared(ours[order], true[groups[order]], **shuffled)), 6.0)
    # Two conditions made of one image are two.
    drawn = LEVELS[true[groups]].copy()
    drawn[3::4] *= 0.5
    assert value("diversity_condition", compared(ours, true[groups], groups=groups, condition={"image": drawn})) == 0
    with pytest.raises(Unavailable, match="each condition has one sample; draw several: each=4 of the task"):
        value("diversity_condition", compared(true, true, groups=np.arange(3), condition={"image": LEVELS[true]}))


def test_what_has_no_true_images_says_so_in_one_line() -> None:
    names = [name for name, metric in metrics_by_name().items() if getattr(metric, "needs_target", False)]
    assert len(names) == 15
    without = replace(complete(), target=None, condition={}, groups=None, asked=None)
    for name, told in measured(names, without, Judge(without.reference, {})).items():
        assert told == f"{name} compares with the true images that conditions were made of, and these samples have none"
    with pytest.raises(UsageError, match="samples and true images are of 3 x 16 x 16 and 3 x 8 x 8"):
        compared(levels(), levels(side=8))
    with pytest.raises(UsageError, match="6 images but 5 numbers of groups"):
        compared(levels(), levels(), groups=np.arange(5))


def test_the_table_of_protocols_has_a_row_for_each_choice() -> None:
    a, b = levels(3, side=25, seed=1), levels(3, side=25, seed=2)
    own = compared(a, b)
    raw = (own.images[:] + np.float32(0.4 / 127.5)).clip(-1, 1)  # which rounds back
    found = by_protocol(replace(own, raw=raw))
    assert len(found) == len(choices())
    assert len(by_protocol(own)) == len([c for c in choices() if c.levels != "float"])
    numbers = {choice: m.value for choice, m in found if isinstance(m, Measurement)}
    assert len({round(v, 6) for v in numbers.values()}) == len(choices())
    first = choices()[0]
    assert_close(numbers[first], value("psnr", own))
    assert_close(numbers[replace(first, over="set")], value("psnr", own, over="set"))
    assert protocol_text(found).splitlines()[2].startswith("| PSNR | RGB | 0 | 0 | 8 bits | mean of dB |")
    small = by_protocol(compared(levels(side=12), levels(side=12, seed=1)))
    assert any(isinstance(m, str) and "less than 11 pixels" in m for _, m in small)


def test_rows_are_read_together_whatever_their_sizes() -> None:
    a, b = np.zeros((2500, 3, 8, 8), np.float32), np.arange(2500)[:, None, None, None]
    parts = list(together(a, b))
    assert [len(x) for x, _ in parts] == [len(y) for _, y in parts]
    assert_close(np.concatenate([y for _, y in parts]), b)
