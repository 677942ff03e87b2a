"""`factory reviews …`: requests and answers that wait for a person."""

from __future__ import annotations

import getpass
import json as json_text
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from factory.cli.console import Json, emit, state, table
from factory.ledger.text import printable

if TYPE_CHECKING:
    from factory.ledger.reviews import Decision

app = typer.Typer(name="reviews", no_args_is_help=True, help="What waits for a person.")
Id = Annotated[str, typer.Argument(metavar="REVIEW", help="The id, as `reviews list` shows it.")]
Note = Annotated[str, typer.Option(help="Why, for the audit log.")]
By = Annotated[str | None, typer.Option(help="Who decides; default: your login name.")]


@app.command("list")
def list_(
    context: typer.Context,
    team: Annotated[str | None, typer.Option(help="Only this team's.")] = None,
    status: Annotated[
        str, typer.Option(help="pending, approved, edited, rejected, running, done … or all.")
    ] = "pending",
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="At most so many.")] = 100,
    json: Json = False,
) -> None:
    """Show what waits, the oldest first.

    Example: factory reviews list --team support
    """
    from factory.ledger.reviews import list_reviews

    with state(context).ledger() as ledger:
        found = list_reviews(ledger, team, None if status == "all" else status, limit)
    if json:
        emit({"reviews": [review.as_dict() for review in found]})
        return
    table(
        ("review", "since", "team", "endpoint", "stage", "status", "by", "because"),
        [
            (
                review.review_id,
                f"{review.created_at:%Y-%m-%d %H:%M}",
                review.team,
                review.endpoint,
                review.stage,
                review.status,
                printable(review.decided_by or ""),
                printable("; ".join(review.reasons)),
            )
            for review in found
        ],
        "Nothing waits." if status == "pending" else "There is no such review.",
    )


@app.command()
def show(context: typer.Context, review_id: Id, json: Json = False) -> None:
    """Show one review with the request, the answer in question and what became of it.

    Example: factory reviews show rev-0123
    """
    from factory.ledger.errors import LedgerError
    from factory.ledger.reviews import get

    with state(context).ledger() as ledger:
        review = get(ledger, review_id)
    if review is None:
        raise LedgerError(f"there is no review '{review_id}'; `factory reviews list` shows all")
    if json:
        emit(review.as_dict())
        return
    typer.echo(
        f"{review.review_id}: {review.stage} of request {review.request_id}, endpoint "
        f"{review.endpoint}, team {review.team}, since "
        f"{review.created_at.isoformat(timespec='seconds')}: {review.status}"
    )
    for reason in review.reasons:
        typer.echo(f"because {printable(reason)}")
    if review.decided_by:
        note = f": {printable(review.note)}" if review.note else ""
        typer.echo(f"decided by {printable(review.decided_by)}{note}")
    for name, content in (
        ("request", review.request),
        ("answer", review.answer),
        ("text", review.text),
        ("result", review.result),
    ):
        if content is not None:
            typer.echo(f"{name}:")
            plain = json_text.dumps(content, indent=2, ensure_ascii=False)
            typer.echo("\n".join(printable(line) for line in plain.split("\n")))


@app.command()
def approve(
    context: typer.Context, review_id: Id, note: Note = "", by: By = None, json: Json = False
) -> None:
    """Let it pass as it is; a decision is final.

    Example: factory reviews approve rev-0123 --note "a known customer"
    """
    _decide(context, review_id, "approve", by, note, None, json)


@app.command()
def edit(
    context: typer.Context,
    review_id: Id,
    text: Annotated[str | None, typer.Option(help="The prompt or answer to use instead.")] = None,
    file: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="A text file with it, in UTF-8."),
    ] = None,
    note: Note = "",
    by: By = None,
    json: Json = False,
) -> None:
    """Let it pass with another text; a decision is final.

    Example: factory reviews edit rev-0123 --text "Please call our office."
    """
    if (text is None) == (file is None):
        raise typer.BadParameter("give one of --text and --file")
    if file is not None:
        try:
            text = file.read_text("utf-8")
        except UnicodeDecodeError as error:
            raise typer.BadParameter(f"{file} is not UTF-8 text: {error}") from error
    _decide(context, review_id, "edit", by, note, text, json)


@app.command()
def reject(
    context: typer.Context, review_id: Id, note: Note = "", by: By = None, json: Json = False
) -> None:
    """Refuse it; the client gets an error. A decision is final.

    Example: factory reviews reject rev-0123 --note "not ours to answer"
    """
    _decide(context, review_id, "reject", by, note, None, json)


def _decide(
    context: typer.Context,
    review_id: str,
    decision: Decision,
    by: str | None,
    note: str,
    text: str | None,
    json: bool,
) -> None:
    from factory.ledger.reviews import decide

    try:
        who = by or getpass.getuser()
    except (KeyError, OSError) as error:
        raise typer.BadParameter("this system does not know your name; give --by") from error
    with state(context).ledger() as ledger:
        review = decide(ledger, review_id, decision, who, note, text, at=datetime.now(UTC))
    if json:
        emit(review.as_dict())
    else:
        typer.echo(f"{review.review_id} is {review.status} by {who}.")
