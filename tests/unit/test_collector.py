"""The collector with engines and a pool that live in this process."""

import functools
from collections import namedtuple
from types import SimpleNamespace

import pytest

from rewards.length import overlong_penalty
from rlcore.algo.shaping import carries_signal, shape
from rlcore.cluster.deadlines import Watch, Worker
from rlcore.config import Config, DataConfig, DeadlineConfig, EvalConfig, RewardConfig, RolloutConfig
from rlcore.data.order import Order
from rlcore.errors import WorkerError
from rlcore.records import Batch, Kept, Prompt
from rlcore.train.credit import penalty_of
from rlcore.train.evaluate import Sampled
from rollout.collector import Ask, Collector, next_draw, response_text, sample_seed
from rollout.engine import Engine, EngineSpec, Sample, SampleRequest, kept_of

Result = namedtuple("Result", "reward parts status why")
EOS = 9


class Ref:
    """A call that is done."""

    def __init__(self, value=None) -> None:
        self.value = value


class FakeEngine:
    """Answers a sample with its seed's last digits; `slots` of them an `advance`, the last submitted first.

    `answer(request)`: the response's tokens and its finish.
    """

    def __init__(self, slots: int = 3) -> None:
        self.slots, self.queue, self.seen, self.most = slots, [], [], 0
        self.answer = lambda request: ([request.seed % 7, EOS], "stop")
        self.submit = SimpleNamespace(remote=lambda requests: Ref(self._submit(requests)))
        self.advance = SimpleNamespace(remote=lambda seconds: Ref(self._advance()))

    def _submit(self, requests):
        self.queue += requests
        self.seen += requests
        self.most = max(self.most, len(self.queue))

    def _advance(self):
        done, self.queue = self.queue[-self.slots :], self.queue[: -self.slots]
        return [self._sample(r.key, *self.answer(r)) for r in done]

    def _sample(self, key, tokens, finish):
        return Sample(key, tokens, [-0.5, -0.25, *[-1.0] * len(tokens)][: len(tokens)], finish)


class FakeWatch(Watch):
    def __init__(self) -> None:
        super().__init__()
        self.waits, self.phase = 0, "rollout"

    def look(self) -> None: ...

    def any(self, refs, seconds):
        self.waits += 1
        return list(refs)

    def get(self, ref, worker):
        return ref.value


class FakePool:
    """Scores the newest first, and only two at a time."""

    def __init__(self, log: list) -> None:
        self.queue, self.log = [], log

    def submit(self, key, prompt, response) -> None:
        self.queue.append((key, response.text))
        self.log.append(("scored", key))

    def poll(self, wait_seconds):
        done, self.queue = self.queue[-2:], self.queue[:-2]
        return [(k, Result(None if t == "0" else float(t), {"length": 1.0}, {}, {})) for k, t in done]


def collector(engines=2, samples=4, cfg=None, pool=None, deadline=60.0, slots=3, reward=None, answer=None, text=None):
    fakes = [FakeEngine(slots) for _ in range(engines)]
    for fake in fakes:
        fake.answer = answer or fake.answer
    prompts = [Prompt(f"p:{i}", [i, i], "", {}) for i in range(100)]
    source = SimpleNamespace(take=lambda n: [prompts.pop(0) for _ in range(n)])
    workers = [Worker("rollout", i, f) for i, f in enumerate(fakes)]
    settings = Config(seed=7, rollouts_per_prompt=samples, rollout=cfg or RolloutConfig())
    settings.reward, settings.deadline = reward or RewardConfig(), DeadlineConfig(rollout_seconds=deadline)
    text = text or response_text(lambda tokens: "".join(map(str, tokens)), [EOS])
    teaches = functools.partial(carries_signal, cfg=settings.rollout)
    return Collector(workers, source, pool or FakePool([]), FakeWatch(), settings, text, teaches), fakes


def trained(made, prompts):
    """The groups of a training step, with what credit decides about them."""
    return shape(made.take(prompts), prompts, made.cfg.rollout, penalty_of(made.cfg))


def test_only_training_samples_have_tokens_ruled_out():
    cfg = RolloutConfig(temperature=0.7, top_p=0.9, top_k=40, min_response_tokens=3, greedy_baseline=True)
    made, fakes = collector(engines=1, samples=2, cfg=cfg)
    made.take(1)
    assert [r[3:] for r in fakes[0].seen] == [(0.7, 0.9, 40, 3)] * 2 + [(0.0, 1.0, 0, 0)]
    evals = Config(data=DataConfig(eval=["x"]), rollout=cfg)
    for evals.eval, want in (
        (EvalConfig(temperature=0.5, top_p=0.8, top_k=7), (0.5, 0.8, 7, 0)),
        (EvalConfig(top_p=0.8, top_k=7), (0.0, 1.0, 0, 0)),  # greedy
    ):
        fakes[0].seen.clear()
        tracker = SimpleNamespace(evaluation=lambda *args: None)
        Sampled(evals, made, {"x": [Prompt("x:0", [1], "")]}, ["length"], tracker)(0)
        assert [r[3:] for r in fakes[0].seen] == [want]


def test_what_a_token_was_chosen_from_reaches_the_batch():
    made, fakes = collector(engines=1, samples=2, cfg=RolloutConfig(top_k=2))
    fakes[0]._sample = lambda key, tokens, finish: Sample(
        key, tokens, [-0.5] * len(tokens), finish, Kept.of([[token, 100 + key[1]] for token in tokens])
    )
    (group,) = made.take(1)
    batch = Batch.from_groups([group])
    assert batch.allowed is not None and batch.offsets.tolist() == [0, 4, 8]
    assert batch.allowed.offsets.diff().tolist() == [0, 0, 2, 2] * 2
    chosen = batch.allowed.ids.view(2, 2, 2)
    assert chosen[..., 0].tolist() == batch.tokens.view(2, 4)[:, 2:].tolist()
    assert chosen[..., 1].tolist() == [[100, 100], [101, 101]]


@pytest.mark.parametrize("mask", [None, [[5, 7]], [[5, 7], [5, 7]]], ids=["none", "short", "not the token"])
def test_an_engine_that_does_not_say_what_it_chose_from_is_no_engine_to_train_with(mask):
    """vLLM's CompletionOutput: of its own classes in tests/stack/test_engine.py."""
    said = SimpleNamespace(token_ids=[7, 9], sampling_mask=None if mask is None else SimpleNamespace(token_ids=mask))
    with pytest.raises(WorkerError, match="vLLM says of . tokens what they were chosen from and sampled 2"):
        kept_of(said)
    said.sampling_mask = SimpleNamespace(token_ids=[[5, 7], [9]])
    ids, counts = kept_of(said)
    assert ids.tolist() == [5, 7, 9] and counts.tolist() == [2, 1]


def test_an_engine_that_says_what_it_chose_from_does_not_take_temperature_0():
    greedy = SampleRequest((0, 0), [1], 0, 0.0)
    for says, want in ((True, (1.0, 1)), (False, (0.0, 0))):
        engine = Engine(EngineSpec("m", "float32", "gpu", 8, (1,), says_kept=says), RolloutConfig())
        choice = engine._choice(greedy)
        assert (choice["temperature"], choice["top_k"]) == want and engine._args()["return_sampling_mask"] == says


def test_groups_come_in_prompt_order_and_rollouts_in_sample_order():
    made, _ = collector()
    made.version = 5
    groups = made.take(6)
    assert [g.prompt.id for g in groups] == [f"p:{i}" for i in range(6)]
    for group in groups:
        for index, rollout in enumerate(group.rollouts):
            token = sample_seed(7, group.prompt.id, index) % 7
            assert rollout.tokens == [*group.prompt.tokens, token, EOS]
            assert rollout.logp == [0.0, 0.0, -0.5, -0.25]
            assert rollout.mask == [False, False, True, True]
            assert (rollout.text, rollout.finish, rollout.version) == (str(token), "stop", 5)
            assert rollout.reward == (None if token == 0 else token)
            assert rollout.parts == {"length": 1.0}


def test_the_next_collection_takes_the_next_prompts():
    made, _ = collector()
    made.take(3)
    assert [g.prompt.id for g in made.take(2)] == ["p:3", "p:4"]


@pytest.mark.parametrize("engines", [1, 2, 3])
def test_what_is_sampled_does_not_depend_on_the_engines(engines):
    made, fakes = collector(engines)
    tokens = [[r.tokens for r in g.rollouts] for g in made.take(5)]
    alone, _ = collector(1)
    assert tokens == [[r.tokens for r in g.rollouts] for g in alone.take(5)]
    counts = [len(f.seen) for f in fakes]
    assert sum(counts) == 20 and max(counts) - min(counts) <= 4


def test_one_prompt_is_cut_over_the_engines_but_many_are_kept_whole():
    made, fakes = collector(engines=2, samples=8)
    made.take(1)
    assert [len(f.seen) for f in fakes] == [4, 4]
    made, fakes = collector(engines=2, samples=8)
    made.take(4)
    for fake in fakes:
        assert sorted(r.key[0] for r in fake.seen) == sorted(2 * [p for p in {r.key[0] for r in fake.seen}] * 4)


def test_an_engine_is_not_given_more_than_a_window():
    cfg = RolloutConfig(max_sequences=8)
    made, fakes = collector(engines=2, samples=4, cfg=cfg)
    made.take(20)
    assert all(f.most <= 10 for f in fakes), [f.most for f in fakes]
    assert sum(len(f.seen) for f in fakes) == 80


def test_samples_go_to_their_reward_while_others_are_still_sampled():
    log: list = []
    made, fakes = collector(engines=1, samples=8, pool=FakePool(log), slots=1)
    advance = fakes[0].advance.remote
    fakes[0].advance = SimpleNamespace(remote=lambda s: log.append(("advance",)) or advance(s))
    made.take(1)
    first_score = next(i for i, entry in enumerate(log) if entry[0] == "scored")
    assert ("advance",) in log[first_score:], "every sample had finished before the first was scored"


def test_greedy_sampling_asks_for_temperature_zero():
    made, fakes = collector()
    groups = made.sample([Prompt("e:1", [1], "", {}), Prompt("e:2", [2], "", {})], Ask(1, 0.0))
    assert [len(g.rollouts) for g in groups] == [1, 1]
    assert {r.temperature for f in fakes for r in f.seen} == {0.0}
    made.take(1)
    assert {r.temperature for f in fakes for r in f.seen} == {0.0, 1.0}
    assert made.sample([], Ask(1, 0.0)) == []


def test_a_deadline_names_what_is_outstanding_where():
    made, fakes = collector(engines=2, samples=4, deadline=0.0)
    fakes[1].advance = SimpleNamespace(remote=lambda seconds: Ref([]))
    with pytest.raises(WorkerError, match=r"16 samples.*0 s.*8 samples on rollout rank 1.*scores.*phase rollout"):
        made.take(4)


def test_seeds_are_stable_and_differ():
    seeds = {sample_seed(s, p, i) for s in (0, 1) for p in ("a", "b", "a@1") for i in range(50)}
    assert len(seeds) == 300 and all(0 <= s < 2**31 for s in seeds)
    assert sample_seed(0, "train.jsonl:17", 3) == 1930106063


def test_progress_ends_at_the_total():
    made, _ = collector()
    seen: list = []
    made.on_progress = lambda done, total: seen.append((done, total))
    made.take(3)
    assert seen[-1] == (12, 12) and seen == sorted(seen)


def with_signal(*useful):
    """Engines whose groups of prompt i have unequal rewards if i is in `useful`, else all 1."""
    return lambda request: ([2 if request.key[1] == 0 and request.tokens[0] in useful else 1, EOS], "stop")


def rounds(made):
    """How many prompts each call of `take` asked for, filled while collecting."""
    asked, take = [], made.prompts.take
    made.prompts.take = lambda n: asked.append(n) or take(n)
    return asked


def used(groups):
    return [g.prompt.id for g in groups if g.used]


def test_without_dynamic_sampling_every_group_is_used_and_none_is_drawn_again():
    made, _ = collector(answer=with_signal(1))
    asked = rounds(made)
    groups = trained(made, 4)
    assert asked == [4] and len(used(groups)) == 4


def test_dynamic_sampling_draws_until_enough_groups_carry_a_signal():
    made, _ = collector(cfg=RolloutConfig(dynamic_draws=10), answer=with_signal(1, 3, 5, 6, 7, 8, 9))
    asked = rounds(made)
    groups = trained(made, 4)
    assert asked[0] == 4 and sum(asked) == len(groups) and len(asked) == 2
    assert [g.prompt.id for g in groups] == [f"p:{i}" for i in range(len(groups))], "drawing order"
    assert used(groups) == ["p:1", "p:3", "p:5", "p:6"], "the first four with a signal, no more"
    batch = Batch.from_groups(groups)
    assert len(batch) == 16 and batch.tokens[batch.offsets[:-1]].tolist() == [i for i in (1, 3, 5, 6) for _ in range(4)]
    assert all(g.differs == (int(g.prompt.id[2:]) in (1, 3, 5, 6, 7, 8, 9)) for g in groups)


def test_a_first_round_with_enough_signal_is_the_only_one():
    made, _ = collector(cfg=RolloutConfig(dynamic_draws=5), answer=with_signal(0, 1, 2))
    asked = rounds(made)
    assert used(trained(made, 3)) == ["p:0", "p:1", "p:2"] and asked == [3]


@pytest.mark.parametrize("draws, most", [(1.0, 4), (1.1, 4), (2.0, 8), (2.5, 10)])
def test_dynamic_sampling_ends_at_its_bound(draws, most):
    made, _ = collector(cfg=RolloutConfig(dynamic_draws=draws), answer=with_signal(3))
    groups = trained(made, 4)
    assert len(groups) == most
    assert used(groups) == ["p:3"], "what there is is trained on"
    assert made.prompts.take(1)[0].id == f"p:{most}", "no prompt was taken that was not drawn"


def test_the_bound_is_not_lost_to_rounding():
    """1.16 * 25 is 29 less 4e-15 in floating point."""
    made, _ = collector(cfg=RolloutConfig(dynamic_draws=1.16), samples=2, answer=with_signal())
    assert len(trained(made, 25)) == 29


def test_without_any_signal_the_batch_is_one_group():
    made, _ = collector(cfg=RolloutConfig(dynamic_draws=2), answer=with_signal())
    groups = trained(made, 3)
    assert len(groups) == 6 and used(groups) == ["p:0"] and not groups[0].differs


def test_a_group_with_one_score_carries_no_signal():
    answer = lambda r: ([1 if r.key[1] == 0 else 0, EOS], "stop")  # noqa: E731  one scored 1, the others fail
    made, _ = collector(cfg=RolloutConfig(dynamic_draws=2), answer=answer)
    assert used(trained(made, 2)) == ["p:0"]


def test_a_group_whose_scored_rollouts_are_all_left_out_of_the_loss_carries_no_signal():
    answer = lambda r: ([r.key[1] + 1, EOS], "length" if r.tokens[0] == 0 else "stop")  # noqa: E731
    cfg = RolloutConfig(dynamic_draws=3, train_truncated=False)
    assert used(trained(collector(cfg=cfg, answer=answer)[0], 2)) == ["p:1", "p:2"]


@pytest.mark.parametrize(
    "useful, drawn, most, expected",
    [
        (0, 0, 40, 8),  # the first round
        (8, 8, 40, 0),
        (9, 16, 40, 0),
        (3, 40, 40, 0),
        (4, 8, 40, 12),  # 12 * 0.5 less sqrt(12 * 0.25) is 4.27; 11 would leave 3.84 of the 4 that are missing
        (4, 8, 13, 5),  # what the bound leaves
        (7, 8, 40, 2),  # 2 * 0.875 less sqrt(2 * 0.875 * 0.125) is 1.28
        (0, 8, 400, 89),  # none yet: as if it had been one, 89 / 8 less sqrt(89 / 8 * 7 / 8) is 8.005
        (0, 8, 40, 32),
    ],
)
def test_a_round_draws_what_its_yield_makes_likely_to_be_enough(useful, drawn, most, expected):
    assert next_draw(8, useful, drawn, most) == expected


def test_dynamic_sampling_resumes_with_the_prompt_after_the_last_drawn():
    """The rows of two collections in a row, against one process that restores the position between them."""

    def source(order):
        return SimpleNamespace(take=lambda n: [Prompt(f"p:{i}@{e}", [i, i], "", {}) for i, e in order.take(n)])

    def ids(made):
        return [(g.prompt.id, g.used) for g in trained(made, 4)]

    cfg, answer = RolloutConfig(dynamic_draws=4), with_signal(2, 5, 7)
    order, again = Order("toy", 9, 3, True), Order("toy", 9, 3, True)
    made, fresh = collector(cfg=cfg, answer=answer)[0], collector(cfg=cfg, answer=answer)[0]
    made.prompts, fresh.prompts = source(order), source(again)
    first = ids(made)
    assert len(first) > 4
    again.restore(order.state())
    assert ids(fresh) == ids(made) != first


def test_the_deadline_is_of_all_rounds_together(monkeypatch):
    """Each round takes 60 s of the 100 s there are."""
    made, _ = collector(cfg=RolloutConfig(dynamic_draws=10), answer=with_signal(), deadline=100.0)
    clock, take = [0.0], made.prompts.take
    monkeypatch.setattr("rollout.collector.time", SimpleNamespace(monotonic=lambda: clock[0]))
    made.prompts.take = lambda n: clock.__setitem__(0, clock[0] + 60) or take(n)
    with pytest.raises(WorkerError, match="100 s"):
        trained(made, 4)


@pytest.mark.parametrize("engines", [1, 2, 3])
def test_the_greedy_answer_is_a_baseline_and_not_a_rollout(engines):
    answer = lambda r: ([r.seed % 7 if r.temperature else 5, EOS], "stop")  # noqa: E731
    made, fakes = collector(engines, cfg=RolloutConfig(greedy_baseline=True), answer=answer)
    groups = trained(made, 5)
    plain, _ = collector(engines)
    assert [[r.tokens for r in g.rollouts] for g in groups] == [
        [r.tokens for r in g.rollouts] for g in trained(plain, 5)
    ]
    assert [g.baseline for g in groups] == [5.0] * 5
    asked = [r for f in fakes for r in f.seen]
    assert sorted(r.key for r in asked if r.temperature == 0) == [(i, 4) for i in range(5)]
    assert len(asked) == 25 and Batch.from_groups(groups).baseline.tolist() == [5.0] * 20
    assert [len(g.rollouts) for g in made.sample([Prompt("e", [1], "", {})], Ask(2, 1.0))] == [2], (
        "not in an evaluation"
    )


def test_a_greedy_answer_without_a_score_is_no_baseline():
    answer = lambda r: ([1 if r.temperature else 0, EOS], "stop")  # noqa: E731
    (group,) = trained(collector(cfg=RolloutConfig(greedy_baseline=True), answer=answer)[0], 1)
    assert group.greedy is not None and group.baseline is None and len(group.rollouts) == 4
    assert Batch.from_groups([group]).baseline.isnan().all()


@pytest.mark.parametrize(
    "tokens, expected", [(0, 0.0), (11, 0.0), (12, 0.0), (13, -0.25), (14, -0.5), (16, -1.0), (17, -1.0)]
)
def test_overlong_penalty_by_hand(tokens, expected):
    """L = 16, C = 4: nothing up to 12, then a quarter a token. The paper's numbers are L = 20480, C = 4096."""
    assert overlong_penalty(tokens, 16, 0.25, 1.0) == expected
    assert overlong_penalty(tokens, 16, 0.25, 2.0) == 2 * expected
    assert overlong_penalty(18432, 20480, 0.2, 1.0) == pytest.approx(-0.5)


def test_overlong_responses_lose_reward_after_the_signal_was_judged_and_only_in_training():
    """Responses of 1 + index tokens, limit 4, the last 2 count: 0, 0, -0.5, -1 off a reward of 1."""
    answer = lambda r: ([1] + [EOS] * r.key[1] if r.temperature else [1, 8, EOS], "stop")  # noqa: E731
    cfg = RolloutConfig(max_response_tokens=4, dynamic_draws=2, greedy_baseline=True)
    made, _ = collector(cfg=cfg, reward=RewardConfig(overlong_fraction=0.5), answer=answer, text=lambda sample: "1")
    groups = trained(made, 1)
    assert len(groups) == 2 and used(groups) == ["p:0"], "lengths make no signal"
    for group in groups:
        assert [r.reward for r in group.rollouts] == [1.0, 1.0, 0.5, 0.0]
        assert [r.parts["overlong"] for r in group.rollouts] == [0.0, 0.0, -0.5, -1.0]
        assert group.baseline == 0.5, "the baseline is of the same reward"
    (group,) = made.sample([Prompt("e", [1], "", {})], Ask(4, 1.0))
    assert [r.reward for r in group.rollouts] == [1.0] * 4 and "overlong" not in group.rollouts[3].parts


def test_an_overlong_response_without_a_score_stays_without():
    answer = lambda r: ([0, EOS, EOS], "length")  # noqa: E731
    cfg, reward = RolloutConfig(max_response_tokens=3), RewardConfig(overlong_fraction=0.5)
    made, _ = collector(cfg=cfg, reward=reward, answer=answer, text=lambda sample: "0")
    (group,) = trained(made, 1)
    assert all(r.reward is None and "overlong" not in r.parts for r in group.rollouts)


def test_no_part_where_nothing_is_shaped():
    (group,) = trained(collector()[0], 1)
    assert all("overlong" not in r.parts for r in group.rollouts)


@pytest.mark.parametrize("train_truncated", [True, False])
def test_cut_responses_stay_in_the_baseline_and_leave_the_loss(train_truncated):
    answer = lambda r: ([r.key[1] + 1, EOS], "length" if r.key[1] == 2 else "stop")  # noqa: E731
    cfg = RolloutConfig(train_truncated=train_truncated)
    made, _ = collector(cfg=cfg, answer=answer, text=lambda sample: str(sample.tokens[0]))
    (group,) = trained(made, 1)
    assert [r.trains for r in group.rollouts] == [True, True, train_truncated, True]
    batch = Batch.from_groups([group])
    assert batch.reward.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert batch.mask.reshape(4, 4).any(1).tolist() == [True, True, train_truncated, True]
    (group,) = made.sample([Prompt("e", [1], "", {})], Ask(4, 1.0))
    assert all(r.trains for r in group.rollouts)
