"""What a metric is: evidence in, one measurement out, with the protocol that makes the number mean something."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np

from fewstep.data.arrays import Images
from fewstep.errors import Unavailable, UsageError
from fewstep.nets.readers.torch_pt import WeightsFile
from metrics.ranges import check_floats, check_range
from metrics.reference import Reference

T = TypeVar("T")


@dataclass(frozen=True)
class Measurement:
    """One number: its value, one standard error (None where there is none), the samples it used, and what else can move it."""

    value: float
    std_error: float | None
    samples: int
    protocol: Mapping[str, object]


@dataclass(frozen=True)
class Shown:
    """How reports show a metric: `place` orders columns, low first. Rows are ranked by a `headline`; with `error` the standard error stands
    beside the value. Students are judged by the metric with `judges` above 0 that most of them have, of several by the highest.

    `role`: `agreement` with the teacher's own solution from the same noise, `condition` for adherence to the label, `flow` for the error
    against the exact flow, `moments` for the distance to exact moments, `likeness` for a perceptual one to the true image. Reports draw
    and compare these in ways of their own.
    `published`: what papers call the same number.
    """

    place: int = 1000
    headline: bool = False
    error: bool = False
    judges: int = 0
    role: str = ""
    published: str = ""


@dataclass(frozen=True)
class Drawn:
    """How samples were drawn: the first of their seeds, which follow each other, the name of the noise, and that of the task that drew
    their labels, empty for samples without any."""

    seed: int
    noise: str
    labels: str = ""


@dataclass(frozen=True, eq=False)
class Pairs:
    """What samples of a task with ground truth are compared with, in their order, read when it is indexed.

    `target` are the true images, after `quantise`; `condition` what samples were asked by (`image`, and `mask` where there is one, 1 where
    the image is hidden); `groups` [N] numbers the true images, so that samples of one of them have one number; `asked(images, rows)` are
    the pictures that the task makes of images in place of the true ones of these rows, with their seeds, before they are enlarged.
    `told`: what a protocol says.
    """

    target: Images
    condition: Mapping[str, Images]
    groups: np.ndarray
    asked: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    told: Mapping[str, object] = field(default_factory=dict)


PARTED = ("images", "teacher_images", "raw", "raw_teacher", "target")  # what of an evidence may be read part by part


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that metrics of one cell may read, when it is indexed. Images are as `quantise` leaves them, the teacher's too.

    `features` and `logits` are by extractor; `teacher_images` are the teacher's fine-grid solutions from the same noise and class, None
    where a row has no teacher. `raw` and `raw_teacher` are before `quantise`; `raw_teacher_error` is the solution's own RMS error, where
    it is known. `drawn` says how samples were drawn, where that is known. `target`, `condition`, `groups` and `asked` are those of `Pairs`,
    None or empty without. `range_known` says that samples are in the range of the real images however they look: a sweep measures what
    its samplers leave.
    **Shapes**: images [N, C, H, W] float32 in [-1, 1], raw ones float32 or float64; labels [N] int64; features [N, d], logits [N, k].
    **Raises**: UsageError when two of them disagree about N, or for images that are no floats or look like ones of another range.
    """

    images: Images
    labels: np.ndarray
    features: Mapping[str, Images]
    logits: Mapping[str, Images]
    teacher_images: Images | None
    reference: Reference
    raw: Images | None = None
    raw_teacher: Images | None = None
    raw_teacher_error: float | None = None
    range_known: bool = False
    target: Images | None = None
    condition: Mapping[str, Images] = field(default_factory=dict)
    drawn: Drawn | None = None
    groups: np.ndarray | None = None
    asked: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None
    _made: dict[str, Any] = field(default_factory=dict)

    def once(self, what: str, compute: Callable[[], T]) -> T:
        """What several metrics of the same samples compute alike, under a name that says all that it depends on beside them."""
        if what not in self._made:
            self._made[what] = compute()
        return self._made[what]

    def __post_init__(self) -> None:
        if len(self.images.shape) != 4 or len(self.images) < 2:
            raise UsageError(f"metrics need at least two images [N, C, H, W], got shape {list(self.images.shape)}; draw more samples")
        for images in (self.images, self.teacher_images, self.raw, self.raw_teacher):
            if images is not None:
                check_floats(images if isinstance(images, np.ndarray) else images[:1])
        for images in () if self.range_known else (self.raw, self.images, self.raw_teacher, self.teacher_images):
            if images is not None:
                check_range(images, self.reference.train_x, self.reference.name)
        n = len(self.images)
        for what, rows in (("labels", self.labels), *self.features.items(), *self.logits.items(), *self.condition.items()):
            if len(rows) != n:
                raise UsageError(f"{n} images but {len(rows)} rows of {what}; compute both from the same samples")
        paired = (("teacher images", self.teacher_images), ("raw samples", self.raw), ("raw teacher images", self.raw_teacher))
        if self.target is not None and len(self.target) != n:
            raise UsageError(f"{n} images but {len(self.target)} targets; give each sample the true image that belongs to its condition")
        if self.target is not None and self.target.shape != self.images.shape:
            sizes = " and ".join(" x ".join(map(str, rows.shape[1:])) for rows in (self.images, self.target))
            raise UsageError(f"samples and true images are of {sizes}; compare images of one size, with the same channels")
        if self.groups is not None and len(self.groups) != n:
            raise UsageError(f"{n} images but {len(self.groups)} numbers of groups; give each sample that of its true image")
        for what, other in paired:
            if other is not None and other.shape != self.images.shape:
                shapes = f"{list(self.images.shape)} and {list(other.shape)}"
                raise UsageError(f"samples and {what} have shapes {shapes}; they must come from the same noise and classes")

    def whole(self) -> Evidence:
        """The same with everything in memory, as arrays: for a metric that does not read part by part."""
        own = {name: None if (rows := getattr(self, name)) is None else rows[:] for name in PARTED}
        read = {name: {key: rows[:] for key, rows in getattr(self, name).items()} for name in ("features", "logits", "condition")}
        real = self.reference
        real = replace(real, train_x=real.train_x[:], heldout_x=real.heldout_x[:])
        return replace(self, **own, **read, reference=real, range_known=True)

    def features_of(self, extractor: str) -> Images:
        """Features by extractor name. **Raises**: Unavailable when the extractor was not run on these samples and their reference."""
        if extractor not in self.features or extractor not in self.reference.spaces:
            raise Unavailable(f"no features of extractor '{extractor}' for these samples and data set {self.reference.name}")
        return self.features[extractor]

    def logits_of(self, extractor: str) -> Images:
        """Class logits by extractor name. **Raises**: Unavailable."""
        if extractor not in self.logits or extractor not in self.reference.spaces:
            raise Unavailable(f"no class logits of extractor '{extractor}' for these samples and data set {self.reference.name}")
        return self.logits[extractor]

    def target_of(self, metric: str) -> Images:
        """The true images. **Raises**: Unavailable when the samples' task has none."""
        if self.target is None:
            raise Unavailable(f"{metric} compares with the true images that conditions were made of, and these samples have none")
        return self.target

    def condition_of(self, metric: str, what: str) -> Images:
        """A part of the condition: `image` or `mask`. **Raises**: Unavailable where the samples' task asks by none."""
        if what not in self.condition:
            named = {"image": "the pictures that samples were asked by", "mask": "what the masks of conditions hide"}[what]
            raise Unavailable(f"{metric} looks at {named}, and these samples have none")
        return self.condition[what]

    def real_of(self, metric: str) -> Images:
        """The real images for training. **Raises**: Unavailable when there are none here, but statistics of them."""
        if len(self.reference.train_x) == 0:
            raise Unavailable(f"{metric} compares with real images, and of data set {self.reference.name} only statistics are here")
        return self.reference.train_x

    def teacher_of(self, metric: str) -> Images:
        """The teacher's images. **Raises**: Unavailable when the row has none."""
        if self.teacher_images is None:
            raise Unavailable(f"{metric} compares with the teacher's fine-grid solution, and this row has none")
        return self.teacher_images

    def raw_of(self, metric: str) -> Images:
        """The samples before `quantise`. **Raises**: Unavailable when they were not kept."""
        if self.raw is None:
            raise Unavailable(f"{metric} needs samples as the sampler left them, and only their 8-bit write-out is here")
        return self.raw

    def raw_teacher_of(self, metric: str) -> Images:
        """The teacher's solutions before `quantise`. **Raises**: Unavailable when the row has none."""
        if self.raw_teacher is None:
            raise Unavailable(f"{metric} compares with the teacher's fine-grid solution, and this row has none")
        return self.raw_teacher


class Metric(Protocol):
    """A frozen dataclass that turns evidence into a measurement. `version` is raised whenever its numbers change.

    `extractor` names the features or logits it reads, `needs_teacher`, `needs_target` and `needs_labels` say whether it reads the
    teacher's solutions, true images (or the conditions made of them) and labels. One that `streams` reads evidence part by part; without,
    it is given whole arrays. It may declare how it is `shown`, the weights `files` that it reads, that it is measured where it is named
    alone (`on_request`), and that of real images it reads the moments of their features alone (`by_moments`: published ones will do);
    `declared` has what it does not. A field `name` is told the registered name.
    **Raises**: Unavailable when weights or evidence are absent; FloatingPointError when the numbers are not finite.
    """

    @property
    def version(self) -> int: ...
    @property
    def unit(self) -> str: ...
    @property
    def higher_is_better(self) -> bool: ...

    def __call__(self, evidence: Evidence) -> Measurement: ...


def measured_in(evidence: Evidence, extractor: str, version: int, real: int | None) -> dict[str, object]:
    """What a protocol says of a metric of features: its version, whose features of which real images, and how many of these (None: nobody
    has said)."""
    return {
        "metric_version": version,
        **evidence.reference.spaces[extractor].named,
        "reference": evidence.reference.digest,
        "reference_count": real,
    }


@dataclass(frozen=True)
class Declared:
    """What a metric says of itself, whatever it leaves out."""

    extractor: str | None = None
    needs_teacher: bool = False
    needs_target: bool = False
    needs_labels: bool = False
    files: tuple[WeightsFile, ...] = ()
    streams: bool = False
    by_moments: bool = False
    on_request: bool = False
    shown: Shown = Shown()


def declared(metric: Metric) -> Declared:
    """What a metric declares beside version, unit and direction."""
    said: dict[str, Any] = {f.name: getattr(metric, f.name) for f in fields(Declared) if hasattr(metric, f.name)}
    return Declared(**said)
