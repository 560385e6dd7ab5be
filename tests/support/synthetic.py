"""Made-up rows and samples for the tests of tables, plots and joins."""

import random
from hashlib import sha256

import numpy as np
from safetensors.numpy import save_file
from scipy import stats

FLOOR, MEANS = 0.1, 20.1  # floor and class means of the synthetic rows: best - floor is 20 where nothing beats the class means


def welch(*parts):
    """Half-width of a 95% interval from (standard error, degrees of freedom) of independent parts, by Welch and Satterthwaite."""
    total = sum(error**2 for error, _ in parts)
    free = total**2 / sum(error**4 / freedom for error, freedom in parts)
    return stats.t.ppf(0.975, free) * total**0.5


def cell_rows(method="teacher", solver="euler", nfe=5, steps=None, guidance=1.0, loss="", grid="polynomial", end="zero", **more):
    """The rows of one cell: `values` maps metrics to numbers, None for unavailable, an exception for failed."""
    afs, seed, dataset = more.get("afs", False), more.get("seed", 0), more.get("dataset", "digits")
    values, key = (
        more["values"],
        sha256(repr((method, solver, nfe, guidance, loss, grid, end, afs, seed, more.get("wrap"))).encode()).hexdigest()[:16],
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
            | {"variant": more.get("variant", ""), "fit_seed": more.get("fit_seed", 0), "wrap": more.get("wrap", "")}
            | {"seed": seed, "metric": metric, "value": value if status == "ok" else None, "std_error": more.get("se"), "samples": 2000}
            | {"status": status, "error": error, "train_seconds": more.get("train"), "params": 900_000, "device": "cpu", "commit": "0"}
            | {
                "date": "2025-01-01T00:00:00",
                "protocol": {"samples_artifact": more.get("artifact")} | more.get("protocol", {}),
                "checksum": "",
            }
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
