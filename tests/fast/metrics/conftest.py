"""What the tests of metrics share."""

import pytest

from metrics.reference import Reference, build_reference
from support.evidence import FakeData, Projection


@pytest.fixture(scope="module")
def reference() -> Reference:
    """The real images of `FakeData` under both names that features go by."""
    return build_reference(FakeData(), [Projection(), Projection(name="inception")])
