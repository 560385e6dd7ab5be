"""Agreement with the teacher: the sample against the teacher's fine-grid solution from the same noise and class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewstep.nets.readers.torch_pt import WeightsFile
from fewstep.plugins import register
from metrics import perceptual
from metrics.intervals import mean_and_error
from metrics.metric import Evidence, Measurement, Shown
from metrics.streaming import blocks

# Variance of rounding to levels 2 / 255 apart: below it, two 8-bit files do not tell their originals apart.
ROUNDING = (2 / 255) ** 2 / 12


@register("metric", "psnr_teacher", "peak signal-to-noise ratio (textbook)")
@dataclass(frozen=True)
class TeacherPSNR:
    """10 log10(4 / MSE), the MSE taken over the whole set (peak range 2); not the mean of per-image PSNRs, which one exact copy would rule.

    MSE below the rounding error of the 8-bit write-out, (2/255)^2 / 12, counts as that: identical sets score 58.92 dB, with no
    standard error and `saturated` in the protocol. **Units**: dB; standard error by the delta method over the images of each class.
    """

    name: str = "psnr_teacher"
    version: int = 2
    unit: str = "dB"
    higher_is_better: bool = True
    extractor: str | None = None
    needs_teacher: bool = True
    shown: ClassVar[Shown] = Shown(place=80, error=True, role="agreement")
    streams: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Measurement:
        teacher = evidence.teacher_of(self.name)
        pairs = zip(blocks(evidence.images), blocks(teacher))
        squares = np.concatenate([((ours.astype(np.float64) - theirs) ** 2).mean(axis=(1, 2, 3)) for ours, theirs in pairs])
        mse, error = mean_and_error(squares, evidence.labels)
        if not np.isfinite(mse):
            raise FloatingPointError("samples or teacher images hold NaN or infinity: the sampler or its student diverged")
        saturated = mse <= ROUNDING
        value = float(10 * np.log10(4 / max(mse, ROUNDING)))
        protocol = {"metric_version": self.version, "peak": 2, "over": "set", "saturated": saturated}
        protocol["std_error"] = "delta method, within classes"
        known = None if saturated or error is None else float(10 / np.log(10) * error / mse)
        return Measurement(value, known, len(squares), protocol)


@register("metric", "lpips_teacher", "arXiv 1801.03924")
@dataclass(frozen=True)
class TeacherLPIPS:
    """LPIPS 0.1 with AlexNet, mean over image pairs; grey repeated to three channels.

    Images go in at their own size, as the package does; below 31 pixels AlexNet has no output, so they are enlarged bilinearly to
    the 64x64 of the patches that LPIPS was calibrated on. `size` in the protocol says which.
    **Source**: arXiv 1801.03924; package lpips 0.1.4. **Raises**: Unavailable without torchvision's AlexNet file.
    """

    name: str = "lpips_teacher"
    version: int = 2
    unit: str = "LPIPS"
    higher_is_better: bool = False
    extractor: str | None = None
    needs_teacher: bool = True
    batch: int = 64
    files: ClassVar[tuple[WeightsFile, ...]] = (perceptual.ALEXNET,)
    shown: ClassVar[Shown] = Shown(place=100, published="LPIPS")
    streams: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Measurement:
        perceptual.ALEXNET.path()  # before anything else is asked for
        teacher = evidence.teacher_of(self.name)
        values, told = perceptual.lpips_between(evidence.images, teacher, self.batch)
        value, error = mean_and_error(values, evidence.labels)
        if not np.isfinite(value):
            raise FloatingPointError("LPIPS is not finite: the samples, the teacher images or the weights hold NaN")
        return Measurement(value, error, len(teacher), {"metric_version": self.version, **told, "std_error": "over images, within classes"})
