"""The numbers of a step, worked by hand from a few rollouts."""

import dataclasses
import math

import pytest

from rlcore.errors import RewardError
from rlcore.records import Group, Prompt, Rollout
from rlcore.runs import metrics
from rlcore.runs.require_scores import require_scores


def rollout(reward: float | None, tokens: int = 2, finish: str = "stop", **parts: float) -> Rollout:
    status = {"score": "timeout"} if reward is None else {}
    mask = [False] + [True] * tokens
    zeros, why = [0.0] * len(mask), dict.fromkeys(status, "over 10 s")
    return Rollout(Prompt("p", [1], ""), [1] * len(mask), zeros, mask, finish, 0, "", reward, parts, status, why)


def test_rewards_and_lengths_are_over_all_drawn_groups_and_count_is_kept_of_what_is_used() -> None:
    groups = [
        Group([rollout(1.0, 4), rollout(0.0, 2, "length")]),
        Group([rollout(1.0, 2), rollout(1.0, 2)], used=False),
        Group([rollout(None, 6), rollout(3.0, 8)], used=False),
    ]
    found = metrics.of_rollouts(groups)
    assert found["reward/mean"] == pytest.approx(6 / 5)
    assert found["reward/std"] == pytest.approx(math.sqrt((3 * 0.2**2 + 1.2**2 + 1.8**2) / 5))
    assert found["reward/failed_fraction"] == pytest.approx(1 / 6)
    assert (found["group/drawn"], found["group/used"]) == (3.0, 1.0)
    assert found["group/equal_reward_fraction"] == pytest.approx(2 / 3)
    assert found["response/tokens_mean"] == 4.0 and found["response/truncated_fraction"] == pytest.approx(1 / 6)
    assert "group/baseline_failed_fraction" not in found


def test_greedy_answers_are_in_no_number_but_their_own() -> None:
    plain = [Group([rollout(1.0, 4, exact=1.0), rollout(0.0, 2, exact=0.0)]), Group([rollout(0.0), rollout(0.0)])]
    with_greedy = [
        Group(plain[0].rollouts, greedy=rollout(None, 9, "length")),
        Group(plain[1].rollouts, greedy=rollout(7.0, 9, exact=7.0)),
    ]
    found = metrics.of_rollouts(with_greedy)
    assert found.pop("group/baseline_failed_fraction") == 0.5
    assert found == metrics.of_rollouts(plain) and found["reward/part/exact"] == 0.5


def test_nothing_scored_is_nan_and_not_zero() -> None:
    found = metrics.of_rollouts([Group([rollout(None), rollout(None)])])
    assert math.isnan(found["reward/mean"]) and math.isnan(found["reward/std"])
    assert found["reward/failed_fraction"] == 1.0 and found["group/equal_reward_fraction"] == 1.0


def test_failures_of_left_out_groups_and_of_greedy_answers_count() -> None:
    groups = [
        Group([rollout(1.0), rollout(0.0)], greedy=rollout(None)),
        Group([rollout(None), rollout(0.0)], used=False),
    ]
    require_scores(groups, 0.4, "quarantine.jsonl")
    with pytest.raises(RewardError, match=r"2 of 5 .*0\.39.*score.*'timeout' 2 times: over 10 s; .*quarantine\.jsonl"):
        require_scores(groups, 0.39, "quarantine.jsonl")


def test_the_commonest_error_is_of_the_commonest_kind() -> None:
    """Each names its own row: taken by their texts two equal ones would be commoner than three that differ."""
    said = [f"KeyError: 'gold' (row {i})" for i in range(3)] + ["over 10 s"] * 2
    rollouts = [dataclasses.replace(rollout(None), status={"score": "error"}, why={"score": why}) for why in said]
    with pytest.raises(RewardError, match=r"commonest: score .*'error' 3 times: KeyError: 'gold' \(row 0"):
        require_scores([Group(rollouts)], 0.0, "quarantine.jsonl")


def test_accuracy_is_the_first_reward_of_what_is_scored() -> None:
    groups = [Group([rollout(5.0, exact=1.0)]), Group([rollout(4.0, exact=0.0)]), Group([rollout(None)])]
    found = metrics.accuracy(groups, ["exact"])
    assert found["accuracy"] == 0.5 and found["failed_fraction"] == pytest.approx(1 / 3)
    assert math.isnan(metrics.accuracy(groups[2:], ["exact"])["accuracy"])


def test_accuracy_is_of_the_first_function_that_scored_the_answer_and_0_behind_a_closed_gate() -> None:
    groups = [Group([rollout(0.5, gsm8k=1.0, extra=0.2), rollout(0.5, boxed=0.5, extra=0.0), rollout(0.0, gated=1.0)])]
    assert metrics.accuracy(groups, ["gsm8k", "boxed", "extra"])["accuracy"] == pytest.approx(0.5)


def test_several_sources_have_numbers_of_their_own() -> None:
    groups = [Group([rollout(1.0), rollout(0.0)]), Group([rollout(None), rollout(3.0)])]
    assert not any(k.startswith("source/") for k in metrics.of_rollouts(groups))
    for group, source in zip(groups, ("gsm8k", "MATH"), strict=True):
        for r in group.rollouts:
            r.prompt.source = source
    found = metrics.of_rollouts(groups)
    assert found["source/gsm8k/reward_mean"] == 0.5 and found["source/MATH/reward_mean"] == 3.0
    assert found["source/MATH/failed_fraction"] == 0.5 and found["source/MATH/rollouts"] == 2.0
