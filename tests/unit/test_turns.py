"""Who sleeps when, on a shared GPU."""

from types import SimpleNamespace

from rlcore.train.run import Turns


class Group:
    def __init__(self, role: str) -> None:
        self.role, self.calls = role, []
        self.deadline = SimpleNamespace(publish_seconds=1)

    def call(self, method: str, seconds: float) -> None:
        self.calls.append(method)


def test_engines_sleep_only_between_rollout_and_publish() -> None:
    engines, actor = Group("rollout"), Group("actor")
    turns = Turns([engines, actor], active=True)  # type: ignore[list-item]
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
    turns = Turns([engines, actor, scorer], active=True)  # type: ignore[list-item]
    for phase in ("publish", "rollout", "credit", "update", "publish", "rollout"):
        turns(phase)
    assert scorer.calls == engines.calls == ["sleep", "wake"] and actor.calls == ["sleep", "wake", "sleep"]


def test_nobody_sleeps_on_a_cpu() -> None:
    engines = Group("rollout")
    turns = Turns([engines], active=False)  # type: ignore[list-item]
    turns("update")
    assert engines.calls == []
