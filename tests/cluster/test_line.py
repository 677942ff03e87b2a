"""A real Ray head: up, jobs, down."""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from factory.cluster import local, meter, processes, serving
from factory.cluster.errors import ClusterError, JobError
from factory.cluster.jobs import Jobs
from factory.config import Settings
from factory.ledger.nodes import counted, usage
from factory.ledger.store import open_ledger

from .conftest import GATEWAY

pytestmark = pytest.mark.ray


@pytest.fixture
def jobs(line: Settings) -> Jobs:
    return Jobs(line, local.require(line))


def test_up_is_recorded_and_seen_by_status(line: Settings) -> None:
    cluster = local.require(line)
    assert cluster.ready
    found = serving.serving(line)
    assert (found.url, found.cluster) == ("http://127.0.0.1:9", cluster.id)
    status = serving.status(line)
    assert (status.nodes, status.cpus, status.healthy) == (1, 2.0, False)
    assert found.notes == ("nothing is promoted",)
    assert cluster.address in (line.home / "run" / "serve.log").read_text()


def test_the_head_is_a_node_of_its_pool_and_its_hours_are_counted(line: Settings) -> None:
    cluster = local.require(line)
    (node,) = (node for node in meter.seen(cluster, line.pools) if node.alive)
    assert (node.pool, node.cpus, node.uses) == ("onprem", 2.0, ())
    assert node.started is not None
    with closing(open_ledger(line.database_url)) as ledger:
        deadline = time.monotonic() + 60
        while not (until := counted(ledger)) and time.monotonic() < deadline:
            time.sleep(0.2)  # the meter that `up` started is another process
        assert set(until) == {node.machine}
        (pool,) = usage(ledger).pools
        assert pool.pool == "onprem"
        assert pool.total_nusd == pool.idle_nusd > 0


def test_deploying_again_keeps_the_port(line: Settings) -> None:
    before = serving.serving(line)
    said: list[str] = []
    after = serving.deploy(line, progress=said.append, deploy=[sys.executable, "-c", GATEWAY])
    assert after == before == serving.serving(line)
    assert any("--port 9" in text for text in said)
    with pytest.raises(ClusterError, match="could not be deployed: no luck"):
        serving.deploy(line, deploy=[sys.executable, "-c", "import sys; sys.exit('no luck')"])
    assert serving.serving(line) == before


def test_a_second_up_or_start_is_refused(line: Settings) -> None:
    with pytest.raises(ClusterError, match=r"up already .* stop it with `factory down`"):
        serving.up(line)
    with pytest.raises(ClusterError, match="a cluster runs already"):
        local.start(line)
    assert local.current(line) is not None


def test_strangers_without_the_token_are_kept_out(line: Settings) -> None:
    dashboard = local.require(line).dashboard
    assert httpx.get(f"{dashboard}/api/jobs/").status_code == 401


def test_a_job_finds_home_and_interpreter_and_its_words_are_followed(
    line: Settings, jobs: Jobs, work: Path
) -> None:
    heard: list[str] = []
    job_id = jobs.submit("probing.probe", ["0", "two words"], working_dir=work)
    job = jobs.wait(job_id, output=heard.append)
    assert (job.status, job.exit_code) == ("SUCCEEDED", 0)
    said = json.loads("".join(heard).strip().splitlines()[-1])
    assert said == {"home": str(line.home), "python": sys.executable, "args": ["two words"]}
    assert jobs.logs(job_id).strip().endswith(json.dumps(said))
    assert not jobs.cancel(job_id)


def test_a_failing_job_is_a_failure(jobs: Jobs, work: Path) -> None:
    job_id = jobs.submit("probing.nothing", working_dir=work)
    with pytest.raises(JobError, match=r"FAILED with exit code 1: .*No module named"):
        jobs.wait(job_id, timeout_s=60)


def test_a_job_can_be_cancelled(jobs: Jobs, work: Path) -> None:
    (work / "probing" / "endless.py").write_text("print('begun', flush=True)\nwhile True: pass")
    job_id = jobs.submit("probing.endless", working_dir=work)
    assert jobs.cancel(job_id)
    with pytest.raises(JobError, match="ended as STOPPED"):
        jobs.wait(job_id, timeout_s=60)
    assert job_id in [job.id for job in jobs.list()]


def test_an_unknown_job_or_folder_is_one_sentence(jobs: Jobs, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="knows no job 'nope'; `factory jobs list`"):
        jobs.get("nope")
    with pytest.raises(ClusterError, match="knows no job 'nope'"):
        jobs.follow("nope", print)
    with pytest.raises(ClusterError, match="does not exist"):
        jobs.submit("probing.probe", working_dir=tmp_path / "absent")


def test_down_ends_every_process_and_again_is_fine(line: Settings) -> None:
    cluster = local.require(line)
    family = processes.family(cluster.pid, cluster.started, cluster.id)
    assert len(family) > 5
    assert serving.down(line)
    assert [process for process in family if processes.started(process.pid) is not None] == []
    assert processes.family(cluster.pid, cluster.started, cluster.id) == []
    assert not serving.down(line)
    assert local.current(line) is None


def test_a_gateway_that_does_not_come_up_takes_the_cluster_with_it(settings: Settings) -> None:
    code = "import sys; sys.exit('no engine today')"
    said: list[str] = []
    with pytest.raises(ClusterError, match="could not be deployed: no engine today"):
        serving.up(settings, progress=said.append, deploy=[sys.executable, "-c", code])
    assert "taking everything down again" in said
    assert local.current(settings) is None
    assert not (settings.home / "run" / "cluster.json").exists()
    assert not (settings.home / "run" / "serving.json").exists()
