"""`factory.yaml` as frozen, typed settings. Unknown keys are errors.

    settings = load()                      # FACTORY_CONFIG, ./factory.yaml, or the packaged default
    settings.endpoints["helpdesk"].tiers   # (0, 1, 3)

One module a section. `${ENV_VAR}` inside a value is substituted from the environment; an unset
variable becomes an empty string, so a provider without its key is off rather than an error.
Secrets are held as `SecretStr` and are never written back.
"""

from factory.config.cache import Cache, SemanticCache
from factory.config.catalog import (
    HubSource,
    Model,
    PackageSource,
    PathSource,
    Price,
    ProviderSource,
    RegistrySource,
)
from factory.config.endpoints import Endpoint, Rule, Target
from factory.config.gates import Accuracy, Ceiling, Gate
from factory.config.gateway import Alerts, Gateway
from factory.config.guard import (
    Act,
    BannedFilter,
    Filter,
    Guard,
    JsonSchemaFilter,
    PersonalDataFilter,
    PromptInjectionFilter,
    SecretsFilter,
    ShapeFilter,
)
from factory.config.idle import Idle
from factory.config.jobs import (
    RESOURCES,
    Jobs,
    OffPeak,
    PriorityClass,
    Quota,
    Resource,
    ResourceQuota,
    Retries,
)
from factory.config.loading import default_text, find, load, masked, parse
from factory.config.pools import (
    CLASSES,
    HOURS_PER_MONTH,
    MARKET_LABEL,
    MAX_USD_PER_HOUR,
    POOL_LABEL,
    REGION_LABEL,
    ZONE_LABEL,
    Market,
    OwnPool,
    Pool,
    RentedPool,
    Residency,
    WorkClass,
)
from factory.config.routing import Breaker, Routing
from factory.config.scaling import EndpointClass, ModelScaling, Scaling
from factory.config.section import NANO, ConfigError, Name
from factory.config.settings import Settings
from factory.config.teams import WINDOWS, Budget, Limits, Team, Window

__all__ = [
    "CLASSES",
    "HOURS_PER_MONTH",
    "MARKET_LABEL",
    "MAX_USD_PER_HOUR",
    "NANO",
    "POOL_LABEL",
    "REGION_LABEL",
    "RESOURCES",
    "WINDOWS",
    "ZONE_LABEL",
    "Accuracy",
    "Act",
    "Alerts",
    "BannedFilter",
    "Breaker",
    "Budget",
    "Cache",
    "Ceiling",
    "ConfigError",
    "Endpoint",
    "EndpointClass",
    "Filter",
    "Gate",
    "Gateway",
    "Guard",
    "HubSource",
    "Idle",
    "Jobs",
    "JsonSchemaFilter",
    "Limits",
    "Market",
    "Model",
    "ModelScaling",
    "Name",
    "OffPeak",
    "OwnPool",
    "PackageSource",
    "PathSource",
    "PersonalDataFilter",
    "Pool",
    "Price",
    "PriorityClass",
    "PromptInjectionFilter",
    "ProviderSource",
    "Quota",
    "RegistrySource",
    "RentedPool",
    "Residency",
    "Resource",
    "ResourceQuota",
    "Retries",
    "Routing",
    "Rule",
    "Scaling",
    "SecretsFilter",
    "SemanticCache",
    "Settings",
    "ShapeFilter",
    "Target",
    "Team",
    "Window",
    "WorkClass",
    "default_text",
    "find",
    "load",
    "masked",
    "parse",
]
