"""Small trainings that two processes do together, under torchrun: `python -m torch.distributed.run --nproc-per-node=2 pair.py FOLDER`.

Each process leaves what it saw of each in FOLDER/RANK.json, and the weights in safetensors files beside it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from bench.store.world import ALONE, World, joined
from bench.training.engine import Engine, Settings
from fewstep.data.source import Batch
from fewstep.denoiser import Denoiser
from fewstep.noise import Rng
from methods.recipe import Recipe
from methods.training import Loss, Phase, State
from support.tiny import made, mixture_data, network

BATCHES = 3
# Whose optimiser is linear in the gradient at first, so that rounding stays rounding.
METHOD = made("cd", batches=BATCHES, batch_size=9, lr=0.1, clip=0.0)


class Deaf(World):
    """Whose sums are those of one process."""

    def add_up(self, tensors: Any, numbers: Any = ()) -> list[float]:
        return list(numbers)


class Unlike(RuntimeError):
    """An error that cannot be sent."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one}, {two}")


class Failing:
    """A method that does something else in one process, at one batch, before its loss."""

    version = 1

    def __init__(self, instead: Callable[[int], None]) -> None:
        self.instead = instead

    def __repr__(self) -> str:  # which its checkpoints are known by
        return "Failing"

    def build(self, teacher: Denoiser) -> dict[str, nn.Module]:
        return METHOD.build(teacher)

    def phases(self) -> list[Phase]:
        return list(METHOD.phases())

    def losses(self, state: State, batch: Batch, rng: Rng) -> Iterator[Loss]:
        self.instead(state.batch)
        yield from METHOD.losses(state, batch, rng)


def weights_of(engine: Engine) -> dict[str, torch.Tensor]:
    return {"weights": torch.cat([p.detach().flatten() for p in engine.nets["student"].parameters()])}


def trained(method: Any, world: World, folder: Path, **settings: Any) -> Engine:
    _, data = mixture_data()
    with world.as_one():
        engine = Engine(method, network(data), data, folder, Settings(progress=False, world=world, **settings))
        engine.run()
    return engine


def failing(world: World, at: int, rank: int, error: Exception) -> Callable[[Path], None]:
    def instead(batch: int) -> None:
        if batch == at and world.rank == rank:
            raise error

    return lambda folder: trained(Failing(instead), world, folder) and None


def failing_optimiser(world: World) -> Callable[[Path], None]:
    """After the last sum of the last batch."""

    def run(folder: Path) -> None:
        _, data = mixture_data()
        with world.as_one():
            engine = Engine(METHOD, network(data), data, folder, Settings(progress=False, world=world))
            update = engine._update_ema

            def broken(*args: Any) -> None:
                if world.rank == 1 and engine.progress.batch == BATCHES - 1:
                    raise torch.OutOfMemoryError("no room for the average")
                update(*args)

            engine._update_ema = broken  # type: ignore[method-assign]
            engine.run()

    return run


def signalled(world: World) -> Callable[[Path], None]:
    """To one process, which the other hears of; then both go on."""

    def run(folder: Path) -> None:
        def instead(batch: int) -> None:
            if batch == 1 and world.rank == 1 and not (folder / "sent").exists():
                (folder / "sent").touch()
                os.kill(os.getpid(), signal.SIGTERM)

        folder.mkdir(exist_ok=True)
        save_file(weights_of(trained(Failing(instead), world, folder)), folder / f"{world.rank}.safetensors")

    return run


def broken_disk(world: World) -> Callable[[Path], None]:
    """Where the first cannot write its checkpoints."""

    def run(folder: Path) -> None:
        if world.first:
            folder.write_text("no folder")
        trained(METHOD, world, folder, checkpoint_seconds=0.0, checkpoint_share=0.0)

    return run


def main(out: Path) -> None:
    seen: dict[str, Any] = {}
    with joined("cpu") as world:
        for microbatches in (1, 3, 6):  # of nine, three and (of twelve) two examples, the last of which are whole ones
            method = METHOD if microbatches < 6 else replace(METHOD, batch_size=12)
            recipe = Recipe(accumulate=microbatches)
            for name, of in (("two", world), ("one", ALONE), ("deaf", Deaf(world.rank, world.size))):
                if world.first or of.size > 1:
                    engine = trained(method, of, out / f"{name}-{microbatches}-{world.rank}", recipe=recipe)
                    save_file(weights_of(engine), out / f"{name}-{microbatches}-{world.rank}.safetensors")
                    seen[f"{name}-{microbatches}"] = [engine.progress.finished, [log["loss/student"] for log in engine.progress.log]]
        cases = {
            "first batch": failing(world, 0, 1, RuntimeError("boom")),
            "the first's": failing(world, 1, 0, ValueError("bad")),
            "last batch": failing(world, BATCHES - 1, 1, torch.OutOfMemoryError("no room")),
            "unlike": failing(world, 1, 1, Unlike("a", "b")),
            "after the last": failing_optimiser(world),
            "disk": broken_disk(world),
            "signal": signalled(world),
            "on": signalled(world),
        }
        for name, run in cases.items():
            started = time.monotonic()
            folder = out / ("signal" if name == "on" else name.replace(" ", "-"))
            try:
                run(folder)
                seen[name] = ["nothing"]
            except (Exception, KeyboardInterrupt) as err:
                seen[name] = [type(err).__name__, str(err), time.monotonic() - started]
    (out / f"{world.rank}.json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
