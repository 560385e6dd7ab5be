"""python -m bench.store du | prune | check: what the store holds and what making it again costs, and freeing what nobody needs.

    python -m bench.store du                             kinds with their sizes, and the largest artefacts
    python -m bench.store du kind=samples most=50        those of one kind
    python -m bench.store prune dry=true                 what would go: what no row of any suite refers to
    python -m bench.store prune                          free it
    python -m bench.store prune kind=samples older=30d   samples made more than 30 days ago, whoever refers to them
    python -m bench.store prune keep=features            of all samples, keep features and a few 8-bit images for display
    python -m bench.store prune kind=cache               decoded image folders and streams, which lie in the cache folder
    python -m bench.store check data=NAME                read a stream once more, all of it: does it give what it gave first?

What is freed is made again when something asks for it. What an unfinished sweep needs stays, running or stopped (stopped=true frees that of
stopped ones, too), and so do trained fits that rows refer to. Trainings and fits go only when they are named: kind=fit.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench.settings import cli
from bench.space.keeping import check_keep
from bench.space.pruning import Wanted, check_kind, prune, seconds_of
from bench.space.usage import CACHE, Artefact, artefacts, cached, largest, lasting, sized
from bench.store.artefacts import Store
from fewstep.errors import UsageError, near_misses
from fewstep.progress import say

ACTIONS = ("du", "prune", "check")


def _line(artefact: Artefact) -> list[str]:
    age = lasting(max(0.0, time.time() - artefact.made))
    return [artefact.kind, artefact.key, sized(artefact.size), artefact.cost, age, ", ".join(artefact.suites) or "nobody"]


def _table(lines: list[list[str]], heads: list[str]) -> str:
    return tabulate(lines, heads, tablefmt="simple", disable_numparse=True)


HEADS = ["kind", "address", "size", "to make it again", "age", "needed by"]


def du(found: Sequence[Artefact], most: int) -> None:
    """Print the kinds and the largest artefacts."""
    sizes, counts, unneeded = Counter[str](), Counter[str](), Counter[str]()
    for artefact in found:
        sizes[artefact.kind] += artefact.size
        counts[artefact.kind] += 1
        unneeded[artefact.kind] += 0 if artefact.suites else artefact.size
    lines = [[kind, str(counts[kind]), sized(size), sized(unneeded[kind])] for kind, size in sizes.most_common()]
    print(
        _table(
            [*lines, ["all", str(len(found)), sized(sizes.total()), sized(unneeded.total())]], ["kind", "artefacts", "size", "no row needs"]
        )
    )
    print()
    print(_table([_line(artefact) for artefact in found[:most]], HEADS))
    if len(found) > most:
        say(f"{len(found) - most} smaller ones are not listed; type most={len(found)}")


def check(name: str) -> None:
    """Compare a stream with what it gave first. **Raises**: UsageError where it has changed, or is none."""
    from bench.jobs.models import load_data  # which needs torch

    if not name:
        raise UsageError("say which stream to read again; type data=NAME, or the folder of .npz files as data=PATH")
    data = load_data(name)
    if data.check is None:
        raise UsageError(f"data set '{name}' is no stream, and is read from its own files at every start; give a stream with data=NAME")
    data.check()
    say(f"{name} gives what it gave first: {len(data.train_x) + len(data.heldout_x):,} images, digest {data.digest()[:12]}...")


def run(action: str, config: dict[str, Any]) -> int:
    """The entry point."""
    if action == "check":
        check(config["data"])
        return 0
    check_kind(config["kind"])
    results = Path(config["results"])
    if not (results / ".store").is_dir():
        raise UsageError(f"{results} holds no store, which a sweep makes there; give the folder of one with results=PATH")
    store = Store(results)
    if action == "du":
        kept = cached() if config["kind"] in ("", CACHE) else []
        du(largest([*artefacts(store, [config["kind"]] if config["kind"] else ()), *kept]), config["most"])
        return 0
    if config["keep"]:
        check_keep(config["keep"])
        if config["kind"]:
            raise UsageError(f"keep={config['keep']} says itself which kinds go; leave kind={config['kind']} out")
        if config["keep"] == "samples":
            raise UsageError("keep=samples frees nothing; type keep=features, or keep=none")
    wanted = Wanted(config["kind"], seconds_of(config["older"]), config["keep"], config["stopped"])
    went, left = prune(store, cached() if wanted.kind == CACHE else artefacts(store), wanted, config["dry"])
    if went:
        print(_table([_line(artefact) for artefact in went], HEADS))
    reasons = Counter(reason for _, reason in left)
    for reason, count in reasons.items():
        size = sum(artefact.size for artefact, why in left if why == reason)
        say(f"left {count} artefacts ({sized(size)}): {reason}")
    done = "would be freed by" if config["dry"] else "freed by removing"
    say(f"{sized(sum(artefact.size for artefact in went))} {done} {len(went)} artefacts")
    return 0


def main(args: Sequence[str]) -> int:
    action, *rest = [*args] or [""]
    if {"-h", "--help"} & set(args):
        return cli.entry("store", __doc__ or "", lambda config: 0, ["--help"])

    def acted(config: dict[str, Any]) -> int:
        if action not in ACTIONS:
            raise UsageError(f"say what to do with the store: du, prune or check, got '{action}'{near_misses(action, ACTIONS)}")
        return run(action, config)

    return cli.entry("store", __doc__ or "", acted, rest)
