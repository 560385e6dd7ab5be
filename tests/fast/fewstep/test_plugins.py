"""The registry: what it refuses, what it suggests, and that plugins are part of it."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest

from fewstep import plugins as registry
from fewstep.errors import UsageError, near_misses
from fewstep.plugins import entries, get, register
from methods.claims import Claims


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
    claims = Claims(order=1)

    def plan(self, grid):
        return grid


@dataclass(frozen=True)
class Trains:
    """A stand-in for a training."""

    version: int = 1

    def build(self, teacher): ...
    def phases(self): ...
    def losses(self, state, batch, rng): ...


def test_a_plugin_that_lacks_what_its_kind_needs_is_refused():
    @dataclass(frozen=True)
    class Halfway:
        version: int = 1

        def build(self, teacher): ...

    with pytest.raises(UsageError, match=r"pretrain 'half' lacks phases, losses; a pretrain .* has version, build, phases, losses"):
        register("pretrain", "half")(Halfway)
    with pytest.raises(UsageError, match=r"data 'none' must be a class or a function .*, got int"):
        register("data", "none")(3)
    assert "half" not in entries("pretrain")

    @dataclass(frozen=True)
    class Mute:
        version: int = 1
        unit: str = "none"
        higher_is_better: bool = False

    with pytest.raises(UsageError, match=r"metric 'mute' lacks __call__"):
        register("metric", "mute")(Mute)

    @dataclass(frozen=True)
    class Bare:
        strength: float
        version: int = 1

    with pytest.raises(UsageError, match=r"pretrain 'bare': strength has no default"):
        register("pretrain", "bare")(Bare)


def test_functions_have_versions_and_declare_facts():
    @register("wrapper", "twice", "arXiv 0000.00000", version=3, why="a test")
    def twice(d):
        """2 D."""
        return 2 * d

    entry = get("wrapper", "twice")
    assert (entry.version, entry.preset, entry.fields, entry.make(d=2)) == (3, {"why": "a test"}, {}, 4)


def test_a_module_is_loaded_by_name(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "_modules", {})
    (tmp_path / "own_plugin.py").write_text("from fewstep import register\n@register('wrapper', 'same')\ndef same(d):\n    return d\n")
    registry.load_module("own_plugin")
    assert "same" in entries("wrapper")
    assert registry.modules() == {"own_plugin": str(tmp_path / "own_plugin.py")}
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    with pytest.raises(UsageError, match="plugins=broken_plugin fails to import: division by zero"):
        registry.load_module("broken_plugin")
    (tmp_path / "taken.py").write_text("from fewstep import register\n@register('wrapper', 'clip')\ndef clip(d):\n    return d\n")
    with pytest.raises(UsageError, match=r"plugins=taken: wrapper 'clip' is registered already by fewstep\.wrappers; choose another name"):
        registry.load_module("taken")


def test_a_name_is_taken_once():
    register("solver", "mine", "arXiv 0000.00000")(Mine)
    register("solver", "mine", "arXiv 0000.00000")(Mine)  # the same again: a module imported twice

    @dataclass(frozen=True)
    class Other:
        """Another."""

        version: int = 1
        claims = Claims(order=1)

        def plan(self, grid):
            return grid

    with pytest.raises(UsageError, match="solver 'mine' is registered already by"):
        register("solver", "mine", "arXiv 0000.00000")(Other)
    with pytest.raises(UsageError, match="solver 'mine' is registered already by"):
        register("solver", "mine", "arXiv 0000.00000", strength=0.9)(Mine)  # another preset under the same name
    register("pretrain", "mine", "arXiv 0000.00000")(Trains)  # another kind is another name


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
    monkeypatch.setattr(registry, "_loaded", set(registry._loaded) - set(registry.GROUPS))
    assert "plugged" in entries("solver")
    assert "euler" in entries("solver")


def test_a_plugin_that_fails_is_named(monkeypatch):
    def load():
        raise ImportError("no module named torchvison")

    point = SimpleNamespace(name="mine", value="my_package.solvers", load=load)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    monkeypatch.setattr(registry, "_loaded", set(registry._loaded) - set(registry.GROUPS))
    with pytest.raises(UsageError, match=r"plugin 'mine' \(my_package\.solvers\) fails to import: no module named torchvison"):
        entries("solver")


def test_near_misses_list_everything_when_nothing_is_near():
    assert near_misses("zzz", ["heun", "euler"]) == "; known: euler, heun"
    assert near_misses("hoin", ["heun", "euler"]) == "; did you mean heun?"
    assert near_misses("zzz", []) == ""
