"""Prompts to scored groups: spreads samples over the engines and hands each finished one to its reward at once.

The engines only run while a call of `advance` is on its way, one an engine; the collector waits for all of them
together, scores what comes back while they go on, and puts the groups back in prompt and sample order. Who computed a
sample does not matter to it: its seed comes from the run's seed, the prompt's id and the sample's index alone.

What a training step filters and shapes is here too, and only in `collect`: an evaluation sees rewards as they are.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from rewards.length import overlong_penalty
from rlcore.cluster.deadlines import Watch, Worker
from rlcore.config import RewardConfig, RolloutConfig
from rlcore.errors import WorkerError
from rlcore.records import Group, Prompt, Response, Rollout
from rollout.engine import Sample, SampleRequest

_ADVANCE_SECONDS = 0.5  # an engine that finishes nothing answers after this, so that new samples can reach it
_SCORE_POLL_SECONDS = 0.05  # while scores are out, the pool is looked after this often
_WINDOW = 1.25  # samples an engine is given at once, in units of what it decodes at once: a few wait at its door


class Source(Protocol):
    def take(self, n: int) -> list[Prompt]: ...


class Scored(Protocol):
    reward: float | None
    parts: dict[str, float]
    status: dict[str, str]
    why: dict[str, str]


class Pool(Protocol):
    """What scores: `rewards.manager.RewardManager`."""

    def submit(self, key: tuple[int, int], prompt: Prompt, response: Response) -> None: ...
    def poll(self, wait_seconds: float) -> list[tuple[tuple[int, int], Any]]: ...


def sample_seed(seed: int, prompt_id: str, index: int) -> int:
    """31 bits of (run seed, prompt id, sample index), the same in every process and on every machine."""
    digest = hashlib.blake2b(f"{seed}\0{prompt_id}\0{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") & 0x7FFFFFFF


def carries_signal(group: Group) -> bool:
    """Whether the group can teach: two of its scored rewards differ, and one of its scored rollouts is trained on."""
    return group.differs and any(r.trains and r.reward is not None for r in group.rollouts)


def next_draw(wanted: int, useful: int, drawn: int, most: int) -> int:
    """Prompts to draw next, when `useful` of the `drawn` so far carry a signal and `wanted` shall; 0: no more.

    The yield so far is taken to go on. Enough are drawn that the expected number, less one standard deviation, is what
    is missing: another round costs the time of the longest response. Never more than `most` in all.
    """
    if drawn == 0:
        return min(wanted, most)
    if useful >= wanted or drawn >= most:
        return 0
    rate = max(1, useful) / drawn
    # n * rate - sqrt(n * rate * (1 - rate)) = missing, solved for sqrt(n * rate)
    spread = math.sqrt(1.0 - rate)
    root = (spread + math.sqrt(spread * spread + 4.0 * (wanted - useful))) / 2.0
    return max(1, min(math.ceil(root * root / rate), most - drawn))


class Collector:
    """The driver's way to rollouts; a `protocols.Rollouts`.

    engines             the rollout workers, whose handles are `rollout.engine.Engine` actors
    source              where `collect` takes prompts
    decode              token ids -> text for the reward, special tokens left out
    rollouts_per_prompt G
    seed                the run's
    deadline_seconds    of one `collect`, all its rounds together, or one `sample`
    eos                 end-of-sequence tokens, left out of the text also where `decode` would show them
    version             the weights the engines hold: set at every publish, goes into every Rollout
    on_progress         called with (finished samples, all samples of the round) as they finish
    """

    def __init__(
        self, engines: Sequence[Worker], source: Source, pool: Pool, decode: Callable[[list[int]], str], watch: Watch,
        cfg: RolloutConfig, reward: RewardConfig, rollouts_per_prompt: int, seed: int, deadline_seconds: float,
        eos: Collection[int] = (),
    ) -> None:  # fmt: skip
        self.engines, self.source, self.pool, self.decode, self.watch = list(engines), source, pool, decode, watch
        self.cfg, self.reward, self.rollouts_per_prompt, self.seed = cfg, reward, rollouts_per_prompt, seed
        self.deadline_seconds, self.eos = deadline_seconds, frozenset(eos)
        self.version = 0
        self.on_progress: Callable[[int, int], None] | None = None
        self.response_tokens = float(cfg.max_response_tokens)  # expected of one sample: the last collection's mean

    def collect(self, prompts: int) -> list[Group]:
        """The next `prompts` prompts of the source, G samples each, at the training temperature, scored.

        With rollout.dynamic_draws (dynamic sampling, arXiv 2503.14476, eq. 11) prompts are drawn in rounds until
        `prompts` groups carry a signal or dynamic_draws * `prompts` prompts are drawn. All drawn groups are returned;
        of those with a signal the first `prompts` are `used`. If none has one the first drawn is, for a batch is never
        empty. Signal is judged before the overlong penalty, as in the paper.

        Groups in prompt order, rollouts in sample order. Raises WorkerError when an engine fails or the deadline
        passes, naming what is outstanding where. A sample whose score failed has reward None, and its status says why.
        """
        until = time.monotonic() + self.deadline_seconds
        most = max(prompts, math.floor(self.cfg.dynamic_draws * prompts + 1e-6))  # 1.16 * 25 is a little below 29
        useful, groups = 0, list[Group]()
        while draw := next_draw(prompts, useful, len(groups), most):
            taken, greedy = self.source.take(draw), self.cfg.greedy_baseline
            fresh = _Collection(self, taken, self.rollouts_per_prompt, self.cfg.temperature, until, greedy).run()
            for rollout in (r for g in fresh for r in g.rollouts):
                rollout.trains = self.cfg.train_truncated or rollout.finish != "length"
            groups += fresh
            useful += sum(map(carries_signal, fresh))
        if self.cfg.dynamic_draws:
            _choose(groups, prompts)
        if self.reward.overlong_fraction:
            self._shape(groups)
        return groups

    def sample(self, prompts: list[Prompt], samples: int, temperature: float) -> list[Group]:
        """`samples` of each of these prompts, scored the same way; temperature 0 is greedy. Evaluation is this."""
        until = time.monotonic() + self.deadline_seconds
        return _Collection(self, prompts, samples, temperature, until).run() if prompts else []

    def _shape(self, groups: Sequence[Group]) -> None:
        """Take the overlong penalty from every scored reward, of the greedy baseline too: both are of one reward."""
        cfg, limit = self.reward, self.cfg.max_response_tokens
        for rollout in (r for g in groups for r in g.drawn if r.reward is not None):
            penalty = overlong_penalty(rollout.response_tokens, limit, cfg.overlong_fraction, cfg.overlong_penalty)
            assert rollout.reward is not None
            rollout.reward += penalty
            rollout.parts["overlong"] = penalty


def _choose(groups: Sequence[Group], wanted: int) -> None:
    """Set `used`: the first `wanted` with a signal, or the first group if there is none."""
    signal = [g for g in groups if carries_signal(g)]
    chosen = {id(g) for g in signal[:wanted] or groups[:1]}
    for group in groups:
        group.used = id(group) in chosen


class _Collection:
    """One collection under way. With `greedy` each prompt has one more sample, of index `samples`, at temperature 0."""

    def __init__(
        self, parent: Collector, prompts: list[Prompt], samples: int, temperature: float, until: float,
        greedy: bool = False,
    ) -> None:  # fmt: skip
        self.parent, self.prompts, self.samples, self.temperature = parent, prompts, samples, temperature
        self.until, self.greedy, self.each = until, greedy, samples + greedy
        engines = len(parent.engines)
        self.expected = parent.response_tokens
        self.waiting = self._units(engines)
        self.at: list[set[tuple[int, int]]] = [set() for _ in range(engines)]  # unfinished samples an engine holds
        self.load = [0.0] * engines  # tokens expected of them
        self.calls: dict[Any, Worker] = {}  # Ray calls on their way
        self.advancing: dict[Any, int] = {}  # of them, `advance`: the engine's position
        self.window = int(parent.cfg.max_sequences * _WINDOW)
        self.finished: dict[tuple[int, int], Rollout] = {}
        self.unscored = 0
        self.total = len(prompts) * self.each

    def _units(self, engines: int) -> deque[list[tuple[int, int]]]:
        """Keys to be submitted together: one prompt's samples, which share its prefix.

        The prompts left over when they do not divide evenly are cut into one piece an engine.
        """
        units: deque[list[tuple[int, int]]] = deque()
        whole = len(self.prompts) - len(self.prompts) % engines
        for position in range(len(self.prompts)):
            keys = [(position, index) for index in range(self.each)]
            size = self.each if position < whole else -(-self.each // engines)
            units.extend(keys[i : i + size] for i in range(0, len(keys), size))
        return units

    def run(self) -> list[Group]:
        while len(self.finished) < self.total or self.unscored:
            self._feed()
            self._advance()
            if self.calls:
                ready = self.parent.watch.any(self.calls, _SCORE_POLL_SECONDS if self.unscored else _ADVANCE_SECONDS)
                self._receive(ready)
            else:
                self.parent.watch.look()
            if self.unscored:
                self._score(0.0 if self.calls else _SCORE_POLL_SECONDS)
            if time.monotonic() > self.until:
                raise WorkerError(self._late())
        self.parent.response_tokens = sum(r.response_tokens for r in self.finished.values()) / self.total
        return [
            Group([self.finished[p, index] for index in range(self.samples)], self.finished.get((p, self.samples)))
            for p in range(len(self.prompts))
        ]

    def _feed(self) -> None:
        """Give waiting samples to the engine with the fewest expected tokens, as long as it has room."""
        batches: dict[int, list[SampleRequest]] = {}
        while self.waiting:
            engine = min(range(len(self.load)), key=self.load.__getitem__)
            if self.at[engine] and len(self.at[engine]) + len(self.waiting[0]) > self.window:
                break
            for key in self.waiting.popleft():
                batches.setdefault(engine, []).append(self._request(key))
                self.at[engine].add(key)
                self.load[engine] += self._expected(key)
        for engine, requests in batches.items():
            worker = self.parent.engines[engine]
            self.calls[worker.handle.submit.remote(requests)] = worker

    def _request(self, key: tuple[int, int]) -> SampleRequest:
        prompt = self.prompts[key[0]]
        seed = sample_seed(self.parent.seed, prompt.id, key[1])
        return SampleRequest(key, prompt.tokens, seed, self.temperature if key[1] < self.samples else 0.0)

    def _expected(self, key: tuple[int, int]) -> float:
        return self.expected + len(self.prompts[key[0]].tokens) / self.each

    def _advance(self) -> None:
        """Keep one `advance` on its way to every engine that has something to do."""
        busy = set(self.advancing.values())
        for engine, worker in enumerate(self.parent.engines):
            if self.at[engine] and engine not in busy:
                ref = worker.handle.advance.remote(_ADVANCE_SECONDS)
                self.calls[ref] = worker
                self.advancing[ref] = engine

    def _receive(self, ready: list[Any]) -> None:
        for ref in ready:
            result = self.parent.watch.get(ref, self.calls.pop(ref))
            engine = self.advancing.pop(ref, None)
            if engine is None:
                continue  # a `submit`, which returns nothing
            for sample in result:
                self._finish(engine, sample)
        if ready and self.parent.on_progress is not None:
            self.parent.on_progress(len(self.finished), self.total)

    def _finish(self, engine: int, sample: Sample) -> None:
        """Note the sample and send it to its reward."""
        parent, key = self.parent, sample.key
        self.at[engine].remove(key)
        self.load[engine] = max(0.0, self.load[engine] - self._expected(key)) if self.at[engine] else 0.0
        prompt = self.prompts[key[0]]
        said = sample.tokens
        if said and sample.finish == "stop" and said[-1] in parent.eos:
            said = said[:-1]
        rollout = Rollout(
            prompt=prompt,
            tokens=prompt.tokens + sample.tokens,
            logp=[0.0] * len(prompt.tokens) + sample.logp,
            mask=[False] * len(prompt.tokens) + [True] * len(sample.tokens),
            finish=sample.finish,
            version=parent.version,
            text=parent.decode(said),
        )
        self.finished[key] = rollout
        self.unscored += 1
        parent.pool.submit(key, prompt, Response(rollout.text, len(sample.tokens), sample.finish))

    def _score(self, wait_seconds: float) -> None:
        for key, result in self.parent.pool.poll(wait_seconds):
            rollout = self.finished[key]
            rollout.reward, rollout.parts = result.reward, dict(result.parts)
            rollout.status, rollout.why = dict(result.status), dict(result.why)
            self.unscored -= 1

    def _late(self) -> str:
        engines = [f"{len(a)} samples on {w}" for w, a in zip(self.parent.engines, self.at, strict=True) if a]
        queued = sum(len(unit) for unit in self.waiting)
        out = engines + ([f"{queued} samples not given out yet"] if queued else [])
        out += [f"{self.unscored} scores"] if self.unscored else []
        return (
            f"collecting {self.total} samples took longer than {self.parent.deadline_seconds:g} s "
            f"(deadline.rollout_seconds); outstanding: {', '.join(out)}; phase {self.parent.watch.phase}"
        )
