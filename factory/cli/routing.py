"""`factory routing …`: fit a router on outcomes, calibrate its threshold, see what it is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from factory.cli.console import Json, State, emit, progress, state, table

if TYPE_CHECKING:
    from factory.catalog.objects import ObjectStore
    from factory.config import Settings
    from factory.embedding import Encoder, StaticEmbedder
    from factory.ledger.store import Ledger
    from factory.routing.calibration import Target, Threshold
    from factory.routing.fitted import Fitted
    from factory.routing.labels import Table

app = typer.Typer(name="routing", no_args_is_help=True, help="Learned routers and thresholds.")
Name = Annotated[str, typer.Option("--endpoint", help="The endpoint it is for.")]


@app.command()
def fit(
    context: typer.Context,
    endpoint: Name,
    data: Annotated[
        Path | None,
        typer.Option(
            help="Parquet, CSV or JSON lines with prompt and tier1_good, tier2_good … or "
            "weak_correct, strong_correct; default: the ledger's own outcomes."
        ),
    ] = None,
    encoder: Annotated[
        bool,
        typer.Option(
            "--encoder",
            help="Also fit a second router on the catalog's encoder (about 20 prompts a second); "
            "the gateway asks it only where that pays. Needs --data.",
        ),
    ] = False,
    teacher: Annotated[
        str | None,
        typer.Option(
            help="A local model of the catalog, such as smollm2-135m, whose lower layers read the "
            "prompts (about 40 a second and core) and teach the router what they see. It is not "
            "needed afterwards. Default: the encoder of --encoder, if that is given. Needs --data."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the split and of the folds.")] = 0,
    json: Json = False,
) -> None:
    """Learn which tier is good enough for which prompt. Nothing changes before `calibrate`.

    Example: factory routing fit --endpoint helpdesk --data labels.parquet --teacher smollm2-135m
    """
    from factory.routing import fitted

    if (encoder or teacher) and data is None:
        option = "--encoder" if encoder else "--teacher"
        raise typer.BadParameter(f"{option} needs --data: the ledger keeps no prompts")
    this = state(context)
    tiers = _tiers(this.settings, endpoint)
    store = _store(this.settings)
    with progress() as tell:
        embedder = _embedder(this.settings, store, tell)
        labelled = _labelled(this, endpoint, data, tiers, embedder.dimensions)
        lesson, hints, name = None, None, ""
        if encoder:
            name, real = _encoder(this.settings, store, tell)
            lesson = fitted.teach(labelled, embedder, real, seed, tell)
            hints = lesson.hints
        if teacher:
            reader = _teacher(this.settings, teacher, store, tell)
            hints = fitted.teach(labelled, embedder, reader, seed, tell).hints
        router, held = fitted.train(labelled, embedder, seed, tell, hints)
        deep = lesson.beside(held, name) if lesson else None
        source = str(data) if data else "ledger"
        about = {"source": source, "n": router.meta.n, "seed": seed}
        stored = fitted.keep(store, endpoint, router, held, about, deep)
    if json:
        emit(
            {
                "endpoint": endpoint,
                "router": stored.hash,
                "tiers": router.meta.tiers,
                "n": router.meta.n,
                "held_out": len(held.good),
                "encoder": deep and {"model": deep.model, "spread": deep.spread, "ms": deep.ms},
                "memory_bytes": router.nbytes,
                "reasons": router.meta.reasons,
            }
        )
        return
    for reason in router.meta.reasons:
        typer.echo(reason)
    if deep is not None:
        typer.echo(
            f"second router on {deep.model}: {deep.ms:.0f} ms a prompt, its gain differs by "
            f"{deep.spread:.3f} from the first one's"
        )
    typer.echo(
        f"router {stored.hash[:16]} for {endpoint}: {len(held.good)} prompts held out; now run "
        f"`factory routing report --endpoint {endpoint}` and `factory routing calibrate`"
    )


@app.command()
def calibrate(
    context: typer.Context,
    endpoint: Name,
    quality: Annotated[
        float | None, typer.Option(help="Least share of good answers, such as 0.9.")
    ] = None,
    cost_usd_per_1k: Annotated[
        float | None, typer.Option("--cost-usd-per-1k", help="Most that 1,000 requests may cost.")
    ] = None,
    kind: Annotated[
        str,
        typer.Option(
            help="`router`: the threshold on what a higher tier promises. "
            "`confidence`: from which confidence on the lowest tier's answer is sent."
        ),
    ] = "router",
    data: Annotated[
        Path | None,
        typer.Option(help="For `confidence`: CSV with confidence,good; default: the ledger's."),
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Of a usual request.")] = 500,
    completion_tokens: Annotated[int, typer.Option(min=1, help="Of a usual answer.")] = 200,
    confidence: Annotated[float, typer.Option(help="Probability that the target is met.")] = 0.95,
    json: Json = False,
) -> None:
    """Find the threshold that meets a target, and put it to use. Refuses when it cannot be sure.

    Example: factory routing calibrate --endpoint helpdesk --quality 0.9
    """
    from factory.ledger.calibrations import Calibration, save
    from factory.routing.calibration import subject

    if kind not in ("router", "confidence"):
        raise typer.BadParameter("--kind must be router or confidence")
    this = state(context)
    target = _target(quality, cost_usd_per_1k)
    prices = _prices(this.settings, endpoint, prompt_tokens, completion_tokens)
    with this.ledger() as ledger:
        if kind == "router":
            found, detail = _router(
                this.settings, endpoint, target, prices, confidence, prompt_tokens
            )
        else:
            found, detail = _confidence(ledger, endpoint, data, target, prices, confidence)
        saved = None
        if found.value is not None:
            saved = save(
                ledger,
                Calibration(
                    kind="router" if kind == "router" else "confidence",
                    scope=endpoint,
                    subject=subject(_versions(this.settings, ledger, endpoint)),
                    detail={**detail, "threshold": found.detail()},
                    created_at=datetime.now(UTC),
                ),
            )
    if json:
        emit({"kind": kind, **found.detail(), "subject": saved.subject if saved else None})
    else:
        typer.echo("\n".join(found.reasons))
    if saved is None:
        raise typer.Exit(1)
    if not json:
        typer.echo(f"{kind} threshold {found.value:.4f} for {endpoint}, models {saved.subject}")


@app.command()
def report(
    context: typer.Context,
    endpoint: Name,
    out: Annotated[
        Path | None, typer.Option(help="PNG of quality against the share of strong calls.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare the router with random mixing, the best single model and an oracle.

    On prompts it was not fitted on, between the endpoint's lowest and highest tier.
    Example: factory routing report --endpoint helpdesk --out router.png
    """
    from factory.routing.report import COLUMNS, compare, plot

    this = state(context)
    fitted = _newest(this.settings, endpoint)
    held = fitted.held
    scores = {"router": held.p_good[:, -1] - held.p_good[:, 0]}
    if fitted.deep is not None:
        scores["with encoder"] = fitted.deep.p_good[:, -1] - fitted.deep.p_good[:, 0]
    found = compare(scores, held.good[:, 0], held.good[:, -1])
    if out is not None:
        plot(found, out)
    if json:
        emit({"endpoint": endpoint, "router": fitted.stored.hash, **found.json()})
        return
    table(COLUMNS, found.rows(), "")
    typer.echo(f"{found.n} held-out prompts; best single model: always {found.best_single}")


def _tiers(settings: Settings, name: str) -> tuple[int, ...]:
    """The model tiers of an endpoint that has a choice to make."""
    if name not in settings.endpoints:
        raise typer.BadParameter(f"there is no endpoint '{name}'", param_hint="--endpoint")
    ladder = settings.ladder(settings.endpoints[name])
    tiers = tuple(sorted(model.tier for _, model in ladder))
    if len(tiers) < 2:
        raise typer.BadParameter(
            f"endpoint '{name}' has fewer than two model tiers, so there is nothing to route",
            param_hint="--endpoint",
        )
    return tiers


def _store(settings: Settings) -> ObjectStore:
    from factory.catalog.objects import ObjectStore

    return ObjectStore(settings.objects)


def _embedder(settings: Settings, store: ObjectStore, tell: Any) -> StaticEmbedder:
    from factory.embedding import StaticEmbedder, installed

    return StaticEmbedder.load(installed.make(settings, store, tell).path)


def _encoder(settings: Settings, store: ObjectStore, tell: Any) -> tuple[str, Encoder]:
    from factory.catalog import pull
    from factory.embedding import Encoder, installed

    name = settings.routing.encoder or installed.encoder_name(settings)
    assert name is not None, "the static embedder was made from it"
    path = pull.pull(settings, name, store, tell).path
    return name, Encoder.load(path, settings.models[name].layers)


def _teacher(settings: Settings, name: str, store: ObjectStore, tell: Any) -> Encoder:
    """The lower layers of a model, or all of an encoder that the catalog does not cut."""
    from factory.catalog import pull
    from factory.embedding import Encoder
    from factory.embedding.encoder import lower

    path = pull.pull(settings, name, store, tell).path
    model = settings.models[name]
    return Encoder.load(path, model.layers if model.engine == "encoder" else lower(path))


def _labelled(
    this: State, endpoint: str, data: Path | None, tiers: Sequence[int], dimensions: int
) -> Table:
    """The labelled prompts, their tiers being the endpoint's."""
    from dataclasses import replace

    from factory.ledger.samples import load
    from factory.routing.errors import RoutingError
    from factory.routing.labels import WEAK_STRONG, from_samples, read

    if data is None:
        with this.ledger() as ledger:
            return from_samples(load(ledger, endpoint), tiers, dimensions)
    found = read(data)
    if found.names == WEAK_STRONG:
        return replace(found, tiers=(tiers[0], tiers[-1]))
    if not set(found.tiers) <= set(tiers):
        raise RoutingError(
            f"'{data}' has labels for tiers {list(found.tiers)}, "
            f"but endpoint '{endpoint}' has models on {list(tiers)}"
        )
    return found


def _target(quality: float | None, cost_usd_per_1k: float | None) -> Target:
    from factory.config import NANO
    from factory.routing.calibration import Target

    if (quality is None) == (cost_usd_per_1k is None):
        raise typer.BadParameter("give either --quality or --cost-usd-per-1k")
    if quality is not None:
        return Target("quality", quality)
    assert cost_usd_per_1k is not None
    return Target("cost", cost_usd_per_1k * NANO / 1000)


def _prices(
    settings: Settings, endpoint: str, prompt_tokens: int, completion_tokens: int
) -> dict[int, int]:
    """List price of a usual request by tier, in nano-dollars."""
    _tiers(settings, endpoint)
    ladder = settings.ladder(settings.endpoints[endpoint])
    return {
        model.tier: model.price.nano_usd(prompt_tokens, completion_tokens) for _, model in ladder
    }


def _newest(settings: Settings, endpoint: str) -> Fitted:
    from factory.routing.errors import RoutingError
    from factory.routing.fitted import newest

    _tiers(settings, endpoint)
    found = newest(_store(settings), endpoint)
    if found is None:
        raise RoutingError(
            f"no router is fitted for '{endpoint}': run `factory routing fit --endpoint {endpoint}`"
        )
    return found


def _router(
    settings: Settings,
    endpoint: str,
    target: Target,
    prices: Mapping[int, int],
    confidence: float,
    prompt_tokens: int,
) -> tuple[Threshold, dict[str, Any]]:
    from factory.routing.calibration import router_threshold
    from factory.routing.encoder import band
    from factory.routing.errors import RoutingError

    fitted = _newest(settings, endpoint)
    meta = fitted.router.meta
    if not set(meta.tiers) <= prices.keys():
        raise RoutingError(f"the router of '{endpoint}' is for tiers {list(meta.tiers)}: fit again")
    cost = [float(prices[tier]) for tier in meta.tiers]
    deep, second = fitted.deep, None
    if deep is not None and deep.model in settings.models:
        price = settings.models[deep.model].price.nano_usd(prompt_tokens, 0)
        margin = band(deep.spread, max(cost), min(cost), price)
        second = (deep.p_good, margin, float(price))
    found = router_threshold(
        fitted.held.p_good, fitted.held.good, cost, meta.grid, target, confidence, second
    )
    return found, {
        "router": fitted.stored.hash,
        "tiers": list(meta.tiers),
        "prices_nusd": cost,
        "encoder": deep.model if deep is not None and second is not None else None,
    }


def _confidence(
    ledger: Ledger,
    endpoint: str,
    data: Path | None,
    target: Target,
    prices: Mapping[int, int],
    confidence: float,
) -> tuple[Threshold, dict[str, Any]]:
    from factory.ledger.samples import load
    from factory.routing.calibration import confidence_threshold
    from factory.routing.labels import confidences_from_samples, read_confidences

    low, high = sorted(prices)[:2]
    sure, right = (
        read_confidences(data) if data else confidences_from_samples(load(ledger, endpoint), low)
    )
    cost = (float(prices[low]), float(prices[high]))
    return confidence_threshold(sure, right, target, cost, confidence), {"tier": low}


def _versions(settings: Settings, ledger: Ledger, endpoint: str) -> dict[str, str]:
    """By tier, the model and the version of it that answered last; `*` before its first answer."""
    from sqlalchemy import select

    from factory.ledger.schema import REQUESTS

    found = {}
    with ledger.read() as connection:
        for name, model in settings.ladder(settings.endpoints[endpoint]):
            query = (
                select(REQUESTS.c.model_version)
                .where(
                    REQUESTS.c.endpoint == endpoint,
                    REQUESTS.c.model == name,
                    REQUESTS.c.model_version.is_not(None),
                )
                .order_by(REQUESTS.c.created_at.desc())
                .limit(1)
            )
            found[str(model.tier)] = f"{name}@{connection.scalar(query) or '*'}"
    return found
