"""A paper's ablation beside ours: both orders, how far they agree, and the paper's conclusions on our numbers. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from bench.reports.tables import Row, cells, number, student_name
from bench.reports.verdicts import Score, by_training, difference, quality, score_of
from fewstep.errors import UsageError

Cell = Mapping[str, Any]
ABLATIONS = Path(__file__).resolve().parents[2] / "results" / "ablations.csv"
CLAIMS = ABLATIONS.with_name("ablation_claims.csv")
CLAIM_FIELDS = ("paper", "table", "claim", *(f"{side}_{f}" for side in ("better", "worse") for f in ("method", "variant", "loss")), "clear")
# What selects a cell of ours, and the paper's number. An empty model, solver or nfe selects any, an empty wrap no wrapper; a note that
# begins with STAND_IN says that our line has something else in place of the paper's.
FIELDS = ("suite", "method", "variant", "loss", "model", "solver", "wrap", "nfe", "paper", "table", "metric", "value", "note")
STAND_IN = "stand-in"
FEWEST = 3  # lines that a correlation needs
NOTE = """Ours is the mean over training seeds; its standard error has their spread, where there are several, and that of the metric. Of a
teacher's line the best grid, end and AFS. Rank 1 is the least value, among the lines that both sides have. Intervals of a difference are
of 95% (Welch): training seeds are independent, and the metric's own error is that of the same bootstrap resamples of both sides."""


@dataclass(frozen=True)
class Entry:
    """One line of a paper's table, and which cells of ours are the same experiment."""

    suite: str
    method: str
    variant: str
    loss: str
    model: str
    solver: str
    wrap: str
    nfe: int | None
    paper: str
    table: str
    metric: str
    value: float
    note: str

    @property
    def name(self) -> str:
        where = f"({self.model})" if self.model else ""
        return " ".join(part for part in (student_name(vars(self)), self.solver, self.wrap, where) if part)

    @property
    def stands_in(self) -> bool:
        return self.note.startswith(STAND_IN)


@dataclass(frozen=True)
class Claim:
    """A conclusion of a paper: the line (method, variant, loss) `better` has a lower value than `worse`; not `clear`: no higher."""

    words: str
    better: tuple[str, ...]
    worse: tuple[str, ...]
    clear: bool = True


Claims = Mapping[tuple[str, str], Sequence[Claim]]


def read_claims(path: Path = CLAIMS) -> Claims:
    """The conclusions of papers by paper and table; none where the file is not there. **Raises**: UsageError for a missing column."""
    found: dict[tuple[str, str], list[Claim]] = {}
    if path.is_file():
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        if missing := [f for f in CLAIM_FIELDS if f not in table.columns]:
            raise UsageError(f"{path} lacks the columns {missing}; expected: {', '.join(CLAIM_FIELDS)}")
        for line in table.to_dict("records"):
            better, worse = (tuple(str(line[f"{side}_{f}"]) for f in ("method", "variant", "loss")) for side in ("better", "worse"))
            claim = Claim(str(line["claim"]), better, worse, line["clear"] == "yes")
            found.setdefault((str(line["paper"]), str(line["table"])), []).append(claim)
    return found


def read_ablations(path: Path = ABLATIONS) -> list[Entry]:
    """The lines of papers' ablations; none where the file is not there. **Raises**: UsageError for a missing column or a bad value."""
    if not path.is_file():
        return []
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [f for f in FIELDS if f not in table.columns]
    if missing:
        raise UsageError(f"{path} lacks the columns {missing}; expected: {', '.join(FIELDS)}")
    found = []
    for i, line in enumerate(table.to_dict("records"), start=2):
        texts = {f: str(line[f]) for f in FIELDS}
        try:
            nfe, value = int(texts["nfe"]) if texts["nfe"] else None, float(texts["value"])
        except ValueError:
            got = f"{texts['nfe']!r}, {texts['value']!r}"
            raise UsageError(f"{path} line {i}: nfe is an integer or empty and value a number, got {got}") from None
        if texts["metric"] != "FID":
            raise UsageError(f"{path} line {i}: ours are compared with FID, where less is better, got metric '{texts['metric']}'")
        found.append(Entry(**{**texts, "nfe": nfe, "value": value}))
    return found


def _candidates(entry: Entry, table: Sequence[Cell], metric: str) -> list[Cell]:
    """Our cells of a line without guidance, at any NFE where the line names none."""
    want = {"method": entry.method, "variant": entry.variant, "loss": entry.loss, "wrap": entry.wrap}
    want |= {f: v for f, v in (("model", entry.model), ("solver", entry.solver), ("nfe", entry.nfe)) if v}
    return [c for c in table if all((c[f] or "") == v for f, v in want.items()) and c["guidance"] == 1 and number(c[metric]) is not None]


def ours(entry: Entry, table: Sequence[Cell], nfe: int, metric: str) -> Score | None:
    """Our score of a line at an NFE: of cells that differ in more than the training seed (a teacher's grids) the least mean counts."""
    groups = by_training([c for c in _candidates(entry, table, metric) if c["nfe"] == nfe])
    return min((score_of(group, metric) for group in groups), key=lambda s: s.mean, default=None)


def _shown(score: Score | None) -> str:
    return "not measured" if score is None else score.text


def _ranks(values: Sequence[float]) -> np.ndarray:
    """From 1 for the least; equal values share the mean of their ranks."""
    return pd.Series(values, dtype="float64").rank().to_numpy()


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's rho: Pearson's correlation of the ranks."""
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b: (agreeing - disagreeing pairs) / sqrt(pairs not tied in a * pairs not tied in b)."""
    x, y = (np.sign(np.subtract.outer(v, v)) for v in (np.array(a), np.array(b)))
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def _agreement(pairs: Sequence[tuple[float, float]]) -> str:
    """Spearman's rho and Kendall's tau-b of (ours, paper's) in words."""
    n = len(pairs)
    mine, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    if n < FEWEST or len(set(mine)) == 1 or len(set(theirs)) == 1:
        return f"No rank correlation: it needs {FEWEST} lines with different numbers on both sides, and there are n = {n}."
    told = f"Spearman {spearman(mine, theirs):.2f}, Kendall tau-b {kendall(mine, theirs):.2f}"
    return f"Rank correlation of the two orders: {told}, over n = {n} lines."


def _judged(claim: Claim, better: Score | None, worse: Score | None) -> tuple[str, str]:
    """How much lower ours is, with its interval, and whether that bears the claim out."""
    if better is None or worse is None:
        return "", "not measured"
    gain, half = difference(better, worse)
    if half != half:
        return f"{gain:.3g}", "no interval: one seed, and the metric has no standard error"
    shown = f"{gain:.3g} ({gain - half:.3g} to {gain + half:.3g})"
    if gain - half > 0:
        return shown, "holds"
    if gain + half < 0:
        return shown, "contradicted"
    return shown, "not told apart" if claim.clear else "not contradicted: neither is told to be better"


def _claims(entries: Sequence[Entry], scores: Mapping[Entry, Score | None], metric: str) -> str:
    """The table of conclusions, empty for a paper's table that has none here."""
    lines: list[list[str]] = []
    known: dict[tuple[str, ...], Entry] = {(e.method, e.variant, e.loss): e for e in entries}
    for claim in read_claims().get((entries[0].paper, entries[0].table), ()):
        if claim.better in known and claim.worse in known:
            a, b = known[claim.better], known[claim.worse]
            lines.append([claim.words, f"{a.value:g} against {b.value:g}", f"{_shown(scores[a])} against {_shown(scores[b])}"])
            lines[-1] += _judged(claim, scores[a], scores[b])
    headers = ["conclusion of the paper", "paper's FID", f"our {metric}", "ours lower by (95%)", "on our numbers"]
    return tabulate(lines, headers, tablefmt="pipe", disable_numparse=True) if lines else ""


def _section(entries: Sequence[Entry], nfe: int, scores: Mapping[Entry, Score | None], metric: str) -> str:
    """One table of a paper at one NFE of ours."""
    both = [(e, s) for e in entries if (s := scores[e]) is not None and not e.stands_in]
    mine, theirs = ([f"{rank:g}" for rank in _ranks(values)] for values in ([s.mean for _, s in both], [e.value for e, _ in both]))
    ranks = {e: pair for (e, _), pair in zip(both, zip(mine, theirs))}
    lines = []
    for e in entries:
        score, (a, b) = scores[e], ranks.get(e, ("", ""))
        lines.append([e.name, _shown(score), "" if score is None else str(score.seeds), a, f"{e.value:g}", b, e.note])
    headers = ["line", metric, "seeds", "our rank", "paper's FID", "paper's rank", "note"]
    headers, lines = _without_empty(headers, lines)
    title = f"## {entries[0].paper}, {entries[0].table}: {'solvers of the teacher' if _teachers(entries[0]) else 'students'} at NFE {nfe}"
    parts = [title, tabulate(lines, headers, tablefmt="pipe", disable_numparse=True), _agreement([(s.mean, e.value) for e, s in both])]
    left = [e for e in entries if e.stands_in]
    if left:
        parts.append("\n".join(f"Left out of ranks and correlation: {e.name} ({e.note})." for e in left))
    claims = _claims(entries, scores, metric)
    return "\n\n".join(parts + [claims] * bool(claims))


def _without_empty(headers: list[str], lines: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    kept = [i for i in range(len(headers)) if any(line[i] for line in lines)]
    return [headers[i] for i in kept], [[line[i].replace("|", "\\|") for i in kept] for line in lines]


def _teachers(entry: Entry) -> bool:
    return entry.method == "teacher"


def _sections(entries: Sequence[Entry], table: Sequence[Cell], metric: str) -> Iterator[str]:
    """A section for each paper's table, students and solvers apart, and each NFE that its lines have."""
    groups: dict[tuple[str, str, bool], list[Entry]] = {}
    for entry in entries:
        groups.setdefault((entry.paper, entry.table, _teachers(entry)), []).append(entry)
    for group in groups.values():
        named = {e.nfe for e in group if e.nfe is not None}
        open_lines = [e for e in group if e.nfe is None]
        for nfe in sorted(named | {c["nfe"] for e in open_lines for c in _candidates(e, table, metric)}):
            here = [e for e in group if e.nfe in (None, nfe)]
            yield _section(here, nfe, {e: ours(e, table, nfe, metric) for e in here}, metric)


def ablation_text(rows: Sequence[Row], entries: Sequence[Entry]) -> str:
    """Markdown: a suite's cells beside the lines that `entries` has for it; empty where it has none.

    Ours is what most students were measured by (`quality`).
    """
    suites = {row["suite"] for row in rows}
    mine = [e for e in entries if e.suite in suites]
    if not mine:
        return ""
    table = cells(rows)
    metric = quality(table)
    found = list(_sections(mine, table, metric))
    return "\n\n".join([*found, NOTE]) + "\n" if found else "No line of a paper's ablation is measured yet.\n"
