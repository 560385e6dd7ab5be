"""What every benchmark shares: the project's allocator settings, both cores for torch, and what the JSON says of the machine."""

import importlib.metadata
import os
import platform

import psutil
import pytest
import torch
from clock import DEVICE, last_level_cache
from formulas import compiler_problem, diffusers_problem

from bench.evaluate.timing import machine
from bench.execute.process import tune_process

VERSIONS = ("numba", "triton", "diffusers")


@pytest.fixture(scope="session", autouse=True)
def _process():
    tune_process(psutil.cpu_count(logical=False) or 1)  # other tests run on one thread
    with torch.inference_mode():
        yield


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def pytest_benchmark_update_machine_info(config, machine_info):
    """What a figure depends on, in place of everything that is known of the machine."""
    machine_info.clear()
    machine_info |= machine(DEVICE) | {name: _version(name) for name in VERSIONS}
    machine_info |= {"python": platform.python_version(), "cores": os.cpu_count(), "cache_bytes": last_level_cache()}
    problems = {"compiled": compiler_problem(), "diffusers": diffusers_problem()}
    machine_info["problems"] = {name: reason for name, reason in problems.items() if reason}


def pytest_benchmark_update_json(config, benchmarks, output_json):
    """Figures and what they are of, without every single round."""
    output_json.pop("commit_info", None)
    for b in output_json["benchmarks"]:
        kept = {"stats": {name: b["stats"][name] for name in ("median", "iqr", "rounds")}, "extra_info": b["extra_info"]}
        b.clear()
        b |= kept
