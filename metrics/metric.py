"""What a metric is: evidence in, one measurement out, with the protocol that makes the number mean something."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fewstep.errors import Unavailable, UsageError
from metrics.ranges import check_floats, check_range

if TYPE_CHECKING:
    from metrics.reference import Reference


@dataclass(frozen=True)
class Measurement:
    """One number: its value, one standard error (None where there is none), the samples it used, and what else can move it."""

    value: float
    std_error: float | None
    samples: int
    protocol: Mapping[str, object]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that metrics of one cell may read. Images are as `quantise` leaves them, the teacher's too.

    `features` and `logits` are by extractor name; `teacher_images` are the teacher's own fine-grid solutions from the same noise and
    class, in the same order, or None where a row has no teacher. `raw` and `raw_teacher` are both before `quantise`, and
    `raw_teacher_error` is the fine-grid solution's own RMS error, where it is known. `range_known` says that samples are in the range of
    the real images however they look: a sweep measures what its samplers leave.

    **Shapes**: images [N, C, H, W] float32 in [-1, 1], raw ones float32 or float64; labels [N] int64; features [N, d], logits [N, k].
    **Raises**: UsageError when two of them disagree about N, or for images that are no floats or look like ones of another range.
    """

    images: np.ndarray
    labels: np.ndarray
    features: Mapping[str, np.ndarray]
    logits: Mapping[str, np.ndarray]
    teacher_images: np.ndarray | None
    reference: Reference
    raw: np.ndarray | None = None
    raw_teacher: np.ndarray | None = None
    raw_teacher_error: float | None = None
    range_known: bool = False

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or len(self.images) < 2:
            raise UsageError(f"metrics need at least two images [N, C, H, W], got shape {list(self.images.shape)}; draw more samples")
        for images in (self.images, self.teacher_images, self.raw, self.raw_teacher):
            if images is not None:
                check_floats(images)
        for images in () if self.range_known else (self.images, self.raw, self.teacher_images, self.raw_teacher):
            if images is not None:
                check_range(images, self.reference.train_x, self.reference.name)
        n = len(self.images)
        for what, rows in (("labels", self.labels), *self.features.items(), *self.logits.items()):
            if len(rows) != n:
                raise UsageError(f"{n} images but {len(rows)} rows of {what}; compute both from the same samples")
        paired = (("teacher images", self.teacher_images), ("raw samples", self.raw), ("raw teacher images", self.raw_teacher))
        for what, other in paired:
            if other is not None and other.shape != self.images.shape:
                shapes = f"{list(self.images.shape)} and {list(other.shape)}"
                raise UsageError(f"samples and {what} have shapes {shapes}; they must come from the same noise and classes")

    def features_of(self, extractor: str) -> np.ndarray:
        """Features by extractor name. **Raises**: Unavailable when the extractor was not run on these samples and their reference."""
        if extractor not in self.features or extractor not in self.reference.spaces:
            raise Unavailable(f"no features of extractor '{extractor}' for these samples and data set {self.reference.name}")
        return self.features[extractor]

    def logits_of(self, extractor: str) -> np.ndarray:
        """Class logits by extractor name. **Raises**: Unavailable."""
        if extractor not in self.logits or extractor not in self.reference.spaces:
            raise Unavailable(f"no class logits of extractor '{extractor}' for these samples and data set {self.reference.name}")
        return self.logits[extractor]

    def teacher_of(self, metric: str) -> np.ndarray:
        """The teacher's images. **Raises**: Unavailable when the row has none."""
        if self.teacher_images is None:
            raise Unavailable(f"{metric} compares with the teacher's fine-grid solution, and this row has none")
        return self.teacher_images

    def raw_of(self, metric: str) -> np.ndarray:
        """The samples before `quantise`. **Raises**: Unavailable when they were not kept."""
        if self.raw is None:
            raise Unavailable(f"{metric} needs samples as the sampler left them, and only their 8-bit write-out is here")
        return self.raw

    def raw_teacher_of(self, metric: str) -> np.ndarray:
        """The teacher's solutions before `quantise`. **Raises**: Unavailable when the row has none."""
        if self.raw_teacher is None:
            raise Unavailable(f"{metric} compares with the teacher's fine-grid solution, and this row has none")
        return self.raw_teacher


class Metric(Protocol):
    """A frozen dataclass that turns evidence into a measurement. `version` is raised whenever its numbers change.

    `extractor` names the features or logits it reads, `needs_teacher` says whether it reads the teacher's solutions.
    **Raises**: Unavailable when weights or evidence are absent; FloatingPointError when the numbers are not finite.
    """

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...
    @property
    def unit(self) -> str: ...
    @property
    def higher_is_better(self) -> bool: ...
    @property
    def paper(self) -> str: ...
    @property
    def extractor(self) -> str | None: ...
    @property
    def needs_teacher(self) -> bool: ...

    def __call__(self, evidence: Evidence) -> Measurement: ...
