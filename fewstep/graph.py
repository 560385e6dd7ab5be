"""A whole trajectory, networks included, as one CUDA graph: captured once for a shape, then replayed.

What differs between replays lives in tensors that the graph reads: the initial state, the samples' seeds, the condition. Noise is drawn
inside the graph from the seeds, so every replay with new seeds has fresh noise, the same that a plain run draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.bound import Bound
from fewstep.cond import Cond
from fewstep.denoiser import Denoiser
from fewstep.noise import Noise, PhiloxNoise

WARM_UP = 2  # runs before the capture: compilation and libraries' own set-up are not to be captured
Outputs = dict[str, Tensor]


class Graph:
    """A captured run and the tensors it reads."""

    def __init__(self, bound: Bound, denoiser: Denoiser, x: Tensor, noise: PhiloxNoise | None, cond: Cond) -> None:
        self.x, self.cond = x.clone(), cond.map(torch.clone)
        self.seeds = None if noise is None else noise.seeds.to(x.device, copy=True)
        own = None if self.seeds is None else PhiloxNoise(self.seeds)
        self.outputs, self.launch = capture(lambda: bound.execute(denoiser, self.x, own, self.cond))

    def replay(self, x: Tensor, noise: PhiloxNoise | None, cond: Cond) -> Outputs:
        """The outputs for another state, other seeds and another condition of the same shapes, as tensors of their own."""
        self.x.copy_(x)
        if self.seeds is not None and noise is not None:
            self.seeds.copy_(noise.seeds)
        for mine, theirs in zip(self.cond.tensors(), cond.tensors(), strict=True):
            mine.copy_(theirs)
        self.launch()
        return {name: value.clone() for name, value in self.outputs.items()}


def capture(body: Callable[[], Outputs]) -> tuple[Outputs, Callable[[], None]]:
    """The outputs of `body`, whose memory a call of the returned function fills anew.

    **Raises**: RuntimeError for what CUDA cannot capture.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            body()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = body()
    return outputs, graph.replay


def obstacle(bound: Bound, noise: Noise | None) -> str | None:
    """Why a run cannot be captured; None where it is worth trying."""
    if bound.device.type != "cuda":
        return f"CUDA graphs need a CUDA device, and x is on {bound.device}"
    if torch.is_grad_enabled():
        return "gradients are recorded; call run under torch.no_grad()"
    if noise is not None and not isinstance(noise, PhiloxNoise):
        return f"{type(noise).__name__} draws on the host; use PhiloxNoise"
    return None


def replay(bound: Bound, denoiser: Denoiser, x: Tensor, noise: Noise | None, cond: Cond) -> Outputs:
    """A run as a graph, captured at the first call for these kinds of condition; where that is impossible a plain run, and one warning."""
    key: Any = tuple((t.shape, t.dtype) for t in cond.tensors()), cond.names()
    if key not in bound.graphs:
        reason = obstacle(bound, noise)
        made = None
        if reason is None:
            try:
                made = Graph(bound, denoiser, x, noise if isinstance(noise, PhiloxNoise) else None, cond)
            except RuntimeError as err:
                reason = str(err).partition("\n")[0]
        if made is None:
            warnings.warn(f"graph=True: sampling without a CUDA graph, since {reason}", stacklevel=3)
        bound.graphs[key] = made
    graph = bound.graphs[key]
    if graph is None:
        return bound.execute(denoiser, x, noise, cond)
    return graph.replay(x, noise if isinstance(noise, PhiloxNoise) else None, cond)
