"""The collector with engines and a pool that live in this process."""

from collections import namedtuple
from types import SimpleNamespace

import pytest

from rlcore.config import RolloutConfig
from rlcore.errors import WorkerError
from rlcore.protocols import Sample
from rlcore.records import Prompt
from rlcore.waits import Worker
from rollout.collector import Collector, sample_seed

Result = namedtuple("Result", "reward parts status")
EOS = 9


class Ref:
    """A call that is done."""

    def __init__(self, value=None) -> None:
        self.value = value


class FakeEngine:
    """Answers a sample with its seed's last digits; `slots` of them an `advance`, the last submitted first."""

    def __init__(self, slots: int = 3) -> None:
        self.slots, self.queue, self.seen, self.most = slots, [], [], 0
        self.submit = SimpleNamespace(remote=lambda requests: Ref(self._submit(requests)))
        self.advance = SimpleNamespace(remote=lambda seconds: Ref(self._advance()))

    def _submit(self, requests):
        self.queue += requests
        self.seen += requests
        self.most = max(self.most, len(self.queue))

    def _advance(self):
        done, self.queue = self.queue[-self.slots :], self.queue[: -self.slots]
        return [Sample(r.key, [r.seed % 7, EOS], [-0.5, -0.25], "stop") for r in done]


class FakeWatch:
    phase = "rollout"

    def __init__(self) -> None:
        self.waits = 0

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

    def submit(self, key, prompt, text) -> None:
        self.queue.append((key, text))
        self.log.append(("scored", key))

    def poll(self, wait_seconds):
        done, self.queue = self.queue[-2:], self.queue[:-2]
        return [(k, Result(None if t == "0" else float(t), {"length": 1.0}, {})) for k, t in done]


def collector(engines=2, samples=4, cfg=None, pool=None, deadline=60.0, slots=3):
    fakes = [FakeEngine(slots) for _ in range(engines)]
    prompts = [Prompt(f"p:{i}", [i, i], "", {}) for i in range(100)]
    source = SimpleNamespace(take=lambda n: [prompts.pop(0) for _ in range(n)])
    workers = [Worker("rollout", i, f) for i, f in enumerate(fakes)]
    decode = lambda tokens: "".join(map(str, tokens))  # noqa: E731
    made = Collector(
        workers, source, pool or FakePool([]), decode, FakeWatch(), cfg or RolloutConfig(), samples, 7, deadline, {EOS}
    )
    return made, fakes


def test_groups_come_in_prompt_order_and_rollouts_in_sample_order():
    made, _ = collector()
    made.version = 5
    groups = made.collect(6)
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
    made.collect(3)
    assert [g.prompt.id for g in made.collect(2)] == ["p:3", "p:4"]


@pytest.mark.parametrize("engines", [1, 2, 3])
def test_what_is_sampled_does_not_depend_on_the_engines(engines):
    made, fakes = collector(engines)
    tokens = [[r.tokens for r in g.rollouts] for g in made.collect(5)]
    alone, _ = collector(1)
    assert tokens == [[r.tokens for r in g.rollouts] for g in alone.collect(5)]
    counts = [len(f.seen) for f in fakes]
    assert sum(counts) == 20 and max(counts) - min(counts) <= 4


def test_one_prompt_is_cut_over_the_engines_but_many_are_kept_whole():
    made, fakes = collector(engines=2, samples=8)
    made.collect(1)
    assert [len(f.seen) for f in fakes] == [4, 4]
    made, fakes = collector(engines=2, samples=8)
    made.collect(4)
    for fake in fakes:
        assert sorted(r.key[0] for r in fake.seen) == sorted(2 * [p for p in {r.key[0] for r in fake.seen}] * 4)


def test_an_engine_is_not_given_more_than_a_window():
    cfg = RolloutConfig(max_sequences=8)
    made, fakes = collector(engines=2, samples=4, cfg=cfg)
    made.collect(20)
    assert all(f.most <= 10 for f in fakes), [f.most for f in fakes]
    assert sum(len(f.seen) for f in fakes) == 80


def test_samples_go_to_their_reward_while_others_are_still_sampled():
    log: list = []
    made, fakes = collector(engines=1, samples=8, pool=FakePool(log), slots=1)
    advance = fakes[0].advance.remote
    fakes[0].advance = SimpleNamespace(remote=lambda s: log.append(("advance",)) or advance(s))
    made.collect(1)
    first_score = next(i for i, entry in enumerate(log) if entry[0] == "scored")
    assert ("advance",) in log[first_score:], "every sample had finished before the first was scored"


def test_greedy_sampling_asks_for_temperature_zero():
    made, fakes = collector()
    groups = made.sample([Prompt("e:1", [1], "", {}), Prompt("e:2", [2], "", {})], samples=1, temperature=0.0)
    assert [len(g.rollouts) for g in groups] == [1, 1]
    assert {r.temperature for f in fakes for r in f.seen} == {0.0}
    made.collect(1)
    assert {r.temperature for f in fakes for r in f.seen} == {0.0, 1.0}
    assert made.sample([], 1, 0.0) == []


def test_a_deadline_names_what_is_outstanding_where():
    made, fakes = collector(engines=2, samples=4, deadline=0.0)
    fakes[1].advance = SimpleNamespace(remote=lambda seconds: Ref([]))
    with pytest.raises(WorkerError, match=r"16 samples.*0 s.*8 samples on rollout rank 1.*scores.*phase rollout"):
        made.collect(4)


def test_seeds_are_stable_and_differ():
    seeds = {sample_seed(s, p, i) for s in (0, 1) for p in ("a", "b", "a@1") for i in range(50)}
    assert len(seeds) == 300 and all(0 <= s < 2**31 for s in seeds)
    assert sample_seed(0, "train.jsonl:17", 3) == 1930106063


def test_progress_ends_at_the_total():
    made, _ = collector()
    seen: list = []
    made.on_progress = lambda done, total: seen.append((done, total))
    made.collect(3)
    assert seen[-1] == (12, 12) and seen == sorted(seen)
