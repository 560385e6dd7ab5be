"""The shape of the project, checked on its source: imports, names, sizes, docstrings."""

import ast
import importlib.metadata
import importlib.util
import inspect
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from bench.settings.files import choices
from fewstep.plugins import KINDS, entries
from support.each import each
from support.repository import ROOT

PACKAGES = ("fewstep", "kernels", "methods", "metrics", "bench")
# What each package may import of the project: bench -> methods, metrics -> fewstep -> kernels.
MAY_IMPORT = {
    "kernels": {"kernels"},
    "fewstep": {"fewstep", "kernels"},
    "methods": {"methods", "fewstep", "kernels"},
    "metrics": {"metrics", "fewstep", "kernels"},
    "bench": set(PACKAGES),
}
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# Functions with more than eight parameters, each with its reason.
MANY_PARAMETERS = {"kernels/fused.py:kernel": "what a device kernel reads comes one by one"}


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in it. Relative imports are refused."""
    found = set()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}:{node.lineno} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _top(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


# The rooms of bench by floor: a room may import itself and rooms below; the modules beside them are entry points, above all.
FLOORS = (
    {"store", "settings"},
    {"evaluate", "training", "space"},
    {"jobs"},
    {"execute", "fetching", "reports"},
    {"certificate", "studies"},
)
MOST = 12  # modules in a room of bench or of metrics


def _room(module: str) -> str:
    """The room of bench that a module is in (`bench.store.rows`, or a name in it); empty for an entry point."""
    _, name, *_ = *module.split("."), ""
    return name if (ROOT / "bench" / name).is_dir() else ""


def _floor(room: str) -> int:
    return next((i for i, rooms in enumerate(FLOORS) if room in rooms), len(FLOORS))


def _climbs(path: Path) -> list[str]:
    """What a file of bench imports from a room that is not below its own."""
    own = _room(".".join(path.relative_to(ROOT).with_suffix("").parts))
    met = {name: _room(name) for name in _imports(path) if name.split(".")[0] == "bench"}
    return sorted(name for name, room in met.items() if room != own and _floor(room) >= _floor(own) and (own or room))


def test_rooms_of_bench_point_down():
    assert {path.name for path in (ROOT / "bench").iterdir() if (path / "__init__.py").exists()} == set().union(*FLOORS)
    wrong = {_name(path): climbs for path in MODULES if _name(path).startswith("bench/") and (climbs := _climbs(path))}
    assert not wrong


NAMELESS = ("solver", "distiller", "pretrain", "metric", "data", "closed_form", "network", "wrapper", "extractor", "check", "study")
HOMONYMS = {"precision"}  # the metric, and that of a training's arithmetic
MAY_NAME = ("bench/conf/", "bench/certificate/", "bench/studies/")


def _texts(path: Path) -> list[tuple[int, str]]:
    """The strings of a file with their lines, docstrings apart."""
    tree = _tree(path)
    docs = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    found = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs)
    return [(node.lineno, str(node.value)) for node in found]


def test_bench_names_no_method_metric_data_set_or_model():
    """What it needs to know of one, the plugin declares, or a file of data says."""
    names = {name for kind in NAMELESS for name, entry in entries(kind).items() if not entry.target.__module__.startswith("bench.")}
    names = (names | set(choices("model"))) - HOMONYMS
    assert len(names) > 100
    wrong = []
    for path in (p for p in MODULES if _name(p).startswith("bench/") and not _name(p).startswith(MAY_NAME)):
        wrong += [f"{_name(path)}:{line}: {text!r}" for line, text in _texts(path) if names & set(re.findall(r"\w+", text))]
    assert not wrong


def test_a_room_can_be_taken_in_at_a_glance():
    own = (path for path in MODULES if _name(path).startswith(("bench/", "metrics/")))
    rooms = (path for path in own if path.parent != ROOT / "bench")  # where the commands stand
    sizes = Counter(path.parent for path in rooms if path.name != "__init__.py")
    assert not {_name(room): size for room, size in sizes.items() if size > MOST}


def _cycles() -> list[set[str]]:
    """Groups of modules that import each other, imports inside functions and those for types alone among them."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES}
    graph = {
        name: {full if full in names else full.rpartition(".")[0] for full in _imports(path)} & set(names) for name, path in names.items()
    }
    reach = {name: set(below) for name, below in graph.items()}
    for middle in names:
        for name in names:
            if middle in reach[name]:
                reach[name] |= reach[middle]
    return [{other for other in reach[name] if name in reach[other]} for name in names if name in reach[name]]


def test_nothing_imports_itself():
    assert not _cycles()


def test_there_is_something_to_check():
    assert {_name(p).split("/")[0] for p in MODULES} >= set(PACKAGES) - {"kernels"}
    assert len(MODULES) > 20


@each("path", MODULES)
def test_imports_point_down(path):
    package = _name(path).split("/")[0]
    wrong = (_top(_imports(path)) & set(PACKAGES)) - MAY_IMPORT[package]
    assert not wrong, f"{_name(path)} imports {sorted(wrong)}; {package} may import {sorted(MAY_IMPORT[package])}"
    assert "tests" not in _top(_imports(path))
    if package != "bench":
        assert not _top(_imports(path)) & {"hydra", "omegaconf"}, f"{_name(path)}: only bench knows hydra"


@each("path", [p for p in MODULES if _name(p).startswith("methods/")])
def test_methods_own_no_optimiser(path):
    assert not {name for name in _imports(path) if name.startswith("torch.optim")}, "optimisers belong to the training engine"
    assert "torch.optim" not in path.read_text(encoding="utf-8")


@each("path", MODULES)
def test_nothing_is_unpickled_or_trusted(path):
    calls = {"pickle.load", "pickle.loads", "torch.jit.load", "eval", "exec"}
    arguments = {"weights_only=False", "trust_remote_code=True", "strict=False"}
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Call):
            call, where = ast.unparse(node.func), f"{_name(path)}:{node.lineno}"
            assert call not in calls, f"{where} calls {call}"
            passed = {f"{word.arg}={ast.unparse(word.value)}" for word in node.keywords}
            assert call == "zip" or not passed & arguments, f"{where} passes {passed & arguments}"


def test_kernels_is_ours_and_stands_alone():
    """`kernels` is also the name of a distribution that other libraries import lazily when it is there: it must stay out."""
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("kernels")
    spec = importlib.util.find_spec("kernels")
    places = [] if spec is None else [Path(place) for place in spec.submodule_search_locations or []]
    assert {place for place in places if place.is_dir()} <= {ROOT / "kernels"}
    allowed = {"kernels", "llvmlite", "numba", "numpy", "torch", "triton", *sys.stdlib_module_names}
    for path in MODULES:
        if _name(path).startswith("kernels/"):
            assert _top(_imports(path)) <= allowed, _name(path)


@each("path", MODULES)
def test_files_are_short_and_named_for_what_they_do(path):
    assert path.stem not in {"utils", "util", "helpers", "common", "misc"}, f"{_name(path)}: name a file for what is in it"
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines < 400, f"{_name(path)} has {lines} lines"


def _parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    args = function.args
    return [a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs) if a.arg not in {"self", "cls"}]


@each("path", MODULES)
def test_signatures_are_small(path):
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            where = f"{_name(path)}:{node.name}"
            assert len(_parameters(node)) <= 8 or where in MANY_PARAMETERS, f"{where} takes {len(_parameters(node))} parameters"


@each("path", MODULES)
def test_public_names_have_a_short_docstring(path):
    """Top-level functions and classes; the docstring of an entry point's `main` is its module's, which --help prints."""
    tree = _tree(path)
    assert ast.get_docstring(tree), f"{_name(path)} has no docstring"
    public = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_") and n.name != "main"]
    silent = [node.name for node in public if not ast.get_docstring(node)]
    assert not silent, f"{_name(path)}: no docstring on {silent}"
    long = [node.name for node in public if len((ast.get_docstring(node) or "").splitlines()) > 12]
    assert not long, f"{_name(path)}: a docstring has at most twelve lines, see {long}"


def _concrete(node: ast.ClassDef) -> bool:
    return not any("Protocol" in ast.unparse(base) for base in node.bases)


def test_concrete_classes_do_not_inherit_from_each_other():
    classes = [(path, node) for path in MODULES for node in ast.walk(_tree(path)) if isinstance(node, ast.ClassDef)]
    ours = {node.name for path, node in classes if _concrete(node) and path.name != "errors.py"}  # errors may be kinds of errors
    for path, node in classes:
        assert not ours & {ast.unparse(base) for base in node.bases}, f"{_name(path)}:{node.name} inherits from a concrete class"


@each("path", TESTS)
def test_tolerances_say_why(path):
    """A call with `atol=` or `rtol=` carries a comment, or stands right below one: its error budget."""
    lines = path.read_text(encoding="utf-8").splitlines()
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Call) and {word.arg for word in node.keywords} & {"atol", "rtol"}:
            own, above = lines[node.lineno - 1 : node.end_lineno], lines[node.lineno - 2].strip()
            commented = above.startswith("#") or any("#" in line for line in own)
            assert commented, f"{_name(path)}:{node.lineno}: a tolerance without its error budget"


def test_the_report_needs_no_torch():
    """Tables and plots are rebuilt on a machine without torch."""
    if not (ROOT / "bench" / "report.py").exists():
        pytest.skip("bench/report.py is not there yet: that it works without torch was not checked")
    code = "import sys; sys.modules['torch'] = None; import bench.report"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


ARXIV = re.compile(r"\b\d{4}\.\d{5}\b")


METHODS = ("solver", "distiller", "pretrain")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in METHODS for name in entries(kind)])
def test_every_method_names_its_paper_and_builds_from_defaults(kind, name):
    entry = entries(kind)[name]
    assert entry.paper.strip()
    if kind != "pretrain":
        assert ARXIV.search(entry.paper), f"{kind} '{name}' names no arXiv id"
    bibliography = (ROOT / "docs" / "refs.bib").read_text(encoding="utf-8")
    missing = [number for number in ARXIV.findall(entry.paper) if number not in bibliography]
    assert not missing, f"add {missing} to docs/refs.bib"
    made = entry.make()
    assert isinstance(made.version, int)
    assert made.version >= 1


@pytest.mark.parametrize("kind", KINDS)
def test_every_plugin_says_what_it_is(kind):
    """A line for `bench.ls`, and a version."""
    for name, entry in entries(kind).items():
        assert inspect.getdoc(entry.target), f"{kind} '{name}' has no docstring"
        assert entry.version >= 1


def test_every_paper_in_the_source_is_in_the_bibliography():
    bibliography = (ROOT / "docs" / "refs.bib").read_text(encoding="utf-8")
    cited = {number for path in MODULES for number in ARXIV.findall(path.read_text(encoding="utf-8"))}
    assert len(cited) > 10
    assert not {number for number in cited if number not in bibliography}


def test_the_checks_would_fail(tmp_path):
    """The helpers above see what they are meant to see."""
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from torch.optim import Adam\n    import bench.sweep\n")
    assert _imports(bad) == {"torch.optim.Adam", "bench.sweep"}
    wide = ast.parse("def f(self, a, /, b, *, c): ...").body[0]
    assert isinstance(wide, ast.FunctionDef)
    assert _parameters(wide) == ["a", "b", "c"]
