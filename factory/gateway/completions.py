"""The body of a request to the older `completions` route: a prompt instead of messages.

asked = parse_completion(b'{"model": "helpdesk", "prompt": "import "}')    # ApiError 400
asked.engine_body()    # {"prompt": "import ", "max_tokens": 16}
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from factory.gateway.engine import Body, Route
from factory.gateway.fields import NOT_FOR_THE_KEY, Generation, Parser, digest, never

DEFAULT_TOKENS = 16
"""OpenAI's length of an answer for which no `max_tokens` was given."""


def _one_text(prompt: Any) -> Any:
    if isinstance(prompt, list):
        if any(isinstance(item, int | list) for item in prompt):
            raise PydanticCustomError(
                "unsupported_prompt",
                "token arrays are not supported, since each tier has its own tokens; send text",
            )
        if len(prompt) > 1:
            raise PydanticCustomError(
                "unsupported_prompt",
                "several prompts in one request are not supported; send a request for each",
            )
    return prompt


class CompletionRequest(Generation):
    """OpenAI's `completions` request, for one prompt of text."""

    route: ClassVar[Route] = "completions"
    uses_tools: ClassVar[bool] = False
    wants_json: ClassVar[bool] = False
    json_schema: ClassVar[dict[str, Any] | None] = None
    metadata: ClassVar[dict[str, str] | None] = None

    prompt: Annotated[
        str | Annotated[list[str], Field(min_length=1, max_length=1)], BeforeValidator(_one_text)
    ]
    logprobs: int | None = Field(default=None, ge=0, le=5)
    """So many likeliest tokens beside each chosen one; 0 shows the chosen ones alone."""
    echo: Annotated[Literal[False] | None, never("the prompt is not repeated here")] = None
    best_of: int | None = Field(default=None, ge=1)
    suffix: Annotated[None, never("filling in between two texts is not supported")] = None

    @model_validator(mode="after")
    def _not_done_here(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != self.choices:
            raise ValueError("best_of is not supported; choose among the answers of n yourself")
        return self

    @property
    def text(self) -> str:
        """The prompt."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]

    @property
    def limit(self) -> int:
        """The most tokens of each choice."""
        return self.max_tokens or DEFAULT_TOKENS

    @property
    def shows_logprobs(self) -> bool:
        """Whether the client wants to see log-probabilities."""
        return self.logprobs is not None

    @property
    def turns(self) -> list[dict[str, str]]:
        """The prompt as if a user had said it, to be counted and judged."""
        return [{"role": "user", "content": self.text}]

    @property
    def texts(self) -> tuple[str, ...]:
        """Every text that a model would read."""
        return (self.text,)

    def with_texts(self, texts: Sequence[str]) -> CompletionRequest:
        """The same request with another prompt. Raises `ValueError` unless it is one text."""
        (prompt,) = texts
        return self.model_copy(update={"prompt": prompt})

    @property
    def last_question(self) -> str | None:
        """None: a prompt that is to be continued asks nothing."""
        return None

    def context_hash(self) -> bytes:
        """16 bytes for the whole request."""
        return digest(b"completions", self.canonical())

    def canonical(self) -> bytes:
        """The same bytes for every request that means the same; streaming does not matter."""
        fields = NOT_FOR_THE_KEY | {"prompt", "max_tokens", "best_of", "echo"}
        rest = self.model_dump_json(exclude=fields, exclude_none=True)
        head = f"completions{rest}n={self.choices} max_tokens={self.limit} "
        return (head + self.text).encode()

    def engine_body(self) -> Body:
        """The fields an engine gets, without those the gateway answers for."""
        body = super().engine_body()
        for name in ("best_of", "echo"):
            body.pop(name, None)
        return {**body, "prompt": self.text, "max_tokens": self.limit}


_PARSER = Parser(CompletionRequest)


def parse_completion(raw: bytes) -> CompletionRequest:
    """The checked request. Raises `ApiError` 400 that names the position or the field."""
    return _PARSER.parse(raw)
