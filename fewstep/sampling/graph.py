"""A whole trajectory, networks included, as one CUDA graph: captured once for a shape, then replayed.

What differs between replays lives in tensors that the graph reads: the initial state, the samples' seeds, the condition. Noise is drawn
inside the graph from the seeds, so every replay with new seeds has fresh noise, the same that a plain run draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.cond import Cond
from fewstep.denoiser import Denoiser
from fewstep.nets.partial import Partial
from fewstep.noise import Noise, PhiloxNoise
from fewstep.sampling.binding import Bound
from fewstep.sampling.registers import counted, execute, seeds_for

KEPT = 4  # graphs of a bound program, each with memory of its own
WARM_UP = 2  # runs before the capture: compilation and libraries' own set-up are not to be captured
Outputs = dict[str, Tensor]


class Graph:
    """A captured run and the tensors it reads."""

    def __init__(self, bound: Bound, denoiser: Denoiser, x: Tensor, noise: Noise | None, cond: Cond) -> None:
        self.x, self.cond = x.clone(), cond.map(torch.clone)
        self.seeds = seeds_for(noise, x).clone() if counted(noise) else None
        own = None if self.seeds is None else PhiloxNoise(self.seeds)
        self.outputs, self.launch = capture(lambda: execute(bound, denoiser, self.x, own, self.cond), x.device)

    def replay(self, x: Tensor, noise: Noise | None, cond: Cond) -> Outputs:
        """The outputs for another state, other seeds and another condition of the same shapes, as tensors of their own."""
        self.x.copy_(x)
        if self.seeds is not None and counted(noise):
            self.seeds.copy_(seeds_for(noise, x))
        for mine, theirs in zip(self.cond.tensors(), cond.tensors(), strict=True):
            mine.copy_(theirs)
        self.launch()
        return {name: value.clone() for name, value in self.outputs.items()}


def capture(body: Callable[[], Outputs], device: torch.device) -> tuple[Outputs, Callable[[], None]]:
    """The outputs of `body`, whose memory a call of the returned function fills anew.

    **Raises**: RuntimeError for what CUDA cannot capture.
    """
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                body()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = body()

    def launch() -> None:
        with torch.cuda.device(device):
            graph.replay()

    return outputs, launch


def modules_of(of: object) -> Iterator[nn.Module]:
    """The networks that a denoiser holds, and those of the denoisers inside it."""
    for value in getattr(of, "__dict__", {}).values():
        if isinstance(value, nn.Module):
            yield from (value, *(part.whole for part in value.modules() if isinstance(part, Partial)))
        elif isinstance(value, Denoiser):
            yield from modules_of(value)


def identity(denoiser: Denoiser, cond: Cond) -> Any:
    """What a graph holds fast beside the tensors that are copied into it: where weights lie, modes, kinds and shapes of the condition."""
    networks = list(modules_of(denoiser))
    weights = tuple(t.data_ptr() for net in networks for t in (*net.parameters(), *net.buffers()))
    training = tuple(m.training for net in networks for m in net.modules())
    autocast = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    return weights, training, autocast, cond.names(), tuple((t.shape, t.dtype) for t in cond.tensors())


def obstacle(bound: Bound, noise: Noise | None) -> str | None:
    """Why a run cannot be captured; None where it is worth trying."""
    if bound.device.type != "cuda":
        return f"CUDA graphs need a CUDA device, and x is on {bound.device}"
    if torch.is_grad_enabled():
        return "gradients are recorded; call run under torch.no_grad()"
    if bound.draws and not counted(noise):
        return f"{type(noise).__name__} draws on the host; use PhiloxNoise"
    return None


def replay(bound: Bound, denoiser: Denoiser, x: Tensor, noise: Noise | None, cond: Cond) -> Outputs:
    """A run as a graph, captured at the first call for these weights and kinds of condition; where that is impossible a plain run, with
    one warning."""
    key = (identity(denoiser, cond), counted(noise))
    if key not in bound.graphs:
        reason = obstacle(bound, noise)
        made = None
        if reason is None:
            try:
                with torch.inference_mode(False), torch.no_grad():  # its tensors serve replays of every mode
                    made = Graph(bound, denoiser, x, noise, cond)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as err:
                reason = str(err).partition("\n")[0]
        if made is None:
            warnings.warn(f"graph=True: sampling without a CUDA graph, since {reason}", stacklevel=3)
        while len(bound.graphs) >= KEPT:
            bound.graphs.pop(next(iter(bound.graphs)))
        bound.graphs[key] = made
    graph = bound.graphs[key]
    return execute(bound, denoiser, x, noise, cond) if graph is None else graph.replay(x, noise, cond)
