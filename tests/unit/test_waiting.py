"""What a long wait says, and when."""

from __future__ import annotations

from rlcore.waiting import Waiting


class Clock:
    def __init__(self) -> None:
        self.now, self.said = 1000.0, list[str]()

    def __call__(self) -> float:
        return self.now

    def wait(self, waiting: Waiting, seconds: float) -> list[str]:
        """What is said meanwhile to somebody who looks once a second."""
        self.said.clear()
        for _ in range(round(seconds)):
            self.now += 1.0
            waiting.look(lambda: "actor rank 1, phase update,")
        return self.said[:]


def waiting_for(seconds: float, usual: float = 0.0) -> tuple[Clock, Waiting]:
    clock = Clock()
    return clock, Waiting("actor.update", seconds, usual, clock, clock.said.append)


def test_it_is_said_after_a_minute_and_then_more_rarely() -> None:
    clock, waiting = waiting_for(10800)
    assert clock.wait(waiting, 59) == []
    line = "actor.update: waiting for actor rank 1, phase update, for {} min; the limit is 180 min"
    assert clock.wait(waiting, 1) == [line.format(1)]
    assert clock.wait(waiting, 3540) == [line.format(minutes) for minutes in (3, 10, 30, 60)]
    assert clock.wait(waiting, 7200) == [line.format(minutes) for minutes in (90, 120, 150, 180)]


def test_what_took_as_long_before_is_no_news() -> None:
    clock, waiting = waiting_for(3600, usual=200)
    assert clock.wait(waiting, 399) == []
    assert len(clock.wait(waiting, 1)) == 1
    assert len(clock.wait(waiting, 200)) == 1  # after 10 minutes


def test_nobody_who_looks_late_hears_it_twice() -> None:
    clock, waiting = waiting_for(3600)
    clock.now += 700
    assert len(clock.wait(waiting, 100)) == 1
