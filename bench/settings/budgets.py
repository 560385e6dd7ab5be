"""Budgets of a suite: what is asked for under its name with more or less time, as overrides of its fields."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.settings.published import settings_named
from fewstep.errors import UsageError, near_misses

BUDGETS = ("smoke", "cpu", "short", "paper")
# What a budget may say: fields of the suite, the published settings that its students have (`settings`, a file of conf/settings), and what
# is said of every row (`mark`).
FIELDS = ("model", "samples", "noise", "reference", "reference_steps", "options", "base", "blocks", "workers", "settings", "mark")
NAME = "budget_name"  # of the one that was chosen, in the suite's configuration; `budget` there is a factor of batches


def default_budget(suite: str, known: Mapping[str, Any], device: str) -> str:
    """`short` on a GPU and `cpu` without one, or where no `device` is said; else, but on a CPU, the largest that the suite has.

    **Raises**: UsageError for a CPU and a suite that has no budget for one: the others are for GPUs, or to see that it runs.
    """
    wanted = "short" if device.startswith("cuda") else "cpu"
    if wanted not in known and device == "cpu":
        have = " or ".join(f"budget={name}" for name in known)
        raise UsageError(f"suite {suite} has no budget for a CPU; type {have} (smoke is minutes, paper is for GPUs), or device=cuda")
    return wanted if wanted in known else max(known, key=BUDGETS.index)


def with_budget(suite: Mapping[str, Any], asked: str = "", device: str = "") -> dict[str, Any]:
    """A suite's configuration under one of its budgets: `options` and `base` are merged into its own, other fields take their place.

    A suite without any is itself. Where published `settings` are named they come first, and `options` go over them.
    **Raises**: UsageError for a budget that the suite has not, with those that it has, and for a field that no budget has.
    """
    known = suite.get("budgets") or {}
    name = suite.get("name", "")
    if not isinstance(known, dict) or not all(isinstance(own, dict) for own in known.values()):
        raise UsageError(f"suite {name}: budgets are {{name: {{field: value}}}} with {', '.join(BUDGETS)} as names")
    if wrong := [budget for budget in known if budget not in BUDGETS]:
        raise UsageError(f"suite {name}: unknown budget '{wrong[0]}'{near_misses(wrong[0], BUDGETS)}")
    if asked and not known:
        raise UsageError(f"suite {name} has no budgets; leave budget={asked} out (suite.budget=4 multiplies the batches of its students)")
    if asked and asked not in known:
        hint = near_misses(asked, list(known)) if asked not in BUDGETS else f"; it has {', '.join(known)}"
        raise UsageError(f"suite {name} has no budget '{asked}'{hint}")
    chosen = (asked or default_budget(name, known, device)) if known else ""
    own = known.get(chosen, {})
    if wrong := [field for field in own if field not in FIELDS]:
        raise UsageError(f"suite {name}: budget {chosen} has an unknown field '{wrong[0]}'{near_misses(wrong[0], FIELDS)}")
    config = {field: value for field, value in suite.items() if field != "budgets"}
    config |= {field: _merged(config.get(field), value) for field, value in own.items()}
    if "settings" in config:
        published = {method: dict(found.options) for method, found in settings_named(config.pop("settings")).items()}
        config["options"] = _merged(published, config.get("options") or {})
    return config | ({NAME: chosen} if chosen else {})


def _merged(old: Any, new: Any) -> Any:
    """A mapping goes into a mapping, key by key; anything else takes the place of what was there."""
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    return new
