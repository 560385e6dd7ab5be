"""Plugins that a test puts into the registry, or changes there, and that are gone after it."""

import dataclasses

from fewstep import plugins


def put(monkeypatch, kind, name, target, **preset):
    """Register a class or function under a name for one test, in place of any that is there."""
    plugins.load([kind])
    monkeypatch.setitem(plugins._entries, (kind, name), plugins.Entry(kind, name, "a test", target, preset))


def changed(monkeypatch, kind, name, **changes):
    """An entry with other fields for one test."""
    monkeypatch.setitem(plugins._entries, (kind, name), dataclasses.replace(plugins.get(kind, name), **changes))
