"""LiteLLM's proxy as a reference: one worker, its in-memory cache on, no keys and no database.

    with proxy(folder) as url: ...    # answers POST /v1/chat/completions for the model "helpdesk"

It is installed into a virtual environment of its own, since its pins do not fit beside ours.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random

import httpx
import yaml

from factory.cluster.ports import free

VERSION = "1.100.0"
_START_S = 90.0
_ANSWER = {
    "id": "chatcmpl-reference",
    "object": "chat.completion",
    "created": 0,
    "model": "reference",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "shutil"},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 20, "completion_tokens": 2, "total_tokens": 22},
}


class _Upstream(BaseHTTPRequestHandler):
    """The provider that LiteLLM asks once, before its cache answers."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = json.dumps(_ANSWER).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""


def install(folder: Path) -> Path:
    """A virtual environment with LiteLLM; returns its command. Made once."""
    command = folder / "bin" / "litellm"
    if not command.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "-q"]
        subprocess.run([*pip, f"litellm[proxy]=={VERSION}"], check=True, stdout=sys.stderr)
    return command


@contextmanager
def proxy(environment: Path, folder: Path) -> Iterator[str]:
    """The running proxy's URL; `folder` takes its configuration and log."""
    command = install(environment)
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), _Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    config = {
        "model_list": [
            {
                "model_name": "helpdesk",
                "litellm_params": {
                    "model": "openai/reference",
                    "api_base": f"http://127.0.0.1:{upstream.server_port}/v1",
                    "api_key": "none",
                },
            }
        ],
        "litellm_settings": {
            "cache": True,
            "cache_params": {"type": "local"},
            "telemetry": False,
        },
    }
    file = folder / "litellm.yaml"
    file.write_text(yaml.safe_dump(config), "utf-8")
    port = free(1, Random())[0]
    arguments = ["--config", str(file), "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "litellm.log").open("wb") as log:
        running = subprocess.Popen(
            [str(command), *arguments, "--num_workers", "1"],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "LITELLM_LOG": "ERROR"},
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _await(url, running)
            yield url
        finally:
            running.terminate()
            running.wait(20)
            upstream.shutdown()
            upstream.server_close()


def _await(url: str, running: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if running.poll() is not None:
            raise RuntimeError(f"LiteLLM's proxy ended at its start with {running.returncode}")
        try:
            if httpx.get(f"{url}/health/liveliness", timeout=2).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"LiteLLM's proxy did not answer within {_START_S:.0f} s")
