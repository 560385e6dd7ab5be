"""A report: everything that is derived from the rows of a suite."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from bench.reports.ablations import ABLATIONS, ablation_text, read_ablations
from bench.reports.checks import bars, bars_text, print_bars, targets_of
from bench.reports.cohorts import apart, by_cohort, cohorts
from bench.reports.few import few_steps
from bench.reports.guidance import guidance_text
from bench.reports.plots.arena import write_arena_pictures
from bench.reports.plots.asked import write_asked
from bench.reports.plots.overview import write_pictures
from bench.reports.plots.students import write_student_pictures
from bench.reports.plots.tradeoff import write_tradeoff
from bench.reports.published import PUBLISHED, has_papers, join_published, published_text, read_published
from bench.reports.summary import summary
from bench.reports.tables import Row, replace_file, write_tables
from bench.reports.verdicts import students_text
from bench.store.addresses import digest
from bench.store.provenance import other_code
from bench.store.supersession import newest

STAMP = ".report"  # digest of the rows that the whole report was made from


def write_report(folder: Path, rows: Sequence[Row], store: Path, pictures: bool, published: Path = PUBLISHED) -> None:
    """Write everything that is derived from rows into `folder`; `store` holds the sample artefacts that the grids show.

    **Raises**: UsageError when the folder cannot be written or the file of papers' numbers lacks a column.
    """
    recorded, rows = rows, newest(rows)
    found, papers, entries = cohorts(rows), read_published(published), read_ablations(ABLATIONS)
    write_tables(rows, folder)
    if has_papers(rows, papers):
        joined = [join_published(cohort.rows, papers) for cohort in found]
        text = "".join(frame.to_csv(index=False, lineterminator="\n", header=not i) for i, frame in enumerate(joined))
        replace_file(folder / "published.csv", text.encode())
    always: dict[str, Callable[[Sequence[Row]], str]] = {
        "summary.md": summary,
        "few_steps.md": few_steps,
        "students.md": students_text,
        "bars.md": bars_text,
        "published.md": lambda rows: published_text(rows, papers),
        "ablation.md": lambda rows: ablation_text(rows, entries),
        "guidance.md": guidance_text,
    }
    for name, made in always.items():
        if text := by_cohort(found, made):
            replace_file(folder / name, text.encode())
        else:
            (folder / name).unlink(missing_ok=True)  # of an earlier suite of this name
    if pictures:
        rows = found[0].rows if found else ()
        write_pictures(rows, folder, store)
        write_student_pictures(rows, folder)
        write_asked(rows, folder, store)
        write_tradeoff(rows, folder)
        write_arena_pictures(rows, folder)
        replace_file(folder / STAMP, _state(recorded).encode())


def _state(rows: Sequence[Row]) -> str:
    targets = [list(target) for target, _ in targets_of(rows[0]["suite"])] if rows else []
    return digest([[row.get("checksum") for row in rows], targets])


def is_current(folder: Path, rows: Sequence[Row]) -> bool:
    """Whether tables and pictures were all written from these rows and today's targets (a killed sweep leaves them behind)."""
    stamp = folder / STAMP
    return stamp.exists() and stamp.read_text() == _state(rows)


def superseded(rows: Sequence[Row]) -> str:
    """What to say of rows that the tables leave out; empty where there are none."""
    count = len(rows) - len(newest(rows))
    return f"{count} rows of earlier weights, samples, trainings or versions stay in runs.jsonl and out of the tables" if count else ""


def findings(rows: Sequence[Row]) -> str:
    """What a finished sweep prints: the bars of the first cohort, then what the tables keep apart and what they leave out."""
    found = cohorts(newest(rows))
    kept_apart = [f"{line}; tables have it under a heading of its own, pictures not" for line in apart(found)]
    lines = [print_bars(bars(found[0].rows if found else ())), *kept_apart, superseded(rows), other_code(newest(rows))]
    return "\n".join(line for line in lines if line)
