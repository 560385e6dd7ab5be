"""Masks: what is hidden, that it is never everything or nothing, and what is refused of those from outside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fewstep.data.degradations.draws import Draws
from fewstep.data.degradations.masks import TRIES, Rectangles, centre, check_mask, drawn_masks, hidden
from fewstep.errors import UsageError
from fewstep.plugins import entries, get

NAMES = [name for name in entries("degradation") if name.startswith("hidden_")]
SEEDS = torch.arange(500)


def masks(name: str, size: tuple[int, int] = (32, 32), seeds: Tensor = SEEDS, **options) -> Tensor:
    found = get("degradation", name).make(**options)(torch.full((len(seeds), 3, *size), 0.5), seeds)
    assert found.mask is not None
    assert torch.equal(found.image, 0.5 * (1 - found.mask).expand_as(found.image))  # grey where it is hidden
    return found.mask


@pytest.mark.parametrize("name", NAMES)
def test_a_mask_hides_a_part_and_never_all_or_nothing(name: str) -> None:
    for size in ((32, 32), (8, 8), (3, 2), (1, 2), (20, 33)):
        found = masks(name, size)
        assert found.shape == (500, 1, *size)
        check_mask(found, 500, size)


def test_shares_of_what_is_hidden() -> None:
    share = {name: masks(name).flatten(1).mean(1) for name in NAMES}
    assert set(share["hidden_centre"].tolist()) == {0.25}
    assert set(share["hidden_half"].tolist()) == {0.5}
    assert 0.15 < share["hidden_rectangles"].mean() < 0.35
    assert 0.1 < share["hidden_strokes"].mean() < 0.3


def test_each_half_is_drawn_as_often() -> None:
    found = masks("hidden_half", (5, 4))
    kinds, counts = torch.unique(found.flatten(1), dim=0, return_counts=True)
    assert len(kinds) == 4
    assert counts.min() > 90
    assert sorted(kinds.sum(1).tolist()) == [8, 8, 10, 10]  # the smaller part of five rows


def test_a_stroke_of_one_piece_is_a_bar_with_round_ends() -> None:
    found = masks("hidden_strokes", (64, 64), most=1, bends=1, shortest=0.3, longest=0.3, thinnest=0.2, thickest=0.2)
    area = 64**2 * (0.3 * 0.2 + 3.14159 * 0.1**2)
    whole = found.flatten(1).sum(1)
    assert whole.max() == pytest.approx(area, rel=0.03)  # of those that do not leave the image


def test_rectangles_have_their_sides() -> None:
    found = masks("hidden_rectangles", most=1, least=0.25, largest=0.5)[:, 0]
    high, wide = found.amax(2).sum(1), found.amax(1).sum(1)
    assert torch.equal(high * wide, found.sum((1, 2)))
    assert (high.min(), high.max(), wide.min(), wide.max()) == (8, 16, 8, 16)
    assert found.amax((0, 1)).all()  # anywhere in the image
    assert found.amax((0, 2)).all()


def test_a_mask_that_hides_everything_is_drawn_again() -> None:
    tried = list[int]()

    def make(draws: Draws, high: int, wide: int) -> Tensor:
        tried.append(len(draws.seeds))
        found = torch.zeros(len(draws.seeds), high, wide, dtype=torch.bool)
        found[:, 0] = draws.first > 0
        found[draws.seeds == 7] = True
        return found

    found = drawn_masks(make, torch.arange(5, 9), (4, 4))
    assert tried == [4, 4, *[1] * (TRIES - 2)]
    assert torch.equal(found[2, 0], centre(Draws(torch.tensor([7])), 4, 4)[0].float())
    assert found[[0, 1, 3]].sum() == 3 * 4


def test_masks_from_outside() -> None:
    good = torch.zeros(2, 1, 4, 4)
    good[:, :, 1] = 1
    check_mask(good, 2, (4, 4))
    told = hidden(torch.full((2, 3, 4, 4), 0.7), good)
    assert told.image[:, :, 1].abs().max() == 0
    bad = [
        (torch.zeros(2, 1, 4, 4), "image 0 hides nothing"),
        (torch.cat([good[:1], torch.ones(1, 1, 4, 4)]), "image 1 hides everything"),
        (good * 0.5, "values from 0 to 0.5; it is 1 where hidden"),
        (good * torch.nan, "it is 1 where hidden"),
        (good[:1], r"the mask is \[1, 1, 4, 4\], and images need \[2, 1, 4, 4\]"),
        (good.repeat(1, 3, 1, 1), "one channel"),
        ("mask", "the mask is a str"),
    ]
    for mask, words in bad:
        with pytest.raises(UsageError, match=words) as caught:
            check_mask(mask, 2, (4, 4))  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)


def test_masks_that_cannot_be_are_refused() -> None:
    with pytest.raises(UsageError, match="no part to hide and another to tell"):
        Rectangles().channels((3, 1, 1))
    for name, options, told in [
        ("hidden_centre", {"share": 1.0}, "between 0 and 1"),
        ("hidden_rectangles", {"least": 0.6}, "between 0 and 1, got 0.6 to 0.5"),
        ("hidden_rectangles", {"most": 0}, "number of rectangles"),
        ("hidden_strokes", {"thinnest": 0.0}, "widths of strokes"),
        ("hidden_strokes", {"bends": 0}, "pieces"),
    ]:
        with pytest.raises(UsageError, match=told):
            get("degradation", name).make(**options)
