"""`factory jobs …`: the queue, and work on the cluster through Ray's job API."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from factory.cli.console import Json, State, emit, state, table

if TYPE_CHECKING:
    from factory.cluster.queue.spec import JobSpec
    from factory.cluster.queue.store import QueuedJob
    from factory.ledger.store import Ledger

app = typer.Typer(name="jobs", no_args_is_help=True, help="Work on the cluster.")
JobId = Annotated[str, typer.Argument(metavar="JOB", help="The id that submit printed.")]


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def submit(
    context: typer.Context,
    module: Annotated[str, typer.Argument(help="A module to run, or just its name in pipelines.")],
    args: Annotated[
        list[str] | None, typer.Argument(metavar="[ARGS]...", help="Arguments of the module.")
    ] = None,
    working_dir: Annotated[Path, typer.Option(help="The folder to upload.")] = Path(),
    wait: Annotated[bool, typer.Option(help="Follow the job and take its exit code.")] = True,
    team: Annotated[str | None, typer.Option(help="Who is charged; else the first team.")] = None,
    priority: Annotated[str, typer.Option(help="A class of jobs.classes.")] = "normal",
    workers: Annotated[int, typer.Option(help="Equal parts that start together.")] = 1,
    cpus: Annotated[
        float | None, typer.Option(help="CPUs of one worker; else 1 for training, 0 for others.")
    ] = None,
    gpus: Annotated[float, typer.Option(help="GPUs of one worker.")] = 0,
    hours: Annotated[
        float | None, typer.Option(help="How long it will take; else as it usually did.")
    ] = None,
    deadline: Annotated[
        datetime | None,
        typer.Option(
            formats=["%Y-%m-%dT%H:%M:%S%z", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M"],
            help="When it has to be done; UTC unless it says otherwise.",
        ),
    ] = None,
    checkpoint_minutes: Annotated[
        float, typer.Option(help="Work that an interruption without notice may cost.")
    ] = 5,
    window: Annotated[str | None, typer.Option(help="A window of jobs.windows.")] = None,
    pool: Annotated[list[str] | None, typer.Option(help="A pool it may use; repeat it.")] = None,
    sensitivity: Annotated[str, typer.Option(help="restricted, internal or public.")] = "internal",
    max_usd: Annotated[float | None, typer.Option(help="Stop it before it costs more.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and print, submit nothing.")
    ] = False,
    format_: Annotated[
        Literal["queue", "rayjob"],
        typer.Option("--format", help="With --dry-run: for this queue, or Kubernetes with Kueue."),
    ] = "queue",
    json: Json = False,
) -> None:
    """Queue a module as a job and follow it. Options of this command stand before the module.

    Example: factory jobs submit --team research --hours 2 finetune --config finetune.yaml
    """
    from factory.cluster.queue import submission
    from factory.cluster.queue.spec import made, usual_cpus

    this = state(context)
    module = module if "." in module else f"pipelines.{module}"
    spec = made(
        module=module,
        args=tuple(args or ()),
        team=team or submission.default_team(this.settings),
        priority=priority,
        workers=workers,
        cpus=usual_cpus(module) if cpus is None else cpus,
        gpus=gpus,
        duration_s=None if hours is None else hours * 3600,
        deadline=deadline and (deadline if deadline.tzinfo else deadline.replace(tzinfo=UTC)),
        checkpoint_s=checkpoint_minutes * 60,
        window=window,
        pools=tuple(pool or ()),
        sensitivity=sensitivity,
        max_usd=None if max_usd is None else Decimal(str(max_usd)),
    )
    if dry_run:
        _dry_run(this, spec, format_, json)
        return
    with this.ledger() as ledger:
        job = submission.submit(
            this.settings, ledger, spec, working_dir=working_dir, config=this.config_file
        )
        if not wait:
            if json:
                emit(job.as_dict())
            else:
                typer.echo(job.id)
            return
        typer.echo(f"job {job.id}", err=True)
        job = submission.succeeded(_follow(this, ledger, job.id, to_stderr=json))
    if json:
        emit(job.as_dict() | {"status": "SUCCEEDED"})


@app.command("list")
def list_(
    context: typer.Context,
    all_: Annotated[bool, typer.Option("--all", help="Also those that ended.")] = False,
    json: Json = False,
) -> None:
    """Show the queue: position, why a job waits, estimate, cost. Newest last.

    Jobs that were given to Ray directly are shown with --all.

    Example: factory jobs list --all
    """
    from factory.cluster import local
    from factory.cluster.jobs import Jobs
    from factory.cluster.queue.store import ACTIVE, Queue

    this = state(context)
    with this.ledger() as ledger:
        found = Queue(ledger).list(None if all_ or json else ACTIVE, limit=200)
    cluster = local.current(this.settings)
    direct = []
    if cluster is not None and (all_ or json):
        ours = {job.submission_id for job in found} | {
            f"{job.id}.{number}" for job in found for number in range(1, job.attempt + 1)
        }
        direct = [job for job in Jobs(this.settings, cluster).list() if job.id not in ours]
    if json:
        emit({"jobs": [job.as_dict() for job in found], "direct": [asdict(job) for job in direct]})
        return
    rows = [_row(job) for job in found] + [
        (job.id, "-", "-", job.status.lower(), None, None, None, None, f"direct: {job.command}")
        for job in direct
    ]
    table(
        ("job", "team", "class", "state", "place", "pool", "estimate", "USD", "why"),
        rows,
        "No job waits or runs." if not all_ else "No job has been submitted.",
    )


@app.command()
def show(context: typer.Context, job_id: JobId, json: Json = False) -> None:
    """Show all about a job: state and reason, attempts, wait, estimate and cost.

    Of a job with a deadline also what the spot policy says now, where a record of zones is kept.

    Example: factory jobs show finetune-1a2b3c
    """
    from factory.cluster.queue.store import Queue
    from factory.cluster.spot.jobs import SpotJobs

    this = state(context)
    with this.ledger() as ledger:
        job = Queue(ledger).get(job_id)
        told = SpotJobs(this.settings, ledger).told(job, datetime.now(UTC))
    values = job.as_dict() | {"spot_policy": told}
    if json:
        emit(values)
        return
    spec = values.pop("spec")
    rows = [(name, value) for name, value in (values | spec).items() if value not in (None, [], "")]
    table(("", job.id), rows, "")


@app.command()
def zones(context: typer.Context, json: Json = False) -> None:
    """Show what was seen of spot zones: who has capacity, since when, how often, for what price.

    Example: factory jobs zones
    """
    from factory.cluster.spot.zones import LONGEST, states
    from factory.ledger.zones import observations

    this, now = state(context), datetime.now(UTC)
    pools = [name for name, pool in this.settings.pools.items() if pool.market == "spot"]
    with this.ledger() as ledger:
        looks = [each for name in pools for each in observations(ledger, name, now - LONGEST)]
    found = states(looks, now)
    if json:
        emit({"zones": [asdict(each) for each in found]})
        return
    table(
        ("pool", "zone", "", "since", "last seen", "by", "up, 7 days", "USD an hour"),
        [
            (
                each.pool,
                each.zone,
                "up" if each.up else "out",
                f"{each.since:%Y-%m-%d %H:%M}",
                f"{each.seen_at:%Y-%m-%d %H:%M}",
                each.source,
                f"{each.share:.0%}",
                None if each.nusd_per_hour is None else _usd(each.nusd_per_hour),
            )
            for each in found
        ],
        "No spot zone has been seen yet; the node meter and the hybrid provider keep the record.",
    )


@app.command()
def logs(
    context: typer.Context,
    job_id: JobId,
    follow: Annotated[bool, typer.Option(help="Go on until the job ends.")] = False,
) -> None:
    """Print what a job printed: its newest attempt.

    Example: factory jobs logs finetune-1a2b3c --follow
    """
    from factory.cluster import local
    from factory.cluster.jobs import Jobs
    from factory.cluster.queue import submission
    from factory.cluster.queue.store import Queue

    this = state(context)
    with this.ledger() as ledger:
        if not follow:
            typer.echo(submission.logs(this.settings, ledger, job_id), nl=False)
        elif Queue(ledger).find(job_id) is not None:
            _follow(this, ledger, job_id)
        else:
            jobs = Jobs(this.settings, local.require(this.settings))
            jobs.follow(job_id, _show)


@app.command()
def cancel(context: typer.Context, job_id: JobId, json: Json = False) -> None:
    """Stop a job; one that waits leaves the queue.

    Example: factory jobs cancel finetune-1a2b3c
    """
    from factory.cluster.queue import submission

    this = state(context)
    with this.ledger() as ledger:
        stopped = submission.cancel(this.settings, ledger, job_id)
    if json:
        emit({"id": job_id, "stopped": stopped})
    else:
        typer.echo(f"Stopping job {job_id}." if stopped else f"Job {job_id} had ended already.")


@app.command()
def dead(
    context: typer.Context,
    retry: Annotated[
        str | None, typer.Option(metavar="JOB", help="Put this one back into the queue.")
    ] = None,
    json: Json = False,
) -> None:
    """Show the jobs that were given up, each with a diagnosis.

    Example: factory jobs dead --retry finetune-1a2b3c
    """
    from factory.cluster.queue import submission
    from factory.cluster.queue.store import Queue

    this = state(context)
    with this.ledger() as ledger:
        queue = Queue(ledger)
        if retry is not None:
            found = [queue.retry(retry, datetime.now(UTC))]
            submission.drive(this.settings, ledger, this.config_file)
        else:
            found = queue.list(("dead",))
    if json:
        emit({"jobs": [job.as_dict() for job in found]})
        return
    if retry is not None:
        typer.echo(f"Job {retry} is back in the queue.")
        return
    table(
        ("job", "team", "ended", "failures", "interruptions", "USD", "diagnosis"),
        [
            (
                job.id,
                job.team,
                job.ended_at and f"{job.ended_at:%Y-%m-%d %H:%M:%S}",
                job.failures,
                job.interruptions,
                _usd(job.cost_nusd),
                job.reason,
            )
            for job in found
        ],
        "No job was given up.",
    )


@app.command()
def waits(
    context: typer.Context,
    days: Annotated[float, typer.Option(help="Of the jobs submitted in the last DAYS.")] = 30,
    json: Json = False,
) -> None:
    """Show how long jobs waited for room, by team and class: median and 95th percentile.

    Example: factory jobs waits --days 7
    """
    from factory.cluster.queue.store import Queue
    from factory.cluster.queue.waiting import waits as measured

    with state(context).ledger() as ledger:
        found = measured(Queue(ledger).list(), datetime.now(UTC), days)
    if json:
        emit({"waits": [asdict(each) for each in found]})
        return
    table(
        ("team", "class", "jobs", "median s", "p95 s", "longest s"),
        [
            (each.team, each.priority, each.jobs, *map(round, (each.p50_s, each.p95_s, each.max_s)))
            for each in found
        ],
        "No job was submitted in that time.",
    )


def _dry_run(this: State, spec: JobSpec, format_: str, json: bool) -> None:
    import yaml

    from factory.cluster.queue.eligibility import estimate_nusd, pools
    from factory.cluster.queue.rayjob import manifest
    from factory.cluster.queue.spec import check
    from factory.cluster.queue.store import QueuedJob
    from factory.cluster.spot.jobs import SpotJobs

    now = datetime.now(UTC)
    check(spec, this.settings, now)
    if format_ == "rayjob":
        found = manifest(spec, this.settings)
        emit(found) if json else typer.echo(yaml.safe_dump(found, sort_keys=False), nl=False)
        return
    cost = estimate_nusd(this.settings, spec, spec.duration_s, now)
    job = QueuedJob(
        job_id="dry-run",
        order=0,
        created_at=now,
        team=spec.team,
        module=spec.module,
        spec=spec,
        state="waiting",
        reason="",
    )
    with this.ledger() as ledger:
        told = SpotJobs(this.settings, ledger).told(job, now)
    found = {
        "spec": spec.model_dump(mode="json"),
        "pools": list(pools(this.settings, spec, now)),
        "spot_policy": told,
        "estimate_usd": None if cost is None else _usd(cost),
    }
    emit(found) if json else typer.echo(yaml.safe_dump(found, sort_keys=False), nl=False)


def _row(job: QueuedJob) -> tuple[object, ...]:
    return (
        job.id,
        job.team,
        job.spec.priority,
        job.state,
        job.position,
        job.pool,
        None if job.estimate_nusd is None else _usd(job.estimate_nusd),
        _usd(job.cost_nusd),
        job.reason,
    )


def _usd(nusd: int) -> str:
    from factory.ledger.money import usd

    return usd(nusd)


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _follow(this: State, ledger: Ledger, job_id: str, to_stderr: bool = False) -> QueuedJob:
    """Follow a job; an interrupt says how to come back, and leaves it in the queue."""
    from factory.cluster.queue import submission

    def show(text: str) -> None:
        typer.echo(text, nl=False, err=True) if to_stderr else _show(text)

    try:
        return submission.follow(
            this.settings,
            ledger,
            job_id,
            output=show,
            say=lambda text: typer.echo(text, err=True),
            config=this.config_file,
        )
    except KeyboardInterrupt as interrupt:
        typer.echo(
            f"\nJob {job_id} goes on. Follow it with `factory jobs logs {job_id} --follow`, "
            f"stop it with `factory jobs cancel {job_id}`.",
            err=True,
        )
        raise typer.Exit(130) from interrupt
