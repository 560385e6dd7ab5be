"""NumPy's arrays and numbers in a pickle, taken out without NumPy's own unpickling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fewstep.errors import UsageError
from fewstep.nets.readers.safe_pickle import Global, Make, Record, Refused, inert, token

PLAIN_KINDS = "biufS"  # booleans, integers, floats and byte strings: no objects, no structures
MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")


def _dtype(record: Any) -> np.dtype[Any]:
    """The plain type of a `numpy.dtype` in a file. **Raises**: UsageError for one that holds objects."""
    name = record.args[0] if isinstance(record, Record) and record.name == "numpy.dtype" and record.args else None
    if isinstance(name, bytes):
        name = name.decode("latin-1")
    if not isinstance(name, str) or name[:1] not in PLAIN_KINDS or not name[1:].isdigit() or len(name) > 4:
        raise Refused("it has an array of objects, and only numbers are read")
    order = record.state[1] if isinstance(record.state, tuple) and len(record.state) > 1 else "|"
    order = order.decode("latin-1") if isinstance(order, bytes) else order
    try:
        found = np.dtype(name)
    except TypeError:
        raise Refused(f"it has an array of the unknown type {name}") from None
    return found.newbyteorder(order) if order in ("<", ">") else found


def _bytes(raw: Any) -> bytes:
    """The bytes of an array, which Python 2 wrote as text."""
    return raw.encode("latin-1") if isinstance(raw, str) else bytes(raw)


def scalar(dtype: Any, raw: Any) -> Any:
    """`numpy.core.multiarray.scalar`: one number, as Python's."""
    kind, data = _dtype(dtype), _bytes(raw)
    if len(data) != kind.itemsize:
        raise Refused("it has a number of another size than its type's")
    return np.frombuffer(data, kind)[0].item()


def array(record: Any, what: str) -> np.ndarray:
    """The array that a file has as `numpy.core.multiarray._reconstruct`. **Raises**: UsageError beginning with `what` for anything else."""
    state = record.state if isinstance(record, Record) and record.name == "numpy.ndarray" else None
    if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[1], tuple):
        raise UsageError(f"{what} has no array where one belongs; get it again from its publisher")
    _, shape, dtype, fortran, raw = state
    try:
        kind = _dtype(dtype)
    except Refused as err:
        raise UsageError(f"{what} is not read, because {err}; get it again from its publisher") from None
    sizes = all(type(n) is int and n >= 0 for n in shape)
    if not sizes or not isinstance(raw, str | bytes | bytearray) or math.prod(shape) * kind.itemsize != len(raw):
        raise UsageError(f"{what} has an array whose bytes do not fill its shape; get it again from its publisher")
    try:
        return np.frombuffer(_bytes(raw), kind).reshape(shape, order="F" if fortran else "C")
    except (ValueError, OverflowError) as err:  # of items of no bytes, and of sides beyond what NumPy counts
        raise UsageError(f"{what} has an array that is none ({err}); get it again from its publisher") from None


def _reconstruct(kind: Any, *_: Any) -> Record:
    if kind != Global("numpy.ndarray"):
        raise Refused("it has an array of an unknown class")
    return Record("numpy.ndarray")


NUMPY: dict[str, Make] = {
    "numpy.dtype": inert("numpy.dtype"),
    "numpy.ndarray": token,
    **{f"{module}.scalar": scalar for module in MODULES},
    **{f"{module}._reconstruct": _reconstruct for module in MODULES},
}
