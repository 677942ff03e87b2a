"""A Ray head on this machine, started as our own child and ended by its process id.

    cluster = start(settings)        # waits until the job API answers and the node is alive
    current(settings)                # the same cluster, from any other process
    stop(settings)                   # True when there was something to stop

The running head is recorded in `home/run/cluster.json`. Ray's own commands (`ray stop`) are never
used, because they end every Ray on the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import SystemRandom

import httpx
from filelock import FileLock, Timeout

from factory.catalog.code import code_state, declaration
from factory.cluster import ports, processes, token
from factory.cluster.errors import ClusterError
from factory.config import Settings

_LONGEST_TEMP_DIR = 36
"""Unix socket paths end at 107 bytes and Ray adds up to 71 below its temporary folder."""
_STORE_BYTES = 512 * 2**20
ONE_MACHINE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""At 0, Ray stays on the loopback address on Linux too; otherwise it listens on every interface."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A head that was started here."""

    id: str
    pid: int
    started: float
    """Start time of the head process, seconds since the epoch."""
    address: str
    """Where `ray.init(address=...)` connects."""
    dashboard: str
    """Root URL of the dashboard and job API."""
    temp_dir: str
    auth: str
    """RAY_AUTH_MODE of the cluster."""
    ready: bool = False
    autoscaling: str | None = None
    """The cluster configuration that Ray's autoscaler reads; None without an autoscaler."""

    def headers(self) -> dict[str, str]:
        """HTTP headers for the dashboard and job API."""
        return token.headers(self.auth, os.environ)


def environment(
    settings: Settings, config: Path | None, base: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Variables under which a child process finds this interpreter, home and configuration."""
    env = dict(os.environ if base is None else base)
    env.pop("RAY_ADDRESS", None)
    env.pop("RAY_API_SERVER_ADDRESS", None)
    env["FACTORY_HOME"] = str(settings.home)
    if config is not None:
        env["FACTORY_CONFIG"] = str(config.absolute())
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", os.defpath)])
    source = Path(__file__).resolve().parents[2]
    if str(source) not in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
        old = env.get("PYTHONPATH")
        env["PYTHONPATH"] = os.pathsep.join([str(source), *([old] if old else [])])
    env = declaration(code_state(env)) | env
    env["RAY_USAGE_STATS_ENABLED"] = "0"
    env.setdefault(ONE_MACHINE, "0")
    env[token.MODE] = token.mode(env)
    return env


def start(
    settings: Settings,
    *,
    config: Path | None = None,
    cpus: int | None = None,
    autoscaling: Path | None = None,
    port: int | None = None,
    timeout_s: float = 90,
    progress: Callable[[str], None] = lambda _: None,
) -> Cluster:
    """Start a head and wait until it takes jobs. `cpus` defaults to what Ray detects.

    `autoscaling` is a cluster configuration: Ray's autoscaler then starts and ends its nodes.
    `port` is where other machines join; any free one when not given.
    Raises `ClusterError` when one runs already under this home, or it does not come up; then
    nothing is left running.
    """
    run = settings.home / "run"
    run.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run / "cluster.lock", blocking=False):
            running = current(settings)
            if running is not None:
                raise ClusterError(
                    f"a cluster runs already under '{settings.home}' (process {running.pid}); "
                    "use it, or stop it with `factory down`"
                )
            stop(settings)
            progress("starting the Ray head")
            return _launch(settings, config, cpus, autoscaling, port, timeout_s, run)
    except Timeout as error:
        raise ClusterError(
            f"another command is starting a cluster under '{settings.home}' right now; "
            "wait for it, then look with `factory status`"
        ) from error


def current(settings: Settings) -> Cluster | None:
    """The recorded cluster if its head still runs, whoever started it."""
    recorded = _read(settings)
    if recorded is None or not processes.is_same(recorded.pid, recorded.started):
        return None
    return recorded


def require(settings: Settings) -> Cluster:
    """The running cluster. Raises `ClusterError` when there is none."""
    found = current(settings)
    if found is None:
        raise ClusterError(f"no cluster runs under '{settings.home}'; start one with `factory up`")
    return found


def stop(settings: Settings) -> bool:
    """End the recorded head and everything it started; False when nothing was recorded.

    Raises `ClusterError` when a process survives.
    """
    recorded = _read(settings)
    if recorded is None:
        return False
    was_running = processes.is_same(recorded.pid, recorded.started)
    processes.end(recorded.pid, recorded.started, recorded.id)
    if not Path(recorded.temp_dir).is_relative_to(settings.home):
        shutil.rmtree(recorded.temp_dir, ignore_errors=True)
    _record(settings).unlink(missing_ok=True)
    return was_running


def nodes(cluster: Cluster) -> list[dict[str, object]]:
    """The cluster's nodes as Ray's state API lists them.

    Raises `ClusterError` when the dashboard does not answer.
    """
    try:
        answer = httpx.get(
            f"{cluster.dashboard}/api/v0/nodes?detail=1", headers=cluster.headers(), timeout=10
        )
        answer.raise_for_status()
        return list(answer.json()["data"]["result"]["result"])
    except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
        raise ClusterError(
            f"the cluster's dashboard at {cluster.dashboard} does not answer ({error}); "
            "restart with `factory down` and `factory up`"
        ) from error


def _launch(
    settings: Settings,
    config: Path | None,
    cpus: int | None,
    autoscaling: Path | None,
    port: int | None,
    timeout_s: float,
    run: Path,
) -> Cluster:
    if autoscaling is not None and not autoscaling.is_file():
        raise ClusterError(f"there is no cluster configuration '{autoscaling}'")
    if port is not None and not ports.is_free(port):
        raise ClusterError(f"port {port} is taken, so no head can listen there; choose another")
    free, dashboard, agent, client = ports.free(4, SystemRandom())
    gcs = port or free
    mark = uuid.uuid4().hex
    env = environment(settings, config)
    env[processes.MARK] = mark
    if autoscaling is not None:
        env["RAY_enable_autoscaler_v2"] = "1"
    if env[token.MODE] == "token":
        token.ensure(env)
    temp_dir = _temp_dir(run)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--disable-usage-stats", "--include-dashboard=true", "--log-color=false"),
        *("--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)),
        *("--port", str(gcs), "--ray-client-server-port", str(client)),
        *("--dashboard-agent-listen-port", str(agent)),
        *("--min-worker-port", "0", "--max-worker-port", "0"),
        *("--object-store-memory", str(_STORE_BYTES), "--temp-dir", str(temp_dir)),
        *("--labels", ",".join(f"{key}={value}" for key, value in _labels(settings).items())),
        *(() if cpus is None else ("--num-cpus", str(cpus))),
        *(() if autoscaling is None else ("--autoscaling-config", str(autoscaling.absolute()))),
    ]
    log = run / "head.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    cluster = Cluster(
        id=mark,
        pid=child.pid,
        started=processes.started(child.pid) or time.time(),
        address=f"127.0.0.1:{gcs}",
        dashboard=f"http://127.0.0.1:{dashboard}",
        temp_dir=str(temp_dir),
        auth=env[token.MODE],
        autoscaling=None if autoscaling is None else str(autoscaling.absolute()),
    )
    try:
        _write(settings, cluster)
        _await_ready(cluster, child, log, timeout_s)
        cluster = replace(cluster, ready=True)
        _write(settings, cluster)
        _meter(env, run)
    except BaseException:
        stop(settings)
        child.wait()
        raise
    return cluster


def _labels(settings: Settings) -> dict[str, str]:
    """Labels of this machine: it is a node of the first pool of one's own."""
    own = [(n, pool) for n, pool in settings.pools.items() if pool.market == "onprem"]
    name, pool = own[0] if own else next(iter(settings.pools.items()))
    return pool.labels(name)


def _meter(env: Mapping[str, str], run: Path) -> None:
    """Start the node meter; the mark in `env` makes it end with the cluster."""
    with (run / "meter.log").open("ab") as output:
        subprocess.Popen(
            [sys.executable, "-m", "factory.cluster.meter"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _await_ready(
    cluster: Cluster, child: subprocess.Popen[bytes], log: Path, timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    while True:
        if child.poll() is not None:
            lines = log.read_text("utf-8", "replace").strip().splitlines() or ["no output"]
            raise ClusterError(f"the Ray head ended at once: {lines[-1]} (all of it in '{log}')")
        try:
            alive = any(node.get("state") == "ALIVE" for node in nodes(cluster))
            jobs = httpx.get(f"{cluster.dashboard}/api/jobs/", headers=cluster.headers())
            if alive and jobs.status_code == 200:
                return
        except (ClusterError, httpx.HTTPError):
            pass
        if time.monotonic() > deadline:
            raise ClusterError(
                f"the Ray head was not ready after {timeout_s:.0f} seconds; see '{log}'"
            )
        time.sleep(0.2)


def _temp_dir(run: Path) -> Path:
    """Ray's session folder: under home when the path is short enough for its sockets."""
    here = run / "ray"
    if len(os.fsencode(here)) > _LONGEST_TEMP_DIR:
        return Path(tempfile.mkdtemp(prefix="factory-"))
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    return here


def _record(settings: Settings) -> Path:
    return settings.home / "run" / "cluster.json"


def _read(settings: Settings) -> Cluster | None:
    try:
        return Cluster(**json.loads(_record(settings).read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        raise ClusterError(
            f"'{_record(settings)}' cannot be read ({error}); if no cluster runs, remove it"
        ) from error


def _write(settings: Settings, cluster: Cluster) -> None:
    path = _record(settings)
    draft = path.with_suffix(f".{cluster.id}")
    draft.write_text(json.dumps(asdict(cluster), indent=2), "utf-8")
    draft.replace(path)
