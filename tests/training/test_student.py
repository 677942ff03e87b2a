import json
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from factory.training.errors import TrainingError
from factory.training.student import How, choose_layers, make_student


@given(
    total=st.integers(1, 80),
    keep=st.integers(1, 80),
    how=st.sampled_from(["first", "spread", "ends"]),
)
def test_chosen_layers_are_ascending_distinct_and_begin_at_the_bottom(
    total: int, keep: int, how: How
) -> None:
    if keep > total:
        with pytest.raises(TrainingError, match=f"{keep} layers cannot be made from {total}"):
            choose_layers(total, keep, how)
        return
    chosen = choose_layers(total, keep, how)
    assert len(chosen) == keep
    assert list(chosen) == sorted(set(chosen))
    assert chosen[0] == 0
    assert chosen[-1] < total
    if how != "first" and keep > 1:
        assert chosen[-1] == total - 1


def test_a_student_computes_what_its_layers_computed_in_the_teacher(
    tiny_model: Path, tmp_path: Path
) -> None:
    cut = make_student(tiny_model, (1,), tmp_path)
    teacher = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    student = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert student.config.num_hidden_layers == 1
    assert cut.parameters == student.num_parameters()
    assert cut.teacher_parameters == teacher.num_parameters()
    teacher.model.layers = torch.nn.ModuleList([teacher.model.layers[1]])
    teacher.model.layers[0].self_attn.layer_idx = 0
    ids = torch.tensor([[1, 5, 9, 40]])
    torch.testing.assert_close(
        student(ids, use_cache=False).logits, teacher(ids, use_cache=False).logits
    )
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_model).chat_template


@pytest.mark.parametrize("layers", [(), (1, 0), (0, 0), (0, 2), (-1,)])
def test_layers_that_are_not_there_are_refused(
    tiny_model: Path, tmp_path: Path, layers: tuple[int, ...]
) -> None:
    with pytest.raises(TrainingError, match="ascending numbers from 0 to 1"):
        make_student(tiny_model, layers, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_teacher_that_cannot_be_cut_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    damaged, out = tmp_path / "teacher", tmp_path / "out"
    out.mkdir()
    shutil.copytree(tiny_model, damaged)
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"quantization_config": {}}))
    with pytest.raises(TrainingError, match="quantized; make the student from the original"):
        make_student(damaged, (0,), out)
    (damaged / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(TrainingError, match="2 numbered layers where the configuration says 3"):
        make_student(damaged, (0,), out)
    (damaged / "config.json").write_text(json.dumps(config))
    (damaged / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(TrainingError, match="cannot read the teacher's weights"):
        make_student(damaged, (0,), out)
    (damaged / "model.safetensors").unlink()
    with pytest.raises(TrainingError, match="has no safetensors weights"):
        make_student(damaged, (0,), out)
