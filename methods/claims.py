"""What a solver promises, and the certificate checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

UNEVEN = "uneven"  # the certificate's grid of irregular gaps, beside these families of `fewstep.grid`
CERTIFIED = ("polynomial", "logsnr", "time_uniform")  # the others are for teachers and students of their own


@dataclass(frozen=True)
class Defect:
    """A known departure from what `check` of the certificate asks, with its size there on the grid family `grid`.

    The certificate fails when the defect is missing, of another size (by 1%), or when one is found that nobody declared.
    """

    check: str
    grid: str
    size: float
    why: str


@dataclass(frozen=True)
class Claims:
    """What a solver says of itself; `python -m bench.certify` measures it.

    `order`: global order on the probability flow (a step from an exact history errs by h^(order + 1)); for a plan that draws noise the weak
    order of mean and variance. None: exact for an exact student (a consistency function or a flow map), whatever the step.
    `order_on` holds the grid families, or `uneven`, where the order is another. `evaluates` says what the network must be for that.
    """

    order: int | None
    order_on: Mapping[str, int] = field(default_factory=dict)
    evaluates: str = "denoiser"  # denoiser | consistency | flow_map
    defects: tuple[Defect, ...] = ()
    deviations: tuple[str, ...] = ()

    def order_at(self, family: str) -> int | None:
        return self.order_on.get(family, self.order)
