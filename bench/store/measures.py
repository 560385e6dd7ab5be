"""What a sweep measures itself, beside registered metrics: passes, latencies and memory. Their names, for rows and for reports."""

from collections.abc import Mapping

COUNTED = "nfe_counted"  # passes that the network was really asked for, per image
BATCHES = (1, 64)
LATENCIES = tuple(f"latency_ms_{q}_b{batch}" for batch in BATCHES for q in ("p50", "p90"))
MEMORY = "peak_memory_mb"
TIMINGS = (*LATENCIES, MEMORY)
TEACHER = "teacher"  # among the passes of a training: those of the teacher that it was given
OWN = "net "  # begins the name of a net of the training's own that is called the same


def teacher_passes(passes: Mapping[str, int]) -> int | None:
    """Passes of the given teacher and of a training's own net of that name (the student of the phase before); None of neither."""
    found = [passes[name] for name in (TEACHER, OWN + TEACHER) if name in passes]
    return sum(found) if found else None
