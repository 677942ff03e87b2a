import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.training import loss
from factory.training.loss import CrossEntropy, Learned, over_vocabulary


def learned(count: int, vocabulary: int) -> Learned:
    place = torch.arange(count)
    return Learned(torch.randint(vocabulary, (count,)), place, place)


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 40),
    chunk=st.integers(1, 50),
    smoothing=st.sampled_from([0.0, 0.2]),
    trained=st.booleans(),
)
def test_slices_give_the_loss_and_gradients_of_the_whole(
    count: int, chunk: int, smoothing: float, trained: bool
) -> None:
    torch.manual_seed(count)
    hidden = torch.randn(count, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(30, 6, dtype=torch.float64, requires_grad=trained)
    wanted = learned(count, 30)
    inputs = [hidden, weight] if trained else [hidden]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CHUNK", chunk)
        total, said = over_vocabulary(hidden, weight, CrossEntropy(smoothing), wanted)
        ours = torch.autograd.grad(3 * total, inputs)
    logits = hidden @ weight.T
    whole = torch.nn.functional.cross_entropy(
        logits.float(), wanted.wanted, reduction="sum", label_smoothing=smoothing
    )
    assert total.item() == pytest.approx(whole.item(), rel=1e-4)
    assert torch.equal(said, logits.argmax(-1))
    for mine, theirs in zip(ours, torch.autograd.grad(3 * whole, inputs), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def test_a_loss_is_told_which_token_of_which_example_it_sees() -> None:
    seen: list[tuple[int, int]] = []

    def spy(logits: torch.Tensor, part: Learned) -> torch.Tensor:
        seen.extend(zip(part.example.tolist(), part.place.tolist(), strict=True))
        return logits.sum()

    wanted = Learned(
        torch.zeros(5, dtype=torch.long),
        torch.tensor([7, 7, 9, 9, 9]),
        torch.tensor([0, 1, 0, 1, 2]),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss, "CHUNK", 2)
        over_vocabulary(torch.zeros(5, 3), torch.zeros(4, 3), spy, wanted)
    assert seen == [(7, 0), (7, 1), (9, 0), (9, 1), (9, 2)]


def test_without_gradients_nothing_is_kept() -> None:
    with torch.no_grad():
        total, _ = over_vocabulary(
            torch.zeros(2, 3), torch.zeros(4, 3), CrossEntropy(), learned(2, 4)
        )
    assert not total.requires_grad
