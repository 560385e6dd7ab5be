"""python -m bench.fetch suite=cifar: get and verify what others publish and a suite needs: data sets, feature networks, teachers.

    python -m bench.fetch                            everything that can be fetched, and what of it is here
    python -m bench.fetch suite=cifar                what a suite needs
    python -m bench.fetch what=cifar10,inception     assets by name, or one piece of one: what=lpips.vgg16
    python -m bench.fetch suite=cifar dry=true       only list: size, digest, licence and source of each file

Files lie in `fetched` in the cache folder ($FEWSTEP_CACHE, by default ~/.cache/fewstep). What is there is verified, what is missing or
broken is fetched, and what was begun is gone on with. See docs/fetching.md.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from bench.fetching.getting import ensure_all, sized
from bench.settings import cli
from fewstep.assets import File, Piece, assets, located, named, pieces, recorded, shown
from fewstep.errors import UsageError


def _digest(file: File) -> str:
    """The digest that it is held to."""
    if file.sha256:
        return f"SHA-256 {file.sha256[:16]}"
    first = recorded(file.name)
    return f"SHA-256 {first[:16]} (as it first came)" if first else "no digest is published: held to that with which it first comes"


def _lines(file: File, by_hand: str) -> list[str]:
    path = located(file.name)
    size = sized(file.size) or (sized(path.stat().st_size) if path else "size not stated")
    here = [f"here: {shown(path)}"] if path else []
    sources = [f"from {file.package[0]} {file.package[1]}"] if file.package else []
    sources = [*(f"from {url}" for url in file.urls), *sources] or [by_hand]
    return [f"    {file.name}", *(f"        {line}" for line in (f"{size}, {_digest(file)}", f"licence: {file.licence}", *sources, *here))]


def listing(found: Sequence[Piece]) -> str:
    """Each piece with every file that will do for it."""
    lines = list[str]()
    for piece in found:
        one = "" if len(piece.files) == 1 else ", one of these"
        lines += [f"{piece.label}: {assets()[piece.asset].what}{one}"]
        lines += [line for file in piece.files for line in _lines(file, piece.by_hand)]
    return "\n".join(lines)


def asked(config: dict[str, Any]) -> list[Piece]:
    """The pieces of `what`, then those of the suite. **Raises**: UsageError for an unknown name."""
    names = [name.strip() for name in str(config["what"]).split(",") if name.strip()]
    found = [piece for name in names for piece in named(name)]
    if config.get("suite") is not None:
        from bench.fetching.wants import wanted  # which needs torch, as nothing else here does

        found += wanted(config)
    return list({piece.label: piece for piece in found}.values())


def run(config: dict[str, Any]) -> int:
    """The entry point; exit code 2 where something could not be had."""
    nothing = not config["what"] and config.get("suite") is None
    found = pieces() if nothing else asked(config)
    if not found:
        raise UsageError(f"suite {config['suite'].get('name')} needs no file of others; python -m bench.fetch lists what there is")
    print(listing(found), flush=True)
    if nothing or config["dry"]:
        return 0
    return 2 if ensure_all(found) else 0


def main(args: Sequence[str]) -> int:
    return cli.entry("fetch", __doc__ or "", run, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
