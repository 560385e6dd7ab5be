"""Addresses and checksums: digests of canonical JSON."""

from __future__ import annotations

import hashlib
import json
from typing import Any

Row = dict[str, Any]


def canonical(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def digest(value: Any) -> str:
    """The first 16 hex digits of the SHA-256 of the canonical JSON: the address of a spec, and the checksum of a record."""
    return hashlib.sha256(canonical(value)).hexdigest()[:16]


def seal(row: Row) -> Row:
    """The row with its checksum."""
    body = {k: v for k, v in row.items() if k != "checksum"}
    return {**body, "checksum": digest(body)}
