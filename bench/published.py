"""Our rows beside the papers' numbers, with the reasons why two numbers may not be comparable. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from bench.tables import ABSENT, Row, cells, number
from fewstep.errors import UsageError

PUBLISHED = Path(__file__).resolve().parent.parent / "results" / "published.csv"
FIELDS = ("paper", "table", "dataset", "method", "solver", "nfe", "guidance_w", "metric", "value", "source_note")
JOINED = (
    *("method", "loss", "solver", "grid", "end", "afs", "nfe", "guidance_w", "dataset", "metric", "ours"),
    *("published", "difference", "comparable", "paper", "table", "published_dataset", "published_metric", "source_note"),
)
_OURS = {"FID": "fid", "LPIPS": "lpips_teacher"}


def read_published(path: Path = PUBLISHED) -> pd.DataFrame:
    """The papers' numbers, one per line; no lines where the file is not there. **Raises**: UsageError when it lacks a column."""
    if not path.is_file():
        return pd.DataFrame(columns=list(FIELDS))
    table = pd.read_csv(path, dtype={"paper": str, "table": str, "solver": str, "source_note": str}, keep_default_na=False)
    missing = [f for f in FIELDS if f not in table.columns]
    if missing:
        raise UsageError(f"{path} lacks the columns {missing}; expected: {', '.join(FIELDS)}")
    return table


def same_dataset(a: str, b: str) -> bool:
    """Data set names up to case and punctuation; `cifar` is CIFAR-10."""
    x, y = ("".join(c for c in s.lower() if c.isalnum()) for s in (a, b))
    return x == y or {x, y} == {"cifar", "cifar10"}


def _matches(cell: Mapping[str, Any], paper: Mapping[str, Any]) -> bool:
    """The same method at the same cost: a student whatever its sampler's name, the teacher with the same solver."""
    same = cell["method"] == paper["method"] and cell["nfe"] == paper["nfe"] and abs(cell["guidance"] - 1 - paper["guidance_w"]) < 1e-9
    return bool(same) and (cell["method"] != "teacher" or cell["solver"] == paper["solver"])


def _pair(cell: Mapping[str, Any], dataset: str, samples: int | None, paper: Mapping[str, Any]) -> dict[str, Any]:
    """One joined line. The difference is given only where data set and metric are the same; other reservations are in `comparable`."""
    metric = _OURS.get(str(paper["metric"]), str(paper["metric"]))
    ours, why, name = number(cell.get(metric)), [], metric
    if not same_dataset(dataset, paper["dataset"]):
        why.append(f"dataset differs ({dataset}, {paper['dataset']})")
    if ours is None:
        reason = str(cell.get(metric)) if str(cell.get(metric)).startswith(ABSENT) else f"{metric} not measured"
        ours, name = number(cell["fd_digits"]), "fd_digits"
        why.append(f"metric differs (fd_digits, {paper['metric']}: {reason})")
    difference = ours - paper["value"] if ours is not None and not why else None
    why.append("network and training differ")
    if samples is not None and paper["metric"] == "FID" and samples != 50_000:
        why.append(f"{samples} samples, papers use 50000")
    line = {f: cell[f] for f in ("method", "loss", "solver", "grid", "end", "afs", "nfe")}
    line |= {"guidance_w": paper["guidance_w"], "dataset": dataset, "metric": name, "ours": ours, "published": paper["value"]}
    line |= {"difference": difference, "comparable": "no: " + "; ".join(why) if difference is None else "in part: " + "; ".join(why)}
    line |= {"published_dataset": paper["dataset"], "published_metric": paper["metric"]}
    return line | {f: paper[f] for f in ("paper", "table", "source_note")}


def join_published(rows: Sequence[Row], published: pd.DataFrame) -> pd.DataFrame:
    """Every pair of a cell of ours and a paper's number for the same method, solver, NFE and guidance, with the columns `JOINED`."""
    datasets = {row["key"]: row["dataset"] for row in rows}
    samples = {row["key"]: row["samples"] for row in rows if row.get("samples")}
    papers = published.to_dict("records")
    ours = [c for c in cells(rows) if c["method"] != "naive" and c["status"] == "ok"]
    lines = [_pair(c, datasets[c["key"]], samples.get(c["key"]), p) for c in ours for p in papers if _matches(c, p)]
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
    shown = [*JOINED[:8], *("metric", "ours", "published_metric", "published", "difference", "comparable", "paper", "table")]
    same = [line for line in joined.to_dict("records") if same_dataset(line["dataset"], line["published_dataset"])]
    lines = [[_plain(line[field]) for field in shown] for line in same]
    return tabulate(lines, shown, tablefmt="pipe", disable_numparse=True) + "\n"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")
