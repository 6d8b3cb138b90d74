"""The KL, the correction between engine and trainer, and the critic's numbers: by hand and a second way."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rlcore.algo.correction import correct
from rlcore.algo.kl import Controller, estimate, loss_term, penalty
from rlcore.algo.stats import Stats, merge
from rlcore.algo.value import DECAY, ReturnScale, explained_variance, value_loss
from rlcore.config import Correction, CorrectionConfig, KLConfig, KLEstimator
from rlcore.records import Batch
from tests.close import assert_close
from tests.unit import second_way
from tests.unit.ragged import NAN, as_batch, flat, rollouts
from tests.unit.second_way import Roll

many = settings(deadline=None, max_examples=50)
K, K32 = 150, 40  # the largest errors measured are 8.6, and in float32 3.0
TEN_DIGITS = 5e6  # in units of float64's rounding: 1e-9


def largest(terms: Sequence[float]) -> float:
    """What the rounding of differences like k3's, of numbers of order 1 that cancel, is relative to."""
    return max([1.0, *map(abs, terms)])


def tokens(n: int, **columns: list[float]) -> Batch:
    """One rollout of n chosen tokens."""
    return as_batch([Roll(0, 0.0, 0, [True] * n, engine=[0.0] * n)]).with_(
        **{name: torch.tensor(xs, dtype=torch.float64) for name, xs in columns.items()}
    )


# -- KL


@pytest.mark.parametrize(
    ("logp", "ref", "how", "want"),
    [
        (-1.0, -1.5, "k1", 0.5), (-1.0, -1.5, "k2", 0.125), (-1.0, -1.5, "k3", 0.1065306597),
        (-1.0, -0.5, "k1", -0.5), (-1.0, -0.5, "k2", 0.125), (-1.0, -0.5, "k3", 0.1487212707),
        (-1.0, -99.0, "k1", 20.0), (-1.0, -99.0, "k2", 200.0), (-1.0, -99.0, "k3", 10.0), (-30.0, -1.0, "k3", 10.0),
    ],
)  # fmt: skip
def test_golden_estimates(logp: float, ref: float, how: str, want: float) -> None:
    assert_close(estimate(torch.tensor(logp), torch.tensor(ref), KLEstimator(how)), want, K32, how)


@many
@given(rollouts(), st.sampled_from(KLEstimator), st.booleans())
def test_the_term_and_its_gradient_are_the_papers(rolls: list[Roll], how: KLEstimator, unbiased: bool) -> None:
    batch = as_batch(rolls, "old_logp", "ref_logp", dtype=torch.float64)
    logp = flat([r.new for r in rolls]).requires_grad_()
    term = loss_term(logp, batch, KLConfig(estimator=how, unbiased_gradient=unbiased))
    values, slopes = [], []
    for r in rolls:
        for i in range(len(r.mask)):
            x, far = second_way.limited(r.new[i] - r.ref[i]), abs(r.new[i] - r.ref[i]) > 20
            k = second_way.kl(how.value, r.new[i], r.ref[i])
            slope = {"k1": 1.0, "k2": x, "k3": 0.0 if k == 10.0 else 1.0 - math.exp(-x)}[how.value]
            slope = 0.0 if far else slope
            ratio = math.exp(second_way.limited(r.new[i] - r.old[i])) if unbiased else 1.0
            moves = unbiased and abs(r.new[i] - r.old[i]) <= 20
            values.append(ratio * k)
            slopes.append(ratio * (slope + (k if moves else 0.0)))
    assert_close(term, values, K, "terms", scale=largest(values))
    term.sum().backward()
    assert logp.grad is not None
    assert_close(logp.grad, slopes, K, "slopes", scale=largest(slopes))


def expected_gradient(cfg: KLConfig, logits: Tensor, old: Tensor, ref: Tensor) -> Tensor:
    """Of the term, over every token the old policy can sample, weighed by how often it does."""
    logp = logits.log_softmax(-1)
    batch = tokens(4, old_logp=old.tolist(), ref_logp=ref.tolist())
    (gradient,) = torch.autograd.grad((old.exp() * loss_term(logp, batch, cfg)).sum(), logits)
    return gradient


def test_which_gradient_each_estimator_has_in_expectation() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, old, ref = (torch.randn(4, generator=generator, dtype=torch.float64) for _ in range(3))
    logits.requires_grad_()
    old, ref, now = old.log_softmax(-1), ref.log_softmax(-1), logits.detach().log_softmax(-1)
    logp = logits.log_softmax(-1)
    (forward,) = torch.autograd.grad((logp.exp() * (logp - ref)).sum(), logits, retain_graph=True)
    (backward,) = torch.autograd.grad((ref.exp() * (ref - logp)).sum(), logits)
    for how in (KLEstimator.k1, KLEstimator.k3):  # with the ratio: the KL's, though another policy sampled
        cfg = KLConfig(estimator=how, unbiased_gradient=True)
        assert_close(expected_gradient(cfg, logits, old, ref), forward, K, how.value)
    bare = {how: expected_gradient(KLConfig(estimator=how), logits, now, ref) for how in KLEstimator}
    assert_close(bare[KLEstimator.k1], [0.0] * 4, K, "k1", scale=1.0)
    assert_close(bare[KLEstimator.k2], forward, K, "k2")
    assert_close(bare[KLEstimator.k3], backward, K, "k3")


@many
@given(rollouts(), st.sampled_from(KLEstimator))
def test_the_penalty_is_of_the_old_policy_and_of_chosen_tokens(rolls: list[Roll], how: KLEstimator) -> None:
    batch = as_batch(rolls, "old_logp", "ref_logp")
    batch = Batch(**{**vars(batch), "ref_logp": batch.ref_logp.where(batch.mask, NAN)})  # type: ignore[union-attr]
    want = [
        [0.3 * second_way.kl(how.value, r.old[i], r.ref[i]) if m else 0.0 for i, m in enumerate(r.mask)] for r in rolls
    ]
    found = penalty(batch, KLConfig(coef=99.0, estimator=how), 0.3)
    assert_close(found, flat(want), K32, "penalties", scale=0.3 * largest([x / 0.3 for xs in want for x in xs]))


def test_the_controller_by_hand() -> None:
    c = Controller(KLConfig(coef=0.1, target=0.02, horizon=1000))
    c.observe(0.022, 100)  # a tenth over: + 1 % of a tenth
    assert_close(c.coef, 0.1 * 1.01, K, "coefficient")
    c.observe(NAN, 100)
    assert_close(c.coef, 0.1 * 1.01, K, "coefficient")
    c.observe(5.0, 500)  # at most a fifth
    assert_close(c.coef, 0.1 * 1.01 * 1.1, K, "coefficient")
    c.observe(-5.0, 1_000_000)  # an estimate below 0, and many more rollouts than the horizon
    assert_close(c.coef, 0.1 * 1.01 * 1.1 * 0.8, K, "coefficient")
    again = Controller(KLConfig(coef=0.1, target=0.02))
    again.restore(c.state())
    assert again.coef == c.coef
    for other in (KLConfig(coef=7.0, target=0.02), KLConfig(coef=7.0)):  # a run that goes on with another coefficient
        changed = Controller(other)
        changed.restore(c.state())
        assert changed.coef == 7.0
    fixed = Controller(KLConfig(coef=0.1))
    fixed.observe(5.0, 100)
    assert fixed.coef == 0.1


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(allow_infinity=True), st.integers(0, 10**6)), max_size=20), st.integers(1, 10**5))
def test_the_controller_is_the_papers_and_stays_above_zero(steps: list[tuple[float, int]], horizon: int) -> None:
    c = Controller(KLConfig(coef=0.1, target=0.05, horizon=horizon))
    for kl, rollouts_ in steps:
        c.observe(kl, rollouts_)
    assert c.coef > 0
    assert_close(c.coef, second_way.controller(0.1, 0.05, horizon, steps), K, "coefficient")


# -- correction

# log ratios of two rollouts: 0.5, -1 (product exp(-0.5), geometric mean exp(-0.25)) and 1
RATIOS = [[0.5, -1.0], [1.0]]
GOLDEN = {
    "none": [1.0, 1.0, 1.0],
    "truncate_token": [1.6487212707, 0.3678794412, 2.0],
    "truncate_sequence": [0.6065306597, 0.6065306597, 2.0],
    "mask_token": [1.6487212707, 0.0, 0.0],
    "reject_sequence": [1.0, 1.0, 0.0],
}
CUT = {
    "truncate_token": [0, 0, 1], "truncate_sequence": [0, 0, 1], "mask_token": [0, 1, 1], "reject_sequence": [0, 0, 1]
}  # fmt: skip
ESS = {"truncate_token": 0.7846504513, "truncate_sequence": 0.7266532002, "mask_token": 1 / 3, "reject_sequence": 2 / 3}


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_corrections(name: str) -> None:
    batch = as_batch([Roll(0, 0.0, 0, [True] * len(x), engine=[-2.0] * len(x)) for x in RATIOS], dtype=torch.float64)
    old = (flat(RATIOS) - 2.0).requires_grad_()
    weight, stats = correct(old, batch, CorrectionConfig(name=Correction(name)))
    assert_close(weight, GOLDEN[name], TEN_DIGITS, "weights")
    assert not weight.requires_grad
    counted = Stats()
    for key, values in stats.items():
        counted.add(key, values, batch.mask)
    counted.tokens = 3
    metrics = merge([counted])
    assert metrics["sync/logp_diff_max"] == 1.0
    assert_close(metrics["sync/logp_diff_mean"], 2.5 / 3, K, "logp_diff_mean")
    if name == "none":
        assert not any(k.startswith("correction/") for k in metrics)
        return
    assert "correction/weight_square" not in metrics
    assert_close(metrics["correction/weight"], sum(GOLDEN[name]) / 3, TEN_DIGITS, "mean weight")
    assert_close(metrics["correction/clipped_fraction"], sum(CUT[name]) / 3, K, "clipped_fraction")
    assert_close(metrics["correction/ess"], ESS[name], TEN_DIGITS, "effective sample size")


@many
@given(rollouts(), st.sampled_from(Correction), st.sampled_from([(0.5, 2.0), (0.0, 1.0), (0.9, 1.1)]))
def test_every_correction_is_the_papers(rolls: list[Roll], name: Correction, limits: tuple[float, float]) -> None:
    batch = as_batch(rolls, "old_logp", dtype=torch.float64)
    assert batch.old_logp is not None
    weight, stats = correct(batch.old_logp, batch, CorrectionConfig(name=name, low=limits[0], high=limits[1]))
    want = second_way.correction(name.value, rolls, *limits)
    chosen = [w[i] for r, w in zip(rolls, want, strict=True) for i in r.chosen]
    assert_close(weight[batch.mask], chosen, K, "weights")
    assert weight.isfinite().all() and all(s.isfinite().all() for s in stats.values())
    if name is not Correction.none:
        counted = Stats()
        for key, values in stats.items():
            counted.add(key, values, batch.mask)
        counted.tokens = len(chosen)
        found = merge([counted])["correction/ess"]
        if chosen:
            assert_close(found, second_way.effective_sample_size(chosen), K, "effective sample size")
        else:
            assert math.isnan(found)


def test_a_lost_probability_is_not_hidden_by_the_correction() -> None:
    batch = as_batch([Roll(0, 0.0, 0, [True, True], engine=[NAN, -1.0])])
    for name in Correction:
        _, stats = correct(torch.tensor([-1.0, -1.0]), batch, CorrectionConfig(name=name))
        assert stats["sync/logp_diff_max"].isnan().tolist() == [True, False]


# -- the critic


@pytest.mark.parametrize(
    ("guess", "old", "target", "clip", "want", "slope"),
    [
        (1.0, 0.5, 2.0, 0.0, 0.5, -1.0),
        (1.0, 0.5, 2.0, 0.2, 0.845, 0.0),  # at 0.7, and no further
        (1.0, 0.5, 0.0, 0.2, 0.5, 1.0),  # on the wrong side of its old value it may come back
        (0.6, 0.5, 2.0, 0.2, 0.98, -1.4),
    ],
)
def test_golden_value_losses(
    guess: float, old: float, target: float, clip: float, want: float, slope: float
) -> None:  # fmt: skip
    batch = tokens(1, value=[old], returns=[target])
    value = torch.tensor([guess], dtype=torch.float64, requires_grad=True)
    loss, stats = value_loss(value, batch, clip)
    loss.sum().backward()
    assert value.grad is not None
    assert_close(loss, [want], K, "loss")
    assert_close(value.grad, [slope], K, "slope")
    assert float(stats["critic/value"]) == guess
    if clip:
        assert float(stats["critic/clip_fraction"]) == (slope == 0.0)


@many
@given(rollouts(), st.sampled_from([0.0, 0.2, 1.0]))
def test_the_critics_loss_is_the_papers(rolls: list[Roll], clip: float) -> None:
    batch = as_batch(rolls, "value", "returns", dtype=torch.float64)
    loss, _ = value_loss(flat([r.guess for r in rolls]), batch, clip)
    want = [
        [second_way.value_loss(r.guess[i], r.value[i], r.returns[i], clip) for i in range(len(r.mask))] for r in rolls
    ]
    assert_close(loss, flat(want), K, "losses")
    chosen = [(r.value[i], r.returns[i]) for r in rolls for i in r.chosen]
    found = explained_variance(batch)
    if len({b for _, b in chosen}) < 2:
        assert math.isnan(found)
    else:
        want = second_way.explained_variance([a for a, _ in chosen], [b for _, b in chosen])
        assert_close(found, want, K, "explained variance", scale=max(1.0, abs(want)))


def test_explained_variance_by_hand() -> None:
    assert explained_variance(tokens(3, value=[1.0, 2.0, 3.0], returns=[1.0, 2.0, 3.0])) == 1.0
    assert explained_variance(tokens(3, value=[5.0, 5.0, 5.0], returns=[1.0, 2.0, 3.0])) == 0.0
    worse = explained_variance(tokens(3, value=[3.0, 2.0, 1.0], returns=[1.0, 2.0, 3.0]))
    assert_close(worse, -3.0, K, "explained variance")
    assert math.isnan(explained_variance(tokens(3, value=[1.0, 2.0, 3.0], returns=[0.1, 0.1, 0.1])))


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(-50, 50), min_size=1, max_size=4), min_size=1, max_size=5))
def test_the_scale_of_returns_is_a_running_mean(steps: list[list[int]]) -> None:
    scale = ReturnScale()
    for xs in steps:
        scale.observe(torch.tensor([*xs, 1e6]), torch.tensor([True] * len(xs) + [False]))
    mean, variance = second_way.running([[float(x) for x in xs] for xs in steps], DECAY)
    deviation, x = math.sqrt(max(0.01, variance)), torch.tensor([-1.0, 0.0, 2.5])
    most = max(abs(n) for xs in steps for n in xs)
    assert_close(scale.mean, mean, K, "mean", scale=most)
    assert_close(scale.deviation, deviation, K, "deviation", scale=most**2 / deviation)  # a difference of squares
    assert_close(scale.normalize(x), (x.double() - mean) / deviation, K32, "normalized")
    assert_close(scale.denormalize(scale.normalize(x)), x, K32, "and back", scale=max(2.5, abs(mean)))
    again = ReturnScale()
    again.restore(scale.state())
    assert (again.mean, again.deviation) == (scale.mean, scale.deviation)


def test_the_scale_starts_as_nothing_and_the_first_step_counts_in_full() -> None:
    scale, x = ReturnScale(), torch.tensor([3.0, 5.0])
    scale.observe(x, torch.tensor([False, False]))
    assert scale.normalize(x).equal(x) and scale.denormalize(x).equal(x)
    scale.observe(x, torch.tensor([True, True]))
    assert_close(scale.normalize(x), [-1.0, 1.0], K32, "normalized")
    level = ReturnScale()
    level.observe(torch.zeros(3), torch.ones(3, dtype=torch.bool))
    assert_close(level.normalize(torch.ones(1)), [10.0], K32, "normalized")
