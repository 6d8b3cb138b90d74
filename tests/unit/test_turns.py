"""Who sleeps when, on a shared GPU; and the clock."""

from __future__ import annotations

import time

from rlcore.cluster.deadlines import Watch
from rlcore.cluster.turns import Phases, Turns
from rlcore.config import DeadlineConfig


class Group:
    def __init__(self, role: str) -> None:
        self.role, self.calls = role, list[str]()
        self.deadline = DeadlineConfig(publish_seconds=1)

    def call(self, method: str, seconds: float) -> None:
        self.calls.append(method)


def test_engines_sleep_only_between_rollout_and_publish() -> None:
    engines, actor = Group("rollout"), Group("actor")
    turns = Turns([engines, actor], active=True)
    log = []
    for phase in (
        "publish",
        "eval",
        "rollout",
        "credit",
        "update",
        "publish",
        "save",
        "rollout",
        "update",
        "publish",
        "probe",
    ):
        before = len(engines.calls)
        turns(phase)
        log += [(phase, c) for c in engines.calls[before:]]
    assert log == [("credit", "sleep"), ("publish", "wake"), ("update", "sleep"), ("publish", "wake")]
    assert actor.calls == ["sleep", "wake", "sleep", "wake"]


def test_the_reward_model_is_awake_while_samples_finish() -> None:
    engines, actor, scorer = Group("rollout"), Group("actor"), Group("reward_model")
    turns = Turns([engines, actor, scorer], active=True)
    for phase in ("publish", "rollout", "credit", "update", "publish", "rollout"):
        turns(phase)
    assert scorer.calls == engines.calls == ["sleep", "wake"] and actor.calls == ["sleep", "wake", "sleep"]


def test_nobody_sleeps_on_a_cpu() -> None:
    engines = Group("rollout")
    turns = Turns([engines], active=False)
    turns("update")
    assert engines.calls == []


def test_phases_are_named_to_the_watch_take_their_turns_and_add_up() -> None:
    watch, turns = Watch(), list[str]()
    phases = Phases(watch, turns.append)
    for name in ("rollout", "eval", "eval"):
        with phases(name):
            assert watch.phase == name
            time.sleep(0.01)
    assert turns == ["rollout", "eval", "eval"]
    times = phases.metrics()
    assert times.keys() == {"time/rollout_s", "time/eval_s"}
    assert times["time/rollout_s"] >= 0.01 and times["time/eval_s"] >= 0.02


def test_waking_up_is_part_of_a_phase() -> None:
    phases = Phases(Watch(), lambda phase: time.sleep(0.05))
    with phases("publish"):
        pass
    assert phases.seconds["publish"] >= 0.05
