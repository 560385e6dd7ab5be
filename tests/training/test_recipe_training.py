"""Trainings by recipes that are not the default: float16, bfloat16, compiled networks, and weights of a former run."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bench.jobs.fits.fit import changed, keep
from bench.training import compiling
from bench.training.compiling import check_compiles, compile_forward, release_forward
from bench.training.engine import Diverged, Engine, Result, Settings
from bench.training.precision import check_precision
from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser
from fewstep.errors import UsageError
from fewstep.nets.readers.card import save_weights
from fewstep.noise import Rng
from methods.initial import digest_of, initial_tensors
from methods.recipe import Recipe
from methods.training import Loss, Optim, Phase, State
from support.tiny import made, mixture_data, network

SMALL = {"batches": 5, "batch_size": 8}


def trained(recipe: Recipe, folder: Path, stops: tuple[int, ...] = (), name: str = "cd") -> Result:
    _, data = mixture_data()
    for stop in (*stops, None):
        result = Engine(made(name, **SMALL), network(data), data, folder, Settings(recipe=recipe, progress=False)).run(stop)
    return result


def same(a: Result, b: Result) -> bool:
    return all(torch.equal(a.exports[p][k], b.exports[p][k]) for p in a.exports for k in a.exports[p])


@pytest.fixture
def _traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch.compile without a code generator, which would take minutes."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    check_compiles.cache_clear()
    yield
    torch.compiler.reset()
    check_compiles.cache_clear()


@pytest.mark.usefixtures("_traced")
@pytest.mark.parametrize("recipe", [Recipe(precision="fp16"), Recipe(precision="bf16", accumulate=2), Recipe(compile=True)])
def test_resume_is_exact_by_any_recipe(recipe: Recipe, tmp_path: Path) -> None:
    whole = trained(recipe, tmp_path / "whole")
    assert same(trained(recipe, tmp_path / "cut", (1, 3)), whole)


def test_trainings_of_several_precisions_follow_each_other(tmp_path: Path) -> None:
    """In one process, and none leaves a trace in the next."""
    first, *others, last = (trained(Recipe(precision=p), tmp_path / str(i)) for i, p in enumerate(("no", "fp16", "bf16", "no")))
    assert same(first, last)
    assert not any(same(first, other) for other in others)
    assert not same(*others)


@dataclass(frozen=True)
class Steep:
    """A loss whose gradient is `slope`: scaled by 65,536 it leaves float16 where the scaler starts."""

    slope: float
    batches: int = 4
    version: int = 1

    def build(self, teacher: Denoiser) -> dict[str, torch.nn.Module]:
        return {"student": torch.nn.Linear(1, 1, bias=False)}

    def phases(self) -> list[Phase]:
        return [Phase("steep", self.batches, 2, {"student": Optim(lr=0.1)})]

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        yield Loss((self.slope * state.nets["student"](torch.ones(1, 1))).sum(), "student")


def steep(slope: float, folder: Path, stop: int | None = None, batches: int = 4) -> Engine:
    _, data = mixture_data()
    engine = Engine(Steep(slope, batches), network(data), data, folder, Settings(recipe=Recipe(precision="fp16"), progress=False))
    engine.run(stop)
    return engine


def test_an_overflow_lowers_the_scale_and_takes_no_step(tmp_path: Path) -> None:
    """4 x 65,536 is infinite in float16, and so are the next halves of it down to 65,504: three batches without a step."""
    start = copy.deepcopy(steep(4.0, tmp_path / "a", 0).nets["student"].state_dict())["weight"]
    engine = steep(4.0, tmp_path / "a", 3)
    assert torch.equal(engine.nets["student"].state_dict()["weight"], start)
    with safe_open(tmp_path / "a" / "checkpoint.safetensors", framework="pt") as f:
        assert json.loads(f.metadata()["progress"])["scalers"]["student"]["scale"] == 65536 / 8
    engine = steep(4.0, tmp_path / "a")  # goes on with the scale that it had
    assert not torch.equal(engine.nets["student"].state_dict()["weight"], start)
    assert engine.progress.log[-1]["loss_scale/student"] == 65536 / 8


def test_gradients_that_overflow_of_themselves_are_a_divergence(tmp_path: Path) -> None:
    with pytest.raises(Diverged, match=r"training diverged: gradient norm (inf|nan) at batch 16 of phase steep; lower lr"):
        steep(1e5, tmp_path, batches=40)


def test_a_precision_that_a_device_lacks_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    check_precision("fp16", torch.device("cpu"))

    def refused(*args, **kwargs):
        raise RuntimeError("no half here\nand more")

    monkeypatch.setattr(torch.nn.Conv2d, "forward", refused)
    with pytest.raises(UsageError, match=r"precision=fp16 cannot be trained in on cpu here \(no half here\); use precision=bf16"):
        check_precision("fp16", torch.device("cpu"))
    check_precision("no", torch.device("cpu"))


@pytest.mark.usefixtures("_traced")
def test_compiled_networks_are_the_same_networks(tmp_path: Path) -> None:
    """Names, averages and counted passes are those of a training that is not compiled, and its numbers but for rounding."""
    plain, compiled = trained(Recipe(), tmp_path / "a"), trained(Recipe(compile=True), tmp_path / "b")
    assert compiled.whole.passes == plain.whole.passes
    for key, value in plain.exports["cd"].items():
        torch.testing.assert_close(compiled.exports["cd"][key], value, rtol=1e-3, atol=1e-4)  # five steps of lr 5e-4, each of unit size
    kept = [set(load_file(tmp_path / folder / "checkpoint.safetensors")) for folder in "ab" if (tmp_path / folder).exists()]
    assert all(names == kept[0] for names in kept)


@pytest.mark.usefixtures("_traced")
def test_only_trained_networks_are_compiled_and_only_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An average is a copy that computes with its own weights."""
    _, data = mixture_data()
    engine = Engine(made("cd", **SMALL), network(data), data, tmp_path, Settings(recipe=Recipe(compile=True), progress=False))
    during, step = [], Engine._step

    def watched(self, phase, batch):
        during.append({name: "forward" in vars(net) for name, net in {**self.nets, **self.emas}.items()})
        return step(self, phase, batch)

    monkeypatch.setattr(Engine, "_step", watched)
    engine.run()
    assert during == [{"student": True, "target": False, "ema": False}] * 5
    assert "forward" not in vars(engine.nets["student"])
    net = torch.nn.Linear(1, 1)
    compile_forward(net)
    release_forward(net)
    release_forward(net)
    twin = copy.deepcopy(net)
    twin.weight.data += 1
    assert not torch.equal(twin(torch.ones(1, 1)), net(torch.ones(1, 1)))


def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(*args, **kwargs):
        raise RuntimeError("no g++\nand more")

    monkeypatch.setattr(torch, "compile", broken)
    check_compiles.cache_clear()
    with pytest.raises(
        UsageError, match=r"compile=true needs a compiler that torch can use \(no g\+\+\); install one, or leave compile out"
    ):
        trained(Recipe(compile=True), tmp_path)


def test_a_training_starts_from_what_a_former_one_left(tmp_path: Path) -> None:
    """The same tensors from a checkpoint, an artefact of the store, a file with its card or a training's folder, at one address."""
    former = trained(Recipe(), tmp_path / "former", (5,))
    kept, store, card = former.exports["cd"], tmp_path / "store", tmp_path / "card"
    store.mkdir()
    record = keep(former, store)
    (store / "record.json").write_text(json.dumps(record))
    card.mkdir()
    own = {"arch": "unet", "config": {}, "shape": [1, 4, 4], "classes": 2, "sigma_data": 0.5, "sigma_range": [0.002, 80.0]}
    save_weights(card / "mine.safetensors", kept, own)
    places = [tmp_path / "former", tmp_path / "former" / "checkpoint.safetensors", store, card, card / "mine.safetensors"]
    recipes = [Recipe(init_from=str(place)) for place in places]
    for recipe in recipes:
        found = initial_tensors(recipe.init_from)
        assert all(torch.equal(found[key], value) for key, value in kept.items())
        assert found.keys() == kept.keys()
    (address,) = {json.dumps(changed("distiller", "cd", recipe.given())) for recipe in recipes}
    assert str(tmp_path) not in address
    assert digest_of(str(store)) in address
    identities = {replace(recipe).identity() for recipe in recipes}
    assert len(identities) == 1
    assert Recipe().identity() not in identities

    _, data = mixture_data()
    engine = Engine(made("cd", **SMALL), network(data), data, tmp_path / "next", Settings(recipe=recipes[2], progress=False))
    assert all(torch.equal(engine.nets["student"].state_dict()[key], value) for key, value in kept.items())
    again = engine.run()
    assert not same(again, former)
    assert same(trained(recipes[3], tmp_path / "cut", (1, 2)), again)


def test_the_last_of_several_phases_is_taken(tmp_path: Path) -> None:
    _, data = mixture_data()
    method = made("pd", start=4, **SMALL)
    result = Engine(method, network(data), data, tmp_path / "pd", Settings(progress=False)).run(15)
    record = keep(result, tmp_path)
    (tmp_path / "record.json").write_text(json.dumps(record, sort_keys=True))
    assert list(result.exports) == ["4", "2", "1"]
    for place in (tmp_path / "pd", tmp_path):
        found = initial_tensors(str(place))
        assert all(torch.equal(found[key], value) for key, value in result.exports["1"].items())


def test_other_weights_are_another_address(tmp_path: Path) -> None:
    own = {"arch": "unet", "config": {}, "shape": [1, 4, 4], "classes": 2, "sigma_data": 0.5, "sigma_range": [0.002, 80.0]}
    file = tmp_path / "w.safetensors"
    save_weights(file, {"a": torch.zeros(2)}, own)
    first = digest_of(str(file))
    save_weights(file, {"a": torch.zeros(2)}, {**own, "note": "another card"})
    assert digest_of(str(file)) == first
    save_weights(file, {"a": torch.ones(2)}, own)
    assert digest_of(str(file)) != first


def test_what_no_training_can_start_from_is_one_line(tmp_path: Path) -> None:
    hint = "give weights with a card, an exported student, or the folder or checkpoint of a training"
    with pytest.raises(UsageError, match=r"weights '.*nowhere.safetensors' not found"):
        Recipe(init_from=str(tmp_path / "nowhere.safetensors"))
    with pytest.raises(UsageError, match=f"holds no weights, and one file is needed; {hint}"):
        Recipe(init_from=str(tmp_path))
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"no tensors")
    with pytest.raises(UsageError, match=r"init=.* cannot be read \(.*\); give weights"):
        Recipe(init_from=str(file)).changed()
    save_file({"a": torch.zeros(2)}, file)
    with pytest.raises(UsageError, match=f"is not what a finished phase of a training left; {hint}"):
        Recipe(init_from=str(file)).changed()
    _, data = mixture_data()
    Engine(made("cd", **SMALL), network(data), data, tmp_path / "begun", Settings(progress=False)).run(2)
    with pytest.raises(UsageError, match=f"is not what a finished phase of a training left; {hint}"):
        Recipe(init_from=str(tmp_path / "begun")).changed()
    own = {"arch": "unet", "config": {}, "shape": [1, 4, 4], "classes": 2, "sigma_data": 0.5, "sigma_range": [0.002, 80.0]}
    save_weights(file, {"a": torch.zeros(2)}, own)
    with pytest.raises(UsageError, match=r"the weights of init=.* lack 'embed_noise.weight'"):
        trained(Recipe(init_from=str(file)), tmp_path / "other")
