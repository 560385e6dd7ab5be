"""python -m bench.job: list the jobs of a suite, or do one, in a process that needs the results folder and nothing else.

    python -m bench.job +suite=digits out=jobs.jsonl              what the suite still lacks, one job a line, in an order that works
    python -m bench.job jobs=jobs.jsonl name=fit-4be3c58f21b9d70a does that one
    python -m bench.job jobs=jobs.jsonl                           does all of them

Jobs that need each other's artefacts say so (`inputs`); the others may be done at the same time, on machines that share the folder.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.execute.graph import jobs_once
from bench.execute.prepare import check_names, prepare_all, stale_rows
from bench.execute.process import tune_process
from bench.execute.ranks import led
from bench.jobs.session import Session
from bench.jobs.spec import Spec, read_spec
from bench.jobs.suite import expand
from bench.jobs.work import do, record
from bench.settings import cli
from bench.settings.files import example, text_of
from bench.space.claims import claiming
from bench.store.addresses import digest
from bench.store.artefacts import Store
from bench.store.world import device_of, joined
from fewstep.errors import Unavailable, UsageError, near_misses
from fewstep.files import write_atomic
from fewstep.progress import bar_settings, say


def listed(config: dict[str, Any], session: Session) -> list[Spec]:
    """The jobs that a suite still lacks. A teacher that is trained into the store is one of them: addresses depend on its recipe alone."""
    suite = expand(config["suite"], config["seed"], config["noise"])
    check_names(suite)
    session.stale = stale_rows(session.rows(suite.name).read())
    return jobs_once([branch for work in prepare_all({**config, "dry": True}, suite, session) for branch in work.branches()])


def chosen(config: dict[str, Any]) -> list[Spec]:
    """The jobs of a file, or the one of them with the name that was asked for. **Raises**: UsageError for a name that it has not."""
    lines = [line for line in text_of(Path(config["jobs"])).splitlines() if line.strip()]
    jobs = [read_spec(line, f"{config['jobs']} line {n}") for n, line in enumerate(lines, 1)]
    if not config["name"]:
        return jobs
    found = [job for job in jobs if job.name == config["name"]]
    if not found:
        raise UsageError(f"{config['jobs']} has no job '{config['name']}'{near_misses(config['name'], [job.name for job in jobs])}")
    return found


def done(session: Session, jobs: Sequence[Spec]) -> int:
    """Do these jobs; one that fails is recorded in a row of its cell, with all that read what it was to make. Returns how many failed.

    **Raises**: UsageError for a job that cannot be done here.
    """
    failed: dict[tuple[str, str], Exception] = {}
    recorded: set[str] = set()  # of cells, by what their jobs say of them
    for job in tqdm(jobs, desc="jobs", unit="job", **bar_settings(len(jobs) > 1)):
        why = next((failed[read] for read in job.inputs if read in failed), None)
        try:
            if why is None:
                do(session, job)
        except (UsageError, Unavailable):
            raise
        except Exception as err:  # whatever a solver, a method or a metric of somebody else's raises
            why = err
        if why is not None:
            failed[job.kind, job.key] = why
            if (cell := digest(dict(job.params))) not in recorded:
                recorded.add(cell)
                record(session.cell(job), why, session.say)
    return len(failed)


def run(config: dict[str, Any]) -> int:
    """The entry point."""
    if (config.get("suite") is None) == (config["jobs"] is None):
        raise UsageError(f"give a suite to list its jobs (+suite={example('suite')} out=jobs.jsonl) or jobs to do (jobs=jobs.jsonl)")
    tune_process(config["threads"])
    with joined(config["device"]) as world:
        store, device = Store(Path(config["results"])), device_of(config["device"])
        session = Session(store, device, config["batch"], say, world=world)
        return led(session, lambda: _run(config, session))


def _run(config: dict[str, Any], session: Session) -> int:
    """List jobs, or do them."""
    if config["jobs"] is None:
        jobs = listed(config, session)
        lines = "".join(f"{job.text()}\n" for job in jobs)
        if config["out"] is None:
            print("\n".join(job.name for job in jobs))
        else:
            write_atomic(Path(config["out"]), lines.encode())
            say(f"{len(jobs)} jobs in {config['out']}; do them with python -m bench.job jobs={config['out']}")
        return 0
    jobs = chosen(config)
    with claiming(session.store, "jobs", digest([job.name for job in jobs])) as claim:
        claim.tell({key for job in jobs for key in (job.key, *(read for _, read in job.inputs))})
        failed = done(session, jobs)
    if failed:
        say(f"{failed} of {len(jobs)} jobs failed; the rows of their cells say why")
    return 1 if failed else 0


def main(args: Sequence[str]) -> int:
    return cli.entry("job", __doc__ or "", run, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
