"""`factory jobs …`: work on the cluster, through Ray's job API."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.console import Json, State, emit, state, table

if TYPE_CHECKING:
    from factory.cluster.jobs import Job, Jobs

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
    json: Json = False,
) -> None:
    """Run a module as a job and follow it. Options of this command stand before the module.

    Example: factory jobs submit finetune --config finetune.yaml
    """
    this = state(context)
    jobs = _jobs(this)
    name = module if "." in module else f"pipelines.{module}"
    job_id = jobs.submit(name, args or [], working_dir=working_dir)
    if not wait:
        if json:
            emit({"id": job_id})
        else:
            typer.echo(job_id)
        return
    typer.echo(f"job {job_id}", err=True)
    _follow(jobs, job_id, to=sys.stderr.write if json else sys.stdout.write)
    job = jobs.wait(job_id)
    if json:
        emit(asdict(job))


@app.command("list")
def list_(context: typer.Context, json: Json = False) -> None:
    """Show all jobs of the running cluster, newest first.

    Example: factory jobs list
    """
    found = _jobs(state(context)).list()
    if json:
        emit({"jobs": [asdict(job) for job in found]})
        return
    table(
        ("job", "status", "started", "seconds", "command"),
        [
            (
                job.id,
                job.status,
                job.started and f"{job.started:%Y-%m-%d %H:%M:%S}",
                job.started and job.ended and round((job.ended - job.started).total_seconds()),
                job.command,
            )
            for job in found
        ],
        "No job has been submitted to this cluster.",
    )


@app.command()
def logs(
    context: typer.Context,
    job_id: JobId,
    follow: Annotated[bool, typer.Option(help="Go on until the job ends.")] = False,
) -> None:
    """Print what a job printed.

    Example: factory jobs logs raysubmit_x --follow
    """
    jobs = _jobs(state(context))
    if follow:
        _follow(jobs, job_id, to=sys.stdout.write)
    else:
        typer.echo(jobs.logs(job_id), nl=False)


@app.command()
def cancel(context: typer.Context, job_id: JobId, json: Json = False) -> None:
    """Stop a job.

    Example: factory jobs cancel raysubmit_x
    """
    stopped = _jobs(state(context)).cancel(job_id)
    if json:
        emit({"id": job_id, "stopped": stopped})
    else:
        typer.echo(f"Stopping job {job_id}." if stopped else f"Job {job_id} had ended already.")


def _follow(jobs: Jobs, job_id: str, to: Callable[[str], object]) -> Job:
    """Follow a job; an interrupt says how to come back, and leaves it running."""

    def show(text: str) -> None:
        to(text)
        sys.stdout.flush()

    try:
        return jobs.follow(job_id, show)
    except KeyboardInterrupt as interrupt:
        typer.echo(
            f"\nJob {job_id} goes on. Follow it with `factory jobs logs {job_id} --follow`, "
            f"stop it with `factory jobs cancel {job_id}`.",
            err=True,
        )
        raise typer.Exit(130) from interrupt


def _jobs(this: State) -> Jobs:
    from factory.cluster.jobs import Jobs
    from factory.cluster.local import require

    return Jobs(this.settings, require(this.settings), this.config_file)
