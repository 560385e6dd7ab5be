"""scikit-learn's handwritten digits: 1,797 grey 8x8 images of 17 levels, ten classes (Alpaydin and Kaynak, UCI, 1998)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from sklearn.datasets import load_digits

from fewstep.data.images import ImageData, split
from fewstep.plugins import register


@register("data", "digits", "Alpaydin and Kaynak, UCI 1998")
def digits() -> ImageData:
    """The digits in [-1, 1] (grey level / 8 - 1), 80% of each class for training and the rest held out.

    The split is a fixed permutation per class (seed 0), so that every checkpoint and reference agrees on it.
    """
    images, labels = load_digits(return_X_y=True)
    x = (np.asarray(images, dtype=np.float32) / 8 - 1).reshape(-1, 1, 8, 8)
    y = np.asarray(labels, dtype=np.int64)
    a, b = split(y, 10)
    return ImageData("digits", 10, x[a], y[a], x[b], y[b])


@register("data", "digits_unconditional", "Alpaydin and Kaynak, UCI 1998")
def digits_unconditional() -> ImageData:
    """The same digits and split without their labels."""
    return replace(digits().unlabelled(), name="digits_unconditional")
