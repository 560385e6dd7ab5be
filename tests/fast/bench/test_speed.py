"""Tables and bars from a small benchmark file made by hand."""

import json
import subprocess
import sys
from pathlib import Path

from bench import speed
from support.each import each
from support.repository import ROOT

MACHINE = {"device": "A processor", "threads": 2, "cores": 2, "torch": "2.15.0", "python": "3.11.7", "cache_bytes": 32 << 20}


def update(way: str, cache: str, seconds: float, shape: str = "64x3x32x32", guided: bool = False, **more) -> dict:
    info = {"kind": "update", "way": way, "cache": cache, "shape": shape, "dtype": "float32", "solver": "dpmpp_2m", "guided": guided}
    stats = {"median": 20 * seconds, "iqr": 2 * seconds, "rounds": 5}
    return {"name": f"{way}-{cache}", "stats": stats, "extra_info": {**info, "steps": 20, "load": 0.0, **more}}


def images(way: str, solver: str, **more) -> dict:
    info = {"kind": "images", "model": "digits", "solver": solver, "evals": 10, "batch": 64, "way": way, "load": 0.0}
    return {"name": way, "stats": {"median": 0.064, "iqr": 0.0064, "rounds": 5}, "extra_info": {**info, **more}}


def noise(way: str, seconds: float) -> dict:
    info = {"kind": "noise", "way": way, "shape": "10x100", "normals": 1000, "load": 0.0}
    return {"name": way, "stats": {"median": seconds, "iqr": 0.0, "rounds": 5}, "extra_info": info}


FIGURES = [
    update("run", "cold", 1e-4, bytes=2_000_000, floor=8e-5),
    update("run", "warm", 5e-5, bytes=2_000_000, floor=2e-5, load=0.3),  # disturbed
    *(update("diffusers", cache, seconds) for cache, seconds in (("cold", 6e-4), ("warm", 2e-4))),
    update("eager", "cold", 2.5e-4),
    update("run", "warm", 1e-5, "1x3x32x32", guided=True, bytes=30_000, floor=1e-6),
    update("diffusers", "warm", 2e-4, "1x3x32x32", guided=True),
    update("run", "warm", 1e-3, "256x3x64x64", bytes=50_000_000, floor=4e-4),
    images("lowered", "dpmpp_2m", outside=0.01, outside_seconds=6e-4),
    images("lowered", "dpmpp_2m_sde", outside=0.03, outside_seconds=2e-3),
    images("graphed", "dpmpp_2m"),
    noise("torch.randn", 2e-6),
    noise("Philox", 1e-6),
    {"name": "of another kind", "stats": {"median": 1.0, "iqr": 0.0, "rounds": 5}, "extra_info": {}},
]


def written(folder: Path, figures: list[dict] = FIGURES, **machine) -> Path:
    path = folder / "speed.json"
    made = {"machine_info": {**MACHINE, **machine}, "datetime": "2026-01-02T03:04:05+00:00", "benchmarks": figures}
    path.write_text(json.dumps(made))
    return path


def cells(text: str, start: str) -> list[str]:
    """The cells of the first table line that starts with a word."""
    line = next(line for line in text.splitlines() if line.startswith("|") and line.strip("| ").startswith(start))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_tables(tmp_path, capsys) -> None:
    path = written(tmp_path, problems={"compiled": "no compiler"})
    assert speed.main([str(path)]) == 0
    text = path.with_suffix(".md").read_text()
    for part in (
        "A processor, 2 cores, 2 threads",
        "torch 2.15.0",
        "2026-01-02",
        "Not timed: compiled (no compiler).",
        "a run of 20 steps",
    ):
        assert part in text
    found = cells(text[text.index("### 64x3x32x32") :], "dpmpp_2m")
    assert found == ["dpmpp_2m", "", "100 ± 10", "50.0 ± 5.0*", "2.0 MB", "80% / 40%*", "2.5 / -", "- / -", "6.0 / 4.0*"]
    found = cells(text[text.index("### 1x3x32x32") :], "dpmpp_2m")
    assert found == ["dpmpp_2m", "yes", "-", "10.0 ± 1.0", "30.0 kB", "- / 10%", "- / -", "- / -", "- / 20.0"]
    assert cells(text, "digits")[3:] == ["64", "lowered", "1.000 ± 0.100", "1.00%", "60"]
    assert cells(text, "10x100")[1:] == ["torch.randn", "2.0 ± 0.0", "2.00", "1.00"]
    assert "all" in capsys.readouterr().out


def test_the_bars(tmp_path) -> None:
    _, figures = speed.read_figures(written(tmp_path))
    held = {bar.what: bar.holds for bar in speed.bars(figures)}
    assert held == {
        "diffusers' time over ours on 64x3x32x32, cold": True,
        "diffusers' time over ours on 64x3x32x32, warm": None,
        "diffusers' time over ours on 1x3x32x32, cold": None,
        "diffusers' time over ours on 1x3x32x32, warm": True,
        "share of the copy floor on 256x3x64x64, cold": None,
        "share of the copy floor on 256x3x64x64, warm": False,
        "time outside of the network, digits, batch 64, dpmpp_2m": True,
        "time outside of the network, digits, batch 64, dpmpp_2m_sde": False,
    }


def test_the_least_is_named(tmp_path) -> None:
    slow = update("run", "cold", 3e-4, guided=True, bytes=1, floor=1e-4)
    _, figures = speed.read_figures(written(tmp_path, [*FIGURES, slow, update("diffusers", "cold", 6e-4, guided=True)]))
    bar = next(bar for bar in speed.bars(figures) if bar.what == "diffusers' time over ours on 64x3x32x32, cold")
    assert not bar.holds
    assert bar.found == "median 4.0, least 2.0 (dpmpp_2m guided, float32); 1 of 2 reach it"


def test_nothing_measured(tmp_path) -> None:
    path = written(tmp_path, [])
    assert speed.main([str(path)]) == 0
    assert path.with_suffix(".md").read_text().count("Not measured.") == 2


@each("content", ["", "{}", "[]", '{"benchmarks": [{}]}', '{"benchmarks": 3}'])
def test_another_file_is_refused(tmp_path, capsys, content: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(content)
    assert speed.main([str(path)]) == 2
    assert "is no benchmark JSON" in capsys.readouterr().err
    assert not path.with_suffix(".md").exists()


def test_arguments(tmp_path, capsys) -> None:
    assert speed.main(["--help"]) == 0
    assert "make bench" in capsys.readouterr().out
    assert speed.main([]) == 2
    assert speed.main([str(tmp_path / "absent.json")]) == 2
    assert "absent.json cannot be used" in capsys.readouterr().err


def test_it_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; import bench.speed"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
