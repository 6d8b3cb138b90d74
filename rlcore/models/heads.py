"""Output layers: from hidden states to log-probabilities, never with the (n, V) logits of all tokens, and to values."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from rlcore.errors import ConfigError
from rlcore.records import Allowed

# What a model does to the logits after its output layer, by model type. A multiplier of one type can be a divisor of
# another, so a type that is not listed and has such a field is refused.
_MULTIPLIERS = {
    "cohere": lambda c: c.logit_scale,
    "cohere2": lambda c: c.logit_scale,
    "granite": lambda c: 1.0 / c.logits_scaling,
    "granitemoe": lambda c: 1.0 / c.logits_scaling,
    "granitemoeshared": lambda c: 1.0 / c.logits_scaling,
}
_NEVER = -1e20  # exp of it is 0, and 0 times it is 0, which of -inf is NaN
_MULTIPLIER_FIELDS = ("logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier", "unpadded_vocab_size")


class Transform(NamedTuple):
    """`z = softcap(logits * multiplier) / temperature`, softcap(x) = cap * tanh(x / cap) where there is a cap; so
    low for tokens that are not `allowed` that their probability is 0."""

    multiplier: float
    cap: float | None
    temperature: float
    allowed: Allowed | None = None

    def apply(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor | None]:
        """(z, dz/dlogits) of these rows, in float32 and in place; None stands for the constant
        `multiplier / temperature`."""
        if self.cap is None:
            return self._chosen(logits.float().mul_(self.multiplier / self.temperature), rows), None
        tanh = logits.float().mul_(self.multiplier / self.cap).tanh_()
        slope = (1.0 - tanh.square()).mul_(self.multiplier / self.temperature)
        return self._chosen(tanh.mul_(self.cap / self.temperature), rows), slope

    def _chosen(self, z: Tensor, rows: slice) -> Tensor:
        if self.allowed is None:
            return z
        offsets = self.allowed.offsets[rows.start : rows.start + len(z) + 1]
        ids = self.allowed.ids[offsets[0] : offsets[-1]].long()
        row = torch.repeat_interleave(offsets.diff())
        kept = z[row, ids]
        return z.fill_(_NEVER).index_put_((row, ids), kept)


class LogpHead(nn.Module):
    """Takes the place of a model's output layer, with the same parameters under the same names.

    A module of its own because ZeRO-3 gathers parameters when a module is called: this one is called once a
    micro-batch, whatever the number of chunks.
    """

    def __init__(self, head: nn.Linear, config: Any) -> None:
        super().__init__()
        self.weight = head.weight
        self.bias = head.bias
        self.cap: float | None = getattr(config, "final_logit_softcapping", None)
        self.multiplier = 1.0
        self.changes_logits = self.cap is not None or config.model_type in _MULTIPLIERS
        if config.model_type in _MULTIPLIERS:
            self.multiplier = float(_MULTIPLIERS[config.model_type](config))
        elif field := next((f for f in _MULTIPLIER_FIELDS if getattr(config, f, None) not in (None, 1.0)), None):
            raise ConfigError(f"model.path: model type {config.model_type} changes logits by {field}, unknown here")

    def forward(
        self,
        hidden: Tensor,
        targets: Tensor,
        temperature: float,
        chunk_tokens: int,
        entropy: bool,
        allowed: Allowed | None = None,
    ) -> tuple[Tensor, Tensor]:
        """hidden (m, d), targets (m,) -> log-probability of each target (m,) and entropy (m,), float32; of the
        distribution over the `allowed` tokens of each row, where it is given."""
        transform = Transform(self.multiplier, self.cap, temperature, allowed)
        return _ChunkedLogp.apply(hidden, self.weight, self.bias, targets, transform, chunk_tokens, entropy)  # type: ignore


class ValueHead(nn.Module):
    """Takes the place of a scoring layer of one output, with the same parameters under the same names.

    In float32, for in bfloat16 a value near 1 is known to 0.004 only.
    """

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.weight = head.weight
        self.bias = head.bias

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (m, d) -> values (m,), float32."""
        bias = None if self.bias is None else self.bias.float()
        return linear(hidden.float(), self.weight.float(), bias)[:, 0]


class _ChunkedLogp(torch.autograd.Function):
    """Forward keeps two numbers a token (log-sum-exp and entropy); backward makes each chunk's logits once more.

    With p the probabilities of a token and H its entropy, d logp / dz = onehot - p and d H / dz = -p (log p + H). An
    output whose gradient nobody asks for costs nothing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: Transform,
        chunk_tokens: int,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        rows = len(targets)
        logp = torch.empty(rows, device=hidden.device)
        total = torch.empty(rows, device=hidden.device)
        entropies = torch.zeros(rows, device=hidden.device)
        for begin in range(0, rows, chunk_tokens):
            c = slice(begin, begin + chunk_tokens)
            z, _ = transform.apply(linear(hidden[c], weight, bias), c)
            total[c] = z.logsumexp(-1)
            logp[c] = z.gather(-1, targets[c, None])[:, 0] - total[c]
            if entropy:
                entropies[c] = total[c] - (z - total[c, None]).exp_().mul_(z).sum(-1)
        ctx.save_for_backward(hidden, weight, bias, targets, total, entropies)
        ctx.transform, ctx.chunk_tokens = transform, chunk_tokens
        ctx.set_materialize_grads(False)
        if not entropy:
            ctx.mark_non_differentiable(entropies)
        return logp, entropies

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, total, entropies = ctx.saved_tensors
        if all(g is None for g in grads):
            return (None,) * 7
        grad_hidden = torch.empty_like(hidden)
        # In float32, whatever the model's dtype: else each chunk's rounding is added to the others'.
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_bias = None
        if bias is not None and ctx.needs_input_grad[2]:
            grad_bias = torch.zeros_like(bias, dtype=torch.float32)
        for begin in range(0, len(targets), ctx.chunk_tokens):
            c = slice(begin, begin + ctx.chunk_tokens)
            z, slope = ctx.transform.apply(linear(hidden[c], weight, bias), c)
            d = _backward_z(
                z.sub_(total[c, None]), targets[c], entropies[c], *(g if g is None else g[c] for g in grads)
            )
            d = d.mul_(slope if slope is not None else ctx.transform.multiplier / ctx.transform.temperature)
            d = d.to(hidden.dtype)
            grad_hidden[c] = d @ weight
            if grad_weight is not None:
                _add_product(grad_weight, d.t(), hidden[c])
            if grad_bias is not None:
                grad_bias += d.sum(0, dtype=torch.float32)
        return grad_hidden, grad_weight, grad_bias, None, None, None, None


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """`total += a @ b` in float32, nothing of it rounded to the dtype of `a` and `b`."""
    if a.is_cuda and a.dtype is not torch.float32:
        torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
    else:
        total.addmm_(a.float(), b.float())


def _backward_z(
    log_p: Tensor, targets: Tensor, entropy: Tensor, grad_logp: Tensor | None, grad_entropy: Tensor | None
) -> Tensor:
    """(m, V): the gradient at a chunk's z, from `log_p` (m, V), which is used up, and (m,) of everything else."""
    if grad_entropy is None:
        assert grad_logp is not None
        d = log_p.exp_().mul_(-grad_logp[:, None])
    else:
        p = log_p.exp()
        d = log_p.add_(entropy[:, None]).mul_(-grad_entropy[:, None])
        d = (d if grad_logp is None else d.sub_(grad_logp[:, None])).mul_(p)
    return d if grad_logp is None else d.scatter_add_(-1, targets[:, None], grad_logp[:, None])
