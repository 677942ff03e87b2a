"""Answers from weights in this process: batched greedy decoding with Transformers.

    answerer = TransformersAnswerer(model_folder, adapter_folder, batch_size=16)

Weights are loaded at the first question, so `identity` is cheap. An adapter is merged into the
base in float32, as it is when served. What all prompts begin with, usually the system message, is
computed once and its key-value cache shared by every batch.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from factory.evaluation.answerer import Answer, Chat, Progress, PromptTooLong
from factory.evaluation.results import EvaluationError, Identity

Heard = Callable[[int, list[int], Any], None]
"""Told the index of a conversation, the tokens of its answer (a stop among them), and the float32
logits that each was chosen from, `[tokens, vocabulary]`."""


class TransformersAnswerer:
    """A local causal language model, with or without an adapter, on CPU or the first GPU."""

    def __init__(
        self,
        model: Path,
        adapter: Path | None = None,
        *,
        batch_size: int = 16,
        threads: int = 2,
        max_model_len: int | None = None,
        heard: Heard | None = None,
    ) -> None:
        """Folders in Hugging Face and PEFT layout.

        `max_model_len` bounds prompt and answer in tokens; the model's own context where None.
        `heard` is told what was generated, and from which logits, before it is forgotten.
        """
        self._heard = heard
        self.folder, self._adapter = Path(model), Path(adapter) if adapter else None
        self._batch_size, self._threads, self._max_model_len = batch_size, threads, max_model_len
        for folder, file in (
            (self.folder, "config.json"),
            (self._adapter, "adapter_config.json"),
            (self._adapter, "adapter_model.safetensors"),
        ):
            if folder is not None and not (folder / file).is_file():
                raise EvaluationError(
                    f"'{folder}' has no {file}; name a folder with a complete model or adapter"
                )

    @cached_property
    def identity(self) -> Identity:
        """Content hashes, library versions and settings."""
        libraries = ("transformers", "torch", *(("peft",) if self._adapter else ()))
        return Identity(
            backend="transformers",
            model=str(self._adapter or self.folder),
            model_hash=folder_hash(self.folder),
            adapter_hash=folder_hash(self._adapter) if self._adapter else None,
            template_hash=hashlib.sha256(self._template.encode()).hexdigest(),
            versions={name: version(name) for name in libraries},
            settings={
                "decoding": "greedy",
                "batch_size": self._batch_size,
                "adapter": "merged in float32" if self._adapter else None,
                "max_model_len": self._max_model_len,
                "device": self._device,
            },
        )

    def answer(
        self, chats: Sequence[Chat], max_new_tokens: int, progress: Progress
    ) -> list[Answer]:
        """Answer every conversation, the shortest prompts first, in batches."""
        prompts = self._tokenize(chats)
        limit = self._context - max_new_tokens
        for index, prompt in enumerate(prompts):
            if len(prompt) > limit:
                raise PromptTooLong(index, len(prompt), limit)
        prefix = shared_prefix(prompts) if len(prompts) > 1 else []
        cache = self._prefill(prefix)
        self._generate(prompts[:1], prefix, cache, max_new_tokens=2)  # warm-up, not measured
        answers: dict[int, Answer] = {}
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            found = self._generate(
                [prompts[i] for i in batch], prefix, cache, max_new_tokens, told=batch
            )
            answers.update(zip(batch, found, strict=True))
            progress(len(batch))
        return [answers[index] for index in range(len(prompts))]

    @cached_property
    def _device(self) -> str:
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.folder, local_files_only=True)

    @property
    def _template(self) -> str:
        template = self._tokenizer.chat_template
        if not isinstance(template, str):
            raise EvaluationError(
                f"the tokenizer in '{self.folder}' has no chat template; "
                "add chat_template.jinja beside it"
            )
        return template

    @cached_property
    def _model(self) -> Any:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(self._threads)
        model = AutoModelForCausalLM.from_pretrained(
            self.folder,
            dtype="auto" if self._adapter is None else torch.float32,
            local_files_only=True,
            use_safetensors=True,
        )
        if self._adapter is not None:
            stored = AutoConfig.from_pretrained(self.folder, local_files_only=True).dtype
            model = _merge(model, self._adapter).to(stored or torch.float32)
        return model.to(self._device).eval()

    @property
    def _context(self) -> int:
        own = int(self._model.config.max_position_embeddings)
        return min(own, self._max_model_len or own)

    def _tokenize(self, chats: Sequence[Chat]) -> list[list[int]]:
        assert self._template
        texts = [
            self._tokenizer.apply_chat_template(
                list(chat), tokenize=False, add_generation_prompt=True
            )
            for chat in chats
        ]
        rows: list[list[int]] = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return rows

    def _prefill(self, prefix: Sequence[int]) -> Any:
        """Key-value cache of one row for the tokens that every prompt begins with."""
        import torch
        from transformers import DynamicCache

        if not prefix:
            return None
        with torch.inference_mode():
            ids = torch.tensor([list(prefix)], device=self._device)
            return self._model(
                ids, past_key_values=DynamicCache(config=self._model.config), logits_to_keep=1
            ).past_key_values

    def _generate(
        self,
        prompts: list[list[int]],
        prefix: Sequence[int],
        cache: Any,
        max_new_tokens: int,
        told: Sequence[int] = (),
    ) -> list[Answer]:
        """Answers to one batch: shared prefix, then padding, then the rest of each prompt.

        `told` are the conversations of the batch, if anybody is to hear of them.
        """
        import torch

        start = time.perf_counter()
        width, shared = max(map(len, prompts)), len(prefix)
        pad = self._tokenizer.pad_token_id
        pad = self._tokenizer.eos_token_id if pad is None else pad
        gaps = [width - len(prompt) for prompt in prompts]
        ids = [
            [*prefix, *[pad] * gap, *prompt[shared:]]
            for prompt, gap in zip(prompts, gaps, strict=True)
        ]
        mask = torch.ones(len(prompts), width, dtype=torch.long)
        for row, gap in enumerate(gaps):
            mask[row, shared : shared + gap] = 0
        past = copy.deepcopy(cache)
        if past is not None:
            past.batch_repeat_interleave(len(prompts))
        with torch.inference_mode():
            out = self._model.generate(
                torch.tensor(ids, device=self._device),
                attention_mask=mask.to(self._device),
                past_key_values=past,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=self._stops,
                pad_token_id=pad,
                return_dict_in_generate=True,
                output_logits=True,
            )
            logits = torch.stack(out.logits, dim=1).float()
            tokens = out.sequences[:, width:]
            logprobs = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]
        elapsed = (time.perf_counter() - start) * 1000
        if self._heard is not None:
            for index, row, said in zip(told, tokens.tolist(), logits, strict=False):
                used = self._used(row)
                self._heard(index, row[:used], said[:used])
        return [
            self._read(row, scores, len(prompt), elapsed)
            for row, scores, prompt in zip(tokens.tolist(), logprobs.tolist(), prompts, strict=True)
        ]

    @cached_property
    def _stops(self) -> list[int]:
        declared = self._model.generation_config.eos_token_id
        found = declared if isinstance(declared, list) else [declared]
        return sorted({*found, self._tokenizer.eos_token_id} - {None})

    def _used(self, row: list[int]) -> int:
        """Tokens up to the first stop, with it."""
        return next((at + 1 for at, token in enumerate(row) if token in self._stops), len(row))

    def _read(self, row: list[int], logprobs: list[float], prompt: int, elapsed: float) -> Answer:
        used = self._used(row)
        return Answer(
            text=self._tokenizer.decode(row[:used], skip_special_tokens=True).strip(),
            latency_ms=elapsed,
            prompt_tokens=prompt,
            completion_tokens=used,
            confidence=math.exp(sum(logprobs[:used]) / used),
        )


def _merge(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EvaluationError(
            f"the adapter in '{adapter}' does not fit this base model ({reason}); "
            "use the base it was tuned on"
        ) from error


def shared_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """The tokens that all prompts begin with, leaving each at least one token of its own."""
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False)
    return [column[0] for column in itertools.takewhile(lambda c: len(set(c)) == 1, columns)]


def folder_hash(folder: Path) -> str:
    """The content hash in the folder's manifest, or sha256 over its file names and bytes."""
    manifest = folder / "manifest.json"
    if manifest.is_file():
        return str(json.loads(manifest.read_text("utf-8"))["hash"])
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{path.relative_to(folder)}\0{content}\n".encode())
    return digest.hexdigest()
