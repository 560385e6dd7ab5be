"""Process-wide settings."""

from __future__ import annotations

import ctypes
import sys


def tune_process(threads: int) -> None:
    """Torch threads, and a C allocator that keeps large blocks: on Linux that makes small convolutional networks 1.5 times faster."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        m_trim_threshold, m_mmap_threshold, large = -1, -3, 32 << 20
        libc.mallopt(m_mmap_threshold, large)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
