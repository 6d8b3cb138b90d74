"""A wait that is long says what for: after a minute, then more rarely."""

from __future__ import annotations

import time
from collections.abc import Callable

from rlcore.screen import message

_AFTER_SECONDS = (60.0, 180.0, 600.0, 1800.0)  # and every half hour from then on


def tell(text: str) -> None:
    """A line of news from where no console is at hand. The bar of a terminal, while it runs, puts it above itself."""
    print(f"[rlcore] {message(text)}", flush=True)


class Waiting:
    """One wait, from now on. `usual` is how long this one took before: it is not news until it takes twice as long.

    waiting = Waiting("actor.update", 3600.0); then, again and again, waiting.look(lambda: "actor rank 0")
    """

    def __init__(
        self,
        what: str,
        limit_seconds: float,
        usual: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = tell,
    ) -> None:
        self.what, self._limit, self._clock, self._say = what, limit_seconds, clock, say
        self._began = clock()
        self._next = max(_AFTER_SECONDS[0], 2 * usual)

    @property
    def seconds(self) -> float:
        """Since it began."""
        return self._clock() - self._began

    def look(self, for_what: Callable[[], str]) -> None:
        """Say what is still waited for, if it is time for it."""
        if (passed := self.seconds) < self._next:
            return
        self._next = next((after for after in _AFTER_SECONDS if after > passed), passed + _AFTER_SECONDS[-1])
        self._say(f"{self.what}: waiting for {for_what()} for {_minutes(passed)}; the limit is {_minutes(self._limit)}")


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"
