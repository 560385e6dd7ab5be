"""The registry: what it refuses, what it suggests, and that plugins are part of it."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from fewstep import plugins as registry
from fewstep.errors import UsageError, near_misses
from fewstep.plugins import entries, get, register


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    """Each test works on a copy of the loaded registry."""
    registry.load()
    monkeypatch.setattr(registry, "_entries", dict(registry._entries))


@dataclass(frozen=True)
class Mine:
    """A stand-in for a plugin."""

    version: int = 1
    strength: float = 0.5


def test_a_name_is_taken_once():
    register("solver", "mine", "arXiv 0000.00000")(Mine)
    register("solver", "mine", "arXiv 0000.00000")(Mine)  # the same again: a module imported twice

    @dataclass(frozen=True)
    class Other:
        version: int = 1

    with pytest.raises(UsageError, match="solver 'mine' is registered already by"):
        register("solver", "mine", "arXiv 0000.00000")(Other)
    with pytest.raises(UsageError, match="solver 'mine' is registered already by"):
        register("solver", "mine", "arXiv 0000.00000", strength=0.9)(Mine)  # another preset under the same name
    register("distiller", "mine", "arXiv 0000.00000")(Other)  # another kind is another name


def test_only_frozen_dataclasses_are_methods():
    @dataclass
    class Thawed:
        version: int = 1

    class Plain:
        pass

    for cls in (Thawed, Plain):
        with pytest.raises(UsageError, match="must be a frozen dataclass"):
            register("solver", "thawed", "arXiv 0000.00000")(cls)
    assert "thawed" not in entries("solver")


def test_an_unknown_kind_is_refused():
    with pytest.raises(UsageError, match="unknown kind 'solvr'; did you mean solver"):
        register("solvr", "x", "arXiv 0000.00000")


def test_unknown_names_and_fields_suggest_the_near_ones():
    with pytest.raises(UsageError, match=r"unknown solver 'dpmpp_2n'; did you mean .*dpmpp_2m"):
        get("solver", "dpmpp_2n")
    with pytest.raises(UsageError, match="solver 'dpmpp_3m' has no field 'lower_order_finale'; did you mean lower_order_final"):
        get("solver", "dpmpp_3m").make(lower_order_finale=False)


def test_presets_are_defaults_that_options_replace():
    register("solver", "strong", "arXiv 0000.00000", strength=2.0)(Mine)
    entry = get("solver", "strong")
    assert entry.fields == {"version": 1, "strength": 2.0}
    assert entry.make() == Mine(strength=2.0)
    assert entry.make(strength=3.0) == Mine(strength=3.0)


def test_plugins_are_loaded_from_entry_points(monkeypatch):
    point = SimpleNamespace(name="mine", value="my_package.solvers", load=lambda: register("solver", "plugged", "arXiv 0000.00000")(Mine))
    monkeypatch.setattr(registry, "entry_points", lambda group: [point] if group == "fewstep.methods" else [])
    monkeypatch.setattr(registry, "_loaded", [])
    assert "plugged" in entries("solver")
    assert "euler" in entries("solver")


def test_a_plugin_that_fails_is_named(monkeypatch):
    def load():
        raise ImportError("no module named torchvison")

    point = SimpleNamespace(name="mine", value="my_package.solvers", load=load)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    monkeypatch.setattr(registry, "_loaded", [])
    with pytest.raises(UsageError, match=r"plugin 'mine' \(my_package\.solvers\) fails to import: no module named torchvison"):
        entries("solver")


def test_near_misses_list_everything_when_nothing_is_near():
    assert near_misses("zzz", ["heun", "euler"]) == "; known: euler, heun"
    assert near_misses("hoin", ["heun", "euler"]) == "; did you mean heun?"
    assert near_misses("zzz", []) == ""
