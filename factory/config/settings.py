"""`Settings`: the whole of `factory.yaml`, with the references between its sections checked."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from pydantic import Field, model_validator

from factory.config.cache import Cache
from factory.config.catalog import Model
from factory.config.endpoints import Endpoint
from factory.config.gates import Gate
from factory.config.gateway import Alerts, Gateway
from factory.config.guard import Guard
from factory.config.idle import Idle
from factory.config.jobs import Jobs
from factory.config.pools import Pool, default_pools
from factory.config.routing import Routing
from factory.config.section import Name, Section
from factory.config.teams import Team


class Settings(Section):
    """The whole of `factory.yaml`."""

    home: Path = Path(".factory")
    """Folder for all state; FACTORY_HOME overrides it."""
    database: str = ""
    """SQLAlchemy URL of the ledger; empty means SQLite under `home`."""
    mlflow: str = ""
    """MLflow tracking URI; empty means SQLite under `home`."""
    vectors: str = ""
    """LanceDB URL of the vector stores: a folder, `s3://` or `gs://`; empty means under `home`."""
    models: dict[Name, Model]
    """The catalog."""
    endpoints: dict[Name, Endpoint]
    """Routes by name."""
    teams: dict[Name, Team]
    """Who is charged."""
    pools: dict[Name, Pool] = Field(default_factory=default_pools, min_length=1)
    """Where work can run; without this section it is the machine itself, as `onprem`."""
    routing: Routing = Routing()
    """When a request climbs."""
    cache: Cache = Cache()
    """Tier 0."""
    guard: Guard = Guard()
    """What is looked for in requests and answers."""
    gates: dict[Name, Gate] = Field(default_factory=dict)
    """Gate by registered model name."""
    gateway: Gateway = Gateway()
    """Where the gateway listens."""
    alerts: Alerts = Alerts()
    """Whom to tell."""
    jobs: Jobs = Jobs()
    """The job queue."""
    idle: Idle = Idle()
    """When a cluster that nobody uses is stopped."""

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
            shared = Counter(model.tier for _, model in self.ladder(endpoint))
            if crowded := [tier for tier, count in shared.items() if count > 1]:
                raise ValueError(
                    f"endpoints.{name}.tiers: more than one model stands on tier {crowded[0]}; "
                    "give each tier one model"
                )
            if name in self.models:
                raise ValueError(f"'{name}' names both an endpoint and a model; rename one")
        reader = self.routing.encoder
        if reader and (reader not in self.models or self.models[reader].engine != "encoder"):
            raise ValueError(
                f"routing.encoder: '{reader}' is no model with engine 'encoder' under models"
            )
        return self

    def ladder(self, endpoint: Endpoint) -> list[tuple[str, Model]]:
        """The models that may answer for an endpoint, by name: its tiers and its task."""
        return [
            (name, model)
            for name, model in self.models.items()
            if model.tier in endpoint.tiers and model.task == endpoint.task
        ]

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
    def vectors_url(self) -> str:
        """LanceDB URL of the vector stores."""
        return self.vectors or str(self.home / "vectors")

    @property
    def top_model(self) -> str:
        """The model of the highest tier: what the same traffic would cost without a ladder."""
        generating = [name for name, model in self.models.items() if model.task == "generate"]
        return max(generating or self.models, key=lambda name: self.models[name].tier)
