"""Tables from rows: one line per cell, as csv (raw numbers), Markdown and LaTeX. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from tabulate import tabulate

from bench.reports.cohorts import by_cohort, cohorts, conditions_of
from bench.store.cell import COST, DEFAULTS, HOW, WHO, about
from bench.store.measures import COUNTED, TIMINGS
from bench.store.rows import CELL_FAILED, cell_of
from fewstep.errors import UsageError
from fewstep.files import write_atomic
from fewstep.plugins import known
from metrics import Shown, declared, metric_named, metrics_by_name

Row = Mapping[str, Any]
IDENTITY = ("model", *about(WHO, HOW, COST), "steps")
_FACTS = ("params", "train_seconds", "samples", "seed", "noise", "cohort", "warning", "status", "error")
# What two runs of the same numbers may differ in; a comparison of tables drops these.
TIMING_COLUMNS = (*TIMINGS, "train_seconds")
ABSENT = "unavailable: "
DEFICIENT = "fewer images than features (a covariance is singular)"
_INTEGERS = (*(name for name, value in DEFAULTS.items() if type(value) is int), "steps", "params", "seed", "samples", "cohort")
_TRUTHS = tuple(name for name, value in DEFAULTS.items() if isinstance(value, bool))
_TEXTS = tuple(name for name, value in DEFAULTS.items() if isinstance(value, str))
_ORDER = ("model", *about(WHO, COST, HOW), "seed", "steps", "key")
_RANK = {"naive": 0, "teacher": 1}


def measures(rows: Iterable[Row] = ()) -> list[str]:
    """The metrics that tables have columns for, in order: registered ones, what sweeps measure themselves, and any others of the rows."""
    ours = [*metrics_by_name(), COUNTED, *TIMINGS]
    return [*ours, *sorted({row["metric"] for row in rows} - {*ours, CELL_FAILED})]


def shown(metric: str) -> Shown:
    """How a metric is shown: as it declares, or as one that declares nothing."""
    return declared(metric_named(metric)).shown if known("metric", metric) else Shown()


def headlines() -> list[str]:
    """The metrics that rows are ranked by, in the order of the tables."""
    return [name for name in metrics_by_name() if shown(name).headline]


def in_role(role: str) -> str:
    """The first metric, in the order of the tables, with a role that reports know (see `metrics.Shown`); empty without any."""
    return next((name for name in metrics_by_name() if shown(name).role == role), "")


def sign(metric: str) -> int:
    """1 where less is better, -1 where more is."""
    return -1 if known("metric", metric) and metric_named(metric).higher_is_better else 1


def columns(found: Sequence[str]) -> list[str]:
    """The columns of table.csv for these metrics."""
    return [*IDENTITY, *(c for m in found for c in ((m, f"{m}_se") if shown(m).error else (m,))), *_FACTS]


def number(value: Any) -> float | None:
    """The value as a finite float; None for anything else (absent, unavailable, NaN)."""
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if plain and math.isfinite(value) else None


def solver_name(row: Mapping[str, Any]) -> str:
    """A row's solver, with those of its options that are not the default: `dpmpp_2m(order=1)` is another contestant than `dpmpp_2m`."""
    return f"{row['solver']}({row['options']})" if row.get("options") else str(row["solver"] or "")


def student_name(cell: Mapping[str, Any]) -> str:
    """A student in words: its method, variant and loss, as far as they are named."""
    return " ".join(str(part) for f in ("method", "variant", "loss") if (part := cell[f]))


def plus_minus(value: float, error: float | None) -> str:
    """A value with its standard error, where there is one."""
    return f"{value:.3g}" + (f" ± {error:.1g}" if error else "")


def _one_line(text: Any) -> str:
    return " ".join(str(text or "").split())


def _first(rows: Sequence[Row], field: str) -> Any:
    return next((r[field] for r in reversed(rows) if r.get(field) is not None), None)


def _draws(row: Row) -> tuple[tuple[Any, ...], tuple[float, ...]] | None:
    """What a row's bootstrap gave, and of what noise: samples of the same have the same resamples. None of real images, and without."""
    protocol = row.get("protocol") or {}
    found = tuple(protocol.get("resampled", ()))
    return ((row["seed"], row["samples"], protocol.get("noise")), found) if found and row["method"] != "naive" else None


def _cell(rows: Sequence[Row], names: Sequence[str]) -> dict[str, Any]:
    """One cell from its rows, in the order they were recorded."""
    latest: dict[str, Row] = {}
    for row in rows:
        if row["status"] == "ok":  # the cell ran after all: a failure of the whole cell is over
            latest = {m: r for m, r in latest.items() if m in names or r["status"] != "failed"}
        latest[row["metric"]] = row
    cell: dict[str, Any] = {f: _first(rows, f) for f in (*IDENTITY, "params", "train_seconds", "seed", "key")}
    cell["solver"] = next((solver_name(r) for r in reversed(rows) if r.get("solver") is not None), None)
    cell |= {name: next((c.get(name) for r in rows if (c := conditions_of(r))), None) for name in ("samples", "noise")}
    cell["artifact"] = next((a for r in reversed(rows) if (a := (r.get("protocol") or {}).get("samples_artifact"))), None)
    for metric in names:
        row = latest.get(metric)
        if row is None:
            cell[metric] = None
        elif row["status"] == "unavailable":
            cell[metric] = ABSENT + _one_line(row.get("error")).removeprefix(ABSENT)
        else:
            cell[metric] = number(row["value"]) if row["status"] == "ok" else None
    for metric in (m for m in names if shown(m).error):
        row = latest.get(metric)
        cell[f"{metric}_se"] = number(row.get("std_error")) if row and cell[metric] is not None else None
        cell[f"{metric}_draws"] = _draws(row) if row and cell[metric] is not None else None
        cell[f"{metric}_optimum"] = number((row.get("protocol") or {}).get("fine_grid")) if row else None  # what an exact student scores
    fits = (found for r in reversed(rows) if (found := (r.get("protocol") or {}).get("solver_fit")))
    cell["base"] = next(fits, {}).get("base", "")  # the solver that a learned one improves
    cell["deficient"] = tuple(m for m in names if m in latest and (latest[m].get("protocol") or {}).get("rank_deficient"))
    few = [f"{', '.join(cell['deficient'])} of {DEFICIENT}"] if cell["deficient"] else []
    warning = next((w for r in reversed(rows) if (w := (r.get("protocol") or {}).get("warning"))), "")
    cell["warning"] = "; ".join([*filter(None, [warning]), *few])
    cell["training"] = next((t for r in reversed(rows) if (t := (r.get("protocol") or {}).get("training"))), None)
    cell["distiller"] = next((d for r in reversed(rows) if (d := (r.get("protocol") or {}).get("distiller"))), {})
    cell |= {f: cell[f] or "" for f in _TEXTS}  # rows of older runs lack some
    failed = [r for r in latest.values() if r["status"] == "failed"]
    cell["failed"] = tuple(r["metric"] for r in failed)
    ok = any(r["status"] == "ok" for r in latest.values())
    cell["status"] = "failed" if failed else "ok" if ok else "unavailable"
    cell["error"] = "; ".join(sorted({_one_line(r.get("error")) for r in failed}))
    return cell


def _sort_key(cell: Mapping[str, Any]) -> tuple[Any, ...]:
    values = (cell[f] for f in _ORDER)
    return (_RANK.get(str(cell["method"]), 2), *((v is not None, v if v is not None else 0) for v in values))


def cells(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One dict per cell: the naive rows first, then the teacher, then the students. Rows
    of several cells may be interleaved; within a cell a later row of a metric replaces an earlier one.

    A metric is a float, None (not measured or failed), or a text `unavailable: <reason>`.
    """
    groups, found = dict[tuple[Any, ...], list[Row]](), measures(rows)
    for row in rows:  # not by key: one-step grids of all families are one grid, with one key
        groups.setdefault(cell_of(row), []).append(row)
    return sorted((_cell(group, found) for group in groups.values()), key=_sort_key)


def wide(rows: Sequence[Row], cohort: int = 1) -> pd.DataFrame:
    """One line per cell with `columns`, raw numbers, in a fixed order. `cohort` is the number of the rows' cohort."""
    table = [{**cell, "cohort": cohort} for cell in cells(rows)]
    series: dict[str, pd.Series] = {}
    names = columns(measures(rows))
    for name in names:
        values = [cell[name] for cell in table]
        if name in _INTEGERS:
            series[name] = pd.Series(values, dtype="Int64")
        elif name in ("model", *_TEXTS, "noise", "warning", "status", "error"):
            series[name] = pd.Series([v or "" for v in values], dtype=object)
        elif name in _TRUTHS or any(isinstance(v, str) for v in values):
            series[name] = pd.Series(values, dtype=object)
        else:
            series[name] = pd.Series(values, dtype="float64")
    return pd.DataFrame(series, columns=names)


def _shown(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _best_lines(frame: pd.DataFrame, metric: str) -> set[int]:
    """Lines with the best value of a headline metric at their (nfe, guidance), data themselves apart."""
    least: dict[tuple[int, float], tuple[float, int]] = {}
    for i, line in enumerate(frame.to_dict("records")):
        value = number(line[metric])
        if line["method"] != "naive" and value is not None:
            value *= sign(metric)
            place = (line["nfe"], line["guidance"])
            least[place] = min(least.get(place, (value, i)), (value, i))
    return {i for _, i in least.values()}


def _text(name: str, value: Any, notes: list[str]) -> str:
    if isinstance(value, str):
        if not value.startswith(ABSENT):
            return value if len(value) <= 80 else value[:77] + "..."
        note = f"{name} {value}"
        if note not in notes:
            notes.append(note)
        return f"n/a [{notes.index(note) + 1}]"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or pd.isna(value):
        return ""
    return f"{int(value)}" if name in _INTEGERS else _shown(float(value))


def _render(frame: pd.DataFrame, bold: Callable[[str], str]) -> tuple[list[str], list[list[str]], list[str]]:
    """Headers, lines of text and footnotes: empty columns left out, the standard error beside its value, a shared seed in a note."""
    notes: list[str] = []
    text = {name: [_text(name, v, notes) for v in frame[name].astype(object)] for name in frame.columns}
    for metric in (m for m in frame.columns if f"{m}_se" in frame.columns):
        se = [f"{e:.2g}" if e == e else "" for e in frame[f"{metric}_se"]]
        del text[f"{metric}_se"]
        best = _best_lines(frame, metric) if shown(metric).headline else set()
        values = [f"{v} ± {e}" if e else v for v, e in zip(text[metric], se)]
        text[metric] = [bold(v) if i in best else v for i, v in enumerate(values)]
    footer = list(dict.fromkeys(f"[{i}] {note}" for i, note in enumerate(notes, 1)))
    del text["cohort"]  # of which a table for people has one
    for name in ("model", "samples", "seed", "noise", "fit_seed", "status"):
        if len(known := set(text[name]) - {""}) == 1:  # real images have no noise
            footer.append(f"Every row: {name} {known.pop()}.")
            del text[name]
    filled = {name: column for name, column in text.items() if any(column)}
    return list(filled), [list(line) for line in zip(*filled.values())], footer


def _align(headers: Sequence[str]) -> list[str]:
    words = ("model", *_TEXTS, *_TRUTHS, "noise", "warning", "status", "error")
    return ["left" if h in words else "right" for h in headers]


def markdown(frame: pd.DataFrame) -> str:
    """The table for people to read: rounded, the best of a headline metric at each (nfe, guidance) bold, reasons as footnotes."""
    if frame.empty:
        return "No rows yet.\n"
    headers, lines, footer = _render(frame, lambda v: f"**{v}**")
    lines = [[v.replace("|", "\\|") for v in line] for line in lines]
    table = tabulate(lines, headers, tablefmt="pipe", disable_numparse=True, colalign=_align(headers))
    measured = [m for m in headlines() if m in headers]
    bold = f"Bold: the best {' or '.join(measured) or 'value'} at its (nfe, guidance)."
    return "\n".join([table, "", *(f"{note}  " for note in (bold, *footer))]) + "\n"


def latex(frame: pd.DataFrame) -> str:
    """A booktabs table for papers, with the footnotes as comments below it."""
    if frame.empty:
        return "% No rows yet.\n"
    headers, lines, footer = _render(frame, lambda v: f"\x02{v}\x03")
    table = tabulate(lines, headers, tablefmt="latex_booktabs", disable_numparse=True, colalign=_align(headers))
    for mark, tex in (("\x02", r"\textbf{"), ("\x03", "}"), ("±", r"$\pm$")):  # after tabulate has escaped the rest
        table = table.replace(mark, tex)
    return "\n".join(["% needs \\usepackage{booktabs}", table, *(f"% {note}" for note in footer)]) + "\n"


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that readers see the old one or the new one, never a part.

    **Raises**: UsageError when the folder cannot be written or the disk is full; the old file is still there then.
    """
    try:
        write_atomic(path, data)
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror or e}; free the disk or give another folder with results=<folder>") from e


def _in_comments(heading: str, note: str) -> str:
    return f"% {heading}\n" + (f"% {note}\n" if note else "")


def write_tables(rows: Sequence[Row], folder: Path) -> None:
    """table.csv (every column, full precision), table.md and table.tex in `folder`, each replaced whole, one cohort below the other."""
    found = cohorts(rows)
    frames = [wide(cohort.rows, i) for i, cohort in enumerate(found, start=1)] or [wide(())]
    text = "".join(frame.to_csv(index=False, lineterminator="\n", header=not i) for i, frame in enumerate(frames))
    replace_file(folder / "table.csv", text.encode())
    replace_file(folder / "table.md", by_cohort(found, lambda rows: markdown(wide(rows))).encode())
    replace_file(folder / "table.tex", by_cohort(found, lambda rows: latex(wide(rows)), _in_comments).encode())
