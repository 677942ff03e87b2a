from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from factory.config import (
    ConfigError,
    PathSource,
    Price,
    ProviderSource,
    Settings,
    default_text,
    find,
    load,
    masked,
    parse,
)

DEFAULT = "the packaged factory.yaml"


def parsed(text: str, env: dict[str, str] | None = None, folder: Path = Path("/srv")) -> Settings:
    return parse(text, "f.yaml", folder, env or {})


def document(**changes: Any) -> str:
    price = {"input_usd_per_mtok": 1, "output_usd_per_mtok": 2}
    model = {"source": {"hub": "org/m"}, "engine": "vllm", "tier": 1, "price": price}
    base: dict[str, Any] = {
        "models": {"m": model},
        "teams": {"t": {}},
        "endpoints": {"e": {"team": "t"}},
    }
    return json.dumps(base | changes)


def test_the_packaged_default_is_good_and_its_provider_off_without_a_key() -> None:
    settings = parse(default_text(), DEFAULT, Path("/srv"), {})
    source = settings.models["premium"].source
    assert isinstance(source, ProviderSource)
    assert not source.ready
    assert settings.top_model == "premium"
    assert settings.home == Path("/srv/.factory")


def test_variables_are_substituted_and_secrets_never_shown() -> None:
    env = {"PREMIUM_BASE_URL": "http://premium/v1", "PREMIUM_API_KEY": "sk-very-secret"}
    settings = parse(default_text(), DEFAULT, Path("/srv"), env)
    source = settings.models["premium"].source
    assert isinstance(source, ProviderSource)
    assert source.ready
    assert source.api_key.get_secret_value() == "sk-very-secret"
    shown = json.dumps(masked(settings))
    assert "http://premium/v1" in shown
    assert "sk-very-secret" not in shown + repr(settings) + str(settings)


def test_a_database_password_is_masked() -> None:
    shown = masked(parsed(document(database="postgresql://me:hunter2@db/factory")))
    assert shown["database"] == "postgresql://me:***@db/factory"


@pytest.mark.parametrize(
    ("extra", "line", "where"),
    [
        ("modles: {}", 1, "modles"),
        ("home: x\nrouting:\n  confidence_treshold: 0.5", 3, "routing.confidence_treshold"),
        (
            "endpoints:\n  e:\n    team: t\n    klass: batch\nteams: {t: {}}\nmodels: {}",
            4,
            "endpoints.e.klass",
        ),
    ],
)
def test_an_unknown_key_is_named_with_its_line(extra: str, line: int, where: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parsed(extra)
    assert f"f.yaml, line {line}: {where}: unknown key" in str(raised.value)


def test_a_wrong_value_in_a_source_is_named_with_its_line() -> None:
    text = default_text().replace("file: SmolLM2", "fyle: SmolLM2")
    line = next(n for n, row in enumerate(text.splitlines(), 1) if "fyle:" in row)
    with pytest.raises(ConfigError, match=rf"line {line}: models\.smollm2-135m\.source.*fyle"):
        parsed(text)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"endpoints": {"e": {"team": "nobody"}}}, "'nobody' is not under teams"),
        ({"endpoints": {"e": {"team": "t", "adapter": "a"}}}, "no model lists an adapter 'a'"),
        ({"endpoints": {"m": {"team": "t"}}}, "names both an endpoint and a model"),
        ({"endpoints": {"e": {"team": "t", "tiers": [1, 0]}}}, "tiers must be ascending"),
        ({"endpoints": {"e": {"team": "t", "tiers": [4]}}}, "less than or equal to 3"),
        ({"routing": {"hard_patterns": ["("]}}, "is not a regular expression"),
        ({"teams": {"Not A Name": {}}}, "pattern"),
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parsed(document(**changes))


def test_engine_and_source_must_fit() -> None:
    text = document().replace('"engine": "vllm"', '"engine": "openai"')
    with pytest.raises(ConfigError, match="engine 'openai' needs a source with base_url"):
        parsed(text)


@pytest.mark.parametrize("text", ["a: [", "- a list", "just words", ""])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"f\.yaml"):
        parsed(text)


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        parsed(document()).home = Path("/elsewhere")  # type: ignore[misc]


def test_paths_are_beside_the_file_unless_home_is_given(tmp_path: Path) -> None:
    text = document().replace('{"hub": "org/m"}', '{"path": "weights"}')
    (tmp_path / "f.yaml").write_text(text)
    settings = load(tmp_path / "f.yaml", env={})
    source = settings.models["m"].source
    assert isinstance(source, PathSource)
    assert source.path == tmp_path / "weights"
    assert settings.home == tmp_path / ".factory"
    assert settings.database_url == f"sqlite:///{tmp_path}/.factory/factory.db"
    assert load(tmp_path / "f.yaml", env={"FACTORY_HOME": "/data"}).home == Path("/data")


def test_the_file_is_the_argument_then_the_variable_then_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FACTORY_CONFIG", raising=False)
    assert find() is None
    (tmp_path / "factory.yaml").write_text(document())
    assert find() == Path("factory.yaml")
    monkeypatch.setenv("FACTORY_CONFIG", "/etc/factory.yaml")
    assert find() == Path("/etc/factory.yaml")
    assert find(Path("mine.yaml")) == Path("mine.yaml")


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*absent\.yaml"):
        load(tmp_path / "absent.yaml")


def test_every_key_of_the_schema_has_a_meaning() -> None:
    schema = Settings.model_json_schema()
    silent = [
        f"{section}.{key}"
        for section, definition in [("", schema), *schema["$defs"].items()]
        for key, entry in definition.get("properties", {}).items()
        if not entry.get("description") and "$ref" not in entry
    ]
    assert silent == []


prices = st.decimals(min_value=0, max_value=1000, places=4)
tokens = st.integers(min_value=0, max_value=10**7)


@given(prices, prices, tokens, tokens)
def test_a_price_is_never_below_the_exact_amount_and_less_than_one_nano_above(
    input_price: Decimal, output_price: Decimal, prompt: int, completion: int
) -> None:
    price = Price(input_usd_per_mtok=input_price, output_usd_per_mtok=output_price)
    exact = (prompt * input_price + completion * output_price) * 1000
    assert 0 <= price.nano_usd(prompt, completion) - exact < 1
