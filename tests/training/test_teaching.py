from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from factory.training.chat import IGNORED, Sample, encode
from factory.training.divergence import sparse
from factory.training.errors import TrainingError
from factory.training.teaching import (
    joined,
    load_teacher,
    read,
    shared_vocabulary,
    teach,
    write,
)
from tests.training import tiny


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Any:
    return load_teacher(tiny_model).float()


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def samples(tokenizer: Any) -> list[Sample]:
    return [encode(tokenizer, example) for example in tiny.examples(7)]


def test_a_teaching_is_the_teachers_logits_at_the_learned_tokens(
    model: Any, tokenizer: Any, samples: list[Sample], tiny_model: Path
) -> None:
    size = len(tokenizer)
    found = teach(model, samples, vocabulary=size, k=8, temperature=2.0, batch_size=3)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).float()
    for sample, mine in zip(samples, found, strict=True):
        logits = plain(torch.tensor([sample.ids])).logits[0, :-1]
        learned = torch.tensor(sample.targets[1:]) != IGNORED
        wanted = sparse(logits[learned], 8, 2.0)
        assert mine.ids.tolist() == wanted.ids.tolist()
        torch.testing.assert_close(mine.logits, wanted.logits, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(mine.tail, wanted.tail, atol=1e-4, rtol=1e-4)


def test_padding_of_the_output_layer_is_no_token(
    model: Any, tokenizer: Any, samples: list[Sample]
) -> None:
    cut = teach(model, samples[:2], vocabulary=20, k=400, temperature=1.0)
    assert cut[0].ids.shape[-1] == 20
    assert int(cut[0].ids.max()) < 20
    assert torch.isinf(cut[0].tail).all()


def test_parts_come_back_as_they_were_within_half_precision(
    model: Any, tokenizer: Any, samples: list[Sample], tmp_path: Path
) -> None:
    made = teach(model, samples, vocabulary=len(tokenizer), k=16, temperature=2.0)
    names = [sample.id for sample in samples]
    write(tmp_path / "part-00000.parquet", names[:4], made[:4])
    write(tmp_path / "part-00001.parquet", names[4:], made[4:])
    kept = read(tmp_path)
    assert list(kept) == names
    whole, again = joined(made), joined([kept[name] for name in names])
    assert whole.ids.tolist() == again.ids.tolist()
    torch.testing.assert_close(whole.logits, again.logits, atol=1e-2, rtol=1e-3)
    torch.testing.assert_close(whole.tail, again.tail, atol=1e-5, rtol=1e-5)
    assert again.temperature == 2.0
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    (tmp_path / "part-00000.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(TrainingError, match=r"part-00000.parquet' cannot be read"):
        read(tmp_path)


def test_vocabularies_are_shared_or_refused(tokenizer: Any, tiny_model: Path) -> None:
    assert shared_vocabulary(tokenizer, tokenizer) == len(tokenizer)
    other = AutoTokenizer.from_pretrained(tiny_model)
    other.add_tokens(["<extra>"])
    with pytest.raises(
        TrainingError, match=r"'<extra>', differs, 1 in all.*distillation: sequence"
    ):
        shared_vocabulary(tokenizer, other)
