"""The study +suite=protocols: how far PSNR and SSIM of one set of images move with the protocol, all else being equal.

The images are bicubic enlargements of small ones, against the images that these were made of. Writes protocols.md and protocols.csv.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.evaluate.pairs import BySeed
from bench.jobs.models import load_data
from fewstep.checks import check_count
from fewstep.data.arrays import Picked
from fewstep.data.degradation import Small
from fewstep.data.degradations.bicubic import resized
from fewstep.data.images import ImageData
from fewstep.errors import UsageError
from fewstep.files import check_name, write_atomic
from fewstep.plugins import get, register
from fewstep.progress import say
from metrics.families.restoration.protocols import COLUMNS, by_protocol, protocol_lines, protocol_text
from metrics.metric import Evidence, Measurement
from metrics.pixels import quantised
from metrics.reference import Reference


@dataclass(frozen=True, eq=False)
class Enlarged:
    """Held-out images made small by a degradation, and enlarged again by bicubic interpolation without rounding."""

    data: ImageData
    degrade: Small
    count: int

    def __call__(self, seeds: Tensor) -> Tensor:
        true = torch.from_numpy(self.data.heldout_x[seeds.numpy()])
        return resized(self.degrade.small(true, seeds), true.shape[2:])

    def evidence(self) -> Evidence:
        """The enlargements, as 8-bit files and as they are before, and the true images; each is read part by part."""
        index, labels = np.arange(self.count), np.zeros(self.count, np.int64)
        raw, true = BySeed(index, self.data.shape, self), quantised(Picked(self.data.heldout_x, index))
        none = np.zeros((0, *self.data.shape), np.float32)
        real = Reference(self.data.name, 0, none, labels[:0], none, labels[:0], "", {})
        return Evidence(quantised(raw), labels, {}, {}, None, real, raw, range_known=True, target=true)


def made_of(config: Mapping[str, Any]) -> Enlarged:
    """What the study measures. **Raises**: UsageError for a degradation that makes nothing small, or more images than there are."""
    suite = config["suite"]
    check_name("suite.name", suite.get("name"), "suite.name=mine")
    for key in ("data", "degradation"):
        if not isinstance(suite.get(key), str):
            raise UsageError(
                f"suite.{key} must be a name, got {suite.get(key)!r}; e.g. {key}: {'cifar10' if key == 'data' else 'bicubic_x4'}"
            )
    degrade, data = get("degradation", suite["degradation"]).make(), load_data(suite["data"])
    if not isinstance(degrade, Small):
        raise UsageError(f"degradation '{suite['degradation']}' makes no image smaller; take bicubic_x2 or bicubic_x4")
    degrade.channels(data.shape)  # which says where images cannot be made so small
    check_count("suite.samples", suite.get("samples"), 2, "e.g. samples: 1000")
    if suite["samples"] > len(data.heldout_x):
        raise UsageError(f"{data.name} has {len(data.heldout_x)} held-out images, got suite.samples={suite['samples']}; use fewer")
    return Enlarged(data, degrade, suite["samples"])


def text_of(about: str, found: Sequence[tuple[Any, Measurement | str]]) -> str:
    """The report in Markdown."""
    spans = []
    for metric in dict.fromkeys(choice.metric for choice, _ in found):
        values = [m.value for choice, m in found if choice.metric == metric and isinstance(m, Measurement)]
        if values:
            spans.append(f"{metric.upper()} from {min(values):.2f} to {max(values):.2f}")
    return f"""# One set of images, many scores

{about}. Nothing differs between the rows but the protocol: {"; ".join(spans)}.

{protocol_text(found)}

`border` pixels are shaved from each side; sides are cut to a multiple of `crop` before. Y is that of BT.601 in limited range, of which
`rounded` takes whole levels. `float` levels are outputs before they are written as 8 bits. See docs/paired-metrics.md.
"""


@register("study", "protocols", "none (the common case)")
def run(config: dict[str, Any]) -> int:
    """The entry point of the study, called by `bench.sweep`."""
    started, suite = time.monotonic(), config["suite"]
    enlarged = made_of(config)
    about = f"{enlarged.count} held-out images of {enlarged.data.name}, {suite['degradation']}, enlarged by bicubic interpolation"
    if config["dry"]:
        print(f"to do   {about}: seconds; results in {Path(config['results']) / suite['name']}")
        return 0
    found = by_protocol(enlarged.evidence())
    folder = Path(config["results"]) / suite["name"]
    folder.mkdir(parents=True, exist_ok=True)
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([COLUMNS, *protocol_lines(found)])
    write_atomic(folder / "protocols.csv", table.getvalue().encode())
    write_atomic(folder / "protocols.md", text_of(about, found).encode())
    say(f"protocols.md and protocols.csv in {folder} ({time.monotonic() - started:.0f} s)")
    return 0
