"""The log-probability or the value of every token of a flat batch under a packed model.

`_before()`, which `token_logp()` and `token_value()` share, is the only place that shifts by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlcore.models import attention
from rlcore.models.pack import SCORE
from rlcore.models.rope import require_rollout
from rlcore.records import COLUMNS, Allowed, Batch


def _before(model: PreTrainedModel, tokens: Tensor, offsets: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """`(index (m,), hidden (m, d))`: the tokens that are masked and not the first of their rollout, and the backbone's
    last hidden state just before each of them: all that is known when the token is chosen."""
    device = tokens.device
    host_offsets = offsets.cpu()
    lengths = host_offsets[1:] - host_offsets[:-1]
    first = torch.repeat_interleave(host_offsets[:-1], lengths).to(device)
    position = torch.arange(len(tokens), device=device) - first
    segments = attention.Segments.of(host_offsets, device)
    require_rollout(model.config.get_text_config(), segments.longest)
    hidden = model.base_model(
        input_ids=tokens.long()[None], position_ids=position[None], use_cache=False, segments=segments
    ).last_hidden_state[0]
    index = (mask & (position > 0)).nonzero()[:, 0]
    return index, hidden[index - 1]


def token_logp(
    model: PreTrainedModel,
    tokens: Tensor,
    offsets: Tensor,
    mask: Tensor,
    temperature: float,
    chunk_tokens: int,
    entropy: bool = False,
    allowed: Allowed | None = None,
) -> tuple[Tensor, Tensor]:
    """`(logp (n,), entropy (n,))`, float32, of rollouts laid end to end; 0 where `mask` is False and at first tokens.

    logp[i] = log p(token i | the tokens before it in its rollout), the logits divided by `temperature` (0 counts as 1);
    the entropy, in nats, is of that distribution (zeros when not asked for). Both are over the `allowed` tokens only.
    `model` has been through `pack()`. At most `chunk_tokens` rows of logits exist at once.
    """
    index, hidden = _before(model, tokens, offsets, mask)
    head: Any = model.get_output_embeddings()
    kept = None if allowed is None else allowed.select(index)
    some_logp, some_entropy = head(hidden, tokens[index].long(), temperature or 1.0, chunk_tokens, entropy, kept)
    zeros = torch.zeros(len(tokens), device=tokens.device)
    return zeros.index_put((index,), some_logp), zeros.index_put((index,), some_entropy)


def token_value(model: PreTrainedModel, tokens: Tensor, offsets: Tensor, mask: Tensor) -> Tensor:
    """(n,) float32: value[i] is the model's guess, made before token i is known, of the rewards from token i on; 0
    where `mask` is False and at first tokens. `model` comes from `load_value_path()`."""
    index, hidden = _before(model, tokens, offsets, mask)
    values = model.get_submodule(SCORE)(hidden)
    return torch.zeros(len(tokens), device=tokens.device).index_put((index,), values)


class TokenLogp(nn.Module):
    """`token_logp` as a module, for DeepSpeed to wrap."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        tokens: Tensor,
        offsets: Tensor,
        mask: Tensor,
        temperature: float,
        chunk_tokens: int,
        entropy: bool,
        allowed: Allowed | None = None,
    ) -> tuple[Tensor, Tensor]:
        return token_logp(self.model, tokens, offsets, mask, temperature, chunk_tokens, entropy, allowed)


class TokenValue(nn.Module):
    """`token_value` as a module, for DeepSpeed to wrap."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, offsets: Tensor, mask: Tensor) -> Tensor:
        return token_value(self.model, tokens, offsets, mask)


def microbatch(batch: Batch, rollouts: list[int], device: torch.device) -> Batch:
    """These rollouts, on the device. None of them: one token that nobody chose, so that a forward and a backward run
    and the collectives of the other ranks find this one; its loss is 0."""
    if rollouts:
        chosen = batch.select(rollouts)
    else:
        zero = torch.zeros(1)
        filled = {name: zero for name in COLUMNS if getattr(batch, name) is not None}
        chosen = Batch(
            tokens=zero.int(),
            offsets=torch.tensor([0, 1]),
            mask=zero.bool(),
            rollout_logp=zero,
            reward=zero,
            group=zero.long(),
            baseline=zero,
            allowed=None if batch.allowed is None else Allowed(zero.int()[:0], torch.tensor([0, 0])),
            **filled,
        )
    columns = {f.name: getattr(chosen, f.name) for f in dataclasses.fields(Batch)}
    return dataclasses.replace(chosen, **{k: v.to(device) for k, v in columns.items() if v is not None})


def batch_logp(
    module: Callable[..., tuple[Tensor, Tensor]],
    batch: Batch,
    microbatches: list[list[int]],
    temperature: float,
    chunk_tokens: int,
    device: torch.device,
) -> Tensor:
    """(n,) float32 on the host: `token_logp` of a whole batch, one micro-batch after the other. `module` is a
    TokenLogp, or DeepSpeed's engine around one."""

    def logp(micro: Batch) -> Tensor:
        return module(micro.tokens, micro.offsets, micro.mask, temperature, chunk_tokens, False, micro.allowed)[0]

    return _column(logp, batch, microbatches, device)


def batch_value(
    module: Callable[..., Tensor], batch: Batch, microbatches: list[list[int]], device: torch.device
) -> Tensor:
    """(n,) float32 on the host: `token_value` of a whole batch. `module` is a TokenValue, or DeepSpeed's engine."""
    return _column(lambda micro: module(micro.tokens, micro.offsets, micro.mask), batch, microbatches, device)


@torch.no_grad()
def _column(of: Callable[[Batch], Tensor], batch: Batch, microbatches: list[list[int]], device: torch.device) -> Tensor:
    column = torch.zeros(len(batch.tokens))
    for rollouts in microbatches:
        some = of(microbatch(batch, rollouts, device))
        if rollouts:
            column[batch.tokens_of(rollouts)] = some.cpu()
    return column
