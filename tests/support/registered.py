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


def every(kind):
    """The names of a kind for `parametrize`: the last of each class now, and presets of the same class with the slow tests."""
    found = plugins.entries(kind)
    last = {entry.target: name for name, entry in found.items()}.values()
    return [name if name in last else pytest.param(name, marks=pytest.mark.slow) for name in found]
