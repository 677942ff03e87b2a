import io
from pathlib import Path

from factory.training.run import RunFolder
from factory.training.watch import Bar, Watch, line


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def point(step: int) -> dict[str, float | int]:
    return {
        "step": step,
        "recent_loss": 1.5,
        "tokens_per_s": 900.0,
        "progress": step / 10,
        "remaining_s": 65.0,
    }


def test_a_log_gets_whole_lines_and_not_too_many(tmp_path: Path) -> None:
    out = io.StringIO()
    now = [0.0]
    bar = Bar(out, every_s=10, clock=lambda: now[0])
    for step in range(1, 11):
        bar.take([point(step)])
        now[0] += 4
    bar.close()
    assert "\r" not in out.getvalue()
    lines = out.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0] == " 10%  step 1  loss 1.500  900 tok/s  01:05 left"
    assert lines[-1].startswith("100%")


def test_a_terminal_gets_one_moving_bar(tmp_path: Path) -> None:
    out = Terminal()
    bar = Bar(out)
    bar.take([point(10)])
    bar.close()
    assert "100%" in out.getvalue()
    assert line(point(10)) in out.getvalue()


def test_the_watch_passes_on_every_point_once(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.rewind(0)
    seen: list[int] = []

    class Sink:
        def take(self, points: list[dict[str, int]]) -> None:
            seen.extend(item["step"] for item in points)

        def close(self) -> None:
            seen.append(-1)

    with Watch(run, [Sink()], every_s=0.01):  # type: ignore[list-item]
        for step in range(1, 6):
            run.append(point(step))
    assert seen == [1, 2, 3, 4, 5, -1]


def test_a_line_that_is_still_written_is_left_out(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.rewind(0)
    run.append(point(1))
    with run.curve.open("a") as stream:
        stream.write('{"step": 2, "lo')
    assert [item["step"] for item in run.points()] == [1]
    run.rewind(1)
    run.append(point(2))
    assert [item["step"] for item in run.points()] == [1, 2]
