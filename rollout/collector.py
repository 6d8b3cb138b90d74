"""Prompts to scored groups: spreads samples over the engines and hands each finished one to its reward at once.

The engines only run while a call of `advance` is on its way, one an engine; the collector waits for all of them
together, scores what comes back while they go on, and puts the groups back in prompt and sample order. Who computed a
sample does not matter to it: its seed comes from the run's seed, the prompt's id and the sample's index alone.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from rlcore.cluster.deadlines import Watch, Worker
from rlcore.config import Config, RolloutConfig
from rlcore.errors import WorkerError
from rlcore.records import Group, Prompt, Response, Rollout
from rollout.engine import Sample, SampleRequest

_ADVANCE_SECONDS = 0.5  # an engine that finishes nothing answers after this, so that new samples can reach it
_SCORE_POLL_SECONDS = 0.05  # while scores are out, the rewards are looked after this often
_WINDOW = 1.25  # samples an engine is given at once, in units of what it decodes at once: a few wait at its door

Key = tuple[int, int]  # a sample: the prompt's position in a collection, the index among the prompt's samples


class Source(Protocol):
    """Where prompts come from: `data.prompts.Prompts`."""

    def take(self, n: int) -> list[Prompt]: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: Mapping[str, Any]) -> None: ...


class Rewards(Protocol):
    """What scores: `rewards.manager.RewardManager`."""

    def submit(self, key: Key, prompt: Prompt, response: Response) -> None: ...
    def poll(self, wait_seconds: float) -> list[tuple[Key, Any]]: ...


class Ask(NamedTuple):
    """What is asked of the engines for each prompt: `samples` at `temperature` (0: greedy); with `greedy` one more, of
    index `samples`, at temperature 0 and of all tokens."""

    samples: int
    temperature: float
    greedy: bool = False
    top_p: float = 1.0
    top_k: int = 0
    min_tokens: int = 0

    @classmethod
    def for_training(cls, samples: int, cfg: RolloutConfig) -> Ask:
        return cls(samples, cfg.temperature, False, cfg.top_p, cfg.top_k, cfg.min_response_tokens)

    @property
    def each(self) -> int:
        return self.samples + self.greedy


def response_text(
    decode: Callable[[list[int]], str], ends: Collection[int], padding: int | None = None
) -> Callable[[Sample], str]:
    """Sample -> the text that rewards and logs see: of all its tokens but padding and the ending token, one of `ends`.

    Other special tokens are text: <think> is one in some tokenizers.
    """

    def text(sample: Sample) -> str:
        ended = sample.finish == "stop" and sample.tokens and sample.tokens[-1] in ends
        return decode([t for t in (sample.tokens[:-1] if ended else sample.tokens) if t != padding])

    return text


def sample_seed(seed: int, prompt_id: str, index: int) -> int:
    """31 bits of (run seed, prompt id, sample index), the same in every process and on every machine."""
    digest = hashlib.blake2b(f"{seed}\0{prompt_id}\0{index}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") & 0x7FFFFFFF


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
    """The driver's way to rollouts: the source of a stage that samples."""

    def __init__(
        self,
        engines: Sequence[Worker],  # whose handles are `rollout.engine.Engine` actors
        prompts: Source,
        rewards: Rewards,
        watch: Watch,
        cfg: Config,
        text: Callable[[Sample], str],  # of a finished sample: `response_text`
        teaches: Callable[[Group], bool],  # whether a scored group does; rollout.dynamic_draws draws until enough do
    ) -> None:
        self.engines, self.prompts, self.rewards, self.watch = list(engines), prompts, rewards, watch
        self.cfg, self.text, self.teaches = cfg, text, teaches
        self.version = 0  # of the weights the engines hold: set at every publish, goes into every Rollout
        self.on_progress: Callable[[int, int], None] | None = None  # (finished samples, all of the round)
        self.response_tokens = float(cfg.rollout.max_response_tokens)  # expected of one: the last collection's mean

    def take(self, n: int) -> list[Group]:
        """The next `n` prompts, G samples each, at the training temperature, scored; in prompt and sample order.

        With rollout.dynamic_draws prompts are drawn in rounds until `n` groups teach or dynamic_draws * n are drawn;
        all drawn groups are returned. Raises WorkerError when an engine fails or deadline.rollout_seconds passes. A
        sample whose score failed has reward None, and its status says why.
        """
        cfg, until = self.cfg.rollout, self._until()
        most = max(n, math.floor(cfg.dynamic_draws * n + 1e-6))  # 1.16 * 25 is a little below 29
        ask = Ask.for_training(self.cfg.rollouts_per_prompt, cfg)._replace(greedy=cfg.greedy_baseline)
        useful, groups = 0, list[Group]()
        while draw := next_draw(n, useful, len(groups), most):
            fresh = _Collection(self, self.prompts.take(draw), ask, until).run()
            groups += fresh
            useful += sum(map(self.teaches, fresh))
        return groups

    def sample(self, prompts: list[Prompt], ask: Ask) -> list[Group]:
        """What is asked of each of these prompts, scored the same way. Evaluation is this."""
        return _Collection(self, prompts, ask, self._until()).run() if prompts else []

    def state(self) -> dict[str, Any]:
        return self.prompts.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self.prompts.restore(state)

    def _until(self) -> float:
        return time.monotonic() + self.cfg.deadline.rollout_seconds


class _Collection:
    """One collection under way."""

    def __init__(self, parent: Collector, prompts: list[Prompt], ask: Ask, until: float) -> None:
        self.parent, self.prompts, self.ask, self.until = parent, prompts, ask, until
        engines = len(parent.engines)
        self.expected = parent.response_tokens
        self.waiting = self._units(engines)
        self.at: list[set[Key]] = [set() for _ in range(engines)]  # unfinished samples an engine holds
        self.load = [0.0] * engines  # tokens expected of them
        self.calls: dict[Any, Worker] = {}  # Ray calls on their way
        self.advancing: dict[Any, int] = {}  # of them, `advance`: the engine's position
        self.window = int(parent.cfg.rollout.max_sequences * _WINDOW)
        self.unscored: dict[Key, tuple[Sample, str]] = {}  # with its text
        self.finished: dict[Key, Rollout] = {}
        self.total = len(prompts) * ask.each

    def _units(self, engines: int) -> deque[list[Key]]:
        """Keys to be submitted together: one prompt's samples, which share its prefix.

        The prompts left over when they do not divide evenly are cut into one piece an engine.
        """
        units: deque[list[Key]] = deque()
        whole = len(self.prompts) - len(self.prompts) % engines
        for position in range(len(self.prompts)):
            keys = [(position, index) for index in range(self.ask.each)]
            size = self.ask.each if position < whole else -(-self.ask.each // engines)
            units.extend(keys[i : i + size] for i in range(0, len(keys), size))
        return units

    def run(self) -> list[Group]:
        waiting = self.parent.watch.waiting(f"collecting {self.total} samples", self.until - time.monotonic())
        while len(self.finished) < self.total:
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
            waiting.look(self._outstanding)
        self.parent.watch.over(waiting)
        samples = self.ask.samples
        self.parent.response_tokens = sum(r.response_tokens for r in self.finished.values()) / self.total
        return [
            Group([self.finished[p, index] for index in range(samples)], self.finished.get((p, samples)))
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

    def _request(self, key: Key) -> SampleRequest:
        prompt, ask = self.prompts[key[0]], self.ask
        seed = sample_seed(self.parent.cfg.seed, prompt.id, key[1])
        if key[1] == ask.samples:
            return SampleRequest(key, prompt.tokens, seed, 0.0)
        return SampleRequest(key, prompt.tokens, seed, ask.temperature, ask.top_p, ask.top_k, ask.min_tokens)

    def _expected(self, key: Key) -> float:
        return self.expected + len(self.prompts[key[0]].tokens) / self.ask.each

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
            self.parent.on_progress(len(self.finished) + len(self.unscored), self.total)

    def _finish(self, engine: int, sample: Sample) -> None:
        """Note the sample and send it to its reward."""
        parent, key = self.parent, sample.key
        self.at[engine].remove(key)
        self.load[engine] = max(0.0, self.load[engine] - self._expected(key)) if self.at[engine] else 0.0
        text = parent.text(sample)
        self.unscored[key] = sample, text
        prompt = self.prompts[key[0]]
        parent.rewards.submit(key, prompt, Response(prompt.opened + text, len(sample.tokens), sample.finish))

    def _score(self, wait_seconds: float) -> None:
        for key, result in self.parent.rewards.poll(wait_seconds):
            sample, text = self.unscored.pop(key)
            prompt = self.prompts[key[0]]
            self.finished[key] = Rollout(
                prompt=prompt,
                tokens=prompt.tokens + sample.tokens,
                logp=[0.0] * len(prompt.tokens) + sample.logp,
                mask=[False] * len(prompt.tokens) + [True] * len(sample.tokens),
                finish=sample.finish,
                version=self.parent.version,
                text=text,
                reward=result.reward,
                parts=dict(result.parts),
                status=dict(result.status),
                why=dict(result.why),
                kept=None if sample.kept is None else sample.kept.after(len(prompt.tokens)),
            )

    def _late(self) -> str:
        return (
            f"collecting {self.total} samples took longer than {self.parent.cfg.deadline.rollout_seconds:g} s "
            f"(deadline.rollout_seconds); outstanding: {self._outstanding()}; phase {self.parent.watch.phase}"
        )

    def _outstanding(self) -> str:
        engines = [f"{len(a)} samples on {w}" for w, a in zip(self.parent.engines, self.at, strict=True) if a]
        queued = sum(len(unit) for unit in self.waiting)
        out = engines + ([f"{queued} samples not given out yet"] if queued else [])
        out += [f"{len(self.unscored)} scores"] if self.unscored else []
        return ", ".join(out)
