"""Tables, ratios, papers' numbers and pictures from synthetic rows."""

import csv
import io
import json
import random
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from safetensors.numpy import save_file

from bench import cli, report
from bench import published as papers
from bench.bars import bars, best, print_bars
from bench.plots import pareto, read_samples
from bench.report import write_report
from bench.store import seal
from bench.tables import COLUMNS, METRICS, TIMING_COLUMNS, cells, latex, markdown, wide, write_tables
from fewstep.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
FLOOR, MEANS = 0.1, 20.1  # floor and class means of the synthetic rows: best - floor is 20 where nothing beats the class means


def cell_rows(method="teacher", solver="euler", nfe=5, steps=None, guidance=1.0, loss="", grid="polynomial", end="zero", **more):
    """The rows of one cell: `values` maps metrics to numbers, None for unavailable, an exception for failed."""
    afs, seed, dataset = more.get("afs", False), more.get("seed", 0), more.get("dataset", "digits")
    values, key = (
        more["values"],
        sha256(repr((method, solver, nfe, guidance, loss, grid, end, afs, seed)).encode()).hexdigest()[:16],
    )
    out = []
    for metric, value in values.items():
        status = "failed" if isinstance(value, Exception) else "unavailable" if value is None else "ok"
        error = str(value) if status == "failed" else "" if status == "ok" else f"the weights of {metric} are not here"
        out.append(
            {
                "key": key,
                "suite": dataset,
                "dataset": dataset,
                "model": dataset,
                "method": method,
                "solver": solver,
                "grid": grid,
                "nfe": nfe,
            }
            | {"steps": nfe if steps is None else steps, "guidance": guidance, "w": guidance - 1, "loss": loss, "afs": afs, "end": end}
            | {"seed": seed, "metric": metric, "value": value if status == "ok" else None, "std_error": more.get("se"), "samples": 2000}
            | {"status": status, "error": error, "train_seconds": more.get("train"), "params": 900_000, "device": "cpu", "commit": "0"}
            | {"date": "2025-01-01T00:00:00", "protocol": {"samples_artifact": more.get("artifact")}, "checksum": ""}
        )
    return out


def naive_rows(dataset="digits"):
    fds = {"class_means": MEANS, "real_train": FLOOR, "real_heldout": 0.4}
    where = {"method": "naive", "nfe": 0, "grid": "", "end": "", "dataset": dataset}
    return [row for s, fd in fds.items() for row in cell_rows(solver=s, values={"fd_digits": fd}, **where)]


def synthetic_rows(store=None):
    """A small sweep that looks like a real one: solvers, grids, guidance, two students with two losses each, and sample artefacts."""
    rng = random.Random(0)
    rows = naive_rows()
    power = {"euler": 1.1, "heun": 2.2, "dpm_2s": 2.0, "dpmpp_1s": 1.15, "dpmpp_2m": 1.9, "dpmpp_3m": 2.2}

    def add(fd, nfe, guidance=1.0, **where):
        artifact = f"{len(rows):04x}" if store is not None else None
        if store is not None:
            fake_samples(store, artifact, noise=min(fd / 10, 1.5), seed=len(rows))
        ms = 0.25 * nfe * rng.uniform(0.9, 1.1)
        values = {"fd_digits": fd, "class_accuracy": 1 / (1 + fd / 20), "diversity_digits": 5 / guidance**0.5, "nn_train_share": 0.8}
        values |= {"psnr_teacher": 10 + 5 * np.log(nfe) + (where.get("solver") != "euler"), "fid": None, "lpips_teacher": None}
        values |= {"latency_ms_p50_b1": 8 * ms, "latency_ms_p90_b1": 9 * ms, "latency_ms_p50_b64": ms, "latency_ms_p90_b64": 1.2 * ms}
        values = {k: v if v is None else float(v) for k, v in values.items()} | {"peak_memory_mb": 512.0}
        rows.extend(cell_rows(nfe=nfe, guidance=guidance, values=values, se=0.04 * fd, artifact=artifact, **where))

    for solver, p in power.items():
        for grid in ("polynomial", "logsnr", "time_uniform"):
            for nfe in (1, 2, 4, 5, 8, 10, 20, 50):
                if nfe > 1 or solver in ("euler", "dpmpp_1s"):
                    add(0.5 + 19 * nfe**-p * rng.uniform(1, 2 if nfe > 1 else 1.01) + 3 / nfe**2, nfe, solver=solver, grid=grid, end="zero")
    for guidance in (2.0, 4.0):
        add(2 * guidance, 20, guidance, steps=10, solver="dpmpp_2m", grid="logsnr", end="zero")
    for solver in ("euler", "dpmpp_2m"):
        for nfe in (5, 10, 20):
            add(1 + 30 / nfe, nfe, solver=solver, grid="logsnr", end="sigma_min")
    for method, solver, losses in (("cd", "consistency", ("l2", "pseudo_huber")), ("pd", "euler", ("snr_plus_1", "truncated_snr"))):
        for i, loss in enumerate(losses):
            for nfe in (1, 2, 4, 8):
                add(
                    (3 + 2 * i) / nfe ** (0.5 if method == "cd" else 0.9) + (0.4 if method == "cd" else 1.5),
                    nfe,
                    method=method,
                    solver=solver,
                    loss=loss,
                    grid="nested",
                    train=61.5,
                )
    rows += cell_rows(solver="heun", nfe=7, values={"fd_digits": RuntimeError("out of\nmemory | in step 3")})
    return rows


def fake_samples(store, artifact, noise, seed, classes=10, repeats=2):
    """Blobs whose place says the class, in two rounds of labels, with more noise where quality is bad."""
    rng, grid = np.random.RandomState(seed), np.mgrid[:8, :8]
    labels = np.tile(np.arange(classes), repeats)
    centre = np.stack([1.5 + labels % 5, 2 + 3 * (labels // 5)], 1)[:, :, None, None]
    clean = 2 * np.exp(-((grid[None] - centre) ** 2).sum(1) / 3) - 1
    images = (clean + noise * rng.standard_normal(clean.shape))[:, None].astype(np.float32)
    path = store / "samples" / artifact
    path.mkdir(parents=True)
    save_file({"images": images, "labels": labels.astype(np.int64)}, path / "samples.safetensors")
    return images


def records(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_one_line_per_cell_in_a_fixed_order():
    rows = synthetic_rows()
    table = wide(rows)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == len({r["key"] for r in rows})
    methods = table["method"].tolist()
    assert methods == sorted(methods, key=["naive", "teacher", "cd", "pd"].index)
    by_cell = [[r for r in rows if r["key"] == k] for k in {r["key"] for r in rows}]  # a set: another order of cells
    random.Random(1).shuffle(by_cell)
    assert wide([r for cell in by_cell for r in cell]).to_csv() == table.to_csv()


def test_csv_holds_the_raw_numbers(tmp_path):
    value = 0.1 + 0.2  # needs 17 digits
    write_tables(cell_rows(values={"fd_digits": value, "fid": None}, se=1 / 3), tmp_path)
    (line,) = records((tmp_path / "table.csv").read_text())
    assert float(line["fd_digits"]) == value
    assert float(line["fd_digits_se"]) == 1 / 3
    assert line["fid"] == "unavailable: the weights of fid are not here"
    assert (line["nfe"], line["status"], line["psnr_teacher"]) == ("5", "ok", "")
    assert {p.name for p in tmp_path.iterdir()} == {"table.csv", "table.md", "table.tex"}


def test_dropping_the_timing_columns_hides_timings_only():
    numbers = dict.fromkeys(METRICS, 1.5)
    other = {m: 2.5 if m in TIMING_COLUMNS else 1.5 for m in METRICS}
    a, b = (wide(cell_rows(values=v, train=t)) for v, t in ((numbers, 10.0), (other, 20.0)))
    assert a.to_csv() != b.to_csv()
    assert a.drop(columns=[*TIMING_COLUMNS]).to_csv() == b.drop(columns=[*TIMING_COLUMNS]).to_csv()
    c = wide(cell_rows(values=numbers | {"psnr_teacher": 3.0}, train=10.0))
    assert a.drop(columns=[*TIMING_COLUMNS]).to_csv() != c.drop(columns=[*TIMING_COLUMNS]).to_csv()


def test_a_failed_cell_is_shown_until_it_succeeds():
    failed = cell_rows(values={"": RuntimeError("boom\nhere")})
    (cell,) = cells(failed)
    assert (cell["status"], cell["error"], cell["fd_digits"]) == ("failed", "boom here", None)
    (cell,) = cells(failed + cell_rows(values={"fd_digits": 3.0}))
    assert (cell["status"], cell["error"], cell["fd_digits"]) == ("ok", "", 3.0)
    (cell,) = cells(cell_rows(values={"fd_digits": 3.0, "psnr_teacher": RuntimeError("no"), "fid": None}))
    assert (cell["status"], cell["error"], cell["fd_digits"]) == ("failed", "no", 3.0)


def test_best_of_each_nfe_and_guidance_is_bold_and_reasons_are_told_once():
    rows = (
        naive_rows() + cell_rows(values={"fd_digits": 4.0, "fid": None}) + cell_rows(solver="heun", values={"fd_digits": 3.0, "fid": None})
    )
    rows += cell_rows(solver="heun", guidance=2.0, values={"fd_digits": 8.0}) + cell_rows(nfe=7, values={"": RuntimeError("a|b")})
    text = markdown(wide(rows))
    assert [part for part in text.split() if part.startswith("**")] == ["**3**", "**8**"]
    assert text.count("the weights of fid are not here") == 1
    assert text.count("n/a [1]") == 2
    assert r"a\|b" in text


def test_latex_is_escaped_booktabs():
    text = latex(wide(cell_rows(solver="dpmpp_2m", values={"fd_digits": 3.0, "fid": None}, se=0.5)))
    body = text[text.index(r"\begin{tabular}") : text.index(r"\end{tabular}")]
    assert all(rule in body for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert r"dpmpp\_2m" in body
    assert r"\textbf{3 $\pm$ 0.5}" in body
    assert "_" not in body.replace(r"\_", "")


def test_best_needs_the_class_means_and_a_solver():
    euler, student = cell_rows(nfe=2, values={"fd_digits": 8.0}), cell_rows(method="cd", nfe=2, values={"fd_digits": 1.0})
    guided = cell_rows(nfe=2, steps=1, guidance=2.0, values={"fd_digits": 0.5})
    assert best(euler, 2) is None
    assert best(naive_rows(), 2) is None
    assert best([*naive_rows(), *euler, *student, *guided], 2) == 8.0
    worse = cell_rows(nfe=2, values={"fd_digits": 99.0})
    assert best([*naive_rows(), *worse], 2) == MEANS


def bar_rows(cd=8.1, pd=15.0, first=22.0, two_m=21.0, diversity=(5.0, 4.0, 3.0)):
    """Rows that settle every bar; best(1) = best(2) = 20.1, so best - floor = 20."""
    rows = naive_rows() + cell_rows(nfe=1, values={"fd_digits": first}) + cell_rows(nfe=2, values={"fd_digits": 30.0})
    for n in (1, 2):
        rows += cell_rows(method="cd", solver="consistency", loss="l2", nfe=n, values={"fd_digits": cd})
    rows += cell_rows(method="pd", loss="uniform", nfe=2, values={"fd_digits": pd})
    for n in (5, 10, 20):
        for solver, psnr in (("euler", 20.0), ("dpmpp_2m", two_m)):
            rows += cell_rows(solver=solver, nfe=n, grid="logsnr", end="sigma_min", values={"psnr_teacher": psnr})
    for scale, value in zip((1.0, 2.0, 4.0), diversity):
        rows += cell_rows(solver="heun", nfe=10 if scale == 1 else 20, steps=5, guidance=scale, values={"diversity_digits": value})
    return rows


def test_bars_hold_by_hand():
    found = bars(bar_rows())
    # (8.1 - 0.1) / 20, twice; 15 / 20.1; 22 / 20.1; 21 - 20 dB three times; the larger of 4/5 and 3/4
    np.testing.assert_allclose([b.value for b in found], [0.4, 0.4, 15 / 20.1, 22 / 20.1, 1, 1, 1, 0.8])
    assert all(b.holds is True for b in found)


@pytest.mark.parametrize(
    ("change", "failing"),
    [
        ({"cd": 10.2}, ["cd l2, NFE 1", "cd l2, NFE 2"]),
        ({"pd": 20.2}, ["pd uniform, NFE 2"]),
        ({"first": 22.2}, ["teacher D(sigma_max), NFE 1"]),
        ({"two_m": 20.0}, [f"dpmpp_2m, log-SNR grid to sigma_min, NFE {n}" for n in (5, 10, 20)]),
        ({"diversity": (5.0, 4.0, 4.0)}, ["heun 5 steps polynomial to zero seed 0"]),
        ({"diversity": (5.0, 5.5, 4.0)}, ["heun 5 steps polynomial to zero seed 0"]),
    ],
)
def test_each_bar_can_fail(change, failing):
    assert [b.name.split(":")[0] for b in bars(bar_rows(**change)) if b.holds is False] == failing


def test_missing_rows_are_not_measured():
    found = bars([])
    assert len(found) == 8
    assert all(b.value is None and b.holds is None for b in found)
    assert print_bars(found).count("not measured") == 8


def test_the_papers_numbers_are_in_project_columns():
    table = papers.read_published()
    assert tuple(table.columns) == papers.FIELDS
    assert set(table["dataset"]) == {"CIFAR-10"}
    assert {"teacher", "pd", "cd"} == set(table["method"])
    assert {"euler", "heun", "dpm_2s", "dpmpp_3m"} == set(table[table["method"] == "teacher"]["solver"])
    assert (table["value"] > 0).all()
    assert not table.duplicated().any()
    ddim = table[(table["paper"] == "2202.00512") & (table["solver"] == "euler") & (table["method"] == "teacher") & (table["nfe"] == 10)]
    assert ddim["value"].tolist() == [13.36]  # 8.23, printed by 2303.01469, is not the DDIM paper's own


def one_paper(dataset="CIFAR-10", **change):
    line = {"paper": "0000.00000", "table": "1", "dataset": dataset, "method": "teacher", "solver": "euler", "nfe": 5}
    line |= {"guidance_w": 0, "metric": "FID", "value": 40.0, "source_note": ""}
    return papers.pd.DataFrame([line | change])


def test_join_gives_a_difference_only_for_the_same_dataset_and_metric():
    ours = cell_rows(values={"fd_digits": 3.0, "fid": 42.5}, dataset="cifar10")
    (line,) = papers.join_published(ours, one_paper()).to_dict("records")
    assert (line["ours"], line["published"], line["difference"]) == (42.5, 40.0, 2.5)
    assert line["comparable"].startswith("in part: network and training differ; 2000 samples")
    (line,) = papers.join_published(cell_rows(values={"fd_digits": 3.0, "fid": None}), one_paper()).to_dict("records")
    assert papers.pd.isna(line["difference"])
    assert line["comparable"].startswith("no: dataset differs (digits, CIFAR-10); metric differs (fd_digits, FID: unavailable")
    for other in ({"nfe": 6}, {"solver": "heun"}, {"guidance_w": 1}, {"method": "pd"}):
        assert papers.join_published(ours, one_paper(**other)).empty


def test_a_dataset_without_papers_is_one_line():
    assert papers.published_text(naive_rows(), one_paper()) == "No published numbers for digits: results/published.csv has CIFAR-10.\n"
    ours = cell_rows(values={"fd_digits": 3.0, "fid": 42.5}, dataset="cifar10")
    assert "0000.00000" in papers.published_text(ours, one_paper())


def test_pareto_front_keeps_what_nothing_beats():
    # (2, 5) is beaten by (1, 4); (3, 1) ends the front; equal quality at a higher cost is no gain
    assert pareto([(3.0, 1.0), (2.0, 5.0), (1.0, 4.0), (4.0, 1.0), (2.5, 2.0)]) == [2, 4, 0]
    assert pareto([]) == []


def test_samples_are_the_first_of_each_class(tmp_path):
    images = fake_samples(tmp_path, "a", noise=1.0, seed=0)
    found = read_samples(tmp_path, "a")
    assert sorted(found) == list(range(10))
    assert all(np.array_equal(found[c], images[c]) for c in range(10))
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
        assert drawn == {"quality_vs_nfe.png", "quality_vs_latency.png"} | expected
        for path in (tmp_path / name).glob("*.png"):
            assert np.ptp(imread(path)[..., :3]) > 0.5  # something dark on white


def test_no_pictures_are_drawn_unless_asked(tmp_path):
    write_report(tmp_path, synthetic_rows(), tmp_path / ".store", pictures=False)
    assert {p.name for p in tmp_path.iterdir()} == {"summary.md", "table.csv", "table.md", "table.tex", "bars.md", "published.md"}


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
from bench import cli, report
code = cli.entry("report", "", report.run, ["suite=digits", {f"results={tmp_path}"!r}])
assert "torch" not in sys.modules
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"line {len(rows) + 1} left out" in done.stderr
    assert "cd l2, NFE 1" in done.stdout
    assert len(records((tmp_path / "digits" / "table.csv").read_text())) == len(cells(synthetic_rows()))
    assert (tmp_path / "digits" / "samples_cd.png").is_file()


def test_an_unwritable_folder_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write .*table.csv.*results=<folder>"):
        write_tables(synthetic_rows(), tmp_path / "file")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no suite given"),
        (["suit=digits"], "unknown field 'suit'; did you mean suite"),
        (["digits"], "argument 'digits' is not of the form key=value"),
        (["suite=digits", "pictures=maybe"], "pictures must be true or false, got 'maybe'"),
        (["suite=digit", "results={results}"], "did you mean digits?"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(argv, message, tmp_path, capsys):
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "runs.jsonl").write_text("")
    assert cli.entry("report", "", report.run, [word.format(results=tmp_path) for word in argv]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_tells_the_keys(capsys):
    assert cli.entry("report", "", report.run, ["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"\n{key}: " in out for key in ("suite", "results", "pictures"))
