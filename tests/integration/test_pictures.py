"""Pictures of a report, from synthetic rows; and a report where there is no torch."""

import json
import subprocess
import sys

import numpy as np
from matplotlib.image import imread
from safetensors.numpy import save_file

from bench.reports.plots.overview import read_samples
from bench.reports.tables import cells
from bench.reports.writing import write_report
from bench.store.addresses import seal
from support.repository import ROOT
from support.synthetic import fake_samples, synthetic_rows


def test_samples_are_the_first_of_each_class(tmp_path):
    images = fake_samples(tmp_path, "a", noise=1.0, seed=0)
    found = read_samples(tmp_path, "a")
    assert sorted(found) == list(range(10))
    assert all(np.array_equal(found[c], images[c]) for c in range(10))
    folder = tmp_path / "samples" / "unlabelled"
    folder.mkdir()
    save_file({"images": images, "labels": np.zeros(len(images), dtype=np.int64)}, folder / "samples.safetensors")
    assert sorted(read_samples(tmp_path, "unlabelled")) == list(range(10))  # the first ten, in their order
    assert np.array_equal(read_samples(tmp_path, "unlabelled")[9], images[9])
    assert read_samples(tmp_path, "b") is None
    (tmp_path / "samples" / "a" / "samples.safetensors").write_bytes(b"not a file of tensors")
    assert read_samples(tmp_path, "a") is None


def test_pictures_are_drawn_with_all_few_and_no_rows(tmp_path):
    store = tmp_path / ".store"
    rows = synthetic_rows(store)
    for name, some in (("all", rows), ("few", rows[:4]), ("none", [])):
        write_report(tmp_path / name, some, store, pictures=True)
        drawn = {p.name for p in (tmp_path / name).glob("*.png")}
        grids = {f"samples_{m}.png" for m in ("cd", "pd", "teacher")}
        expected = {"all": grids, "few": {"samples_teacher.png"}, "none": set()}[name]
        students = {"students_vs_nfe.png", "students_cost.png"} if name == "all" else set()
        timed = {"all": {"quality_vs_latency.png"}, "few": set(), "none": {"quality_vs_latency.png"}}[name]  # an empty one says so
        assert drawn == {"quality_vs_nfe.png"} | timed | expected | students
        for path in (tmp_path / name).glob("*.png"):
            assert np.ptp(imread(path)[..., :3]) > 0.5  # something dark on white


def test_each_of_several_models_has_its_own_pictures(tmp_path):
    rows = synthetic_rows(tmp_path / ".store")
    other = [{**row, "model": "other"} for row in rows if row["method"] in ("naive", "cd")]
    write_report(tmp_path / "two", rows + other, tmp_path / ".store", pictures=True)
    grids = {"digits": {"cd", "pd", "teacher"}, "other": {"cd"}}
    for model, methods in grids.items():
        drawn = {p.name for p in (tmp_path / "two" / model).glob("*.png")}
        assert drawn == {"quality_vs_nfe.png", "quality_vs_latency.png"} | {f"samples_{m}.png" for m in methods}
    assert {p.name for p in (tmp_path / "two").glob("*.png")} == {"students_vs_nfe.png", "students_cost.png"}


def test_no_pictures_are_drawn_unless_asked(tmp_path):
    write_report(tmp_path, synthetic_rows(), tmp_path / ".store", pictures=False)
    names = {"summary.md", "few_steps.md", "students.md", "table.csv", "table.md", "table.tex", "bars.md", "published.md"}
    assert {p.name for p in tmp_path.iterdir()} == names


def test_the_report_needs_no_torch(tmp_path):
    (tmp_path / "digits").mkdir()
    rows = [json.dumps(seal(row)) for row in synthetic_rows(tmp_path / ".store")]
    (tmp_path / "digits" / "runs.jsonl").write_text("\n".join([*rows, '{"key": "torn', ""]))
    code = f"""
import sys
class Forbid:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is forbidden here")
sys.meta_path.insert(0, Forbid())
from bench import report
from bench.settings import cli
code = cli.entry("report", "", report.run, ["suite=digits", {f"results={tmp_path}"!r}])
assert "torch" not in sys.modules
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"line {len(rows) + 1} left out" in done.stderr
    assert "cd l2, consistency, NFE 1" in done.stdout
    assert len((tmp_path / "digits" / "table.csv").read_text().splitlines()) - 1 == len(cells(synthetic_rows()))
    assert (tmp_path / "digits" / "samples_cd.png").is_file()
