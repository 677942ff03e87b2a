from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from factory.training.batches import Sampler

SAMPLERS = st.builds(
    Sampler,
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60).map(tuple),
    batch_size=st.integers(1, 5),
    accumulation=st.integers(1, 3),
    workers=st.integers(1, 3),
    seed=st.integers(0, 9),
)


@given(sampler=SAMPLERS)
def test_an_epoch_shows_every_example_and_repeats_only_to_fill_the_last_batch(
    sampler: Sampler,
) -> None:
    one = Sampler(
        lengths=sampler.lengths,
        batch_size=sampler.batch_size,
        accumulation=1,
        workers=sampler.workers,
        seed=sampler.seed,
    )
    seen = Counter(
        index
        for number in range(one.per_epoch)
        for row in one.step(number)
        for part in row
        for index in part
    )
    assert set(seen) == set(range(len(one.lengths)))
    extra = one.per_epoch * one.across - len(one.lengths)
    assert 0 <= extra < one.across
    assert sum(seen.values()) == len(one.lengths) + extra


@given(sampler=SAMPLERS, number=st.integers(0, 40))
def test_a_step_depends_on_nothing_but_its_number(sampler: Sampler, number: int) -> None:
    again = Sampler(
        lengths=sampler.lengths,
        batch_size=sampler.batch_size,
        accumulation=sampler.accumulation,
        workers=sampler.workers,
        seed=sampler.seed,
    )
    assert again.step(number) == sampler.step(number)
    rows = sampler.step(number)
    assert [len(row) for row in rows] == [sampler.workers] * sampler.accumulation
    assert all(len(part) == sampler.batch_size for row in rows for part in row)


def test_epochs_differ_and_lengths_are_alike_in_a_batch() -> None:
    lengths = tuple(range(640))
    sampler = Sampler(lengths=lengths, batch_size=8, accumulation=1, workers=1, seed=1)
    first = [sampler.step(number)[0][0] for number in range(sampler.per_epoch)]
    second = [sampler.step(number + sampler.per_epoch)[0][0] for number in range(80)]
    assert first != second
    spread = [max(part) - min(part) for part in first]
    assert sum(spread) / len(spread) < 640 / 4


def test_two_workers_see_together_what_one_with_twice_the_batch_sees() -> None:
    lengths = tuple(range(50))
    one = Sampler(lengths=lengths, batch_size=8, accumulation=1, workers=1, seed=3)
    two = Sampler(lengths=lengths, batch_size=4, accumulation=1, workers=2, seed=3)
    for number in range(20):
        left, right = two.step(number)[0]
        assert sorted(one.step(number)[0][0]) == sorted([*left, *right])
