"""Policy losses, their gradients and their average: by hand, a second way, and over every way to cut a step."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlcore.algo import ADVANTAGES, LOSSES
from rlcore.algo.advantage import advantage_fn, credit
from rlcore.algo.loss import aggregate, policy_loss
from rlcore.algo.objective import objective
from rlcore.algo.stats import Totals
from rlcore.config import AdvantageConfig, Aggregation, Config, Correction, KLEstimator, KLPlace, LossConfig
from rlcore.errors import ConfigError
from rlcore.records import Batch
from tests.close import assert_close
from tests.unit import second_way
from tests.unit.ragged import as_batch, flat, roll, rollouts
from tests.unit.second_way import Roll, Tokens

BUILTIN = {name: policy_loss(LossConfig(name=name)) for name in LOSSES if name != "dpo"}  # of pairs: see test_dpo
COLUMNS = ("old_logp", "ref_logp", "advantage")
POLICY = sorted(set(BUILTIN) - {"sft"})
K = 40  # the largest error measured is 2.0
many = settings(deadline=None, max_examples=50)


def batch64(rolls: list[Roll]) -> Batch:
    return as_batch(rolls, *COLUMNS, dtype=torch.float64)


def new_logp(rolls: list[Roll]) -> Tensor:
    return flat([r.new for r in rolls]).requires_grad_()


def largest(terms: Tensor) -> float:
    """What the rounding of a sum is relative to, when its terms cancel."""
    return float(terms.detach().abs().max()) if len(terms) else 0.0


def one_rollout(log_ratios: list[float], advantage: float) -> tuple[Tensor, Batch]:
    n = len(log_ratios)
    r = Roll(0, 0.0, 0, [True] * n, engine=[0.0] * n, ref=[0.0] * n, old=[-1.0] * n, advantage=[advantage] * n)
    return torch.tensor([x - 1.0 for x in log_ratios], dtype=torch.float64).requires_grad_(), batch64([r])


# -- golden values: loss, log-ratios, advantage, settings, the loss of the first token, its slope in logp. old_logp -1.
UP, DOWN = math.exp(0.5), math.exp(-0.5)  # 1.6487212707, 0.6065306597
TEN_DIGITS = 5e6  # in units of float64's rounding: 1e-9
GOLDEN: list[tuple[str, list[float], float, dict[str, float], float, float]] = [
    ("ppo_clip", [0.5], 1.0, {}, -1.2, 0.0),
    ("ppo_clip", [0.5], 1.0, {"clip_high": 0.28}, -1.28, 0.0),
    ("ppo_clip", [0.5], -1.0, {}, 1.6487212707, 1.6487212707),
    ("ppo_clip", [0.5], -1.0, {"dual_clip": 1.5}, 1.5, 0.0),
    ("ppo_clip", [0.5], -1.0, {"dual_clip": 3.0}, 1.6487212707, 1.6487212707),
    ("ppo_clip", [0.5], 1.0, {"dual_clip": 1.5}, -1.2, 0.0),
    ("ppo_clip", [-0.5], 1.0, {}, -0.6065306597, -0.6065306597),
    ("ppo_clip", [-0.5], -1.0, {}, 0.8, 0.0),
    ("ppo_clip", [-0.5], -1.0, {"clip_low": 0.5}, 0.6065306597, 0.6065306597),
    ("ppo_clip", [30.0], -1.0, {}, 485165195.4097903, 0.0),  # exp(20), and no gradient beyond
    ("gspo", [0.5, -0.25], 1.0, {}, -1.1331484531, -1.1331484531),  # exp of the mean, 1/8
    ("gspo", [0.5, -0.25], 1.0, {"clip_high": 0.1}, -1.1, 0.0),
    ("gspo", [0.5, -0.25], -1.0, {"clip_high": 0.1}, 1.1331484531, 1.1331484531),
    ("gspo", [-0.5, 0.25], -1.0, {"clip_low": 0.1}, 0.9, 0.0),  # exp(-1/8) is 0.8824969026
    ("cispo", [0.5], 1.0, {}, 0.6, -1.2),  # 1.2 * 0.5
    ("cispo", [0.5], -1.0, {}, -0.6, 1.2),
    ("cispo", [-0.5], 1.0, {}, 1.2, -0.8),  # 0.8 * 1.5
    ("cispo", [-0.5], 1.0, {"clip_low": 1.0}, 0.9097959896, -0.6065306597),
    ("policy_gradient", [0.5], 2.0, {}, 1.0, -2.0),
    ("sapo", [0.0], 1.0, {}, -2.0, -1.0),
    ("sapo", [0.0], -1.0, {}, 1.9047619048, 1.0),  # 2 / 1.05
    ("sapo", [0.5], 1.0, {}, -2.6268889845, -1.4867386106),
    ("sapo", [0.5], 1.0, {"tau_positive": 2.0}, -1.5708085046, -1.1115310335),
    ("sft", [0.5], 5.0, {}, 0.5, -1.0),
]


@pytest.mark.parametrize(("name", "log_ratios", "advantage", "changes", "value", "slope"), GOLDEN)
def test_golden(
    name: str, log_ratios: list[float], advantage: float, changes: dict[str, Any], value: float, slope: float
) -> None:  # fmt: skip
    logp, batch = one_rollout(log_ratios, advantage)
    loss, _ = BUILTIN[name](logp, batch, LossConfig(**changes))
    assert_close(loss[0], value, TEN_DIGITS, "loss")
    loss.sum().backward()
    assert logp.grad is not None
    assert_close(logp.grad[0], slope, TEN_DIGITS, "slope")


def test_golden_statistics() -> None:
    logp, batch = one_rollout([0.5, -0.5, 0.0], 1.0)
    _, stats = BUILTIN["ppo_clip"](logp, batch, LossConfig(dual_clip=1.5))
    assert stats["clip_fraction"].tolist() == [1.0, 0.0, 0.0]  # below the range it still moves back
    assert_close(stats["ratio_max"], [UP, DOWN, 1.0], K, "ratio_max")
    assert not stats["ratio_max"].requires_grad
    assert stats["dual_clip_fraction"].tolist() == [0.0] * 3
    logp, batch = one_rollout([0.5, -0.5, 0.0], -1.0)
    _, stats = BUILTIN["ppo_clip"](logp, batch, LossConfig(dual_clip=1.5))
    assert stats["clip_fraction"].tolist() == [0.0, 1.0, 0.0] and stats["dual_clip_fraction"].tolist() == [1.0, 0, 0]
    assert "dual_clip_fraction" not in BUILTIN["ppo_clip"](logp, batch, LossConfig())[1]
    assert BUILTIN["cispo"](logp, batch, LossConfig())[1]["clip_fraction"].tolist() == [1.0, 1.0, 0.0]
    assert BUILTIN["gspo"](logp, batch, LossConfig())[1]["ratio_max"].tolist() == [1.0] * 3


@pytest.mark.parametrize(
    ("how", "want"), [("token_mean", 3.5), ("sequence_mean", 23 / 6), ("sequence_sum", 7.0), ("constant_length", 0.7)]
)
def test_golden_averages(how: str, want: float) -> None:
    # 1 2 3 | 4 | 5 6 | no chosen token: the fourth rollout is in no average
    masks = [[False, True, True, True], [False, True], [False, True, False, True], [False, False]]
    batch = as_batch([Roll(0, 0.0, 1, m, engine=[0.0] * len(m)) for m in masks])
    per_token = torch.tensor([9, 1, 2, 3, 9, 4, 9, 5, 9, 6, 9, 9], dtype=torch.float64)
    found = aggregate(per_token, batch, Totals.of(batch), Aggregation(how), 10)
    assert_close(found, want, K, "average")


# -- a second way


@many
@given(
    rollouts(),
    st.sampled_from(sorted(BUILTIN)),
    st.sampled_from([0.0, 3.0]),
    st.sampled_from([(0.2, 0.28), (1.0, 4.0)]),
)
def test_every_loss_and_its_gradient_are_the_papers(
    rolls: list[Roll], name: str, dual: float, clip: tuple[float, float]
) -> None:
    batch, logp = batch64(rolls), new_logp(rolls)
    cfg = LossConfig(clip_low=clip[0], clip_high=clip[1], dual_clip=dual, tau_positive=0.7, tau_negative=1.3)
    loss, stats = BUILTIN[name](logp, batch, cfg)
    values, slopes = second_way.loss(
        name, rolls, low=clip[0], high=clip[1], dual=dual, tau_positive=0.7, tau_negative=1.3
    )
    assert_close(loss.where(batch.mask, 0.0), flat(values), K, "losses")
    loss[batch.mask].sum().backward()
    assert logp.grad is not None
    assert_close(logp.grad, flat(slopes), K, "slopes")
    assert all(s.shape == logp.shape and not s.requires_grad for s in stats.values())


@pytest.mark.parametrize("name", ["ppo_clip", "policy_gradient", "sapo", "sft"])
@pytest.mark.parametrize("advantage", [1.5, -1.5])
@pytest.mark.parametrize("log_ratio", [-1.0, -0.1, 0.0, 0.1, 1.0, 1.5])
def test_the_second_ways_slopes_are_finite_differences(name: str, advantage: float, log_ratio: float) -> None:
    """Of the losses that hold nothing fixed; of the others the gradient is not the loss's."""
    h, at = 1e-6, -1.0 + log_ratio
    ends = [second_way.token_loss(name, at + s, -1.0, advantage, 1.0, dual=3.0)[0] for s in (h, -h)]
    slope = second_way.token_loss(name, at, -1.0, advantage, 1.0, dual=3.0)[1]
    # The rounding of a loss of order 1 is divided by the 2e-6 between the ends.
    assert_close((ends[0] - ends[1]) / (2 * h), slope, 4e7, "slope", scale=max(1.0, abs(slope)))  # 2.6e6


@many
@given(rollouts(least=1), st.sampled_from([0.05, 0.3]))
def test_gspo_averaged_by_sequences_has_the_gradient_of_the_papers_objective(rolls: list[Roll], clip: float) -> None:
    for r in rolls:
        r.advantage = [r.advantage[r.chosen[0]] if m else 0.0 for m in r.mask] if r.chosen else r.advantage
    batch, logp = batch64(rolls), new_logp(rolls)
    per_token, _ = BUILTIN["gspo"](logp, batch, LossConfig(clip_low=clip, clip_high=clip))
    share = aggregate(per_token, batch, Totals.of(batch), Aggregation.sequence_mean, 1)
    want = second_way.gspo_of_rollouts(rolls, clip, clip)
    assert_close(share, want, K, "loss", scale=largest(per_token[batch.mask]))
    share.backward()
    assert logp.grad is not None
    where = [(b, i) for b, r in enumerate(rolls) for i in range(len(r.mask))]
    for (b, i), slope in zip(where, logp.grad.tolist(), strict=True):
        ratio = second_way.sequence_ratio(rolls[b])
        if not rolls[b].mask[i] or not 1e-8 < ratio < 1e3 or min(abs(ratio - 1 - clip), abs(ratio - 1 + clip)) < 1e-4:
            continue
        ends = []
        for h in (1e-6, -1e-6):
            moved = copy.deepcopy(rolls)
            moved[b].new[i] += h
            ends.append(second_way.gspo_of_rollouts([moved[b]], clip, clip) / Totals.of(batch).sequences)
        size = ratio * abs(rolls[b].advantage[i])
        assert_close((ends[0] - ends[1]) / 2e-6, slope, 1e8, "slope", size)  # 5.8e6: log-probabilities of 30, rounded


@many
@given(rollouts(), st.sampled_from(Aggregation), st.integers(1, 500))
def test_every_average_is_the_papers(rolls: list[Roll], how: Aggregation, constant: int) -> None:
    batch = batch64(rolls)
    per_token = flat([r.new for r in rolls]).where(batch.mask, float("nan"))
    want = second_way.aggregate([r.new for r in rolls], rolls, how.value, constant)
    found = aggregate(per_token, batch, Totals.of(batch), how, constant)
    assert_close(found, want, K, "average", scale=largest(per_token[batch.mask]))


# -- one step, cut in every way


def step_of(rolls: list[Roll]) -> tuple[Config, Batch, Tensor, Tensor]:
    cfg = Config()
    cfg.loss.entropy_coef, cfg.kl.unbiased_gradient = 0.01, True
    return cfg, batch64(rolls), flat([r.new for r in rolls]), flat([r.entropy for r in rolls])


def shares(
    cuts: list[list[int]], cfg: Config, batch: Batch, logp: Tensor, entropy: Tensor
) -> tuple[float, Tensor, float]:
    """The loss, its gradient in every token's logp and its largest term, from micro-batches that share only totals."""
    total, gradient, term, totals = 0.0, torch.zeros_like(logp), 0.0, Totals.of(batch)
    for cut in cuts:
        at, micro = batch.tokens_of(cut), batch.select(cut)
        mine = logp[at].requires_grad_()
        per_token, _ = objective(mine, entropy[at], micro, BUILTIN[cfg.loss.name], cfg, 0.1)
        share = aggregate(per_token, micro, totals, cfg.loss.aggregation, 7)
        share.backward()
        assert mine.grad is not None
        total += float(share.detach())
        gradient[at] += mine.grad
        term = max(term, largest(per_token[micro.mask]))
    return total, gradient, term


@many
@given(
    rollouts(least=1), st.sampled_from(sorted(BUILTIN)), st.sampled_from(Aggregation), st.sampled_from(Correction),
    st.data(),
)  # fmt: skip
def test_shares_of_any_split_in_any_order_add_up(
    rolls: list[Roll], name: str, how: Aggregation, correction: Correction, data: st.DataObject
) -> None:
    cfg, batch, logp, entropy = step_of(rolls)
    cfg.loss.name, cfg.loss.aggregation, cfg.correction.name = name, how, correction
    order = data.draw(st.permutations(range(len(rolls))))
    size = data.draw(st.integers(1, len(rolls)))
    cuts = [order[i : i + size] for i in range(0, len(order), size)]
    whole, gradient, term = shares([list(range(len(rolls)))], cfg, batch, logp, entropy)
    total, pieces, _ = shares(cuts, cfg, batch, logp, entropy)
    assert_close(total, whole, K, "loss", scale=term)
    assert_close(pieces, gradient, K, "gradient")


@pytest.mark.parametrize("how", Aggregation)
@pytest.mark.parametrize("name", sorted(BUILTIN))
def test_micro_batches_of_8_4_2_and_1_give_one_number(name: str, how: Aggregation) -> None:
    import random

    rolls = [roll(random.Random(i), i // 4, float(i % 2), 1 + 3 * i, True) for i in range(8)]
    cfg, batch, logp, entropy = step_of(rolls)
    cfg.loss.name, cfg.loss.aggregation = name, how
    losses = [
        shares([list(range(i, i + size)) for i in range(0, 8, size)], cfg, batch, logp, entropy)[0]
        for size in (8, 4, 2, 1)
    ]
    assert_close(losses, [losses[0]] * 4, K, "losses")
    per_token, _ = objective(logp, entropy, batch, BUILTIN[name], cfg, 0.1)
    values = per_token.split(batch.lengths.tolist())
    want = second_way.aggregate([v.tolist() for v in values], rolls, how.value, 7)
    assert_close(losses[0], want, K, "loss")
    # What an average over each micro-batch's own tokens would give instead.
    naive = [float(v[m].mean()) for v, m in zip(values, batch.mask.split(batch.lengths.tolist()), strict=True)]
    if how is Aggregation.token_mean:
        assert abs(sum(naive) / 8 - losses[0]) > 1e-6


@pytest.mark.parametrize("advantage", sorted(ADVANTAGES))
@pytest.mark.parametrize("name", POLICY)
def test_no_signal_is_exactly_no_loss_and_no_gradient(name: str, advantage: str) -> None:
    import random

    rolls = [roll(random.Random(i), i // 3, 0.1, i, True) for i in range(6)]
    zero: Tokens = [[0.0] * len(r.mask) for r in rolls]
    batch = as_batch(rolls, "old_logp")
    batch = batch.with_(value=flat(zero, torch.float32))
    if advantage in ("gae", "remax", "reinforce_plus_plus"):  # those that look at no group: nothing to gain
        batch = Batch(**{**vars(batch), "reward": torch.zeros(6), "baseline": torch.zeros(6)})
    batch = credit(batch, advantage_fn(AdvantageConfig(name=advantage)), AdvantageConfig(name=advantage))
    logp = flat([r.new for r in rolls], torch.float32).requires_grad_()
    per_token, _ = BUILTIN[name](logp, batch, LossConfig())
    for how in Aggregation:
        share = aggregate(per_token, batch, Totals.of(batch), how, 5)
        (gradient,) = torch.autograd.grad(share, logp, retain_graph=True)
        assert float(share.detach()) == 0.0 and gradient.eq(0).all()


@many
@given(rollouts(), st.sampled_from(POLICY))
def test_no_float32_overflows(rolls: list[Roll], name: str) -> None:
    batch = as_batch(rolls, *COLUMNS)
    logp = (flat([r.new for r in rolls], torch.float32) * 40).requires_grad_()
    per_token, stats = BUILTIN[name](logp, batch, LossConfig())
    share = aggregate(per_token, batch, Totals.of(batch), Aggregation.sequence_mean, 1)
    share.backward()
    assert logp.grad is not None and logp.grad.isfinite().all() and share.isfinite()
    assert all(s[batch.mask].isfinite().all() for s in stats.values())


# -- the objective


@many
@given(
    rollouts(), st.sampled_from(POLICY), st.sampled_from(Correction), st.sampled_from(KLEstimator),
    st.sampled_from(KLPlace),
)  # fmt: skip
def test_the_objective_is_the_sum_of_its_parts(
    rolls: list[Roll], name: str, correction: Correction, estimator: KLEstimator, place: KLPlace
) -> None:
    batch, logp = batch64(rolls), new_logp(rolls)
    entropy = flat([r.entropy for r in rolls]).requires_grad_()
    cfg = Config()
    cfg.loss.entropy_coef, cfg.correction.name = 0.25, correction
    cfg.kl.estimator, cfg.kl.place, cfg.kl.coef = estimator, place, 99.0  # the coefficient in force is the argument
    per_token, stats = objective(logp, entropy, batch, BUILTIN[name], cfg, 0.5)
    weight = flat(second_way.correction(correction.value, rolls, 0.5, 2.0))
    values, _ = second_way.loss(name, rolls)
    kl = [
        [second_way.kl(estimator.value, r.new[i], r.ref[i]) if m else 0.0 for i, m in enumerate(r.mask)] for r in rolls
    ]
    terms = [weight * flat(values), -0.25 * flat([r.entropy for r in rolls]), 0.5 * flat(kl) * (place is KLPlace.loss)]
    parts = torch.stack(terms).where(batch.mask, 0.0)
    # The parts may cancel, and k3 is itself a difference of numbers of order 1.
    scale = max(1.0, largest(parts.flatten()))
    assert_close(per_token.where(batch.mask, 0.0), parts.sum(0), K, "losses", scale)
    assert_close(stats["actor/kl"].where(batch.mask, 0.0), flat(kl), K, "KL", scale=max(1.0, largest(flat(kl))))
    assert all(s.shape == logp.shape and not s.requires_grad for s in stats.values())
    if len(logp):
        per_token[batch.mask].sum().backward()
        assert entropy.grad is None or entropy.grad.equal(torch.where(batch.mask, -0.25, 0.0).double())


def test_the_objective_names_what_it_logs() -> None:
    logp, batch = one_rollout([0.5, -0.5], 1.0)
    cfg = Config()
    _, stats = objective(logp, torch.ones(2).double(), batch, BUILTIN["ppo_clip"], cfg, 0.0)
    always = {"actor/clip_fraction", "actor/ratio_max", "actor/entropy", "sync/logp_diff_max", "sync/logp_diff_mean"}
    assert set(stats) == always | {"actor/kl"}
    cfg.correction.name = Correction.mask_token
    bare = Batch(**{**vars(batch), "ref_logp": None})
    _, stats = objective(logp, torch.ones(2).double(), bare, BUILTIN["policy_gradient"], cfg, 0.0)
    assert set(stats) == (always - {"actor/clip_fraction", "actor/ratio_max"}) | {
        "correction/weight", "correction/weight_square", "correction/clipped_fraction"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda x: x, "returned Tensor"),
        (lambda x: (x, {}, {}), "returned tuple"),
        (lambda x: (x, None), "returned tuple"),
        (lambda x: (x.sum(), {}), "the loss of another kind or shape"),
        (lambda x: (0.5, {}), "the loss of another"),
        (lambda x: (x, {"mine": x.mean()}), "statistic 'mine' of another"),
        (lambda x: (x, {"mine": 1.0}), "statistic 'mine' of another"),
    ],
)
def test_a_users_loss_that_returns_something_else_is_named(result: Any, message: str) -> None:
    logp, batch = one_rollout([0.5, -0.5], 1.0)
    cfg = Config()
    cfg.loss.name = "mine.py:f"
    with pytest.raises(ConfigError, match=rf"loss\.name: mine\.py:f .*{message}|loss\.name: mine\.py:f {message}"):
        objective(logp, logp.detach(), batch, lambda x, b, c: result(x), cfg, 0.0)
