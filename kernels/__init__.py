"""The sampler's update primitive: a linear combination of tensors. One name is exported; which implementation runs is decided here."""

from kernels.reference import combine

__all__ = ["combine"]
