"""Metrics: evidence in, one number out. Importing this needs NumPy only; networks are loaded by the metric that wants one."""

from fewstep.plugins import get, known, made
from metrics.metric import Evidence, Measurement, Metric, Shown, declared
from metrics.pixels import quantise, to_uint8

__all__ = [
    "Evidence",
    "Measurement",
    "Metric",
    "Shown",
    "compares",
    "declared",
    "metric_named",
    "metrics_by_name",
    "quantise",
    "to_uint8",
]


def metrics_by_name() -> dict[str, Metric]:
    """Every registered metric by name, in the order of the tables."""
    found = made("metric")
    return {name: found[name] for name in sorted(found, key=lambda name: (declared(found[name]).shown.place, name))}


def metric_named(name: str) -> Metric:
    """The metric of a name. **Raises**: UsageError with near misses."""
    return get("metric", name).make()


def compares(name: str) -> bool:
    """Whether a name is that of a metric that compares samples with the teacher's own solutions."""
    return known("metric", name) and declared(metric_named(name)).needs_teacher
