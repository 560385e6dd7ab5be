"""Our rows beside the papers' numbers, with the reasons why two numbers may not be comparable. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from bench.reports.tables import ABSENT, Row, cells, number, shown
from bench.reports.verdicts import quality
from fewstep.errors import UsageError
from metrics import metrics_by_name

PUBLISHED = Path(__file__).resolve().parents[2] / "results" / "published.csv"
# How a number was made. afs is yes or no, grid, end and loss have our names where we have the same (others: searched, lpips),
# conditioning is unconditional or class-conditional; empty is not stated.
SETTINGS = ("afs", "grid", "end", "loss", "conditioning")
FIELDS = ("paper", "table", "dataset", "method", "solver", "nfe", "guidance_w", *SETTINGS, "metric", "value", "source_note")
JOINED = (
    *("method", "loss", "solver", "grid", "end", "afs", "nfe", "guidance_w", "dataset", "metric", "ours"),
    *("published", "difference", "comparable", "paper", "table", "published_dataset", "published_metric", "source_note"),
)


def read_published(path: Path = PUBLISHED) -> pd.DataFrame:
    """The papers' numbers, one per line; no lines where the file is not there. **Raises**: UsageError when it lacks a column."""
    if not path.is_file():
        return pd.DataFrame(columns=list(FIELDS))
    table = pd.read_csv(path, dtype=dict.fromkeys(("paper", "table", "solver", *SETTINGS, "source_note"), str), keep_default_na=False)
    missing = [f for f in FIELDS if f not in table.columns]
    if missing:
        raise UsageError(f"{path} lacks the columns {missing}; expected: {', '.join(FIELDS)}")
    return table


def same_dataset(a: str, b: str) -> bool:
    """Data set names up to case and punctuation."""
    x, y = ("".join(c for c in s.lower() if c.isalnum()) for s in (a, b))
    return x == y


def _matches(cell: Mapping[str, Any], paper: Mapping[str, Any]) -> bool:
    """The same method at the same cost: a student whatever its sampler's name, the teacher with the same solver."""
    same = cell["method"] == paper["method"] and cell["nfe"] == paper["nfe"] and abs(cell["guidance"] - 1 - paper["guidance_w"]) < 1e-9
    return bool(same) and (cell["method"] != "teacher" or cell["solver"] == paper["solver"])


def _settings(cell: Mapping[str, Any], classes: int) -> dict[str, str]:
    """`SETTINGS` of a cell of ours; empty where its rows do not say. A teacher has no loss to compare."""
    ours = {f: str(cell.get(f) or "") for f in ("grid", "end", "loss")}
    ours |= {
        "afs": "" if cell.get("afs") is None else ("yes" if cell["afs"] else "no"),
        "conditioning": "class-conditional" if classes > 0 else "",
    }
    return {f: ours[f] for f in SETTINGS if f != "loss" or cell["method"] != "teacher"}


def _compare(ours: Mapping[str, str], paper: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What differs among the settings that both sides state, and what a side leaves open."""
    both = [f for f in ours if ours[f] and paper[f]]
    sides = {"us": [f for f in ours if not ours[f]], "the paper": [f for f in ours if not paper[f]]}
    unstated = [f"{', '.join(missing)} not stated by {side}" for side, missing in sides.items() if missing]
    return [f"{f} differs ({ours[f]}, {paper[f]})" for f in both if ours[f] != paper[f]], unstated


def _pair(cell: Mapping[str, Any], judge: str, dataset: str, samples: int | None, classes: int, paper: Mapping[str, Any]) -> dict[str, Any]:
    """One joined line. The difference is given only where data set, metric and all settings that both sides state are the same; every
    reservation is in `comparable`."""
    metric = next((m for m in metrics_by_name() if shown(m).published == paper["metric"]), str(paper["metric"]))
    ours, why, name = number(cell.get(metric)), [], metric
    if not same_dataset(dataset, paper["dataset"]):
        why.append(f"dataset differs ({dataset}, {paper['dataset']})")
    if ours is None:
        reason = str(cell.get(metric)) if str(cell.get(metric)).startswith(ABSENT) else f"{metric} not measured"
        ours, name = number(cell[judge]), judge
        why.append(f"metric differs ({judge}, {paper['metric']}: {reason})")
    differing, unstated = _compare(_settings(cell, classes), paper)
    why += differing
    difference = ours - paper["value"] if ours is not None and not why else None
    why += ["network and training differ", *unstated]
    if samples is not None and paper["metric"] == "FID" and samples != 50_000:
        why.append(f"{samples} samples, papers use 50000")
    line = {f: cell[f] for f in ("method", "loss", "solver", "grid", "end", "afs", "nfe")}
    line |= {"guidance_w": paper["guidance_w"], "dataset": dataset, "metric": name, "ours": ours, "published": paper["value"]}
    line |= {"difference": difference, "comparable": "no: " + "; ".join(why) if difference is None else "in part: " + "; ".join(why)}
    line |= {"published_dataset": paper["dataset"], "published_metric": paper["metric"]}
    return line | {f: paper[f] for f in ("paper", "table", "source_note")}


def join_published(rows: Sequence[Row], published: pd.DataFrame) -> pd.DataFrame:
    """Every pair of a cell of ours and a paper's number for the same method, solver, NFE and guidance, with the columns `JOINED`. A
    pair whose `SETTINGS` differ stays, without a difference and with the reason."""
    datasets = {row["key"]: row["dataset"] for row in rows}
    samples = {row["key"]: row["samples"] for row in rows if row.get("samples")}
    classes = {row["key"]: n for row in rows if (n := (row.get("protocol") or {}).get("classes"))}
    papers = published.to_dict("records")
    ours = [c for c in cells(rows) if c["method"] != "naive" and c["status"] == "ok"]
    judge = quality(ours)
    lines = [
        _pair(c, judge, datasets[c["key"]], samples.get(c["key"]), classes.get(c["key"], 0), p)
        for c in ours
        for p in papers
        if _matches(c, p)
    ]
    return pd.DataFrame(lines, columns=list(JOINED))


def has_papers(rows: Sequence[Row], published: pd.DataFrame) -> bool:
    """Whether any paper reports a data set of ours."""
    return any(same_dataset(a, b) for a in {row["dataset"] for row in rows} for b in set(published["dataset"]))


def published_text(rows: Sequence[Row], published: pd.DataFrame) -> str:
    """Markdown: the joined table for our data set, or one line saying that no paper has numbers for it."""
    if not has_papers(rows, published):
        ours, theirs = (", ".join(sorted(set(names))) for names in ([row["dataset"] for row in rows], published["dataset"]))
        return f"No published numbers for {ours or 'this suite'}: results/published.csv has {theirs or 'no lines'}.\n"
    joined = join_published(rows, published)
    told = [*JOINED[:8], *("metric", "ours", "published_metric", "published", "difference", "comparable", "paper", "table")]
    same = [line for line in joined.to_dict("records") if same_dataset(line["dataset"], line["published_dataset"])]
    lines = [[_plain(line[field]) for field in told] for line in same]
    return tabulate(lines, told, tablefmt="pipe", disable_numparse=True) + "\n"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")
