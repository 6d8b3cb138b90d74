"""The nouns: everything that flows through the loop is one of these. torch is imported only where a `Batch` is made.

Shape letters, for the whole code: P prompts a step, G rollouts a prompt, B = P*G rollouts, N tokens of all rollouts
laid end to end, V vocabulary. There is no padding, and there is one alignment rule: see `Batch`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor


@dataclass
class Prompt:
    """One dataset row, tokenized once.

    Example: `Prompt(id="train.jsonl:17", tokens=[1, 52, 9], answer="72", row={"question": ..., "answer": ...})`.
    """

    # Source and row; from the second epoch on the epoch too, "train.jsonl:17@2". A sample's seed is made of it (and of
    # the run's seed and the sample's index), so none comes twice.
    id: str
    tokens: list[int]
    answer: str  # the gold answer
    row: dict[str, Any] = field(default_factory=dict)  # the whole dataset row
    # What was tokenized, with template and system prompt: [{"role": "user", "content": ...}].
    messages: list[dict[str, Any]] = field(default_factory=list)
    source: str = ""  # what its rewards and metrics go by
    # What the assistant's turn has opened where the tokens end, such as "<think>\n": rewards read a response after it.
    opened: str = ""


class Response(NamedTuple):
    """What a reward function may know of a finished sample: its text after what its prompt has opened, its length in
    tokens, how it ended."""

    text: str
    tokens: int = 0
    finish: str = "stop"


class Score(NamedTuple):
    """What a reward function gives: the reward and, if it likes, named parts that are logged as `reward/part/NAME`."""

    reward: float
    parts: dict[str, float] = {}


class Kept(NamedTuple):
    """The tokens that each token of a sequence was chosen from, where others were ruled out: `counts[i]` of `ids` after
    those of the tokens before. None for a token that was not sampled."""

    ids: NDArray[Any]  # (M,) int32; of a prompt token and two sampled ones, from {7, 9} and from {4}: [7, 9, 4]
    counts: NDArray[Any]  # (n,) int64; of those [0, 2, 1]

    @classmethod
    def of(cls, each: Sequence[Sequence[int]]) -> Kept:
        """Of sampled tokens, what each was chosen from."""
        import numpy as np

        counts = np.array([len(ids) for ids in each], dtype=np.int64)
        return cls(np.fromiter((i for ids in each for i in ids), dtype=np.int32, count=int(counts.sum())), counts)

    def after(self, prompt_tokens: int) -> Kept:
        """The same for the sequence with its prompt."""
        import numpy as np

        return Kept(self.ids, np.concatenate([np.zeros(prompt_tokens, dtype=np.int64), self.counts]))


@dataclass(frozen=True)
class Rollout:
    """One finished and scored sample. Made once; `rlcore.algo.shaping` decides what it is trained on."""

    prompt: Prompt
    tokens: list[int]  # the prompt's, then the sampled ones, with the end-of-sequence token where it was sampled
    logp: list[float]  # one a token: the engine's log-probability of it; 0.0 on the prompt
    mask: list[bool]  # one a token: True where the policy chose it
    finish: str  # "stop": end of sequence or a stop string; "length": cut at max_response_tokens; "abort"
    version: int  # of the weights it was sampled with
    text: str = ""  # the response, decoded once for rewards and log; never tokenized again
    reward: float | None = None  # None: scoring failed, or no reward function applies
    parts: dict[str, float] = field(default_factory=dict)  # named numbers beside the reward, for the log
    # Of each function that failed "error" | "timeout" | "crashed" | "bad_value" | "unparseable_gold", and its message.
    status: dict[str, str] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)
    kept: Kept | None = None  # one count a token; None: any token could have been sampled
    trains: bool = True  # False: its reward counts in the group's baseline, its tokens are not in the loss

    @property
    def response_tokens(self) -> int:
        return sum(self.mask)


@dataclass(frozen=True)
class Group:
    """The G rollouts of one prompt, in sample order."""

    rollouts: list[Rollout]
    greedy: Rollout | None = None  # one more, greedy answer, where one was drawn: scored, not trained on
    used: bool = True  # False: left out of the batch; its rewards are all equal, or it came after the P-th

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


MOST_REWARD = 1e30  # far below where float32 ends, in which advantages, sums and differences of rewards are held


@dataclass(frozen=True)
class Allowed:
    """The tokens that each token of a batch was chosen from: of token i `ids[offsets[i] : offsets[i + 1]]`."""

    ids: Tensor  # (M,) int32
    offsets: Tensor  # (N+1,) int64

    @classmethod
    def of(cls, kept: Sequence[Kept]) -> Allowed:
        """Those of rollouts that are laid end to end."""
        import numpy as np
        import torch

        ids, counts = (torch.from_numpy(np.concatenate([each[i] for each in kept])) for i in (0, 1))
        return cls(ids, _ends(counts))

    def select(self, tokens: Tensor) -> Allowed:
        """Those of the tokens at these places (m,), in this order."""
        at, offsets = within(self.offsets, tokens)
        return Allowed(self.ids[at], offsets)

    def to(self, device: Any) -> Allowed:
        return Allowed(self.ids.to(device), self.offsets.to(device))


def within(offsets: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Where what belongs to each of `index` (n,) lies, one after the other, by the `offsets` of all; and the offsets of
    that selection (n+1,)."""
    import torch

    lengths = (offsets[1:] - offsets[:-1])[index]
    chosen = _ends(lengths)
    shift = torch.repeat_interleave(offsets[index] - chosen[:-1], lengths)
    return torch.arange(len(shift), device=offsets.device) + shift, chosen


def _ends(lengths: Tensor) -> Tensor:
    """(n+1,) int64: the offsets of things of these lengths (n,) laid end to end."""
    import torch

    return torch.cat([torch.zeros(1, dtype=torch.int64, device=lengths.device), lengths.cumsum(0)])


COLUMNS = ("old_logp", "ref_logp", "penalty", "value", "advantage", "returns")


@dataclass(frozen=True)
class Batch:
    """B rollouts laid end to end, without padding: token i of rollout b lies at `offsets[b] + i`.

    Entry i of every (N,) column is about token i: `logp[i] = log p(token i | the tokens before it in its rollout)`. The
    first token of a rollout has none: its entry is 0, its mask False. Only `_before()` in rlcore/models/logp.py shifts.
    """

    tokens: Tensor  # (N,) int32; of two rollouts of 3 and 2 tokens N is 5
    offsets: Tensor  # (B+1,) int64; of those two [0, 3, 5]
    mask: Tensor  # (N,) bool: tokens that carry loss; of a rollout whose scoring failed none
    rollout_logp: Tensor  # (N,) float32: under the engine
    reward: Tensor  # (B,) float32: NaN where scoring failed
    group: Tensor  # (B,) int64: equal where the prompt is the same; it is data, so that any reordering is harmless
    baseline: Tensor  # (B,) float32: the reward of the prompt's greedy answer, NaN where there is none
    allowed: Allowed | None = None  # what each token was chosen from; None: any token of the vocabulary
    # From here on (N,) float32, 0 off the mask. `with_` fills each at most once; none is ever overwritten.
    old_logp: Tensor | None = None  # under the policy before the update
    ref_logp: Tensor | None = None  # under the reference
    penalty: Tensor | None = None  # what the KL takes from each token's reward
    value: Tensor | None = None  # the critic's guess, before each token, of what is still to come
    advantage: Tensor | None = None  # what the loss weighs each token by
    returns: Tensor | None = None  # what did come: what the critic should have guessed

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
        kept = [r.kept for r in rollouts if r.kept is not None]
        assert len(kept) in (0, len(rollouts)), "of some rollouts it is known what they were chosen from, of others not"
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
            allowed=Allowed.of(kept) if kept else None,
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

        return within(self.offsets, torch.as_tensor(rollouts, dtype=torch.int64))[0]

    def select(self, rollouts: Sequence[int]) -> Batch:
        """The batch of these rollouts only, in this order."""
        import torch

        index = torch.as_tensor(rollouts, dtype=torch.int64)
        token, offsets = within(self.offsets, index)
        filled = {n: getattr(self, n)[token] for n in COLUMNS if getattr(self, n) is not None}
        return Batch(
            tokens=self.tokens[token],
            offsets=offsets,
            mask=self.mask[token],
            rollout_logp=self.rollout_logp[token],
            reward=self.reward[index],
            group=self.group[index],
            baseline=self.baseline[index],
            allowed=None if self.allowed is None else self.allowed.select(token),
            **filled,
        )
