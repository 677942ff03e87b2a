from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from factory.training import adapter, packing
from factory.training.chat import Sample, collate, encode
from factory.training.config import TrainConfig
from factory.training.errors import TrainingError
from factory.training.model import build
from factory.training.objective import Objective
from tests.training import tiny


@pytest.fixture
def model(tiny_model: Path) -> Any:
    wrapped, _ = build(str(tiny_model), TrainConfig(lora_r=4, bf16=False))
    torch.manual_seed(1)
    for parameter in adapter.trainable(wrapped).values():
        torch.nn.init.normal_(parameter, std=0.1)
    return wrapped


@pytest.fixture
def samples(tiny_model: Path) -> list[Sample]:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    return [encode(tokenizer, example) for example in tiny.examples(5)]


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: item.grad.clone() for name, item in adapter.trainable(model).items()}


def test_the_shared_beginning_changes_neither_loss_nor_gradient(
    model: Any, samples: list[Sample]
) -> None:
    batch = collate(samples)
    assert batch.layout.shared > 0
    loss, _ = Objective(model)(batch)
    loss.backward()
    ours = gradients(model)
    model.zero_grad()
    plain = torch.zeros(())
    model.set_attn_implementation("eager")
    for sample in samples:
        logits = model(input_ids=torch.tensor([sample.ids])).logits[0, :-1]
        targets = torch.tensor(sample.targets[1:])
        plain = plain + torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
    plain.backward()
    assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-3, atol=1e-5)


def test_a_hit_needs_every_learned_token(model: Any, samples: list[Sample]) -> None:
    with torch.no_grad():
        model.set_attn_implementation("eager")
        logits = model(input_ids=torch.tensor([samples[0].ids])).logits[0, :-1].argmax(-1)
        model.set_attn_implementation(packing.NAME)
    first = next(at for at, target in enumerate(samples[0].targets) if target >= 0)
    guess = int(logits[first - 1])
    ids = (*samples[0].ids[:first], guess)
    right = Sample("right", ids, (*[-100] * first, guess))
    wrong = Sample("wrong", ids, (*[-100] * first, guess + 1))
    batch = collate([right, wrong])
    _, hits = Objective(model)(batch)
    assert hits.tolist() == [True, False]


def test_scaled_logits_are_refused(model: Any) -> None:
    model.config.final_logit_softcapping = 30.0
    try:
        with pytest.raises(TrainingError, match="final_logit_softcapping"):
            Objective(model)
    finally:
        model.config.final_logit_softcapping = None
