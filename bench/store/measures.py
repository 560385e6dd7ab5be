"""What a sweep measures itself, beside registered metrics: passes, latencies and memory. Their names, for rows and for reports."""

COUNTED = "nfe_counted"  # passes that the network was really asked for, per image
BATCHES = (1, 64)
LATENCIES = tuple(f"latency_ms_{q}_b{batch}" for batch in BATCHES for q in ("p50", "p90"))
MEMORY = "peak_memory_mb"
TIMINGS = (*LATENCIES, MEMORY)
