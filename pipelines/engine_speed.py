"""How fast an engine answers: vLLM in a process of its own, asked in rounds.

    with EngineProcess(folder) as engine:
        engine.round(chats, max_tokens=8)["requests_per_s"]

    python -m pipelines.engine_speed FOLDER              # the process; speaks JSON by line

Two engines are compared fairly by asking them in turns. The arguments are those that the factory
serves with, so that what is measured here is what users get. An idle engine takes no processor.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from factory.evaluation.results import EvaluationError
from serve_apps.engine_spec import EngineSpec, engine_environment, engine_kwargs


class EngineProcess:
    """A vLLM engine over one folder of weights, up while the block lasts."""

    def __init__(self, folder: Path, max_model_len: int = 1024) -> None:
        self._folder = folder
        cores = len(os.sched_getaffinity(0))
        spec = EngineSpec(model_id=folder.name, path=str(folder), max_model_len=max_model_len)
        self._child = subprocess.Popen(
            [sys.executable, "-m", "pipelines.engine_speed", str(folder), str(max_model_len)],
            env={**os.environ, **engine_environment(spec, cores)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Self:
        """Wait until it has answered its first request. Raises `EvaluationError`."""
        self.ready = self._read()
        """`load_s` and `rss_mb` after loading, `weights_mb`."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        self._child.kill()
        self._child.wait()

    def round(
        self, chats: Sequence[Sequence[Mapping[str, str]]], max_tokens: int, whole: bool = False
    ) -> dict[str, Any]:
        """Answer all of these at once; `whole` goes on past the end of an answer.

        Returns `requests_per_s`, `tokens_per_s`, `seconds`. Raises `EvaluationError`.
        """
        assert self._child.stdin is not None, "stdin was asked for as a pipe"
        order = {"chats": list(map(list, chats)), "max_tokens": max_tokens, "whole": whole}
        try:
            self._child.stdin.write(json.dumps(order, default=dict) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            pass
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._child.stdout is not None, "stdout was asked for as a pipe"
        for line in self._child.stdout:
            if line.startswith("{"):
                said: dict[str, Any] = json.loads(line)
                if "error" in said:
                    raise EvaluationError(
                        f"the engine cannot run '{self._folder}': {said['error']}"
                    )
                return said
        raise EvaluationError(
            f"the engine over '{self._folder}' died with exit code {self._child.wait()}"
        )


def _serve(folder: str, max_model_len: int) -> None:
    """Answer rounds from standard input until it ends."""
    import psutil
    from vllm import LLM, SamplingParams

    begun = time.perf_counter()
    spec = EngineSpec(model_id="measured", path=folder, max_model_len=max_model_len)
    llm = LLM(model=folder, disable_log_stats=True, **engine_kwargs(spec))
    warm = [{"role": "user", "content": "Are you ready?"}]
    llm.chat([warm] * 2, SamplingParams(max_tokens=2, temperature=0), use_tqdm=False)
    weights = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors"))
    _say(
        load_s=time.perf_counter() - begun,
        rss_mb=psutil.Process().memory_info().rss / 2**20,
        weights_mb=weights / 2**20,
    )
    for line in sys.stdin:
        order = json.loads(line)
        asked = SamplingParams(
            max_tokens=order["max_tokens"], temperature=0, ignore_eos=order["whole"]
        )
        begun = time.perf_counter()
        done = llm.chat(order["chats"], asked, use_tqdm=False)
        seconds = time.perf_counter() - begun
        tokens = sum(len(one.outputs[0].token_ids) for one in done)
        _say(
            seconds=seconds,
            requests_per_s=len(done) / seconds,
            tokens_per_s=tokens / seconds,
            texts=[one.outputs[0].text for one in done],
        )


def _say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    try:
        _serve(sys.argv[1], int(sys.argv[2]))
    except Exception as error:
        _say(error=f"{type(error).__name__}: {str(error).splitlines()[-1] if str(error) else ''}")
        raise
