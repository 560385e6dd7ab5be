"""A check that is made for many small cases within one test."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def each(names: str | tuple[str, ...], cases: Iterable[Any], ids: object = None) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """`pytest.mark.parametrize` as one test: it loops over the cases inside, and names every case that fails.

    For cases that take milliseconds, of which a test of its own would cost more than the check. Each case gets a folder of its own
    (`tmp_path`), and what it patched (`monkeypatch`) is undone after it. The test is skipped where every case is.
    """
    single = isinstance(names, str) and "," not in names
    made = list(cases)
    keys = [part.strip() for part in names.split(",")] if isinstance(names, str) else list(names)

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(test)
        assert set(keys) <= set(signature.parameters), f"{test.__name__} takes no {keys}"

        @functools.wraps(test)
        def loop(*args: Any, **fixtures: Any) -> None:
            failures, skips, count = [], [], 0
            for count, case in enumerate(made, 1):
                given = dict(zip(keys, [case] if single else case, strict=True))
                try:
                    _call(test, count, args, {**fixtures, **given})
                except pytest.skip.Exception as skip:
                    skips.append(skip)
                except (Exception, pytest.fail.Exception) as error:  # the latter of `pytest.raises` where nothing is raised
                    error.add_note(f"case {count}: " + ", ".join(f"{key}={value!r}" for key, value in given.items()))
                    failures.append(error)
            assert count, f"{test.__name__} has no case"
            if failures:
                raise failures[0] if len(failures) == 1 else BaseExceptionGroup(f"{len(failures)} of {count} cases", failures)
            if len(skips) == count:
                raise skips[0]
            if skips:
                warnings.warn(f"{test.__name__}: {len(skips)} of {count} cases were skipped ({skips[0]})", stacklevel=1)

        kept = [p for name, p in signature.parameters.items() if name not in keys]
        loop.__signature__ = signature.replace(parameters=kept)  # pyright: ignore[reportAttributeAccessIssue]
        return loop

    return decorate


def _call(test: Callable[..., None], count: int, args: tuple[Any, ...], given: dict[str, Any]) -> None:
    if "tmp_path" in given:
        given["tmp_path"] = given["tmp_path"] / str(count)
        given["tmp_path"].mkdir()
    if "monkeypatch" not in given:
        return test(*args, **given)
    with given["monkeypatch"].context() as patch:
        return test(*args, **{**given, "monkeypatch": patch})
