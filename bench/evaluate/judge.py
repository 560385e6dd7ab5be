"""What the samples of a sweep are measured with: feature extractors and the reference, loaded once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from fewstep.analytic import Analytic
from fewstep.data.images import ImageData
from fewstep.denoiser import Denoiser
from fewstep.errors import Unavailable
from fewstep.plugins import entries
from metrics import Evidence, declared, metric_named, quantise
from metrics.extractors import Extractor, extracted, load_extractor
from metrics.pixels import quantised
from metrics.ranges import check_range
from metrics.reference import Reference, build_reference


@dataclass(frozen=True, eq=False)
class Judge:
    """Extractors, reference statistics and their absences, loaded once for a sweep."""

    reference: Reference
    extractors: Mapping[str, Extractor]
    missing: Mapping[str, str] = field(default_factory=dict)

    def evidence(self, samples: Mapping[str, np.ndarray], range_known: bool = False) -> Evidence:
        """Evidence from samples alone: features computed here, nothing stored, no teacher to compare with.

        **Raises**: UsageError for images that are no floats, or (unless `range_known`) look like ones of another range than the data's.
        """
        if not range_known:
            check_range(samples["images"], self.reference.train_x, self.reference.name)
        images = quantised(samples["images"])
        found = {name: extracted(extractor, images) for name, extractor in self.extractors.items()}
        logits = {name: classes for name, (_, classes) in found.items() if classes is not None}
        features = {name: f for name, (f, _) in found.items()}
        return Evidence(images, samples["labels"], features, logits, None, self.reference, samples["images"], range_known=True)

    def absence(self, metric: str) -> str:
        """Why a metric cannot be computed here; empty when it can."""
        return self.missing.get(metric, "")


def make_judge(data: ImageData, teacher: Denoiser | None, metrics: set[str]) -> Judge:
    """Load what these metrics need for samples of a teacher of these data; weights that are not here become reasons."""
    extractors: dict[str, Extractor] = {}
    missing: dict[str, str] = {}
    for name in sorted(metrics & set(entries("metric"))):
        told = declared(metric_named(name))
        wanted = told.extractor
        try:
            if wanted is not None and wanted not in extractors:
                extractor = load_extractor(wanted)
                extractor(quantise(data.train_x[:1]))  # which says whether it sees images like these
                extractors[wanted] = extractor
            for file in told.files:
                file.path()
        except Unavailable as err:
            missing[name] = str(err)
    return Judge(build_reference(data, extractors.values(), exact_moments_of(teacher)), extractors, missing)


def exact_moments_of(teacher: Denoiser | None) -> tuple[np.ndarray, np.ndarray] | None:
    """The exact mean and covariance of what a closed-form teacher generates; None for a network, and without one."""
    if not isinstance(teacher, Analytic):
        return None
    mean, cov = teacher.moments()
    return mean.cpu().numpy(), cov.cpu().numpy()
