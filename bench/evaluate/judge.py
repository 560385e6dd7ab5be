"""What the samples of a sweep are measured with: feature extractors, loaded when they are needed, and the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from bench.evaluate.references import Kept, ensure_space, features_in, is_known
from bench.store.artefacts import Store
from fewstep.analytic import Analytic
from fewstep.data.arrays import Images
from fewstep.data.images import ImageData
from fewstep.denoiser import Denoiser
from fewstep.errors import Unavailable, UsageError
from fewstep.plugins import entries, known
from metrics import Evidence, declared, metric_named
from metrics.features.extractors import Extractor, extracted, load_extractor
from metrics.features.statistics import Statistics, another, space_of
from metrics.pixels import quantised
from metrics.ranges import check_range
from metrics.reference import FeatureSpace, Reference, Spaces, described, feature_space


@dataclass(frozen=True, eq=False)
class Judge:
    """Extractors, reference statistics and their absences; what is computed of the reference is kept in the store, where there is one.

    `published` says of which published statistics the moments in an extractor's features are, where they are not of the reference.
    """

    reference: Reference
    extractors: Mapping[str, Extractor]
    missing: Mapping[str, str] = field(default_factory=dict)
    store: Store | None = None
    published: Mapping[str, str] = field(default_factory=dict)

    def published_for(self, metric: str) -> str:
        """The published statistics that a metric compares with; empty where it reads the reference's own images."""
        told = declared(metric_named(metric)) if known("metric", metric) else None
        return self.published.get(told.extractor or "", "") if told is not None and told.by_moments else ""

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

    def extractors_of(self, names: Iterable[str]) -> list[Extractor]:
        """The extractors that metrics of these names read, as far as they are here."""
        wanted = {declared(metric_named(name)).extractor for name in names if known("metric", name)}
        return [extractor for name, extractor in self.extractors.items() if name in wanted]

    def reference_features(self, extractor: str) -> Images:
        """An extractor's features [N, d] of the training split."""
        return self.reference.spaces[extractor].features("floor")

    def absence(self, metric: str) -> str:
        """Why a metric cannot be computed here; empty when it can."""
        return self.missing.get(metric, "")


def make_judge(
    data: ImageData,
    teacher: Denoiser | None,
    metrics: set[str],
    store: Store | None = None,
    device: str = "cpu",
    statistics: Statistics | None = None,
) -> Judge:
    """What these metrics need for samples of a teacher of these data; weights that are not here become reasons.

    With a store an extractor is asked whether it sees images like these only where it has not seen the reference yet. `statistics` stand
    in place of the moments of the data in the features that they are of. **Raises**: UsageError for those of another resolution.
    """
    reference = described(data, exact_moments_of(teacher))
    if statistics is not None and not len(data.train_x):
        reference = replace(reference, digest=statistics.digest)
    extractors: dict[str, Extractor] = {}
    missing: dict[str, str] = {}
    published: dict[str, FeatureSpace] = {}
    for name in sorted(metrics & set(entries("metric"))):
        told = declared(metric_named(name))
        wanted = told.extractor
        try:
            if wanted is not None and wanted not in extractors:
                extractor = load_extractor(wanted, device)
                if statistics is not None and (space := _published(statistics, extractor, reference, store)) is not None:
                    published[wanted] = space
                elif not is_known(reference, extractor, store):
                    extractor(reference.train_x[:1])  # which says whether it sees images like these
                extractors[wanted] = extractor
            for file in told.files:
                file.path()
        except Unavailable as err:
            missing[name] = str(err)
    spaces: dict[str, Callable[[], FeatureSpace]] = {
        name: partial(feature_space, e, reference.train_x, reference.heldout_x)
        if store is None
        else partial(ensure_space, reference, e, store)
        for name, e in extractors.items()
    }
    spaces |= {name: partial(_same, space) for name, space in published.items()}
    told = {name: space.statistics for name, space in published.items()}
    return Judge(replace(reference, spaces=Spaces(spaces)), extractors, missing, store, told)


def _same(space: FeatureSpace) -> FeatureSpace:
    return space


def _published(statistics: Statistics, extractor: Extractor, reference: Reference, store: Store | None) -> FeatureSpace | None:
    """Published moments beside the features of the reference's own images, where these are here; None where the statistics are of another
    extractor."""
    shape = reference.train_x.shape[1:]
    dimensions = extractor(np.zeros((1, *shape), np.float32))[0].shape[1]
    if another(statistics, extractor, dimensions):
        return None
    space = space_of(statistics, extractor, dimensions, shape[-1])
    if store is None or not len(reference.train_x):
        return space
    return replace(space, rows=features_in(reference, extractor, store), facts=Kept(reference, extractor, store))


def judge_by(
    statistics: Statistics, shape: tuple[int, ...], metrics: set[str], store: Store | None, device: str = "cpu", asked: bool = True
) -> Judge:
    """What these metrics need for images of a shape that are measured against published statistics: no real images are there.

    Statistics of another extractor or resolution than a metric's are a reason why it has no number, where nobody `asked` for it by name.
    **Raises**: UsageError where somebody did, or where no metric is left because of that.
    """
    none, labels = np.zeros((0, *shape), np.float32), np.zeros(0, np.int64)
    extractors: dict[str, Extractor] = {}
    spaces: dict[str, FeatureSpace] = {}
    missing: dict[str, str] = {}
    misfits: dict[str, str] = {}  # extractor -> why the statistics are not of it
    for metric in sorted(metrics):
        wanted = declared(metric_named(metric)).extractor
        try:
            if wanted is None:
                raise Unavailable(f"{metric} compares with real images; give them with reference=")
            if wanted not in {**extractors, **misfits}:
                extractor = load_extractor(wanted, device)
                probe = extractor(np.zeros((1, *shape), np.float32))[0]
                try:
                    spaces[wanted] = space_of(statistics, extractor, probe.shape[1], shape[-1])
                    extractors[wanted] = extractor
                except UsageError as err:
                    if asked:
                        raise
                    misfits[wanted] = str(err)
            if wanted in misfits:
                raise Unavailable(misfits[wanted])
        except Unavailable as err:
            missing[metric] = str(err)
    if misfits and not extractors:
        raise UsageError("; ".join(misfits.values()))
    real = Reference(statistics.path.name, 0, none, labels, none, labels, statistics.digest, spaces)
    return Judge(real, extractors, missing, store)


def judge_of_pairs(name: str, shape: tuple[int, ...], metrics: set[str], store: Store | None) -> Judge:
    """What these metrics need for images that are compared with true ones of their own alone: no reference is there."""
    none, labels = np.zeros((0, *shape), np.float32), np.zeros(0, np.int64)
    missing: dict[str, str] = {}
    for metric in sorted(metrics):
        told = declared(metric_named(metric))
        try:
            if not told.needs_target:
                raise Unavailable(f"{metric} compares with a set of real images; give one with reference=")
            for file in told.files:
                file.path()
        except Unavailable as err:
            missing[metric] = str(err)
    return Judge(Reference(name, 0, none, labels, none, labels, "", {}), {}, missing, store)


def exact_moments_of(teacher: Denoiser | None) -> tuple[np.ndarray, np.ndarray] | None:
    """The exact mean and covariance of what a closed-form teacher generates; None for a network, and without one."""
    if not isinstance(teacher, Analytic):
        return None
    mean, cov = teacher.moments()
    return mean.cpu().numpy(), cov.cpu().numpy()
