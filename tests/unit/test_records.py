"""From groups to a batch: what is in it, what carries a loss, what moves with a selection."""

import dataclasses

import pytest
import torch

from rlcore.models.logp import microbatch
from rlcore.records import COLUMNS, Batch, Group, Kept, Prompt, Rollout


def rollout(prompt: int, response: int, reward: float | None, trains: bool = True) -> Rollout:
    """`response` sampled tokens, numbered 10, 11, ..., after one prompt token."""
    tokens = [prompt, *range(10, 10 + response)]
    made = Rollout(Prompt(str(prompt), [prompt], ""), tokens, [-0.1 * i for i in range(response + 1)],
                   [False] + [True] * response, "stop", 0, reward=reward, trains=trains)  # fmt: skip
    return made


def groups() -> list[Group]:
    first = Group([rollout(1, 2, 1.0), rollout(1, 1, None)], greedy=rollout(1, 1, 0.5))
    left_out = Group([rollout(2, 3, 0.0), rollout(2, 3, 0.0)], used=False)
    last = Group([rollout(3, 1, 0.0, trains=False), rollout(3, 0, 2.0)], greedy=rollout(3, 1, None))
    return [first, left_out, last]


def test_a_batch_has_the_rollouts_of_used_groups_and_no_greedy_ones() -> None:
    batch = Batch.from_groups(groups())
    assert batch.tokens.tolist() == [1, 10, 11, 1, 10, 3, 10, 3]
    assert batch.offsets.tolist() == [0, 3, 5, 7, 8] and batch.group.tolist() == [0, 0, 1, 1]
    # Unscored rollouts and those that do not train carry no loss; an empty response has nothing to mask.
    assert batch.mask.tolist() == [False, True, True, False, False, False, False, False]
    assert torch.equal(batch.reward.nan_to_num(-1), torch.tensor([1.0, -1.0, 0.0, 2.0]))
    assert torch.equal(batch.baseline.nan_to_num(-1), torch.tensor([0.5, 0.5, -1.0, -1.0]))


def test_what_tokens_were_chosen_from_goes_with_them() -> None:
    def sampled(sets: list[list[int]]) -> Rollout:
        made = rollout(1, len(sets), 1.0)
        return dataclasses.replace(made, kept=Kept.of(sets).after(1))

    batch = Batch.from_groups([Group([sampled([[7, 10], [11]]), sampled([]), sampled([[10, 5, 6]])])])
    assert batch.allowed is not None
    assert batch.allowed.ids.tolist() == [7, 10, 11, 10, 5, 6] and batch.allowed.ids.dtype is torch.int32
    assert batch.allowed.offsets.tolist() == [0, 0, 2, 3, 3, 3, 6]
    chosen = batch.select([2, 0]).allowed
    assert chosen is not None
    assert chosen.ids.tolist() == [10, 5, 6, 7, 10, 11] and chosen.offsets.tolist() == [0, 0, 3, 3, 5, 6]
    empty = microbatch(batch, [], torch.device("cpu")).allowed
    assert empty is not None and empty.ids.tolist() == [] and empty.offsets.tolist() == [0, 0]
    with pytest.raises(AssertionError, match="of others not"):
        Batch.from_groups([Group([sampled([[10]]), rollout(1, 1, 0.0)])])


def test_selecting_moves_every_column_with_its_rollout() -> None:
    batch = Batch.from_groups(groups())
    values = {name: torch.arange(8.0) + 100 * i for i, name in enumerate(COLUMNS)}
    chosen = batch.with_(**values).select([2, 0])
    assert chosen.tokens.tolist() == [3, 10, 1, 10, 11] and chosen.offsets.tolist() == [0, 2, 5]
    for i, name in enumerate(COLUMNS):
        assert getattr(chosen, name).tolist() == [100 * i + j for j in (5, 6, 0, 1, 2)]
    assert chosen.reward.tolist() == [0.0, 1.0] and chosen.group.tolist() == [1, 0]
    assert chosen.baseline.isnan().tolist() == [True, False]


def test_a_group_differs_only_by_scored_rewards() -> None:
    assert not groups()[0].differs, "one score and a failure are no difference"
    assert not groups()[1].differs and groups()[2].differs
    assert [len(g.drawn) for g in groups()] == [3, 2, 3]
