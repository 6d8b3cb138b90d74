"""Every formula of rlcore/algo a second time: from the papers, in plain float64 loops over ragged rollouts.

No torch, and nothing of rlcore: sums where the code has recursions, others' means where it rescales, one token at a
time where it works on a flat batch. A list per rollout holds all its tokens, the prompt's first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

Tokens = list[list[float]]


@dataclass
class Roll:
    """One rollout; `prompt` tokens, then those of the response, of which `mask` says which the policy chose."""

    group: int
    reward: float | None
    prompt: int
    mask: list[bool]
    baseline: float | None = None
    old: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)
    engine: list[float] = field(default_factory=list)
    ref: list[float] = field(default_factory=list)
    value: list[float] = field(default_factory=list)
    guess: list[float] = field(default_factory=list)  # the critic's after some updates
    returns: list[float] = field(default_factory=list)
    penalty: list[float] = field(default_factory=list)
    advantage: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)

    @property
    def chosen(self) -> list[int]:
        return [i for i, m in enumerate(self.mask) if m]

    @property
    def outcome(self) -> float | None:
        if self.reward is None:
            return None
        return self.reward - math.fsum(self.penalty[i] for i in self.chosen)


def mean(xs: list[float]) -> float:
    return math.fsum(xs) / len(xs)


def variance(xs: list[float], ddof: int = 1) -> float:
    m = mean(xs)
    return math.fsum((x - m) ** 2 for x in xs) / (len(xs) - ddof)


# -- advantages


def advantage(
    name: str, rolls: list[Roll], gamma: float = 1.0, lam: float = 1.0, std: bool = True, epsilon: float = 1e-6
) -> Tokens:  # fmt: skip
    if name in ("gae", "reinforce_plus_plus"):
        return [_to_go(r, r.value if name == "gae" else [0.0] * len(r.mask), gamma, lam, name) for r in rolls]
    return [_on_all(r, _of_rollout(name, r, rolls, std, epsilon)) for r in rolls]


def _on_all(r: Roll, a: float) -> list[float]:
    return [a if m else 0.0 for m in r.mask]


def _of_rollout(name: str, r: Roll, rolls: list[Roll], std: bool, epsilon: float) -> float:
    mine = r.outcome
    if mine is None:
        return 0.0
    if name == "remax":
        return 0.0 if r.baseline is None else mine - r.baseline
    peers = [q for q in rolls if q.group == r.group and q.outcome is not None]
    rewards = [q.outcome for q in peers if q.outcome is not None]
    if len(set(rewards)) < 2:
        return 0.0
    if name == "grpo":
        return (mine - mean(rewards)) / ((math.sqrt(variance(rewards)) + epsilon) if std else 1.0)
    if name == "rloo":
        others = [q.outcome for q in peers if q is not r and q.outcome is not None]
        return mine - mean(others)
    if name == "opo":
        lengths = [len(q.chosen) or len(q.mask) - q.prompt for q in peers]
        total = sum(lengths)
        return mine - math.fsum(n * x for n, x in zip(lengths, rewards, strict=True)) / total if total else 0.0
    if name == "gpg":
        return (mine - mean(rewards)) * gpg_factor(rolls)
    assert name == "reinforce_plus_plus_baseline", name
    return mine - mean(rewards)


def gpg_factor(rolls: list[Roll]) -> float:
    """Groups in the loss's average over those of them with a gradient."""
    groups = {q.group for q in rolls if q.chosen}
    rewards = {g: {q.outcome for q in rolls if q.group == g and q.outcome is not None} for g in groups}
    return len(groups) / max(1, sum(len(x) > 1 for x in rewards.values()))


def _to_go(r: Roll, value: list[float], gamma: float, lam: float, name: str) -> list[float]:
    """The sums themselves, each token's anew."""
    out = [0.0] * len(r.mask)
    if r.reward is None:
        return out
    at = r.chosen
    reward = [-r.penalty[i] + (r.reward if i == at[-1] else 0.0) for i in at]
    for t, i in enumerate(at):
        if name == "reinforce_plus_plus":
            out[i] = math.fsum(gamma ** (k - t) * reward[k] for k in range(t, len(at)))
            continue
        terms = []
        for k in range(t, len(at)):
            later = value[at[k + 1]] if k + 1 < len(at) else 0.0
            terms.append((gamma * lam) ** (k - t) * (reward[k] + gamma * later - value[at[k]]))
        out[i] = math.fsum(terms)
    return out


def whiten(tokens: Tokens, rolls: list[Roll]) -> Tokens:
    chosen = [x for xs, r in zip(tokens, rolls, strict=True) for x, m in zip(xs, r.mask, strict=True) if m]
    if len(chosen) < 2:
        return [[0.0] * len(xs) for xs in tokens]
    m, s = mean(chosen), math.sqrt(variance(chosen) + 1e-8)
    return [
        [(x - m) / s if k else 0.0 for x, k in zip(xs, r.mask, strict=True)]
        for xs, r in zip(tokens, rolls, strict=True)
    ]


def keep_quiet_groups(white: Tokens, raw: Tokens, rolls: list[Roll]) -> Tokens:
    """0 in the groups that had nothing but 0 before whitening."""
    loud = {r.group for xs, r in zip(raw, rolls, strict=True) if any(abs(x) > 1e-12 for x in xs)}
    return [xs if r.group in loud else [0.0] * len(xs) for xs, r in zip(white, rolls, strict=True)]


# -- losses: value and slope (d loss / d logp of the token), one token at a time


def limited(d: float) -> float:
    return max(-20.0, min(20.0, d))


def clipped_surrogate(ratio: float, a: float, low: float, high: float) -> tuple[float, bool]:
    """The loss and whether the ratio still moves it."""
    if a >= 0:
        return (-(1 + high) * a, False) if ratio > 1 + high else (-ratio * a, True)
    return (-(1 - low) * a, False) if ratio < 1 - low else (-ratio * a, True)


def token_loss(
    name: str, new: float, old: float, a: float, sequence: float, low: float = 0.2, high: float = 0.2,
    dual: float = 0.0, tau_positive: float = 1.0, tau_negative: float = 1.05,
) -> tuple[float, float]:  # fmt: skip
    """(loss, slope). `sequence` is the rollout's ratio, for gspo."""
    inside = abs(new - old) <= 20.0
    ratio = math.exp(limited(new - old))
    if name == "ppo_clip":
        loss, moves = clipped_surrogate(ratio, a, low, high)
        if dual and a < 0 and ratio > dual:
            return dual * -a, 0.0
        return loss, -ratio * a if moves and inside else 0.0
    if name == "gspo":
        loss, moves = clipped_surrogate(sequence, a, low, high)
        return loss, -sequence * a if moves else 0.0
    if name == "cispo":
        weight = max(1 - low, min(1 + high, ratio))
        return -weight * a * new, -weight * a
    if name == "policy_gradient":
        return -a * new, -a
    if name == "sapo":
        tau = tau_positive if a > 0 else tau_negative
        p = 1.0 / (1.0 + math.exp(-tau * (ratio - 1.0)))
        return -4.0 / tau * p * a, -4.0 * p * (1.0 - p) * ratio * a if inside else 0.0
    assert name == "sft", name
    return -new, -1.0


def sequence_ratio(r: Roll) -> float:
    """The geometric mean of the tokens' ratios."""
    at = r.chosen
    return math.exp(limited(mean([r.new[i] - r.old[i] for i in at]))) if at else 1.0


def loss(name: str, rolls: list[Roll], **limits: float) -> tuple[Tokens, Tokens]:
    """Losses and slopes of the masked tokens, 0 elsewhere."""
    values, slopes = [], []
    for r in rolls:
        pairs = [
            token_loss(name, r.new[i], r.old[i], r.advantage[i], sequence_ratio(r), **limits) if m else (0.0, 0.0)
            for i, m in enumerate(r.mask)
        ]
        values.append([v for v, _ in pairs])
        slopes.append([s for _, s in pairs])
    return values, slopes


def gspo_of_rollouts(rolls: list[Roll], low: float, high: float) -> float:
    """The paper's objective itself, negated: a mean over rollouts of one clipped surrogate each. Advantages of a
    rollout's tokens are equal."""
    terms = [clipped_surrogate(sequence_ratio(r), r.advantage[r.chosen[0]], low, high)[0] for r in rolls if r.chosen]
    return math.fsum(terms) / max(1, len(terms))


def aggregate(tokens: Tokens, rolls: list[Roll], how: str, constant: int = 1) -> float:
    chosen = [[xs[i] for i in r.chosen] for xs, r in zip(tokens, rolls, strict=True) if r.chosen]
    if not chosen:
        return 0.0
    if how == "token_mean":
        return mean([x for xs in chosen for x in xs])
    each = {
        "sequence_mean": lambda xs: mean(xs),
        "sequence_sum": lambda xs: math.fsum(xs),
        "constant_length": lambda xs: math.fsum(xs) / constant,
    }[how]
    return mean([each(xs) for xs in chosen])


# -- KL


def kl(how: str, logp: float, ref: float) -> float:
    x = limited(logp - ref)
    if how == "k1":
        return x
    if how == "k2":
        return x * x / 2
    return min(10.0, math.expm1(-x) + x)


def controller(coef: float, target: float, horizon: int, steps: list[tuple[float, int]]) -> float:
    for found, rollouts in steps:
        if found != found:
            continue
        error = max(-0.2, min(0.2, (found - target) / target))
        coef = coef * (1 + error * min(rollouts, horizon) / horizon)
    return coef


# -- correction


def correction(name: str, rolls: list[Roll], low: float, high: float) -> Tokens:
    out = []
    for r in rolls:
        logs = {i: r.old[i] - r.engine[i] for i in r.chosen}
        product = math.exp(limited(math.fsum(logs.values())))
        geometric = math.exp(limited(mean(list(logs.values())))) if logs else 1.0
        weight = []
        for i, m in enumerate(r.mask):
            w = math.exp(limited(logs[i])) if m else 1.0
            weight.append(
                {
                    "none": 1.0,
                    "truncate_token": min(w, high),
                    "truncate_sequence": min(product, high),
                    "mask_token": w if low <= w <= high else 0.0,
                    "reject_sequence": 1.0 if low <= geometric <= high else 0.0,
                }[name]
                if m
                else 0.0
            )
        out.append(weight)
    return out


def effective_sample_size(weights: list[float]) -> float:
    """Kish's, over the number of samples."""
    total, squares = math.fsum(weights), math.fsum(w * w for w in weights)
    return total * total / squares / len(weights) if squares else 0.0


# -- the critic


def value_loss(guess: float, old: float, target: float, clip: float) -> float:
    if not clip:
        return (guess - target) ** 2 / 2
    near = max(old - clip, min(old + clip, guess))
    return max((guess - target) ** 2, (near - target) ** 2) / 2


def explained_variance(values: list[float], returns: list[float]) -> float:
    errors = [r - v for v, r in zip(values, returns, strict=True)]
    return 1 - variance(errors, 0) / variance(returns, 0)


def running(batches: list[list[float]], decay: float) -> tuple[float, float]:
    """Mean and variance, each batch weighing `decay` of the next one."""
    weights = [decay ** (len(batches) - 1 - i) for i in range(len(batches))]
    first = math.fsum(w * mean(xs) for w, xs in zip(weights, batches, strict=True)) / math.fsum(weights)
    second = math.fsum(w * mean([x * x for x in xs]) for w, xs in zip(weights, batches, strict=True))
    return first, second / math.fsum(weights) - first**2
