"""Plugins that a test puts into the registry, or changes there, and that are gone after it."""

import dataclasses

import pytest

from fewstep import plugins


def put(monkeypatch, kind, name, target, **preset):
    """Register a class or function under a name for one test, in place of any that is there."""
    plugins.load([kind])
    monkeypatch.setitem(plugins._entries, (kind, name), plugins.Entry(kind, name, "a test", target, preset))


def changed(monkeypatch, kind, name, **changes):
    """An entry with other fields for one test."""
    monkeypatch.setitem(plugins._entries, (kind, name), dataclasses.replace(plugins.get(kind, name), **changes))


def chosen(kind, now, never=()):
    """The names of a kind for `parametrize`: those of `now`, which are as unlike as can be, and the others with the slow tests."""
    assert set(now) <= set(plugins.entries(kind))
    names = [name for name in plugins.entries(kind) if name not in never]
    return [name if name in now else pytest.param(name, marks=pytest.mark.slow) for name in names]
