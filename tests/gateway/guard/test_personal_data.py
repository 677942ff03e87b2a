"""Personal data: Presidio's recognizers on stretches of a text, without a language model."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from factory.config import PersonalDataFilter
from factory.gateway.guard.personal_data import MAX_PHONES, PersonalData


@pytest.fixture(scope="module")
def look() -> PersonalData:
    return PersonalData(PersonalDataFilter(filter="personal_data"))


def found(look: PersonalData, text: str) -> list[tuple[str, str]]:
    spans = sorted((span for _, span in look.look([text])), key=lambda one: one.start)
    return [(span.label, text[span.start : span.end]) for span in spans]


@pytest.mark.parametrize(
    ("text", "entity", "value"),
    [
        ("write to maria.lopez@example.org today", "EMAIL_ADDRESS", "maria.lopez@example.org"),
        ("jürgen@bücher.example.com", "EMAIL_ADDRESS", "jürgen@bücher.example.com"),
        ("card 4111 1111 1111 1111, thanks", "CREDIT_CARD", "4111 1111 1111 1111"),
        ("IBAN DE89370400440532013000.", "IBAN_CODE", "DE89370400440532013000"),
        ("call +49 30 901820 now", "PHONE_NUMBER", "+49 30 901820"),
        ("call (212) 555-0199 now", "PHONE_NUMBER", "(212) 555-0199"),
        ("ring 020 7946 0958", "PHONE_NUMBER", "020 7946 0958"),
        ("my ssn is 536-90-4399", "US_SSN", "536-90-4399"),
        ("my social security number: 536904399", "US_SSN", "536904399"),
    ],
)
@pytest.mark.parametrize("length", [0, 300, 5_000])
def test_each_entity_is_found_wherever_it_stands(look, text, entity, value, length):
    padding = "words without anything in them. " * (length // 32)
    assert (entity, value) in found(look, f"{padding}{text} {padding}")


@pytest.mark.parametrize(
    "text",
    [
        "The price rose from 1,250.00 to 1,375.50 euros on 2024-05-03.",
        "card 4111 1111 1111 1112",
        "order 84736251 of 2024",
        "IBAN DE89370400440532013001",
        "an @mention, a@b and not.an.email",
        "version 1.2.3, build 20240503, page 17 of 240",
        "536904399 pieces",
        "",
    ],
)
def test_numbers_and_signs_that_are_nobodys(look, text):
    assert found(look, text) == []


def test_an_account_number_is_no_telephone_number(look):
    labels = [label for label, _ in found(look, "4111 1111 1111 1111 or 4012-8888-8888-1881")]
    assert labels == ["CREDIT_CARD", "CREDIT_CARD"]


def test_dense_texts_are_looked_at_in_pieces(look):
    numbers = [f"4111 1111 1111 1111 {number}," for number in range(400)]
    assert len([one for one in found(look, " ".join(numbers)) if one[0] == "CREDIT_CARD"]) == 400


def test_too_many_numbers_to_parse_count_as_found(look):
    text = ", ".join(f"{10_000_019 + 7 * number}" for number in range(MAX_PHONES + 50))
    notes = [span.note for _, span in look.look([text])]
    assert notes.count("not parsed, too many") == 50


def test_the_threshold_decides():
    strict = PersonalData(PersonalDataFilter(filter="personal_data", threshold=0.9))
    assert found(strict, "call +49 30 901820, kim@example.org") == [
        ("EMAIL_ADDRESS", "kim@example.org")
    ]


def test_other_entities_of_presidio():
    entities = ("IP_ADDRESS", "UK_NHS", "URL")
    other = PersonalData(PersonalDataFilter(filter="personal_data", entities=entities))
    labels = {label for label, _ in found(other, "NHS 401-023-2137 from 192.168.7.12")}
    assert labels >= {"IP_ADDRESS", "UK_NHS"}


def test_an_unknown_entity_is_named_with_the_known_ones():
    with pytest.raises(ValueError, match=r"PERSON.*EMAIL_ADDRESS.*US_SSN"):
        PersonalData(PersonalDataFilter(filter="personal_data", entities=("PERSON",)))


def test_nothing_is_fetched(monkeypatch):
    def refuse(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    look = PersonalData(PersonalDataFilter(filter="personal_data"))
    assert found(look, "kim@example.co.uk") == [("EMAIL_ADDRESS", "kim@example.co.uk")]


def test_without_the_filter_presidio_is_not_imported():
    code = (
        "import sys; from factory.config import Guard; from factory.gateway.guard import Chain; "
        "Chain.of(Guard()).look_at_input(['a@example.org']); "
        "sys.exit(any(name.split('.')[0] in {'presidio_analyzer', 'spacy', 'phonenumbers'} "
        "for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
