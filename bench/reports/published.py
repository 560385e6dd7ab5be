"""Our rows beside the papers' numbers, with the reasons why two numbers may not be comparable. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from bench.reports.cohorts import conditions_of
from bench.reports.tables import ABSENT, Row, cells, number, shown
from bench.reports.verdicts import quality
from fewstep.assets import pieces
from fewstep.errors import UsageError
from fewstep.plugins import entries
from metrics import metrics_by_name

PUBLISHED = Path(__file__).resolve().parents[2] / "results" / "published.csv"
# How a number was made. afs is yes or no, grid, end, wrap (or none) and loss have our names where we have the same (another: searched),
# conditioning is unconditional or class-conditional; empty is not stated.
SETTINGS = ("afs", "grid", "end", "wrap", "loss", "conditioning")
# A line is of a method and solver of ours where `method` is not empty. `teacher` is the network that was sampled or distilled: the name of
# its published checkpoint, or words. `suites` are those that are to cover the line, `sheet` the collection that it is from. `noise` is what
# ours calls that of its samples, where it is said.
WHAT = ("paper", "table", "dataset", "resolution", "conditioning")
OURS = ("method", "variant", "loss", "solver", "grid", "end", "afs", "wrap")
NUMBERS = ("nfe", "steps", "guidance_w")
WHENCE = ("printed_method", "printed_variant", "sheet", "source", "locator", "protocol", "noise", "note")
FIELDS = (*WHAT, *OURS, *NUMBERS, "metric", "value", "teacher", "suites", *WHENCE)
JOINED = (
    *("method", "variant", "loss", "solver", "grid", "end", "afs", "wrap", "nfe", "guidance_w", "dataset", "metric", "ours", "std_error"),
    *("published", "difference", "comparable", "paper", "table", "published_dataset", "published_metric"),
    *("teacher", "published_teacher", "source", "locator", "protocol", "note"),
)
GAPS = ("paper", "table", "printed_method", "printed_variant", "nfe", "metric", "value", "why")
SAMPLES = 50_000  # of each run of the papers' FIDs
ONE, THREE = "one run", "least of three runs"  # in a protocol; both are of seeds from 0
ALSO = ("best over training", "each checkpoint three times")  # in a protocol: what else a number may be
NOTE = """Beside each cell are the papers' numbers for the same method at the same NFE: ours, theirs, and the difference. What follows
"no" in `comparable` forbids to compare the two; what follows "in part" sets them apart beside that."""


def read_published(path: Path = PUBLISHED) -> pd.DataFrame:
    """The papers' numbers, one per line; no lines where the file is not there. **Raises**: UsageError when it lacks a column."""
    if not path.is_file():
        return pd.DataFrame(columns=list(FIELDS))
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    missing = [f for f in FIELDS if f not in table.columns]
    if missing:
        raise UsageError(f"{path} lacks the columns {missing}; expected: {', '.join(FIELDS)}")
    return table.assign(value=pd.to_numeric(table["value"]), **{f: pd.to_numeric(table[f], errors="coerce") for f in NUMBERS})


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def same_dataset(ours: str, theirs: str, resolution: str = "") -> bool:
    """Data set names up to case and punctuation, with or without the side in pixels: imagenet64 and imagenet-64x64 are ImageNet at 64."""
    x, y = _letters(ours), _letters(theirs)
    return x in {y, *((y + resolution, f"{y}{resolution}x{resolution}") if resolution else ())}


def _solver(cell: Mapping[str, Any]) -> str:
    """A cell's solver with its options, but for one that is fitted: its options say how, not what it is."""
    return str(cell["solver"]).partition("(")[0] if cell["train_seconds"] else str(cell["solver"])


def _matches(cell: Mapping[str, Any], paper: Mapping[str, Any]) -> bool:
    """The same method at the same cost: a student whatever its sampler's name, the teacher with the same solver."""
    w = paper["guidance_w"] if paper["guidance_w"] == paper["guidance_w"] else 0.0  # unstated: without guidance
    same = cell["method"] == paper["method"] and cell["nfe"] == paper["nfe"] and abs(cell["guidance"] - 1 - w) < 1e-9
    return bool(same) and (_solver(cell) == paper["solver"] if cell["method"] == "teacher" else cell["variant"] == paper["variant"])


def _loss(cell: Mapping[str, Any]) -> str:
    """The loss that a student was trained with: in one pass that of its second stage, where it has one of its own."""
    told = cell.get("distiller") or {}
    second = told.get("second_loss") if cell["nfe"] == 1 else ""
    return str(second or cell.get("loss") or told.get("loss") or "")


def _settings(cell: Mapping[str, Any], classes: int | None) -> dict[str, str]:
    """`SETTINGS` of a cell of ours; empty where its rows do not say. A teacher has no loss to compare."""
    ours = {f: str(cell.get(f) or "") for f in ("grid", "end")} | {"wrap": str(cell.get("wrap") or "none"), "loss": _loss(cell)}
    ours |= {
        "afs": "" if cell.get("afs") is None else ("yes" if cell["afs"] else "no"),
        "conditioning": "" if classes is None else ("class-conditional" if classes else "unconditional"),
    }
    return {f: ours[f] for f in SETTINGS if f != "loss" or cell["method"] != "teacher"}


def _compare(ours: Mapping[str, str], paper: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What differs among the settings that both sides state, and what a side leaves open."""
    both = [f for f in ours if ours[f] and paper[f]]
    sides = {"us": [f for f in ours if not ours[f]], "the paper": [f for f in ours if not paper[f]]}
    unstated = [f"{', '.join(missing)} not stated by {side}" for side, missing in sides.items() if missing]
    return [f"{f} differs ({ours[f]}, {paper[f]})" for f in both if ours[f] != paper[f]], unstated


@dataclass(frozen=True)
class Facts:
    """What a cell's rows say beside its coordinates: data set, the teacher's weights by name and digest, classes (None: not said), noise,
    first seed, whether it is no measurement, and of each metric the samples of a run and the number of runs."""

    dataset: str
    teacher: str
    sha256: str
    classes: int | None
    noise: str
    seed: int
    budget: str
    runs: dict[str, tuple[int, int]] = field(default_factory=dict)


def _facts(rows: Sequence[Row]) -> dict[str, Facts]:
    """By the key of the cell's samples."""
    found: dict[str, Facts] = {}
    for row in rows:
        protocol, model = row.get("protocol") or {}, (row.get("config") or {}).get("model") or {}
        own, conditions = found.get(row["key"]), conditions_of(row)
        facts = Facts(
            row["dataset"],
            Path(str(model.get("weights", ""))).stem or str(row["model"]),
            str(protocol.get("weights_sha256", "")),
            protocol.get("classes", own.classes if own else None),
            str(conditions.get("noise", own.noise if own else "")),
            int(conditions.get("seed", 0)),
            str(conditions.get("budget", "")),
            dict(own.runs) if own else {},
        )
        if row.get("samples"):
            runs = len(protocol.get("runs", ())) or 1
            facts.runs[row["metric"]] = row["samples"] // runs, runs
        found[row["key"]] = facts
    return found


def _pinned(teacher: str) -> str:
    """The digest that is known of a published checkpoint's file; empty where nobody says it."""
    return next((file.sha256 for piece in pieces() for file in piece.files if Path(file.name).stem == teacher), "")


def _of_teacher(cell: Mapping[str, Any], facts: Facts, teacher: str) -> tuple[list[str], list[str]]:
    """What sets the network apart that was sampled or distilled."""
    if not teacher:
        return [], ["network and training differ"]
    if teacher != facts.teacher:
        return [f"teacher differs ({facts.teacher}, {teacher})"], []
    trained = [] if cell["method"] == "teacher" else ["student trained here"]
    pinned = _pinned(teacher)
    if pinned and facts.sha256 and pinned != facts.sha256:
        return [f"teacher differs (another file of the name {teacher})"], trained
    return [], trained if pinned and facts.sha256 else ["teacher by its name", *trained]


def _of_protocol(facts: Facts, metric: str, paper: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What sets the samples apart that were scored: how many in a run, of how many runs, and from which noise."""
    protocol, (samples, runs) = paper["protocol"], facts.runs.get(metric, (SAMPLES, 1))
    few = samples != SAMPLES and protocol.startswith(f"{SAMPLES:,} samples")
    against, beside = [f"{samples:,} samples, papers use {SAMPLES:,}"] if few else [], list[str]()
    if THREE in protocol and runs == 1:
        beside.append("one run, the paper's is the least of three")
    if THREE not in protocol and runs > 1:
        beside.append(f"the least of {runs} runs, the paper's is {'one' if ONE in protocol else 'not known to be'}")
    if paper["noise"] and facts.noise and (facts.noise, facts.seed) != (paper["noise"], 0):
        beside.append(f"noise differs ({facts.noise} from seed {facts.seed}, {paper['noise']} from seed 0)")
    return against, beside + [f"the paper's is {word}" for word in ALSO if word in protocol]


def _reservations(cell: Mapping[str, Any], facts: Facts, metric: str, paper: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What forbids to compare two numbers, and what else is to be said of them."""
    differing, unstated = _compare(_settings(cell, facts.classes), paper)
    parts = (
        (differing, []),
        _of_teacher(cell, facts, paper["teacher"]),
        _of_protocol(facts, metric, paper),
        ([facts.budget.partition("(")[2].rstrip(")")] if "(" in facts.budget else [], unstated),
    )
    return [line for against, _ in parts for line in against], [line for _, beside in parts for line in beside]


def _metric(cell: Mapping[str, Any], published: str, protocol: str) -> str:
    """Ours of what a paper calls so: of several (other weights or protocols of one) the nearest to the paper's that the cell has a number
    of, else that it was asked for."""
    known = entries("metric")
    ours = [m for m in metrics_by_name() if shown(m).published == published]
    liked = (3, 1, 0) if THREE in protocol else (1, 0, 3)  # runs of a published protocol; 0 is a metric without one
    ours.sort(key=lambda m: liked.index(known[m].preset.get("runs", 0)))
    found = [m for m in ours if number(cell.get(m)) is not None] or [m for m in ours if cell.get(m) is not None] or ours
    return found[0] if found else published


def _pair(cell: Mapping[str, Any], judge: str, facts: Facts, paper: Mapping[str, Any]) -> dict[str, Any]:
    """One joined line; every reservation is in `comparable`. Where the metric was not measured there is no difference."""
    metric = _metric(cell, str(paper["metric"]), paper["protocol"])
    ours, name = number(cell.get(metric)), metric
    against, beside = _reservations(cell, facts, metric if ours is not None else judge, paper)
    if ours is None:
        reason = str(cell.get(metric)) if str(cell.get(metric)).startswith(ABSENT) else f"{metric} not measured"
        ours, name = number(cell.get(judge)), judge
        against.insert(0, f"metric differs ({judge}, {paper['metric']}: {reason})")
    line = {f: cell[f] for f in ("method", "variant", "loss", "solver", "grid", "end", "afs", "wrap", "nfe")}
    line |= {"guidance_w": cell["guidance"] - 1, "dataset": facts.dataset, "metric": name, "ours": ours, "published": paper["value"]}
    difference = ours - paper["value"] if ours is not None and name == metric else None
    line |= {"std_error": number(cell.get(f"{name}_se")), "difference": difference}
    line |= {"comparable": f"{'no' if against else 'in part'}: {'; '.join([*against, *beside])}" if against or beside else "yes"}
    line |= {"published_dataset": paper["dataset"], "published_metric": paper["metric"]}
    line |= {"teacher": facts.teacher, "published_teacher": paper["teacher"]}
    return line | {f: paper[f] for f in ("paper", "table", "source", "locator", "protocol", "note")}


def _measured(paper: Mapping[str, Any]) -> bool:
    """Whether a metric of ours is what a line is about."""
    return any(shown(m).published == paper["metric"] for m in metrics_by_name())


def join_published(rows: Sequence[Row], published: pd.DataFrame) -> pd.DataFrame:
    """Every pair of a cell of ours and a paper's number for the same data set, metric, method, solver, NFE and guidance, with the columns
    `JOINED`. A pair whose `SETTINGS`, teacher or number of samples differ stays, with the reason why it is not to be compared."""
    facts = _facts(rows)
    papers = [p for p in published.to_dict("records") if p["method"] and _measured(p)]
    ours = [c for c in cells(rows) if c["method"] != "naive" and c["status"] == "ok"]
    judge = quality(ours)
    lines = [
        _pair(c, judge, facts[c["key"]], p)
        for c in ours
        for p in papers
        if _matches(c, p) and same_dataset(facts[c["key"]].dataset, p["dataset"], p["resolution"])
    ]
    return pd.DataFrame(lines, columns=list(JOINED))


def gaps(rows: Sequence[Row], published: pd.DataFrame) -> pd.DataFrame:
    """The papers' lines that the suite of these rows is to cover and no cell has a number beside, with the reason: columns `GAPS`."""
    suites, facts = {row["suite"] for row in rows}, _facts(rows)
    ours = [c for c in cells(rows) if c["method"] != "naive" and c["status"] == "ok"]
    lines = []
    for paper in published.to_dict("records"):
        if suites & set(paper["suites"].split()):
            on = [c for c in ours if same_dataset(facts[c["key"]].dataset, paper["dataset"], paper["resolution"])]
            if why := _gap(on, paper):
                lines.append({**paper, "why": why})
    return pd.DataFrame(lines, columns=list(GAPS))


def _gap(ours: Sequence[Mapping[str, Any]], paper: Mapping[str, Any]) -> str:
    """Why none of these cells has a number beside a paper's; empty where one has."""
    if not paper["method"]:
        return "none of our methods is it"
    found = [c for c in ours if _matches(c, paper)]
    named = [(c, _metric(c, str(paper["metric"]), paper["protocol"])) for c in found]
    if any(number(c.get(metric)) is not None for c, metric in named):
        return ""
    if named:
        cell, metric = named[0]
        return str(cell[metric]) if str(cell.get(metric)).startswith(ABSENT) else f"{metric} not measured"
    own = [c for c in ours if c["method"] == paper["method"]]
    own = [c for c in own if _solver(c) == paper["solver"]] if paper["method"] == "teacher" else own
    who = paper["solver"] if paper["method"] == "teacher" else f"{paper['method']} {paper['variant']}".strip()
    at = ", ".join(str(nfe) for nfe in sorted({c["nfe"] for c in own}))
    return f"{who} is here at NFE {at} alone" if own else f"no cell of {who}"


def has_papers(rows: Sequence[Row], published: pd.DataFrame) -> bool:
    """Whether any paper reports a data set of ours."""
    theirs = set(zip(published["dataset"], published["resolution"]))
    return any(same_dataset(a, b, side) for a in {row["dataset"] for row in rows} for b, side in theirs)


def published_text(rows: Sequence[Row], published: pd.DataFrame) -> str:
    """Markdown: the joined table for our data set, or one line saying that no paper has numbers for it."""
    if not has_papers(rows, published):
        known = published[published["method"] != ""]["dataset"]
        ours, theirs = (", ".join(sorted(set(names))) for names in ([row["dataset"] for row in rows], known))
        return f"No published numbers for {ours or 'this suite'}: results/published.csv has {theirs or 'no lines'}.\n"
    joined, missing = join_published(rows, published), gaps(rows, published)
    beside = ("ours", "published", "difference", "comparable", "paper", "table", "source")
    told = ("method", "variant", "loss", "solver", "nfe", "metric", *beside)
    shared = _shared(joined["comparable"])
    every = f" Of every line holds: {'; '.join(shared)}." if shared else ""
    joined["comparable"] = [_without(text, shared) for text in joined["comparable"]]
    text = f"{NOTE}{every}\n\n" + _table(joined, told) if len(joined) else "No cell has a number of a paper's beside it.\n"
    if len(missing):
        text += "\n## Lines of the papers that no cell covers\n\n" + _table(missing, GAPS)
    return text


def _shared(told: Iterable[str]) -> list[str]:
    """The reservations that every line has, where there are several lines."""
    parts = [text.partition(": ")[2].split("; ") for text in told]
    return [part for part in parts[0] if all(part in others for others in parts)] if len(parts) > 1 else []


def _without(text: str, shared: Sequence[str]) -> str:
    """A line's `comparable` without the reservations that are said of all."""
    word, _, rest = text.partition(": ")
    left = "; ".join(part for part in rest.split("; ") if part not in shared)
    return f"{word}: {left}" if left else word


def _table(frame: pd.DataFrame, columns: Sequence[str]) -> str:
    """A Markdown table of the columns that are not empty."""
    lines = [[_plain(line[field]) for field in columns] for line in frame.to_dict("records")]
    filled = [i for i in range(len(columns)) if any(line[i] for line in lines)]
    body, head = [[line[i] for i in filled] for line in lines], [columns[i] for i in filled]
    return tabulate(body, head, tablefmt="pipe", disable_numparse=True) + "\n"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")
