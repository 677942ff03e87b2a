"""Tiny real models, settings that name them, and a local stand-in of the model hub."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from factory.catalog.objects import ObjectStore
from factory.config import Settings, parse

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of a few thousand parameters, saved by transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return ObjectStore(tmp_path / "objects")


@pytest.fixture
def catalog(tmp_path: Path) -> Callable[[dict[str, Any]], Settings]:
    """Settings whose one model, `m`, has the given source."""

    def build(source: dict[str, Any]) -> Settings:
        provider = "base_url" in source
        model = {
            "source": source,
            "engine": "openai" if provider else "vllm",
            "tier": 3 if provider else 1,
            "price": {"input_usd_per_mtok": 1, "output_usd_per_mtok": 1},
        }
        text = json.dumps({"models": {"m": model}, "teams": {}, "endpoints": {}})
        return parse(text, "test.yaml", tmp_path, {})

    return build


class Hub:
    """The part of the hub's HTTP protocol that a download needs."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.requested: list[str] = []
        self.stall_after: int | None = None
        """Send only so many bytes of safetensors, then nothing, until the client goes away."""
        self.stalled = threading.Event()
        self.released = threading.Event()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_HEAD(self) -> None:
                self._serve(body=False)

            def do_GET(self) -> None:
                self._serve(body=True)

            def _serve(self, body: bool) -> None:
                path = self.path.split("?")[0].strip("/")
                if path.startswith("api/models/org/tiny/revision/"):
                    siblings = [{"rfilename": name} for name in hub.files]
                    info = {"id": "org/tiny", "sha": COMMIT, "siblings": siblings}
                    self._answer(200, json.dumps(info).encode(), {}, body)
                elif path.startswith("api/models/org/tiny/tree/"):
                    tree = [
                        {"type": "file", "path": name, "size": len(data), "oid": name}
                        for name, data in hub.files.items()
                    ]
                    self._answer(200, json.dumps(tree).encode(), {}, body)
                elif path.startswith("org/tiny/resolve/"):
                    self._file(path.rsplit("/", 1)[-1], body)
                else:
                    refusal = {"X-Error-Code": "RepoNotFound", "X-Error-Message": "not found"}
                    self._answer(404, b"{}", refusal, body)

            def _file(self, name: str, body: bool) -> None:
                data = hub.files[name]
                headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"', "Accept-Ranges": "bytes"}
                if not body:
                    self._answer(200, data, headers, body)
                    return
                first = 0
                if wanted := self.headers.get("Range"):
                    first = int(wanted.removeprefix("bytes=").split("-")[0])
                    headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
                hub.requested.append(f"{name}@{first}")
                stall = hub.stall_after if name.endswith(".safetensors") else None
                self._answer(206 if first else 200, data[first:], headers, body, stall)

            def _answer(
                self,
                status: int,
                data: bytes,
                headers: dict[str, str],
                body: bool,
                stall: int | None = None,
            ) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for key, value in headers.items():
                    self.send_header(key, value)
                self.end_headers()
                if not body:
                    return
                if stall is None:
                    self.wfile.write(data)
                    return
                self.wfile.write(data[:stall])
                self.wfile.flush()
                hub.stalled.set()
                hub.released.wait(60)
                self.close_connection = True

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def hub(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with one repository, `org/tiny`, which also offers files nobody should take."""
    files = {path.name: path.read_bytes() for path in tiny_model.iterdir()}
    standin = Hub(files | {"pytorch_model.bin": b"pickle", "README.md": b"hello"})
    monkeypatch.setenv("HF_ENDPOINT", standin.url)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    thread = threading.Thread(target=standin.server.serve_forever, daemon=True)
    thread.start()
    yield standin
    standin.released.set()
    standin.server.shutdown()
    standin.server.server_close()
    thread.join()
