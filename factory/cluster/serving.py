"""The whole line up and down: weights, cluster, gateway.

    serving = up(settings)           # pulls what is missing, starts the head, deploys, waits
    status(settings).url
    down(settings)

Whatever step fails, `up` takes everything down again. The gateway is deployed by a child process
(`python -m serve_apps.up`), so that this library knows nothing of the apps it serves.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from filelock import FileLock, Timeout

from factory.catalog.objects import ObjectStore
from factory.catalog.pull import pull
from factory.cluster import local, ports
from factory.cluster.errors import ClusterError
from factory.cluster.queue import submission
from factory.config import ProviderSource, RegistrySource, Settings

DEPLOY = (sys.executable, "-m", "serve_apps.up")
"""Deploys the gateway; given `--address`, its last line on standard output is JSON with `url`."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A deployed gateway and the cluster below it."""

    url: str
    address: str
    dashboard: str
    cluster: str
    """Id of the cluster, so that the record of an earlier one is not believed."""
    notes: tuple[str, ...] = ()
    """What the deployment wants people to know, for example that nothing is promoted yet."""


@dataclass(frozen=True, slots=True)
class Status:
    """What runs under one home."""

    cluster: local.Cluster | None
    url: str | None
    healthy: bool
    """True when the gateway answers `/healthz`."""
    nodes: int = 0
    cpus: float = 0.0
    asleep: tuple[str, ...] = ()
    """Models whose engines sleep until somebody asks."""


def up(
    settings: Settings,
    *,
    config: Path | None = None,
    cpus: int | None = None,
    autoscaling: Path | None = None,
    port: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
    deploy: Sequence[str] = DEPLOY,
) -> Serving:
    """Pull missing models, start the cluster, deploy the gateway, wait until it answers.

    `cpus`, `autoscaling` and `port` are those of `local.start`.
    Raises `ClusterError` when something runs already, the port is taken, or a step fails; then
    nothing that this call started is left running.
    """
    run = settings.home / "run"
    run.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run / "serving.lock", blocking=False):
            start = partial(local.start, cpus=cpus, autoscaling=autoscaling, port=port)
            return _up(settings, config, start, progress, deploy)
    except Timeout as error:
        raise ClusterError(
            f"another `factory up` is at work under '{settings.home}'; wait for it"
        ) from error


def deploy(
    settings: Settings,
    *,
    config: Path | None = None,
    progress: Callable[[str], None] = lambda _: None,
    deploy: Sequence[str] = DEPLOY,
) -> Serving:
    """Serve on the running cluster, or roll over what is served there, at the same port.

    Models that are missing are pulled. After a promotion or a rollback this replaces the engines
    whose weights have changed.
    Raises `ClusterError` when no cluster runs, or the deployment fails; what was served stays.
    """
    cluster = local.require(settings)
    found = _read(settings)
    again = [*deploy]
    if found is not None and found.cluster == cluster.id:
        again += ["--port", str(urlsplit(found.url).port)]
    else:
        _require_port(settings)
    _pull_missing(settings, progress)
    return _deploy(settings, cluster, config, progress, again)


def down(settings: Settings) -> bool:
    """Stop the gateway and the cluster; False when nothing ran."""
    _record(settings).unlink(missing_ok=True)
    return local.stop(settings)


def serving(settings: Settings) -> Serving:
    """The deployed gateway. Raises `ClusterError` when none is up."""
    cluster = local.require(settings)
    found = _read(settings)
    if found is None or found.cluster != cluster.id:
        raise ClusterError(
            "a cluster runs but no gateway is deployed on it; run `factory down`, then `factory up`"
        )
    return found


def status(settings: Settings) -> Status:
    """What runs under this home, and whether it answers."""
    cluster = local.current(settings)
    if cluster is None:
        return Status(cluster=None, url=None, healthy=False)
    alive = [node for node in local.nodes(cluster) if node.get("state") == "ALIVE"]
    found = _read(settings)
    url = found.url if found is not None and found.cluster == cluster.id else None
    return Status(
        cluster=cluster,
        url=url,
        healthy=url is not None and _answers(url),
        nodes=len(alive),
        cpus=sum(_cpus(node) for node in alive),
        asleep=() if url is None else _asleep(url),
    )


def _up(
    settings: Settings,
    config: Path | None,
    start: Callable[..., local.Cluster],
    progress: Callable[[str], None],
    deploy: Sequence[str],
) -> Serving:
    if (running := local.current(settings)) is not None:
        found = _read(settings)
        where = found.url if found is not None and found.cluster == running.id else "no gateway"
        raise ClusterError(
            f"the factory is up already under '{settings.home}' ({where}); "
            "use it, or stop it with `factory down`"
        )
    _require_port(settings)
    _pull_missing(settings, progress)
    cluster = start(settings, config=config, progress=progress)
    try:
        serving = _deploy(settings, cluster, config, progress, deploy)
        submission.resume(settings, config)
        return serving
    except BaseException:
        progress("taking everything down again")
        down(settings)
        raise


def _pull_missing(settings: Settings, progress: Callable[[str], None]) -> None:
    store = ObjectStore(settings.objects)
    for name, model in settings.models.items():
        if not isinstance(model.source, ProviderSource | RegistrySource):
            progress(f"model {name}")
            pull(settings, name, store, progress)


def _require_port(settings: Settings) -> None:
    host, port = settings.gateway.host, settings.gateway.port
    if port and not ports.is_free(port, host):
        raise ClusterError(
            f"port {port} on {host} is in use by another program; "
            "stop that program or set gateway.port in factory.yaml (0 takes a free one)"
        )


def _deploy(
    settings: Settings,
    cluster: local.Cluster,
    config: Path | None,
    progress: Callable[[str], None],
    deploy: Sequence[str],
) -> Serving:
    """Run the deploying child and record what it says; its words also go to `run/serve.log`."""
    progress("deploying the gateway")
    log = settings.home / "run" / "serve.log"
    answer = settings.home / "run" / "serve.out"
    with answer.open("wb") as output, log.open("w", encoding="utf-8") as words:
        child = subprocess.Popen(
            [*deploy, "--address", cluster.address],
            env=local.environment(settings, config),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        try:
            assert child.stderr is not None, "stderr was asked for as a pipe"
            last = ""
            for line in child.stderr:
                words.write(line)
                if line.strip():
                    last = line.strip()
                    progress(last)
            code = child.wait()
        except BaseException:
            child.kill()
            child.wait()
            raise
    if code != 0:
        why = last.removeprefix("error: ") or f"exit code {code}"
        raise ClusterError(f"the gateway could not be deployed: {why} (all of it in '{log}')")
    try:
        said = json.loads(answer.read_text("utf-8").strip().splitlines()[-1])
        url, notes = str(said["url"]), tuple(map(str, said.get("notes", ())))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ClusterError(f"`{' '.join(deploy)}` did not say the gateway's url") from error
    found = Serving(url, cluster.address, cluster.dashboard, cluster.id, notes)
    draft = _record(settings).with_suffix(".draft")
    draft.write_text(json.dumps(asdict(found), indent=2), "utf-8")
    draft.replace(_record(settings))
    return found


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url.removesuffix('/v1')}/healthz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def _asleep(url: str) -> tuple[str, ...]:
    try:
        found = httpx.get(f"{url.removesuffix('/v1')}/readyz", timeout=10).json()
        return tuple(map(str, found.get("asleep", ())))
    except (httpx.HTTPError, ValueError, AttributeError):
        return ()


def _cpus(node: dict[str, object]) -> float:
    total = node.get("resources_total")
    return float(total.get("CPU", 0.0)) if isinstance(total, dict) else 0.0


def _record(settings: Settings) -> Path:
    return settings.home / "run" / "serving.json"


def _read(settings: Settings) -> Serving | None:
    try:
        raw = json.loads(_record(settings).read_text("utf-8"))
        return Serving(**raw | {"notes": tuple(raw["notes"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
