"""Long steps say how fast they are and how long they will take."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from fedmpt.cli.progress import Pace, ProgressBar, duration


class _Steps:
    """A bar with a clock that the test moves."""

    def __init__(self, *, terminal: bool) -> None:
        self.text = StringIO()
        self.now = 100.0
        console = Console(file=self.text, force_terminal=terminal, width=200)
        self.bar = ProgressBar(console, clock=lambda: self.now)

    def at(self, seconds: float, done: int, total: int = 1000, label: str = "features") -> str:
        self.now = 100.0 + seconds
        self.bar.progress(label, done, total)
        return self.text.getvalue()


def test_where_there_is_no_terminal_a_line_comes_every_half_minute_and_at_the_end() -> None:
    steps = _Steps(terminal=False)
    for second in range(0, 90, 10):
        steps.at(second, 100 + 10 * second)
    assert steps.at(100, 1000).splitlines() == [
        "features: 400 of 1000 images, 10 images/s, 1 min left",
        "features: 700 of 1000 images, 10 images/s, 30 s left",
        "features: 1000 images, 9.0 images/s",
    ]


def test_a_terminal_shows_pace_and_time_left() -> None:
    steps = _Steps(terminal=True)
    steps.at(0, 0)
    steps.at(10, 250)
    written = steps.at(40, 1000)
    assert "1000/1000" in written
    assert "25 images/s" in written


def test_what_an_earlier_process_did_does_not_count_as_pace() -> None:
    steps = _Steps(terminal=False)
    steps.at(0, 900)
    assert "950 of 1000 images, 1.7 images/s, 30 s left" in steps.at(30, 950)


def test_each_step_has_a_pace_of_its_own_even_under_the_same_name() -> None:
    steps = _Steps(terminal=False)
    steps.at(0, 0)
    steps.at(1, 1000)
    steps.at(50, 0)
    assert steps.at(60, 1000).splitlines()[-1] == "features: 1000 images, 100 images/s"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.0, "59 s"), (61, "1 min"), (3599, "1 h 0 min"), (7800, "2 h 10 min")],
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_pace_that_cannot_be_told_is_not_told() -> None:
    assert str(Pace.of(done=64, total=1000, done_before=64, seconds=9.0)) == ""
    assert str(Pace.of(done=64, total=1000, done_before=0, seconds=0.1)) == ""
