"""The nouns. Everything that flows through the loop is one of these.

Shape letters, for the whole code: P prompts a step, G rollouts a prompt, B = P*G rollouts, N tokens of all rollouts
laid end to end, V vocabulary.

There is no padding. A `Batch` is flat: token i of rollout b lives at `offsets[b] + i`. One alignment rule: entry i of
every per-token column is about token i, so `logp[i] = log p(token i | the tokens before it in its rollout)`; the first
token of a rollout has none (its entry is 0 and its mask False). Only `_before()` in workers/model.py ever shifts.

This module imports torch only when a `Batch` is made, so reward workers and the CLI start without it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Prompt:
    """One dataset row, tokenized once.

    Example: `Prompt(id="train.jsonl:17", tokens=[1, 52, 9], answer="72", row={"question": ..., "answer": ...})`.
    `id` names the source and the row, and from the second epoch on the epoch too (`train.jsonl:17@2`), so a sample's
    seed (run seed, prompt id, sample index) never repeats. `messages` is the conversation that was tokenized, template
    and system prompt included: `[{"role": "user", "content": ...}]`. `source` is what its rewards and metrics go by.
    """

    id: str
    tokens: list[int]
    answer: str
    row: dict[str, Any] = field(default_factory=dict)
    messages: list[dict[str, Any]] = field(default_factory=list)
    source: str = ""


class Response(NamedTuple):
    """What a reward function may know of a finished sample: its text, its length in tokens, how it ended."""

    text: str
    tokens: int = 0
    finish: str = "stop"


class Score(NamedTuple):
    """What a reward function gives: the reward and, if it likes, named parts that are logged as `reward/part/NAME`."""

    reward: float
    parts: dict[str, float] = {}


@dataclass(frozen=True)
class Rollout:
    """One finished and scored sample: prompt tokens first, then the response. Made once; credit decides `trains`.

    tokens   the prompt's tokens, then the sampled ones (the end-of-sequence token included when it was sampled)
    logp     the engine's log-probability of each token, 0.0 on prompt tokens; same length as tokens
    mask     True on the tokens the policy chose; same length as tokens
    finish   "stop" (end of sequence or a stop string), "length" (cut at max_response_tokens), "abort"
    version  the weights it was sampled with
    text     the response, decoded once for the rewards and the log; never tokenized again
    reward   None when scoring failed; then `status` has {function name: "error" | "timeout" | "crashed" | "bad_value" |
             "unparseable_gold"} and `why` the message
    trains   False: its reward counts in the group's baseline, its tokens are not in the loss
    """

    prompt: Prompt
    tokens: list[int]
    logp: list[float]
    mask: list[bool]
    finish: str
    version: int
    text: str = ""
    reward: float | None = None
    parts: dict[str, float] = field(default_factory=dict)
    status: dict[str, str] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    trains: bool = True

    @property
    def response_tokens(self) -> int:
        return sum(self.mask)


@dataclass(frozen=True)
class Group:
    """The G rollouts of one prompt, in sample order.

    greedy  one more, greedy answer, where one was drawn: scored, not trained on
    used    False: drawn and scored, but left out of the batch (its rewards are all equal, or it came after the P-th)
    """

    rollouts: list[Rollout]
    greedy: Rollout | None = None
    used: bool = True

    @property
    def prompt(self) -> Prompt:
        return self.rollouts[0].prompt

    @property
    def drawn(self) -> list[Rollout]:
        """Every sample of the prompt: the rollouts, then the greedy one if there is one."""
        return self.rollouts if self.greedy is None else [*self.rollouts, self.greedy]

    @property
    def baseline(self) -> float | None:
        """The reward of the greedy answer, where one was drawn and could be scored; else None."""
        return self.greedy.reward if self.greedy is not None else None

    @property
    def differs(self) -> bool:
        """Whether two of its scored rewards differ; else none of its rollouts stands out from the others."""
        return len({r.reward for r in self.rollouts if r.reward is not None}) > 1


COLUMNS = ("old_logp", "ref_logp", "penalty", "value", "advantage", "returns")


@dataclass(frozen=True)
class Batch:
    """B rollouts laid end to end. Columns after `baseline` are filled at most once, by `with_`, and never overwritten.

    tokens (N,) int32, offsets (B+1,) int64, mask (N,) bool, rollout_logp (N,) float32, reward (B,) float32 with NaN
    where scoring failed (such a rollout's mask is all False: it carries no loss), group (B,) int64: rollouts with
    equal entries answer the same prompt. The group travels in the data, so any reordering is harmless. baseline (B,)
    float32: the reward of the prompt's greedy answer, NaN where there is none.

    old_logp, ref_logp (N,) float32: under the policy before the update, under the reference. penalty: what the KL takes
    from each token's reward. value: the critic's guess, before each token, of what is still to come; returns: what
    came. advantage: what the loss weighs each token by. 0 where mask is False, all of them.

    Example: two rollouts of 3 and 2 tokens have offsets [0, 3, 5] and N = 5.
    """

    tokens: Tensor
    offsets: Tensor
    mask: Tensor
    rollout_logp: Tensor
    reward: Tensor
    group: Tensor
    baseline: Tensor
    old_logp: Tensor | None = None
    ref_logp: Tensor | None = None
    penalty: Tensor | None = None
    value: Tensor | None = None
    advantage: Tensor | None = None
    returns: Tensor | None = None

    def __len__(self) -> int:
        """B, the number of rollouts."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: tokens of each rollout."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def rollout_of_token(self) -> Tensor:
        """(N,) int64: the rollout each token belongs to."""
        import torch

        return torch.repeat_interleave(torch.arange(len(self), device=self.offsets.device), self.lengths)

    @property
    def groups(self) -> int:
        return len(self.group.unique())

    @property
    def groups_with_advantage(self) -> int:
        """How many groups have a token whose advantage is not 0. `advantage` must be filled."""
        assert self.advantage is not None
        return len(self.group[self.rollout_of_token[self.advantage != 0]].unique())

    @classmethod
    def from_groups(cls, groups: Sequence[Group]) -> Batch:
        """Lay the rollouts of the used ones of `groups` end to end, in order."""
        import torch

        groups = [g for g in groups if g.used]
        rollouts = [r for g in groups for r in g.rollouts]
        lengths = torch.tensor([0] + [len(r.tokens) for r in rollouts], dtype=torch.int64)
        nan = float("nan")
        return cls(
            tokens=torch.tensor([t for r in rollouts for t in r.tokens], dtype=torch.int32),
            offsets=lengths.cumsum(0),
            mask=torch.tensor(
                [m and r.trains and r.reward is not None for r in rollouts for m in r.mask], dtype=torch.bool
            ),
            rollout_logp=torch.tensor([x for r in rollouts for x in r.logp], dtype=torch.float32),
            reward=torch.tensor([nan if r.reward is None else r.reward for r in rollouts], dtype=torch.float32),
            group=torch.tensor([i for i, g in enumerate(groups) for _ in g.rollouts], dtype=torch.int64),
            baseline=torch.tensor(
                [nan if g.baseline is None else g.baseline for g in groups for _ in g.rollouts], dtype=torch.float32
            ),
        )

    def with_(self, **columns: Tensor) -> Batch:
        """A batch with these (N,) columns filled. Filling one twice, or with another length, is our own bug."""
        for name, column in columns.items():
            assert name in COLUMNS and getattr(self, name) is None, f"column {name} is unknown or already filled"
            assert column.shape == self.tokens.shape, f"{name}: {tuple(column.shape)}, want {tuple(self.tokens.shape)}"
        return dataclasses.replace(self, **columns)

    def tokens_of(self, rollouts: Sequence[int]) -> Tensor:
        """(n,) int64: where the tokens of these rollouts lie in this batch, rollout after rollout."""
        import torch

        index = torch.as_tensor(rollouts, dtype=torch.int64)
        lengths = self.lengths[index]
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])[:-1]
        within = torch.arange(int(lengths.sum())) - torch.repeat_interleave(starts, lengths)
        return torch.repeat_interleave(self.offsets[index], lengths) + within

    def select(self, rollouts: Sequence[int]) -> Batch:
        """The batch of these rollouts only, in this order."""
        import torch

        index = torch.as_tensor(rollouts, dtype=torch.int64)
        offsets = torch.cat([torch.zeros(1, dtype=torch.int64), self.lengths[index].cumsum(0)])
        token = self.tokens_of(rollouts)
        filled = {n: getattr(self, n)[token] for n in COLUMNS if getattr(self, n) is not None}
        return Batch(
            tokens=self.tokens[token],
            offsets=offsets,
            mask=self.mask[token],
            rollout_logp=self.rollout_logp[token],
            reward=self.reward[index],
            group=self.group[index],
            baseline=self.baseline[index],
            **filled,
        )
