"""Signals while something must not be left half done. With a real Ray: tests/stack/test_surroundings.py."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from ray._private import utils, worker

from rlcore.cli.shell import guarded
from rlcore.cluster.signals import ENDING, held, postponed, rays_kept_out


class Stopped(Exception):  # noqa: N818 - it is what a handler of a command raises
    pass


@pytest.fixture
def stopping() -> Iterator[None]:
    """All three raise, as they do in a command."""

    def stop(number: int, _frame: object) -> None:
        raise Stopped(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("stopping")
@pytest.mark.parametrize("number", ENDING)
def test_the_first_signal_is_answered_when_it_is_done(number: signal.Signals) -> None:
    done = []
    with pytest.raises(Stopped, match=number.name), held():
        signal.raise_signal(number)
        signal.raise_signal(signal.SIGHUP)
        done.append("all")
    assert done == ["all"]
    with pytest.raises(Stopped):
        signal.raise_signal(number)  # the handler is back


@pytest.mark.usefixtures("stopping")
def test_what_is_ignored_stays_ignored() -> None:
    """As nohup wants it."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with held():
        signal.raise_signal(signal.SIGHUP)
    signal.raise_signal(signal.SIGHUP)


@pytest.mark.usefixtures("stopping")
def test_signals_find_the_handlers_of_before() -> None:
    """The default, which Ray's C++ leaves, would end this process."""
    with pytest.raises(Stopped, match="SIGTERM"), postponed():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(Stopped, match="SIGTERM"), postponed() as put_back:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        put_back()
        signal.raise_signal(signal.SIGTERM)


@pytest.mark.usefixtures("stopping")
def test_a_signal_while_ray_starts_is_answered_when_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as C++ does
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(worker, "connect", connect)
    done = []
    with pytest.raises(Stopped, match="SIGTERM"), rays_kept_out():
        utils.set_sigterm_handler(lambda number, frame: os._exit(15))
        worker.connect()
        done.append("started")
    assert done == ["started"] and worker.connect is connect


@pytest.mark.usefixtures("stopping")
def test_a_signal_is_named_where_ray_raises_an_interrupt_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        try:
            signal.raise_signal(signal.SIGHUP)
        except KeyboardInterrupt:
            raise KeyboardInterrupt from None
        return 0

    assert guarded(work) == 128 + signal.SIGHUP
    assert capsys.readouterr().err == "rlcore: stopped by SIGHUP\n"
