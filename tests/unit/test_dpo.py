"""DPO: the loss against a second computation in plain float64 loops, and the reference column, computed once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlcore.algo.loss import aggregate
from rlcore.algo.preference import dpo
from rlcore.algo.stats import Stats, Totals, learned
from rlcore.config import Aggregation, LossConfig
from rlcore.errors import CheckpointError
from rlcore.models.logp import microbatch
from rlcore.records import Batch, Group, Prompt, Rollout
from rlcore.train.dpo import ReferenceLogp

CPU = torch.device("cpu")
OF = {"model.path": "a model", "model.dtype": "auto"}


def pairs(lengths: list[int], seed: int = 0, **columns: Tensor) -> Batch:
    """Rollouts of these lengths, two a group; the first token of each is the prompt's."""
    g = torch.Generator().manual_seed(seed)
    rollouts = []
    for i, n in enumerate(lengths):
        tokens = torch.randint(4, 100, (n,), generator=g).tolist()
        rollouts.append(Rollout(Prompt(f"p:{i // 2}", tokens[:1], ""), tokens, [0.0] * n, [False] + [True] * (n - 1),
                                "stop", 0, "", 0.0))  # fmt: skip
    groups = [Group(list(both)) for both in zip(rollouts[0::2], rollouts[1::2], strict=True)]
    return Batch.from_groups(groups)


def second_way(logp: Tensor, batch: Batch, beta: float) -> tuple[float, float, float]:
    """Mean loss, margin and accuracy of the pairs, by the paper's equation 7, a pair at a time."""
    rewards = []
    assert batch.ref_logp is not None
    for b in range(len(batch)):
        total = 0.0
        for t in range(int(batch.offsets[b]), int(batch.offsets[b + 1])):
            if batch.mask[t]:
                total += float(logp[t].detach()) - float(batch.ref_logp[t])
        rewards.append(beta * total)
    margins = [chosen - rejected for chosen, rejected in zip(rewards[0::2], rewards[1::2], strict=True)]
    losses = [math.log1p(math.exp(-m)) for m in margins]
    right = [1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in margins]
    n = len(margins)
    return sum(losses) / n, sum(margins) / n, sum(right) / n


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2, 9), min_size=2, max_size=12), st.floats(0.01, 2.0), st.integers(0, 1000))
def test_the_loss_is_the_papers(lengths: list[int], beta: float, seed: int) -> None:
    batch = pairs(lengths[: len(lengths) // 2 * 2], seed)
    g = torch.Generator().manual_seed(seed)
    n = len(batch.tokens)
    batch = batch.with_(ref_logp=torch.randn(n, generator=g, dtype=torch.float64))
    logp = torch.randn(n, generator=g, dtype=torch.float64).requires_grad_()
    per_token, columns = dpo(logp, batch, LossConfig(beta=beta))
    loss = aggregate(per_token, batch, Totals.of(batch), Aggregation.sequence_sum, 1)
    want, margin, right = second_way(logp, batch, beta)
    assert loss.item() == pytest.approx(want, rel=1e-9)
    assert columns["margin"].mean().item() == pytest.approx(margin, rel=1e-9, abs=1e-12)
    assert columns["accuracy"].mean().item() == pytest.approx(right)
    loss.backward()
    slope = torch.full_like(logp, 0.0)
    for pair in range(len(batch) // 2):
        m = float(columns["margin"][2 * pair])
        for side, sign in ((0, -1.0), (1, 1.0)):
            tokens = slice(int(batch.offsets[2 * pair + side]), int(batch.offsets[2 * pair + side + 1]))
            slope[tokens] = sign * beta / (1.0 + math.exp(m)) / (len(batch) // 2) * batch.mask[tokens].double()
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, slope, rtol=1e-9, atol=1e-15)


def test_micro_batches_change_neither_the_loss_nor_the_statistics() -> None:
    """Whole pairs in each; one of none, as a rank without work runs it."""
    batch = pairs([3, 5, 8, 2, 4, 4])
    g = torch.Generator().manual_seed(1)
    n = len(batch.tokens)
    batch = batch.with_(ref_logp=torch.randn(n, generator=g), old_logp=torch.randn(n, generator=g))
    totals, found = Totals.of(batch), []
    for cut in ([[0, 1, 2, 3, 4, 5]], [[4, 5], [0, 1], [2, 3], []]):
        stats, total = Stats(), 0.0
        for rollouts in cut:
            micro = microbatch(batch, rollouts, CPU)
            assert micro.old_logp is not None
            per_token, columns = dpo(micro.old_logp, micro, LossConfig(beta=0.3))
            share = aggregate(per_token, micro, totals, Aggregation.sequence_sum, 1)
            total += float(share)
            stats.note(share, micro, {f"actor/{k}": v for k, v in columns.items()})
        stats.updates = 1
        found.append(learned([stats], "actor", 0.0).metrics)
        assert found[-1]["actor/loss"] == pytest.approx(total)
    assert found[0].keys() == found[1].keys() >= {"actor/margin", "actor/accuracy", "actor/chosen_reward"}
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-5, nan_ok=True), name


class ToyActor:
    """Says 100 * seen + token; `seen` is moved by an update."""

    def __init__(self) -> None:
        self.weights, self.asked = 1.0, 0

    def logp(self, batch: Batch) -> Tensor:
        self.asked += len(batch)
        return -(100 * self.weights + batch.tokens.float()) * batch.mask


def groups_of(batch: Batch) -> list[Group]:
    rollouts = []
    for b in range(len(batch)):
        at = slice(int(batch.offsets[b]), int(batch.offsets[b + 1]))
        tokens, mask = batch.tokens[at].tolist(), batch.mask[at].tolist()
        rollouts.append(
            Rollout(Prompt(f"p:{b // 2}", tokens[:1], ""), tokens, [0.0] * len(mask), mask, "stop", 0, reward=0.0)
        )
    return [Group(list(both)) for both in zip(rollouts[0::2], rollouts[1::2], strict=True)]


def test_the_reference_column_is_of_the_first_weights_and_computed_once(tmp_path: Path) -> None:
    batch, actor, file = pairs([3, 5, 8, 2, 4, 4, 6, 7]), ToyActor(), tmp_path / "reference_logp.safetensors"
    made: Any = ReferenceLogp(actor, file, OF, each=3)  # type: ignore[arg-type]
    made.compute(groups_of(batch))
    first = made(batch)
    assert actor.asked == 8 and first.equal(actor.logp(batch)) and bool(first[batch.mask].all())
    actor.weights = 2.0
    assert made(batch.select([4, 5])).equal(first[batch.tokens_of([4, 5])])

    asked = actor.asked  # a resumed run: weights of another step would be wrong, so what is known is read
    again: Any = ReferenceLogp(actor, file, OF, each=3)  # type: ignore[arg-type]
    again.compute(groups_of(batch.select([0, 1, 6, 7])))
    assert actor.asked == asked and again(batch).equal(first)


def test_a_torn_reference_column_is_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "reference_logp.safetensors"
    file.write_bytes(b"half")
    column: Any = ReferenceLogp(ToyActor(), file, OF, each=1)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="reference_logp.safetensors.*delete it"):
        column.compute(groups_of(pairs([3, 3])))
    file.unlink()
    column.compute(groups_of(pairs([3, 3])))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="reference_logp.safetensors: its content is not.*delete it"):
        column.compute(groups_of(pairs([3, 3])))


def test_the_reference_column_of_another_model_is_refused(tmp_path: Path) -> None:
    file, groups = tmp_path / "reference_logp.safetensors", groups_of(pairs([3, 3]))
    ReferenceLogp(ToyActor(), file, OF, each=1).compute(groups)  # type: ignore[arg-type]
    other = {**OF, "model.path": "another"}
    with pytest.raises(CheckpointError, match="is of model.path a model, not another: a run goes on"):
        ReferenceLogp(ToyActor(), file, other, each=1).compute(groups)  # type: ignore[arg-type]


def test_pairs_that_are_the_same_texts_share_what_is_computed(tmp_path: Path) -> None:
    actor, groups = ToyActor(), groups_of(pairs([3, 5]))
    made: Any = ReferenceLogp(actor, tmp_path / "f", OF, each=1)  # type: ignore[arg-type]
    made.compute([*groups, *groups])
    assert actor.asked == 2
