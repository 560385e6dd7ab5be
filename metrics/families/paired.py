"""Agreement with the teacher: the sample against the teacher's fine-grid solution from the same noise and class."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version as installed
from typing import ClassVar

import numpy as np

from fewstep.nets.readers.torch_pt import WeightsFile
from fewstep.plugins import register
from metrics.features.extractors import three_channels
from metrics.intervals import mean_and_error
from metrics.metric import Evidence, Measurement, Shown
from metrics.streaming import blocks

ALEXNET = WeightsFile("alexnet-owt-7be5be79.pth", "7be5be79", "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth")

# Variance of rounding to levels 2 / 255 apart: below it, two 8-bit files do not tell their originals apart.
ROUNDING = (2 / 255) ** 2 / 12
# AlexNet's two stride-2 pools need a first map of 7x7, (H + 4 - 11) / 4 + 1 = 7, so H >= 31; LPIPS was calibrated on 64x64 patches.
ALEXNET_MIN, PATCH = 31, 64


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
    files: ClassVar[tuple[WeightsFile, ...]] = (ALEXNET,)
    shown: ClassVar[Shown] = Shown(place=100, published="LPIPS")
    streams: ClassVar[bool] = True

    def __call__(self, evidence: Evidence) -> Measurement:
        ALEXNET.path()  # before anything else is asked for
        teacher = evidence.teacher_of(self.name)
        import torch
        from torch.nn import functional as F

        from fewstep.nets.perceptual import lpips_network

        distance, digest = lpips_network("alex", ALEXNET)

        side = tuple(teacher.shape[2:])
        size = side if min(side) >= ALEXNET_MIN else (PATCH, PATCH)
        values = []
        with torch.inference_mode():
            for start in range(0, len(teacher), self.batch):
                pair = [torch.from_numpy(three_channels(x[start : start + self.batch])).float() for x in (evidence.images, teacher)]
                if size != side:
                    pair = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in pair]
                values.append(distance(pair[0], pair[1]).double().flatten().numpy())
        value, error = mean_and_error(np.concatenate(values), evidence.labels)
        if not np.isfinite(value):
            raise FloatingPointError("LPIPS is not finite: the samples, the teacher images or the weights hold NaN")
        protocol = {"metric_version": self.version, "features": f"alexnet-{digest[:16]}", "lpips": installed("lpips"), "size": list(size)}
        return Measurement(value, error, len(teacher), {**protocol, "std_error": "over images, within classes"})
