"""Prompts to scored groups: spreads samples over the engines and hands each finished one to its reward at once.

The engines only run while a call of `advance` is on its way, one an engine; the collector waits for all of them
together, scores what comes back while they go on, and puts the groups back in prompt and sample order. Who computed a
sample does not matter to it: its seed comes from the run's seed, the prompt's id and the sample's index alone.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from rlcore.config import RolloutConfig
from rlcore.errors import WorkerError
from rlcore.protocols import Sample, SampleRequest
from rlcore.records import Group, Prompt, Rollout
from rlcore.waits import Watch, Worker

_ADVANCE_SECONDS = 0.5  # an engine that finishes nothing answers after this, so that new samples can reach it
_SCORE_POLL_SECONDS = 0.05  # while scores are out, the pool is looked after this often
_WINDOW = 1.25  # samples an engine is given at once, in units of what it decodes at once: a few wait at its door


class Source(Protocol):
    def take(self, n: int) -> list[Prompt]: ...


class Scored(Protocol):
    reward: float | None
    parts: dict[str, float]
    status: dict[str, str]


class Pool(Protocol):
    """What scores: `rewards.pool.RewardPool`."""

    def submit(self, key: tuple[int, int], prompt: Prompt, response: str) -> None: ...
    def poll(self, wait_seconds: float) -> list[tuple[tuple[int, int], Any]]: ...


def sample_seed(seed: int, prompt_id: str, index: int) -> int:
    """31 bits of (run seed, prompt id, sample index), the same in every process and on every machine."""
    digest = hashlib.blake2b(f"{seed}\0{prompt_id}\0{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") & 0x7FFFFFFF


class Collector:
    """The driver's way to rollouts; a `protocols.Rollouts`.

    engines             the rollout workers, whose handles are `rollout.engine.Engine` actors
    source              where `collect` takes prompts
    decode              token ids -> text for the reward, special tokens left out
    rollouts_per_prompt G
    seed                the run's
    deadline_seconds    of one whole collection
    eos                 end-of-sequence tokens, left out of the text also where `decode` would show them
    version             the weights the engines hold: set at every publish, goes into every Rollout
    on_progress         called with (finished samples, all samples) as they finish
    """

    def __init__(
        self, engines: Sequence[Worker], source: Source, pool: Pool, decode: Callable[[list[int]], str], watch: Watch,
        cfg: RolloutConfig, rollouts_per_prompt: int, seed: int, deadline_seconds: float, eos: Collection[int] = (),
    ) -> None:  # fmt: skip
        self.engines, self.source, self.pool, self.decode, self.watch = list(engines), source, pool, decode, watch
        self.cfg, self.rollouts_per_prompt, self.seed = cfg, rollouts_per_prompt, seed
        self.deadline_seconds, self.eos = deadline_seconds, frozenset(eos)
        self.version = 0
        self.on_progress: Callable[[int, int], None] | None = None
        self.response_tokens = float(cfg.max_response_tokens)  # expected of one sample: the last collection's mean

    def collect(self, prompts: int) -> list[Group]:
        """The next `prompts` prompts of the source, G samples each, at the training temperature, scored.

        Groups in prompt order, rollouts in sample order. Raises WorkerError when an engine fails or the deadline
        passes, naming what is outstanding where. A sample whose score failed has reward None, and its status says why.
        """
        return self.sample(self.source.take(prompts), self.rollouts_per_prompt, self.cfg.temperature)

    def sample(self, prompts: list[Prompt], samples: int, temperature: float) -> list[Group]:
        """`samples` of each of these prompts, scored the same way; temperature 0 is greedy. Evaluation is this."""
        return _Collection(self, prompts, samples, temperature).run() if prompts else []


class _Collection:
    """One collection under way."""

    def __init__(self, parent: Collector, prompts: list[Prompt], samples: int, temperature: float) -> None:
        self.parent, self.prompts, self.samples, self.temperature = parent, prompts, samples, temperature
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
        self.total = len(prompts) * samples

    def _units(self, engines: int) -> deque[list[tuple[int, int]]]:
        """Keys to be submitted together: one prompt's samples, which share its prefix.

        The prompts left over when they do not divide evenly are cut into one piece an engine.
        """
        units: deque[list[tuple[int, int]]] = deque()
        whole = len(self.prompts) - len(self.prompts) % engines
        for position in range(len(self.prompts)):
            keys = [(position, index) for index in range(self.samples)]
            size = self.samples if position < whole else -(-self.samples // engines)
            units.extend(keys[i : i + size] for i in range(0, len(keys), size))
        return units

    def run(self) -> list[Group]:
        until = time.monotonic() + self.parent.deadline_seconds
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
            if time.monotonic() > until:
                raise WorkerError(self._late())
        self.parent.response_tokens = sum(r.response_tokens for r in self.finished.values()) / self.total
        return [
            Group([self.finished[position, index] for index in range(self.samples)])
            for position in range(len(self.prompts))
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
        return SampleRequest(key, prompt.tokens, seed, self.temperature)

    def _expected(self, key: tuple[int, int]) -> float:
        return self.expected + len(self.prompts[key[0]].tokens) / self.samples

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
        parent.pool.submit(key, prompt, rollout.text)

    def _score(self, wait_seconds: float) -> None:
        for key, result in self.parent.pool.poll(wait_seconds):
            rollout = self.finished[key]
            rollout.reward, rollout.parts, rollout.status = result.reward, dict(result.parts), dict(result.status)
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
