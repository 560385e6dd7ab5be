"""What a training costs: passes counted exactly, for every kind of teacher, over a resume, and by nobody else's training."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from bench.training.accounting import PeakMemory
from bench.training.engine import Engine, Result, Settings
from fewstep.denoiser import Denoiser
from fewstep.guidance import guide
from fewstep.wrappers import Mapped, WithScalars, clip
from methods.start import WarmStarted
from support.tiny import data_of, made, mixture_data, network

QUIET = Settings(progress=False)
BATCHES, SIZE = 3, 8
COUNT = BATCHES * SIZE


def trained(name: str, teacher: Denoiser, folder: Path, stops: tuple[int, ...] = (), **options) -> Result:
    _, data = mixture_data()
    method = made(name, **{"batches": BATCHES, "batch_size": SIZE, "start": 2, "count": 16} | options)
    source = data_of(method, teacher, data)
    for stop in stops:
        Engine(method, teacher, source, folder, QUIET).run(stop)
    return Engine(method, teacher, source, folder, QUIET).run()


def teachers() -> dict[str, Denoiser]:
    form, data = mixture_data()
    return {"network": network(data), "closed form": WarmStarted(form, network(data))}


@pytest.mark.parametrize("kind", ["network", "closed form"])
@pytest.mark.parametrize(
    ("name", "options", "passes"),
    [
        # A Heun step of the teacher is two passes; the student and its target see the two ends of it.
        ("cd", {"teacher_solver": "heun"}, {"teacher": 2 * COUNT, "student": COUNT, "target": COUNT}),
        ("cd", {"teacher_solver": "euler"}, {"teacher": COUNT, "student": COUNT, "target": COUNT}),
        # Phases of 2 and 1 steps: two Euler steps of the phase's teacher, which after the first is a net of the training's own.
        ("pd", {}, {"teacher": 2 * COUNT, "net teacher": 2 * COUNT, "student": 2 * COUNT}),
        ("kd", {}, {"student": COUNT}),
        # Two updates of the fake denoiser: a sample of the student and a pass each; then three passes of the student (its sample for
        # matching, its sample of a pair, ...) and one each of the two denoisers.
        ("dmd", {"fake_updates": 2}, {"student": 4 * COUNT, "fake": 3 * COUNT, "teacher": COUNT}),
        # As above, with fake and real samples in each update, and the head once for the fake's loss and once for its own; then 2 more.
        ("dmd2", {"fake_updates": 2}, {"student": 3 * COUNT, "fake": 6 * COUNT, "teacher": COUNT, "head": 9 * COUNT}),
    ],
)
def test_passes_are_counted_exactly(kind: str, name: str, options: dict, passes: dict, tmp_path: Path) -> None:
    assert trained(name, teachers()[kind], tmp_path, **options).whole.passes == passes


@pytest.mark.parametrize("name", ["cd", "pd", "ctm_gan"])
@pytest.mark.parametrize("kind", ["network", "closed form"])
def test_counts_and_memory_survive_a_resume(name: str, kind: str, tmp_path: Path) -> None:
    whole = trained(name, teachers()[kind], tmp_path / "whole")
    cut = trained(name, teachers()[kind], tmp_path / "cut", stops=(1, 2))
    assert cut.spent.keys() == whole.spent.keys()
    assert [s.passes for s in cut.spent.values()] == [s.passes for s in whole.spent.values()]
    assert cut.peak_bytes > 0


def test_wrapped_teachers_are_counted(tmp_path: Path) -> None:
    """Guidance runs two passes a sample, a reference network is the teacher's too, wrappers add none, and a closed form may lie deep."""
    form, data = mixture_data()
    net = network(data)
    for teacher, factor in (
        (guide(net, 2.0), 2),
        (guide(net, 2.0, ref=network(data, seed=1)), 2),
        (Mapped(WithScalars(net, {}), clip), 1),
        (guide(WarmStarted(form, net), 2.0), 2),
        (Mapped(guide(WarmStarted(form, net), 2.0), clip), 2),
    ):
        folder = tmp_path / str(id(teacher))
        assert trained("cd", teacher, folder, teacher_solver="euler").whole.passes["teacher"] == factor * COUNT


def test_the_features_of_a_closed_forms_network_are_counted(tmp_path: Path) -> None:
    """In its second phase ctm_gan's discriminator reads features of an estimate, for the student, then of real and of generated images."""
    spent = {kind: trained("ctm_gan", teacher, tmp_path / kind).spent for kind, teacher in teachers().items()}
    for found in spent.values():
        first, second = found["ctm"].passes["teacher"], found["gan"].passes["teacher"]
        assert second - first >= 3 * COUNT
    assert spent["network"]["gan"].passes == spent["closed form"]["gan"].passes


def test_a_training_leaves_no_hooks_behind(tmp_path: Path) -> None:
    """Not on the teacher that others go on using, whether it ends or is cut; and it counts no passes of others."""
    _, data = mixture_data()
    teacher = network(data)
    result = trained("cd", teacher, tmp_path / "a")
    before = dict(result.whole.passes)
    teacher(torch.zeros(5, *teacher.shape), 1.0)
    assert result.whole.passes == before
    assert not teacher.net._forward_pre_hooks
    Engine(made("cd", batches=3, batch_size=8), teacher, data, tmp_path / "b", QUIET).run(1)
    assert not teacher.net._forward_pre_hooks


def test_peak_memory_is_that_of_the_process_in_bytes() -> None:
    peak = PeakMemory(torch.device("cpu")).bytes()
    now = psutil.Process().memory_info().rss
    assert 0.9 * now <= peak <= psutil.virtual_memory().total  # kernels count pages with some delay
