"""FID as papers report it: 50,000 samples of the first seeds under per-image generators, one run or the least of three."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewstep.errors import Unavailable
from fewstep.plugins import register
from metrics.families.frechet import of_moments
from metrics.metric import Evidence, Measurement, Shown
from metrics.moments import moments_of

NOISE, LABELS = "edm", "class_conditional_edm"
GENERATORS = "one for each image, on the CPU"
WRITTEN = "floor(clip(127.5 x + 128, 0, 255))"


@register("metric", "fid_published", "arXiv 2206.00364 (one run)", runs=1, shown=Shown(place=88, headline=True, published="FID"))
@register("metric", "fid_published_min3", "arXiv 2206.00364 (the least of three)", runs=3, shown=Shown(place=89, published="FID"))
@dataclass(frozen=True)
class PublishedFrechet:
    """`fid` under the protocol of EDM's tables: runs of 50,000 samples, sample i from the generator of seed i (`noise: edm`), of the class
    that this one draws where there are classes (`task: class_conditional_edm`), seeds from 0, written as 8 bits; the least of the runs
    where there are several (seeds 0 to 49,999, 50,000 to 99,999, 100,000 to 149,999). One thing differs: our generators are on the CPU,
    theirs were on a GPU and gave other noise, so that the samples are others of the same distribution.

    The least of three is biased downwards beside one run: `runs` in the protocol has all. No standard error: one run is what it is.
    **Raises**: Unavailable for samples that were drawn in another way, saying what to type. **Source**: arXiv 2206.00364, appendix F.
    """

    name: str
    runs: int
    shown: Shown
    version: int = 2
    unit: str = "squared feature units"
    higher_is_better: bool = False
    extractor: str = "inception"
    needs_teacher: bool = False
    each: int = 50_000  # samples of a run
    on_request: ClassVar[bool] = True
    streams: ClassVar[bool] = True
    by_moments: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Measurement:
        features, space = evidence.features_of(self.extractor), evidence.reference.spaces[self.extractor]
        wanted, drawn = self.runs * self.each, evidence.drawn
        if drawn is None or (drawn.seed, drawn.noise) != (0, NOISE) or len(features) != wanted:
            how = "drawn nobody knows how" if drawn is None else f"of the seeds from {drawn.seed} with noise={drawn.noise}"
            raise Unavailable(
                f"{self.name} is of {wanted} samples of the seeds from 0 with noise={NOISE}, and there are {len(features)} {how}; "
                f"type suite.samples={wanted} seed=0 noise={NOISE}, or measure fid"
            )
        if drawn.labels not in ("", LABELS):
            raise Unavailable(
                f"{self.name} is of labels that each image's generator draws, and these are of the task {drawn.labels}; "
                f"write task: {LABELS} into the model's file, or measure fid"
            )
        found = [space.distance(moments_of(features, np.arange(first, first + self.each))) for first in range(0, wanted, self.each)]
        protocol = {
            **of_moments(evidence, self.extractor, self.version, self.each),
            "drawn": {"seeds": f"0 to {wanted - 1}", "noise": NOISE, "generators": GENERATORS, "labels": drawn.labels or "none"},
            "written": WRITTEN,
            "runs": found,
            "std_error": "none: a published run is one",
        }
        return Measurement(min(found), None, wanted, protocol)
