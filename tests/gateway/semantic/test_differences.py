from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from factory.gateway.semantic.calibrate import STEPS
from factory.gateway.semantic.differences import same
from factory.gateway.semantic.fitting import handwritten
from factory.gateway.semantic.labelled import read_pairs
from factory.gateway.semantic.reading import read
from factory.gateway.semantic.score import PairModel

from .conftest import Letters

DIFFERENT = {
    "numbers": [
        ("Can I return shoes after 30 days?", "Can I return shoes after 14 days?"),
        ("I was charged two dollars", "I was charged three dollars"),
        ("Is 5 GB enough?", "Is 5 MB enough?"),
        ("Send $20 to my brother", "Send €20 to my brother"),
        ("Does it run on version 3.11?", "Does it run on version 3.12?"),
        ("the second step fails", "the third step fails"),
        ("My flight leaves on May 5", "My flight leaves on June 5"),
        ("Is the shop open on Monday?", "Is the shop open on Tuesday?"),
        ("Meet me at 5pm", "Meet me at 5am"),
        ("Is a 10% discount possible?", "Is a 20% discount possible?"),
    ],
    "negation": [
        ("Does the plan include tax?", "Does the plan not include tax?"),
        ("Why can I log in?", "Why can't I log in?"),
        ("Can I travel with a passport?", "Can I travel without a passport?"),
        ("List users who logged in", "List users who never logged in"),
        ("Is the door unlocked?", "Is the door locked?"),
        ("Is it possible to pay later?", "Is it impossible to pay later?"),
        ("Which cards do you accept?", "Which cards don't you accept?"),
    ],
    "names": [
        ("Do you ship to Norway?", "Do you ship to Kenya?"),
        ("how do i cook rice", "how do i cook pasta"),
        ("open `main.py` in the editor", "open `test.py` in the editor"),
        ("What does error E1001 mean?", "What does error E1002 mean?"),
        ("write to ann@example.org", "write to bob@example.org"),
        ("call the method os.path.join", "call the method os.path.split"),
        ("Will it work in the US?", "Will it work in the UK?"),
    ],
    "direction": [
        ("a train from Lyon to Oslo", "a train from Oslo to Lyon"),
        ("flights from lyon to oslo", "flights from oslo to lyon"),
        ("Is Rust faster than Go?", "Is Go faster than Rust?"),
        ("Did Alice pay Bob?", "Did Bob pay Alice?"),
        ("How do I convert CSV to JSON?", "How do I convert JSON to CSV?"),
        ("Should I eat before running?", "Should I run before eating?"),
        ("Where do the funds come from?", "Where do the funds come to?"),
        ("merge branch a into b", "merge branch b into a"),
        ("the effect of sleep on memory", "the effect of memory on sleep"),
        ("I paid John back", "John paid me back"),
    ],
    "opposites": [
        ("How do I enable the firewall?", "How do I disable the firewall?"),
        ("Is smoking allowed here?", "Is smoking forbidden here?"),
        ("increase the font size", "decrease the font size"),
        ("the minimum deposit", "the maximum deposit"),
        ("Do I pay before the course?", "Do I pay after the course?"),
        ("Refund the first order", "Refund the last order"),
        ("Are all rooms free of charge?", "Are some rooms free of charge?"),
        ("Must I sign the form?", "May I sign the form?"),
        ("turn on the light", "turn off the light"),
    ],
    "what is asked": [
        ("When was my card blocked?", "Why was my card blocked?"),
        ("Who signed the contract?", "When was the contract signed?"),
        ("How many tickets are there?", "How much are the tickets?"),
        ("Will I be charged?", "Was I charged?"),
        ("Where can I park near the stadium?", "When can I park near the stadium?"),
        ("How long is the course?", "When is the course?"),
        ("How often should I water it?", "How much should I water it?"),
        ("When does the shop open?", "At what time did the shop open?"),
        ("Who is the director?", "Who will be the director?"),
        ("What does HTTP 404 mean?", "What does HTTP 404 cost?"),
    ],
    "what is supposed": [
        ("Can a tenant sue the landlord?", "Must a tenant sue the landlord?"),
        ("Should I buy bonds?", "Can I buy bonds?"),
        ("Only admins can delete projects?", "Can admins only delete projects?"),
    ],
    "who does it to whom": [
        ("Did the manager fire the employee?", "Was the manager fired by the employee?"),
        ("What did the cat chase?", "What was the cat chased by?"),
        ("Can I pay with PayPal?", "Can I get paid with PayPal?"),
        ("Is there a pool in the gym?", "Does the pool have a gym?"),
        ("Get a refund for a cancelled order", "Cancel a refund order"),
    ],
    "limits": [
        ("Files modified after March 2023", "Files modified in March 2023"),
        ("More than 40 hours a week?", "Exactly 40 hours a week?"),
        ("Why did it drop by 5 percent?", "Why did it drop to 5 percent?"),
        ("What do I do when it beeps?", "What do I do before it beeps?"),
        ("a 10-year loan", "a 15-year loan"),
        ("Is version 2.10 out?", "Is version 2.1 out?"),
        ("Is 1 mile longer than 1 km?", "Is 1 km longer than 1 mile?"),
        ("How many calories have 2 eggs?", "How many eggs have 2 calories?"),
    ],
}

ALIKE = [
    ("How do I reset my password?", "What's the best way to reset my password?"),
    ("Can I cancel my order?", "Is it possible to cancel an order?"),
    ("Please tell me how to delete my account", "How can I remove my account?"),
    ("Why doesn't my card work?", "Why is my card not working?"),
    ("I was charged 5 dollars twice", "I was charged $5 two times"),
    ("How do I turn off notifications?", "I'd like to disable notifications, how?"),
    ("Hi there, where is my parcel? Thanks!", "where is my package"),
    ("What is the capital of Peru?", "What's Peru's capital?"),
    ("When will my parcel arrive?", "How long until my parcel arrives?"),
    ("Send 1,500 euros", "send €1500"),
    ("Is water damage covered by insurance?", "Does insurance cover water damage?"),
    ("How can PDF be converted to CSV?", "How do I convert PDF to CSV?"),
    ("By whom was Hamlet written?", "Who wrote Hamlet?"),
    ("Has YouTube been bought by Google?", "Did Google buy YouTube?"),
    ("How tall is the tower?", "What is the height of the tower?"),
    ("When did World War II end?", "When did World War 2 end?"),
    ("Must I have a visa?", "Is a visa required?"),
    ("a 10-year loan", "a loan of ten years"),
    ("How do REST and GraphQL differ?", "How does GraphQL differ from REST?"),
]


@pytest.mark.parametrize(
    ("a", "b"), [pair for pairs in DIFFERENT.values() for pair in pairs], ids=str
)
def test_look_alikes_are_kept_apart_both_ways_and_with_a_reason(a: str, b: str) -> None:
    for first, second in ((a, b), (b, a)):
        verdict = same(first, second)
        assert not verdict.same
        assert verdict.reasons


@pytest.mark.parametrize(("a", "b"), ALIKE, ids=str)
def test_other_words_for_the_same_pass(a: str, b: str) -> None:
    assert same(a, b).same, same(a, b).reasons
    assert same(b, a).same


def test_no_handwritten_look_alike_passes_and_many_paraphrases_do(letters: Letters) -> None:
    """About 300 pairs, written by hand while the rules were made."""
    model = PairModel(letters)
    pairs = read_pairs(Path(__file__).with_name("handwritten.csv"))
    hits = [pair for pair in pairs if model.compare(pair.a, pair.b).score >= STEPS[-1]]
    assert [pair for pair in hits if not pair.same] == []
    assert len(hits) > 0.5 * sum(pair.same for pair in pairs)


def test_questions_of_other_subjects_by_hand(letters: Letters) -> None:
    """Written after the rules; what they got wrong was mended, so this only guards against loss."""
    model = PairModel(letters)
    lines = Path(__file__).with_name("alike.txt").read_text("utf-8").splitlines()
    pairs = list(handwritten(lines))
    hits = [pair for pair in pairs if model.compare(pair.a, pair.b).score >= 0.8]
    assert [pair for pair in hits if not pair.same] == []
    assert len(hits) > 0.5 * sum(pair.same for pair in pairs)


NOT_ENGLISH = [
    ("Puis-je payer avec une carte ?", "Puis-je payer sans une carte ?"),
    ("¿Puedo cancelar el pedido antes del envío?", "¿Puedo cancelar el pedido después del envío?"),
    ("Wann kommt der Zug in Berlin an?", "Wann fährt der Zug in Berlin ab?"),
    ("Posso usare la carta in Italia?", "Non posso usare la carta in Italia?"),
    ("Czy mogę anulować zamówienie?", "Czy nie mogę anulować zamówienia?"),
    ("我可以取消订单吗", "我不可以取消订单吗"),
    ("注文をキャンセルできますか", "注文をキャンセルできませんか"),
]


@pytest.mark.parametrize(("a", "b"), NOT_ENGLISH, ids=str)
def test_other_languages_never_hit_falsely(a: str, b: str) -> None:
    assert not same(a, b).same
    assert same(a, a.upper() if a.isascii() else a).same


def test_the_reason_names_what_differs() -> None:
    verdict = same("Send $20 to Ann", "Send $50 to Ann")
    assert verdict.reasons == ("numbers differ: 20 $ / 50 $",)


def test_text_that_is_not_english_matches_only_word_for_word() -> None:
    question = "Wie kann ich meine Bestellung stornieren lassen"
    assert same(question, question).same
    assert not same(question, "Wie kann ich meine Bestellung niemals stornieren lassen").same


@given(st.text(max_size=200), st.text(max_size=200))
def test_any_text_is_judged_and_the_order_does_not_matter(a: str, b: str) -> None:
    assert same(a, b).same == same(b, a).same


@given(st.text(max_size=200))
def test_a_question_is_the_same_as_itself(text: str) -> None:
    assert same(text, text).same


@given(st.integers(2, 999), st.integers(2, 999))
def test_any_two_numbers_are_told_apart(one: int, other: int) -> None:
    verdict = same(f"Is a stay of {one} nights possible?", f"Can I stay {other} nights?")
    assert verdict.same == (one == other) or one == other


def test_spoken_numbers_are_numbers() -> None:
    assert read("twenty-five euros").numbers == read("25 euros").numbers == ((25.0, "€"),)
    assert read("two thousand steps").numbers == read("2,000 steps").numbers
