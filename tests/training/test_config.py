from pathlib import Path

import pytest

from factory.training.config import TrainConfig, check, load
from factory.training.errors import TrainingError


def test_the_file_is_read_and_flags_win(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("learning_rate: 2e-4\nmax_steps: 5\n")
    config = load(path, {"max_steps": 7})
    assert (config.learning_rate, config.max_steps) == (2e-4, 7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("lerning_rate: 1", "lerning_rate: unknown key"),
        ("learning_rate: fast", "learning_rate"),
        ("learning_rate: -1", "greater than 0"),
        ("max_steps: 0", "max_steps"),
        ("save_total_limit: 1", "save_total_limit"),
        ("layers_to_transform: [1]", "target_modules as a list"),
        ("- 1", "must be a mapping"),
        ("a: [", "cannot read the job config"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(text)
    with pytest.raises(TrainingError, match=r"job\.yaml") as caught:
        load(path)
    assert says in str(caught.value)


def test_a_longer_run_may_resume_but_another_one_may_not() -> None:
    config = TrainConfig(max_steps=3)
    assert config.fingerprint() == check({"max_steps": 6}, "x").fingerprint()
    assert config.fingerprint() != check({"seed": 8}, "x").fingerprint()
    assert config.fingerprint() != check({"lora_r": 4}, "x").fingerprint()
