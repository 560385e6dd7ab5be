"""The update between two network passes: ours, torch, torch.compile and diffusers, on cold and on warm tensors, and the floor."""

import statistics
import time

import pytest
import torch
from clock import CLOCK, DEVICE, rotation, wall
from formulas import SOLVERS, STEPS, Case, bench_of, compiler_problem, diffusers_problem
from rounds import repeat, wait_for_quiet

from bench.evaluate.timing import foreign_load

SHAPES = ((1, 3, 32, 32), (64, 3, 32, 32), (256, 3, 64, 64), (64, 4, 64, 64))
CASES = [
    Case(shape, dtype, solver, guided)
    for shape in SHAPES
    for dtype in (torch.float32, torch.bfloat16)
    for solver in SOLVERS
    for guided in (False, True)
]
PROBLEMS = {"compiled": compiler_problem, "diffusers": diffusers_problem}
COPIES, COPYING_SECONDS = 5, 0.2  # at least; long enough to see what others do meanwhile


def copy_seconds(count: int, cold: bool) -> float:
    """The median time of a copy that reads and writes `count` bytes in all, of tensors in turn when `cold`."""
    pairs = [(torch.zeros(count // 8, device=DEVICE), torch.ones(count // 8, device=DEVICE)) for _ in range(rotation(count) if cold else 1)]
    times, started = [], time.perf_counter()
    while len(times) < COPIES or time.perf_counter() - started < COPYING_SECONDS:
        source, target = pairs[len(times) % len(pairs)]
        before = wall()
        target.copy_(source)
        times.append(wall() - before)
    return statistics.median(times)


@pytest.mark.parametrize("way", ["run", "eager", "compiled", "diffusers"])
@pytest.mark.parametrize("cache", ["cold", "warm"])
@pytest.mark.parametrize("case", CASES, ids=str)  # varies slowest: all timings of a case follow each other
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of diffusers, which gives tensors to numpy
@pytest.mark.benchmark(timer=CLOCK.now)
def test_update(benchmark, case: Case, way: str, cache: str) -> None:
    problem = PROBLEMS[way]() if way in PROBLEMS else None
    if problem:
        pytest.skip(f"{way} was not timed: {problem}")
    bench = bench_of(case)
    benchmark.extra_info |= {
        "kind": "update",
        "way": way,
        "cache": cache,
        "shape": "x".join(map(str, case.shape)),
        "dtype": str(case.dtype).removeprefix("torch."),
        "solver": case.solver,
        "guided": case.guided,
        "steps": STEPS,
    }
    if way == "run":
        bench.start(cache == "cold")
        moved = bench.bytes_moved()
        wait_for_quiet()
        floor, load = foreign_load(lambda: copy_seconds(moved, cache == "cold"))
        benchmark.extra_info |= {"bytes": moved, "floor": floor, "floor_load": round(load, 3)}
    repeat(benchmark, bench.ways[way], lambda: bench.start(cache == "cold"))
