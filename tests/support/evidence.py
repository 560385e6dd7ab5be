"""Evidence for metrics, made on the spot: images of four classes, and features that are linear in them."""

import dataclasses

import numpy as np

from metrics import Evidence, quantise
from metrics.reference import Reference

CLASSES, DIM = 4, 5


class FakeData:
    """Random 'images' [N, 1, 4, 4] of four classes, 80% of each for training."""

    def __init__(self, seed: int = 0, per_class: int = 50) -> None:
        rng = np.random.RandomState(seed)
        self.name, self.classes = "fake", CLASSES
        cut = per_class * 4 // 5
        self.train_y = np.repeat(np.arange(CLASSES), cut)
        self.heldout_y = np.repeat(np.arange(CLASSES), per_class - cut)
        self.train_x, self.heldout_x = self.draw(rng, self.train_y), self.draw(rng, self.heldout_y)

    def fact(self, name, compute):
        return compute()

    @staticmethod
    def draw(rng, labels: np.ndarray) -> np.ndarray:
        means = np.linspace(-0.5, 0.5, CLASSES)[labels][:, None, None, None]
        return np.clip(means + 0.2 * rng.randn(len(labels), 1, 4, 4), -1, 1).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Projection:
    """A linear 'extractor', and 'logits' from the distance of two pixels to each class mean (right for most)."""

    name: str = "digits"
    version: int = 1
    digest: str = "ab" * 32

    def __call__(self, images):
        flat = images.reshape(len(images), -1).astype(np.float64)
        features = flat @ np.random.RandomState(5).randn(flat.shape[1], DIM)
        return features, -np.abs(flat[:, :2].mean(axis=1)[:, None] - np.linspace(-0.5, 0.5, CLASSES)[None])


def evidence(reference: Reference, images, labels, teacher=None) -> Evidence:
    features, logits = Projection()(images)
    return Evidence(images, labels, {"digits": features, "inception": features}, {"digits": logits}, teacher, reference)


def fresh(reference: Reference, seed: int = 1, per_class: int = 60) -> Evidence:
    """New draws of the same distribution as the real images; the teacher's images are the same plus a pinned difference."""
    rng = np.random.RandomState(seed)
    labels = np.repeat(np.arange(CLASSES), per_class)
    images = quantise(FakeData.draw(rng, labels))
    return evidence(reference, images, labels, quantise(images + np.float32(0.05) * rng.randn(*images.shape).astype(np.float32)))


def images(n: int, channels: int = 1, side: int = 8, seed: int = 0) -> np.ndarray:
    """Random images as `quantise` leaves them."""
    return quantise(np.random.RandomState(seed).uniform(-1, 1, (n, channels, side, side)).astype(np.float32))
