"""What a sweep measures itself, beside registered metrics: passes, latencies and memory. Their names, for rows and for reports."""

from collections.abc import Mapping

COUNTED = "nfe_counted"  # passes that the network was really asked for, per image
BATCHES, QUANTILES = (1, 64), (50, 90)
MEMORY = "peak_memory_mb"  # of the largest batch


def latency(quantile: int, batch: int) -> str:
    """The name of a latency."""
    return f"latency_ms_p{quantile}_b{batch}"


def timings_of(batch: int) -> tuple[str, ...]:
    """The names of what is measured with one batch."""
    return (*(latency(q, batch) for q in QUANTILES), *((MEMORY,) if batch == BATCHES[-1] else ()))


LATENCIES = tuple(latency(q, batch) for batch in BATCHES for q in QUANTILES)
TIMINGS = (*LATENCIES, MEMORY)
TEACHER = "teacher"  # among the passes of a training: those of the teacher that it was given
OWN = "net "  # begins the name of a net of the training's own that is called the same


def teacher_passes(passes: Mapping[str, int]) -> int | None:
    """Passes of the given teacher and of a training's own net of that name (the student of the phase before); None of neither."""
    found = [passes[name] for name in (TEACHER, OWN + TEACHER) if name in passes]
    return sum(found) if found else None
