"""torch's tensors in a pickle, taken out without torch's own unpickling: names of storages and of rebuilding functions, and no others."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.nets.readers.safe_pickle import PLAIN, Global, Make, Refused, load_from, token

TYPES = {  # of storages, by the names that files have for them
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Bool": torch.bool,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
}
STORAGES: dict[str, Make] = {f"torch.{name}Storage": token for name in TYPES}
DTYPES = {Global(f"torch.{name}Storage"): dtype for name, dtype in TYPES.items()}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001  # of torch's file format before archives
MOST_DIMENSIONS = 8


@dataclass(frozen=True, eq=False, repr=False)
class Storage:
    """A stretch of numbers in a file, not yet copied."""

    dtype: torch.dtype
    raw: memoryview

    def tensor(self) -> Tensor:
        return torch.frombuffer(bytearray(self.raw), dtype=self.dtype) if len(self.raw) else torch.empty(0, dtype=self.dtype)


def storage_type(kind: Any) -> torch.dtype:
    """The type of a storage by the name that a file has for it."""
    if kind not in DTYPES:
        raise Refused("it has a storage of an unknown type")
    return DTYPES[kind]


def load_from_bytes(data: Any) -> Storage:
    """`torch.storage._load_from_bytes`: one storage in torch's format before archives, which is five pickles and then its numbers."""
    if not isinstance(data, bytes | bytearray):
        raise Refused("it has a storage that is no bytes")
    stream, asked = io.BytesIO(data), []
    find = {**PLAIN, **STORAGES}.get

    def persistent(key: Any) -> Any:
        asked.append(key)
        return asked[-1]

    head = [load_from(stream, find, "a storage in it") for _ in range(3)]
    whole, keys = load_from(stream, find, "a storage in it", persistent), load_from(stream, find, "a storage in it")
    if head[:2] != [MAGIC, PROTOCOL] or len(asked) != 1 or whole is not asked[0] or not isinstance(whole, tuple) or len(whole) < 5:
        raise Refused("it has a storage in an unknown format")
    _, kind, key, _, count = whole[:5]
    dtype = storage_type(kind)
    raw = memoryview(data)[stream.tell() :]
    size = count * dtype.itemsize if type(count) is int else -1
    if keys != [key] or size < 0 or len(raw) != 8 + size or int.from_bytes(raw[:8], "little") != count:
        raise Refused("it has a storage whose bytes are not as many as its numbers")
    return Storage(dtype, raw[8:])


def rebuilt(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    """`torch._utils._rebuild_tensor_v2`: a dense tensor of the numbers in a storage."""
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) != len(stride):
        raise Refused("it has a tensor that is none")
    numbers = (offset, *size, *stride)
    if len(size) > MOST_DIMENSIONS or not all(type(n) is int and 0 <= n < 2**48 for n in numbers):
        raise Refused("it has a tensor of an impossible shape")
    held, wanted = len(storage.raw) // storage.dtype.itemsize, math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride)) if wanted else 0
    if wanted > held or last >= max(held, 1):
        raise Refused("it has a tensor of more numbers than its storage")
    return storage.tensor().as_strided(size, stride, offset).clone(memory_format=torch.contiguous_format)


def parameter(tensor: Any, *_: Any) -> Tensor:
    """`torch._utils._rebuild_parameter`: its tensor."""
    if not isinstance(tensor, Tensor):
        raise Refused("it has a parameter that is no tensor")
    return tensor


TORCH: Mapping[str, Make] = {
    **STORAGES,
    "torch._utils._rebuild_tensor_v2": rebuilt,
    "torch._utils._rebuild_parameter": parameter,
    "torch.storage._load_from_bytes": load_from_bytes,
}
