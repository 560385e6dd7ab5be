"""Training the digit classifier whose features `fd_digits` uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from fewstep.data.arrays import parts
from fewstep.data.images import ImageData
from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser
from fewstep.nets.features import DigitClassifier, shift
from fewstep.noise import Rng
from fewstep.plugins import register
from methods.training import Loss, Optim, Phase, State


@register("pretrain", "classifier", "none (a small convolutional classifier)")
@dataclass(frozen=True)
class Classifier:
    """The digit classifier.

    Cross-entropy with smoothed labels on training images shifted by up to a pixel, with a little Gaussian noise."""

    batches: int = 3000
    batch_size: int = 128
    lr: float = 2e-3
    noise: float = 0.1
    smoothing: float = 0.05
    version: int = 1

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return {"student": DigitClassifier()}

    def phases(self) -> Sequence[Phase]:
        optim = Optim("adamw", self.lr, anneal_from=0.0, weight_decay=1e-2)
        return [Phase("classifier", self.batches, self.batch_size, {"student": optim}, drops=False)]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        count = len(batch.x0)
        x = shift(batch.x0, rng.integers(3, (count,)) - 1, rng.integers(3, (count,)) - 1)
        x = x + self.noise * rng.normal(x.shape)
        net = state.nets["student"]
        assert isinstance(net, DigitClassifier)
        assert batch.cond.label is not None
        logits = net.logits(net(x))
        accuracy = (logits.argmax(1) == batch.cond.label).float().mean()
        yield Loss(F.cross_entropy(logits, batch.cond.label, label_smoothing=self.smoothing), "student", {"accuracy": float(accuracy)})

    @torch.inference_mode()
    def heldout(self, net: nn.Module, data: ImageData) -> Mapping[str, float]:
        """The share of held-out images whose class it finds."""
        assert isinstance(net, DigitClassifier)
        found = np.concatenate([net.logits(net(torch.from_numpy(part))).argmax(1).numpy() for part in parts(data.heldout_x)])
        return {"heldout_accuracy": float((found == data.heldout_y).mean())}
