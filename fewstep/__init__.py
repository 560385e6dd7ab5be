"""fewstep: few-step diffusion, measured. The public API; everything that a plugin is written against is here or named in docs/.

    fewstep.load_teacher("digits_edm")         a trained network, by shipped name or by path, as a denoiser
    fewstep.load_student("results/students/cd-2").sample(torch.arange(16))
    fewstep.sample(teacher, "dpmpp_2m", steps=10, seeds=torch.arange(16))
    fewstep.edit(teacher, "euler", steps=10, seeds=torch.arange(len(photos)), condition=photos, strength=0.5)
    fewstep.as_teacher(my_module, "eps", "linear", (3, 32, 32))
    fewstep.register("metric", "mine")         above a frozen dataclass; see docs/start.md

Names are looked up when they are first used, so that importing this costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.cond import Cond
    from fewstep.data.arrays import Scaled
    from fewstep.data.images import ImageData
    from fewstep.data.streams import Stream
    from fewstep.denoiser import Denoiser, FlowMap, Preconditioned
    from fewstep.errors import Unavailable, UsageError
    from fewstep.grid import TimeGrid, make_grid
    from fewstep.guidance import guide
    from fewstep.nets.own import as_teacher
    from fewstep.plugins import register
    from fewstep.sampling.api import sample
    from fewstep.sampling.editing import edit
    from fewstep.sampling.plan import Apply, Combine, Eval, Plan
    from fewstep.students import Exported, load_student
    from fewstep.teachers import load_teacher

PLACES = {
    "load_teacher": "fewstep.teachers",
    "load_student": "fewstep.students",
    "Exported": "fewstep.students",
    "sample": "fewstep.sampling.api",
    "edit": "fewstep.sampling.editing",
    "make_grid": "fewstep.grid",
    "TimeGrid": "fewstep.grid",
    "guide": "fewstep.guidance",
    "as_teacher": "fewstep.nets.own",
    "register": "fewstep.plugins",
    "Plan": "fewstep.sampling.plan",
    "Eval": "fewstep.sampling.plan",
    "Combine": "fewstep.sampling.plan",
    "Apply": "fewstep.sampling.plan",
    "Denoiser": "fewstep.denoiser",
    "FlowMap": "fewstep.denoiser",
    "Preconditioned": "fewstep.denoiser",
    "Cond": "fewstep.cond",
    "ImageData": "fewstep.data.images",
    "Scaled": "fewstep.data.arrays",
    "Stream": "fewstep.data.streams",
    "UsageError": "fewstep.errors",
    "Unavailable": "fewstep.errors",
}

__all__ = [
    "Apply",
    "Combine",
    "Cond",
    "Denoiser",
    "Eval",
    "Exported",
    "FlowMap",
    "ImageData",
    "Plan",
    "Preconditioned",
    "Scaled",
    "Stream",
    "TimeGrid",
    "Unavailable",
    "UsageError",
    "as_teacher",
    "edit",
    "guide",
    "load_student",
    "load_teacher",
    "make_grid",
    "register",
    "sample",
]


def __getattr__(name: str) -> Any:
    if name not in PLACES:
        raise AttributeError(f"module 'fewstep' has no attribute '{name}'; it has {', '.join(__all__)}")
    return getattr(import_module(PLACES[name]), name)
