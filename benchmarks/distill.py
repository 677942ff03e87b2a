"""A student beside its teacher, and beside the same student tuned without one.

    python -m benchmarks.distill [--home .benchmarks/distill] [--steps N] [--rounds N] [--plot FILE]

On the pilot's task, judged by the factory's own suite: the teacher is the base tuned whole on the
data; the student has its lowest third of the layers and learns from it, from the data and from
unlabelled prompts; the reference is a student of the same shape, cut from the untuned base, that
sees the data's own answers for as many steps of as many examples. Then teacher and student answer
the suite's questions in vLLM, in turns. Arguments were chosen by the validation split, which is
judged as well. Everything lands under `--home` and is found again, so a run that was interrupted
goes on where it stopped; a new home measures anew.

The reference trains on half of the cores while teacher and student use the others: models of this
size gain next to nothing from a second core. Takes about twenty minutes on two idle ones.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import statistics
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Annotated, Any

import typer

from factory.catalog.objects import Object, ObjectStore
from factory.catalog.pull import pull
from factory.config import Settings
from factory.config import load as configuration
from factory.evaluation.compare import compare
from factory.evaluation.harness import Judged, judge
from factory.evaluation.suite import Suite, read
from factory.evaluation.transformers_answerer import TransformersAnswerer
from factory.registry.versions import WEIGHTS
from factory.training import dataset
from factory.training.config import check_as, load_as
from factory.training.distill import DistillConfig
from factory.training.errors import TrainingError
from pipelines import distill, helpdesk
from pipelines.closing import ERRORS
from pipelines.engine_speed import EngineProcess

MODEL, SEED = "smollm2-135m", 7
TEACHER, STUDENT, REFERENCE = "teacher", "student", "student-without-teacher"
LABELS_ALONE = {"teacher": MODEL, "prompts": None, "distillation": "sequence"}
"""Learning what the data says, from the base's own layers, every weight but the embeddings."""
STEPS = 500
"""Of both students. The reference has learned the data by heart after half of them; the student,
whose lesson is larger, still gains."""
TEACHER_STEPS, TEACHER_RATE = 160, 2e-4
"""Two passes over the data, of every layer: a teacher must know more than its student would find
out without it, and the student's layers come from it tuned."""
CASES = 32
"""Questions of a round, asked at once."""
LONG = 48
"""Tokens of an answer in the rounds that measure decoding alone."""


def main(
    home: Annotated[Path, typer.Option(help="State; kept between runs.")] = Path(
        ".benchmarks/distill"
    ),
    steps: Annotated[int, typer.Option(min=1, help="Of both students.")] = STEPS,
    teacher_steps: Annotated[int, typer.Option(min=1, help="Of the teacher.")] = TEACHER_STEPS,
    rounds: Annotated[int, typer.Option(min=1, help="Of each engine.")] = 5,
    plot: Annotated[Path | None, typer.Option(help="PNG of the comparison.")] = None,
) -> None:
    """Measure the pilot's student. Example: python -m benchmarks.distill --rounds 5"""
    begun = time.monotonic()
    if plot is not None and not plot.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {plot.absolute().parent} for the plot")
    try:
        settings = configuration(None).model_copy(update={"home": home.absolute()})
        settings.home.mkdir(parents=True, exist_ok=True)
        figures = measure(settings, steps, teacher_steps, rounds)
    except (*ERRORS, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(2) from error
    figures["wall_s"] = round(time.monotonic() - begun, 1)
    if plot is not None:
        draw(figures, plot)
    print(json.dumps(figures), flush=True)


def measure(settings: Settings, steps: int, teacher_steps: int, rounds: int) -> dict[str, Any]:
    """Everything in order; what is there already is found."""
    store = ObjectStore(settings.objects)
    say("pulling the base and building the pilot's data")
    base = pull(settings, MODEL, store)
    data, stored = helpdesk.build(store, seed=SEED)
    helpdesk.build_prompts(store, seed=SEED)
    suite = read(stored.path)
    chosen_by = helpdesk.suite(dataset.read(data.path)["validation"], helpdesk.LABELS)
    changes = {"max_steps": steps}
    with beside(settings, changes):
        teacher = made(settings, TEACHER, whole(base, teacher_steps))
        student = made(settings, STUDENT, {"teacher": str(teacher.path), **changes})
    reference = made(settings, REFERENCE, LABELS_ALONE | changes)
    made_here = {TEACHER: teacher, STUDENT: student, REFERENCE: reference}
    scores = {who: judged(suite, store, who, item) for who, item in made_here.items()}
    speed = engines(suite, teacher.path, student.path, rounds)
    before = {who: judged(chosen_by, store, who, item) for who, item in made_here.items()}
    return {
        **quality(scores),
        **sizes(base, student),
        **speed,
        "n_test": len(suite.cases),
        "validation": {**quality(before), "n": len(chosen_by.cases)},
    }


def whole(base: Object, steps: int) -> dict[str, Any]:
    """Arguments of the teacher: all layers of the base, on the data's answers."""
    layers = json.loads((base.path / "config.json").read_text("utf-8"))["num_hidden_layers"]
    return LABELS_ALONE | {
        "student_layers": layers,
        "max_steps": steps,
        "learning_rate": TEACHER_RATE,
        "save_steps": 100,
    }


def arguments(who: str, changes: dict[str, Any]) -> DistillConfig:
    """The pilot's arguments with these changes, for one of the three."""
    return load_as(DistillConfig, distill.DEFAULT_CONFIG, {**changes, "adapter_name": who})


def made(settings: Settings, who: str, changes: dict[str, Any]) -> Object:
    """The weights of one of the three, found or trained."""
    store, config = ObjectStore(settings.objects), arguments(who, changes)
    if (known := found(store, config)) is not None:
        return known
    say(f"training the {who.replace('-', ' ')}")
    name = f"{who}-{config.fingerprint()[:8]}-{config.max_steps}"
    closing = distill.run(settings, config, name)
    say(f"the {who.replace('-', ' ')} ends at a validation loss of {closing['validation_loss']}")
    return next(item for item in store.list(WEIGHTS) if item.hash == closing["hash"])


def found(store: ObjectStore, config: DistillConfig) -> Object | None:
    """Weights that were trained with the same arguments."""
    known = [item for item in store.list(WEIGHTS) if item.name == config.adapter_name]
    return next((item for item in known if _same(item, config)), None)


@contextmanager
def beside(settings: Settings, changes: dict[str, Any]) -> Iterator[None]:
    """Train the reference on half of the cores while the block has the other half.

    Nothing is started on one core, or where the reference is there already. Raises `TrainingError`
    where it failed.
    """
    cores = sorted(os.sched_getaffinity(0))
    mine, others = cores[::2], cores[1::2]
    known = found(ObjectStore(settings.objects), arguments(REFERENCE, LABELS_ALONE | changes))
    if known is not None or not others:
        yield
        return
    log = settings.home / f"{REFERENCE}.log"
    say(f"the {REFERENCE.replace('-', ' ')} trains beside it; its progress is in {log}")
    child = multiprocessing.get_context("spawn").Process(
        target=_reference, args=(settings.home, changes, others, log)
    )
    child.start()
    os.sched_setaffinity(0, mine)
    try:
        yield
        child.join()
    finally:
        os.sched_setaffinity(0, cores)
        if child.is_alive() and child.pid is not None:
            os.kill(child.pid, signal.SIGINT)
            child.join()
    if child.exitcode:
        raise TrainingError(f"the {REFERENCE.replace('-', ' ')} failed; the reason is in {log}")


def _reference(home: Path, changes: dict[str, Any], cores: Sequence[int], log: Path) -> None:
    """What the process beside does; its MLflow database is its own."""
    os.sched_setaffinity(0, cores)
    tracking = f"sqlite:///{home / REFERENCE}.db"
    settings = configuration(None).model_copy(update={"home": home, "mlflow": tracking})
    with log.open("a", encoding="utf-8") as stream, redirect_stderr(stream):
        try:
            made(settings, REFERENCE, LABELS_ALONE | changes)
        except Exception:
            traceback.print_exc()
            raise SystemExit(1) from None


def _same(item: Object, config: DistillConfig) -> bool:
    """Whether an object was made with these arguments; it names the base as its `model`."""
    meta = {**(item.meta.get("config") or {}), "model": MODEL}
    return check_as(DistillConfig, meta, item.name) == config.model_copy(update={"model": MODEL})


def judged(suite: Suite, store: ObjectStore, who: str, weights: Object) -> Judged:
    """The suite's verdict on whole weights."""
    say(f"judging the {who.replace('-', ' ')}")
    return judge(suite, TransformersAnswerer(weights.path, batch_size=32), store)


def quality(scores: dict[str, Judged]) -> dict[str, Any]:
    """Scores and what separates them, with paired 95 % intervals."""
    teacher, student, reference = (scores[who].results for who in (TEACHER, STUDENT, REFERENCE))
    lost, won = compare(teacher, student), compare(reference, student)
    return {
        "teacher_score": teacher.summary.accuracy,
        "student_score": student.summary.accuracy,
        "sft_student_score": reference.summary.accuracy,
        "kept": student.summary.accuracy / max(teacher.summary.accuracy, 1e-9),
        "student_minus_teacher": [lost.low, lost.difference, lost.high],
        "student_minus_sft": [won.low, won.difference, won.high],
    }


def sizes(base: Object, student: Object) -> dict[str, Any]:
    """Parameters of teacher and student."""
    from safetensors import safe_open

    def parameters(folder: Path) -> int:
        total = 0
        for path in folder.glob("*.safetensors"):
            with safe_open(path, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 - not a mapping
                    size = 1
                    for side in stored.get_slice(name).get_shape():
                        size *= side
                    total += size
        return total

    whole, part = parameters(base.path), parameters(student.path)
    return {
        "size_ratio": part / whole,
        "teacher_parameters": whole,
        "student_parameters": part,
    }


def engines(suite: Suite, teacher: Path, student: Path, rounds: int) -> dict[str, Any]:
    """Both in vLLM, asked in turns: the task's own answers, long answers, and one at a time."""
    chats = [case.chat for case in suite.cases]
    speeds: dict[str, dict[str, list[float]]] = {}
    with EngineProcess(teacher) as big, EngineProcess(student) as small:
        pair = {"teacher": big, "student": small}
        for number in range(rounds):
            say(f"engine round {number + 1} of {rounds}")
            part = _part(chats, number * CASES, CASES)
            few = _part(chats, number * CASES + CASES // 2, 16)
            order = list(pair.items()) if number % 2 == 0 else list(pair.items())[::-1]
            for who, engine in order:
                row = speeds.setdefault(who, {"task": [], "decode": [], "alone": []})
                answers = suite.header.max_new_tokens
                row["task"].append(engine.round(part, answers)["requests_per_s"])
                row["decode"].append(engine.round(few, LONG, whole=True)["tokens_per_s"])
                row["alone"].append(engine.round(few[:1], LONG, whole=True)["tokens_per_s"])
        memory = {who: engine.ready for who, engine in pair.items()}
    middle = {
        who: {kind: statistics.median(values) for kind, values in row.items()}
        for who, row in speeds.items()
    }
    ratios = {
        kind: statistics.median(
            fast / slow
            for fast, slow in zip(speeds["student"][kind], speeds["teacher"][kind], strict=True)
        )
        for kind in ("task", "decode", "alone")
    }
    return {
        "speedup": ratios["task"],
        "speedup_decode": ratios["decode"],
        "speedup_alone": ratios["alone"],
        "teacher_engine": middle["teacher"] | memory["teacher"],
        "student_engine": middle["student"] | memory["student"],
    }


def _part(chats: Sequence[Any], start: int, count: int) -> list[Any]:
    return [chats[(start + at) % len(chats)] for at in range(count)]


def draw(figures: dict[str, Any], path: Path) -> None:
    """Scores and speeds as bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    names = ["teacher", "student", "same student,\nno teacher"]
    values = [figures[key] for key in ("teacher_score", "student_score", "sft_student_score")]
    bars = left.bar(names, values, color=["#555555", "#1f6f8b", "#bbbbbb"])
    left.bar_label(bars, [f"{value:.1%}" for value in values])
    left.axhline(0.95 * values[0], color="#c0392b", linewidth=1, linestyle="--")
    left.set(title="Score (dashed: 95 % of the teacher)", ylim=(0, max(values) * 1.2))
    ratios = [figures[key] for key in ("speedup", "speedup_decode", "speedup_alone")]
    bars = right.bar(["the task", "decoding, 16 at once", "decoding, alone"], ratios)
    right.bar_label(bars, [f"{value:.2f}x" for value in ratios])
    right.axhline(1.8, color="#c0392b", linewidth=1, linestyle="--")
    right.set(title="Student's speed over the teacher's", ylim=(0, max(ratios) * 1.2))
    figure.savefig(path, dpi=120)
    say(f"the plot is in {path}")


def say(text: str) -> None:
    """Progress."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
