"""Secrets: what is one, what only looks like one, and where its value begins and ends."""

from __future__ import annotations

import secrets as random_secrets
import uuid

import pytest

from factory.gateway.guard.secrets import Secrets
from factory.ledger.keys import PREFIX

LOOK = Secrets()
LETTERS = "aB3dE5fG7hJ9kL1mN2pQ4rS6tU8vW0xYzAbCdEfGhIjKlMnOpQrStUvWxYz012345678901234567890123456"


def found(text: str) -> list[tuple[str, str]]:
    return [(span.label, text[span.start : span.end]) for _, span in LOOK.look([text])]


TOKENS = {
    "AWS_ACCESS_KEY": "AKIA" + "IOSFODNN7EXAMPLE",
    "GITHUB_TOKEN": "ghp_" + LETTERS[:36],
    "GITLAB_TOKEN": "glpat-" + LETTERS[:20],
    "SLACK_TOKEN": "xoxb-" + "123456789012-1234567890123-" + LETTERS[:24],
    "GOOGLE_KEY": "AIza" + LETTERS[:35],
    "HUGGINGFACE_TOKEN": "hf_" + LETTERS[:34],
    "STRIPE_KEY": "sk_live_" + LETTERS[:24],
    "SENDGRID_KEY": "SG." + LETTERS[:22] + "." + LETTERS[:43],
    "PACKAGE_TOKEN": "npm_" + LETTERS[:36],
    "ANTHROPIC_KEY": "sk-ant-api03-" + LETTERS[:60],
    "OPENAI_KEY": "sk-proj-" + LETTERS[:48],
    "FACTORY_KEY": PREFIX + random_secrets.token_urlsafe(32),
    "LLM_PROVIDER_KEY": "sk-or-v1-" + "0123456789abcdef" * 4,
    "JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0." + LETTERS[:43],
    "BOT_TOKEN": "123456789:AA" + LETTERS[:33],
    "CLOUD_TOKEN": "dop_v1_" + "0123456789abcdef" * 4,
}


@pytest.mark.parametrize("label", sorted(TOKENS))
@pytest.mark.parametrize("frame", ["{}", "use {} please", 'x = "{}"', "({}),", "Schlüssel → {}"])
def test_a_token_is_found_by_its_format(label, frame):
    assert found(frame.format(TOKENS[label])) == [(label, TOKENS[label])]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("password=hunter2!", "hunter2!"),
        ("PASSWORD: 'correct horse 9'", "correct horse 9"),
        ('"password": "tr0ub4dor&3", "user": "kim"', "tr0ub4dor&3"),
        ("my password is Sommer2024, please reset it", "Sommer2024"),
        ("Mein Passwort: Geheim#12", "Geheim#12"),
        ("DB_PASSWORD=s3cr3t-value-1\nDB_HOST=db", "s3cr3t-value-1"),
        ("aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY0", None),
        ("api_key: 0a1b2c3d4e5f", "0a1b2c3d4e5f"),
        ("client_secret => 'abcDEF123456'", "abcDEF123456"),
    ],
)
def test_what_is_called_a_password_is_one(text, value):
    spans = found(text)
    assert [label for label, _ in spans] == ["PASSWORD"]
    assert value is None or spans[0][1] == value


def test_a_password_in_a_url_and_a_bearer_token():
    assert found("postgres://app:s3cr3tpw@db:5432/x") == [("URL_PASSWORD", "s3cr3tpw")]
    assert found("Authorization: Bearer 0a1b2c3d4e5f6a7b8c9d0e1f") == [
        ("BEARER_TOKEN", "0a1b2c3d4e5f6a7b8c9d0e1f")
    ]


@pytest.mark.parametrize(
    "body",
    [
        "MIIEpAIBAAKCAQEA0Z3VS5JJcds3xfn/ygWyF8PbnGy0AHB7\nMIIEpAIBAAKCAQEA\n"
        "-----END RSA PRIVATE KEY-----",
        "Proc-Type: 4,ENCRYPTED\n\nMIIEpAIBAAKCAQEA0Z3VS5JJ\n-----END RSA PRIVATE KEY-----",
        "MIIEpAIBAAKCAQEA0Z3VS5JJcds3xfn/ygWyF8PbnGy0AHB7",
        "MIIEpAIBAAKCAQEA0Z3VS5JJ\\nMIIEpAIBAAKCAQEA0Z3VS5JJ",
    ],
)
def test_a_private_key_is_found_whole_and_no_further(body):
    key = f"-----BEGIN RSA PRIVATE KEY-----\n{body}"
    assert found(f"before {key}\n\nand after.") == [("PRIVATE_KEY", key)]


@pytest.mark.parametrize(
    "text",
    [
        f"request {uuid.UUID(int=0x1234567890ABCDEF1234567890ABCDEF)}",
        "commit 3f786850e387550fdab836ed7e6dc881de23001b",
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk",
        "def login(user: str, password: str) -> Token: ...",
        "password = os.environ['DB_PASSWORD']",
        "password=getpass(), token=self.token, secret=settings.secret",
        "password: ${DB_PASSWORD}",
        "api_key = None  # set it later",
        "if password == confirm: return true",
        "The password is required. A password must be long.",
        "I forgot my password: what do I do?",
        "password: ********",
        "password=<your-password-1>",
        "postgres://user:password@localhost/db",
        "sk-learn-style estimators and sk-module-with-a-very-long-descriptive-name",
        "risk-based-authentication-is-a-good-idea-for-banks",
        "max_tokens=4096, temperature: 0.7",
        "https://example.org/a/b?page=2&sort=asc and mailto:kim@example.org",
        "The bearer of internationalization-responsibilities signs here.",
        "What does -----BEGIN CERTIFICATE----- mean?",
        "Tokenization: the tokenizer turns text into tokens.",
    ],
)
def test_what_only_looks_like_a_secret_is_left_alone(text):
    assert found(text) == []
