"""Settings for every test: one thread, deterministic examples, and a reason for whatever cannot run here."""

import os
import shutil
import tempfile

import pytest
import torch
from hypothesis import settings

# Tests read nothing from the cache of whoever runs them, and leave nothing there.
os.environ["FEWSTEP_CACHE"] = CACHE = tempfile.mkdtemp(prefix="fewstep-cache-")
os.environ["FEWSTEP_STATE"] = CACHE + "/state"
os.environ["FEWSTEP_OFFLINE"] = "1"  # and fetch nothing
torch.set_num_threads(1)
settings.register_profile("suite", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("suite")


def pytest_unconfigure():
    shutil.rmtree(CACHE, ignore_errors=True)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device: what this test says about the GPU was not checked"))
