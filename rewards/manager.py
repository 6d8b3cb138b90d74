"""One reward for each sample: which functions it is asked of, in what order, and what their values add up to.

manager = RewardManager(cfg.reward, max_response_tokens=256, quarantine=run_dir / "quarantine.jsonl")
manager.ready(deadline_seconds=60.0); manager.submit(key, prompt, Response("The answer is 72.", tokens=6))
for key, result in manager.poll(wait_seconds=0.1): ...   # in the end manager.close()
"""

from __future__ import annotations

import itertools
import math
import select
import time
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from rewards import BUILTIN, GATED, GOLD, REWARD_MODEL, names, quarantine
from rewards.pools import check_gold, gold_name, reward_pool
from rewards.signatures import Fn
from rlcore.config import RewardConfig
from rlcore.errors import DataError, kind, nearest
from rlcore.isolated.outcome import Outcome
from rlcore.isolated.pool import Pool
from rlcore.records import MOST_REWARD, Prompt, Response
from rlcore.waiting import Waiting

GOLD_AHEAD = 4096  # gold answers that wait in a pool: full batches for 64 processes, and not a whole data set twice

_LOOK_SECONDS = 0.2  # how often the lanes are looked after while nothing arrives
_ASK_SECONDS = 0.02  # the same where a lane cannot wake us


class Lane(Protocol):
    """Where some functions run: a pool of processes, or a reward model's Ray actors, which are asked every 20 ms.

    `submit` asks those called `names` about a sample; `poll` has what came back.
    """

    @property
    def names(self) -> Sequence[str]: ...
    @property
    def pending(self) -> int: ...
    def ready(self, deadline_seconds: float) -> None: ...
    def submit(self, key: Hashable, prompt: Prompt, response: Response, names: Sequence[str] | None = None) -> None: ...
    def poll(self, wait_seconds: float) -> list[tuple[Any, dict[str, Outcome]]]: ...
    def close(self) -> None: ...


class Result(NamedTuple):
    """One scored sample. A function that failed on it has an entry in `status` and in `why`, others have none."""

    reward: float | None  # the weighted sum, clipped; None if a function failed
    parts: dict[str, float]  # each function's unweighted value under its name, parts of its Score; with a gate `gated`
    status: dict[str, str]  # {name: "error" | "timeout" | "crashed" | "bad_value" | "unparseable_gold"}
    why: dict[str, str]  # {name: message}
    seconds: float  # that the functions worked on it


@dataclass
class _Scoring:
    """A sample that is being scored."""

    key: Any
    prompt: Prompt
    response: Response
    waiting: set[str]  # functions that were asked and have not answered
    later: list[str]  # functions behind the gate
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    gated: bool | None = None  # None: no gate


class RewardManager:
    """Scores samples by `cfg.fns`, as `cfg.weights`, `.gate`, `.sources` and `.clip` say; see docs/rewards.md.

    `quarantine`: a JSON-lines file that gets every failed sample. `errors` counts the failures so far. `ready` raises
    ConfigError for functions that cannot be loaded; `poll` RewardError when processes cannot be kept alive.
    """

    def __init__(self, cfg: RewardConfig, max_response_tokens: int, quarantine: Path | None = None) -> None:
        self.names = names(cfg.fns)
        self.errors: Counter[str] = Counter()  # "function: status: message"; of one kind, under the first of them
        self._first_of: dict[str, str] = {}  # of each kind of error, as it stands in `errors`
        self._cfg = cfg
        self._weights = dict(zip(self.names, cfg.weights or [1.0] * len(self.names), strict=True))
        self._quarantine = quarantine
        self._samples: dict[int, _Scoring] = {}
        self._done: list[tuple[Any, Result]] = []
        self._number = 0
        self._pools: list[Pool] = []
        self._added: list[Lane] = []
        context = {"max_response_tokens": max_response_tokens}
        try:
            for together in self._together():
                pool = reward_pool(together, cfg.workers, cfg.timeout_seconds, cfg.memory_mib, context)
                self._pools.append(pool)
        except BaseException:
            self.close()
            raise

    def _together(self) -> list[list[Fn]]:
        """The functions by the processes they share."""
        fns = [
            Fn(name, spec, dict(self._cfg.args.get(name) or {}))
            for name, spec in zip(self.names, self._cfg.fns, strict=True)
            if spec != REWARD_MODEL
        ]
        rules = [f for f in fns if _is_rule(f.spec)]
        return [rules] * bool(rules) + [[f] for f in fns if f not in rules]

    def add(self, lane: Lane) -> None:
        """One more lane, a reward model's, before the first sample; `close` ends it too."""
        self._added.append(lane)

    @property
    def _lanes(self) -> list[Lane]:
        return [*self._pools, *self._added]

    @property
    def pending(self) -> int:
        """Samples submitted whose result `poll` has not returned."""
        return len(self._samples) + len(self._done)

    @property
    def pids(self) -> list[int]:
        """Ids of the scoring processes now."""
        return [pid for pool in self._pools for pid in pool.pids]

    def ready(self, deadline_seconds: float) -> None:
        """Wait until every lane has loaded its functions. ConfigError says why one cannot."""
        until = time.monotonic() + deadline_seconds
        for lane in self._lanes:
            lane.ready(max(0.0, until - time.monotonic()))

    def of_source(self, source: str) -> list[str]:
        """Which functions score the rows of a source."""
        sources = self._cfg.sources
        elsewhere = {name for s, listed in sources.items() for name in listed if s != source}
        mine = set(sources.get(source, ()))
        return [n for n in self.names if n in mine or n not in elsewhere]

    def submit(self, key: Hashable, prompt: Prompt, response: Response) -> None:
        """Queue one sample; `key` comes back with its result."""
        asked = self.of_source(prompt.source)
        first = [n for n in asked if n in self._cfg.gate]
        later = [n for n in asked if n not in first] if first else []
        self._number += 1
        self._samples[self._number] = _Scoring(key, prompt, response, set(), later)
        self._ask(self._number, first or asked)

    def poll(self, wait_seconds: float) -> list[tuple[Any, Result]]:
        """Results as soon as there are any, first finished first; [] after `wait_seconds` or if none is pending."""
        until = time.monotonic() + wait_seconds
        while True:
            for lane in self._lanes:
                for number, outcomes in lane.poll(0.0):
                    self._take(number, outcomes)
            left = until - time.monotonic()
            if self._done or not self.pending or left <= 0:
                break
            self._wait(left)
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """End every process and all they started. Samples still pending are dropped."""
        for lane in self._lanes:
            lane.close()
        self._pools.clear()
        self._added.clear()
        self._samples.clear()

    def unscorable(self, prompts: Sequence[Prompt], deadline_seconds: float) -> list[tuple[Prompt, str]]:
        """The prompts whose gold answer a function that scores them cannot read, and why.

        Raises DataError for a source that no function scores, and when the deadline passes.
        """
        for source in dict.fromkeys(p.source for p in prompts):
            if not self.of_source(source):
                raise DataError(f"no reward function scores rows of {source}: reward.sources has each for others")
        until = time.monotonic() + deadline_seconds
        waiting = Waiting("reading gold answers", deadline_seconds)
        readers = {n for n, spec in zip(self.names, self._cfg.fns, strict=True) if spec in GOLD}
        bad: dict[int, str] = {}
        for pool in [p for p in self._pools if readers.intersection(p.names)]:
            left = iter(enumerate(prompts))
            while True:
                check_gold(pool, itertools.islice(left, max(0, GOLD_AHEAD - pool.pending)))
                if not pool.pending:
                    break
                if time.monotonic() > until:
                    raise DataError(f"the gold answers took over {deadline_seconds:g} s (deadline.start_seconds)")
                bad |= self._unread(prompts, pool.poll(_LOOK_SECONDS))
                waiting.look(lambda pool=pool: f"what {', '.join(pool.names)} say of {len(prompts)}")
        return [(prompts[i], bad[i]) for i in sorted(bad)]

    def require_sources(self, prompts: Sequence[Prompt]) -> None:
        """Raise DataError for a source in reward.sources that no prompt is of: its functions would score nothing."""
        present = sorted({p.source for p in prompts})
        for source in self._cfg.sources:
            if source not in present:
                raise DataError(
                    f"reward.sources.{source}: no row is of that source{nearest(source, present)}; there are "
                    f"{', '.join(present)} (data.source_column, or the name of the file)"
                )

    def _unread(self, prompts: Sequence[Prompt], done: Iterable[tuple[int, Mapping[str, Outcome]]]) -> dict[int, str]:
        """Which of the gold answers that were checked a function of their source cannot read, and why."""
        bad: dict[int, str] = {}
        for i, outcomes in done:
            if not any(o.status for o in outcomes.values()):
                continue
            mine = self.of_source(prompts[i].source)
            found = {n: outcomes[gold_name(n)] for n in mine if gold_name(n) in outcomes}
            failed = [f"{n}: {o.message}" for n, o in found.items() if o.status]
            if failed:
                bad[i] = failed[0]
        return bad

    def _ask(self, number: int, asked: Sequence[str]) -> None:
        sample = self._samples[number]
        sample.waiting = set(asked)
        for lane in self._lanes:
            mine = [n for n in lane.names if n in sample.waiting]
            if mine:
                lane.submit(number, sample.prompt, sample.response, mine)
        if not asked:
            self._finish(number)

    def _take(self, number: int, outcomes: Mapping[str, Outcome]) -> None:
        sample = self._samples[number]
        sample.outcomes |= outcomes
        sample.waiting -= outcomes.keys()
        if sample.waiting:
            return
        later, sample.later = sample.later, []
        if later:
            passed = all(_passes(o) for o in sample.outcomes.values())
            sample.gated = not passed
            if passed:
                self._ask(number, later)
                return
        self._finish(number)

    def _finish(self, number: int) -> None:
        sample = self._samples.pop(number)
        outcomes = {n: sample.outcomes[n] for n in self.names if n in sample.outcomes}
        values = {n: o.reward for n, o in outcomes.items() if o.reward is not None}
        failed = {n: o for n, o in outcomes.items() if o.status}
        if not values and not failed:
            failed = {
                "reward": Outcome(
                    None, {}, "bad_value", f"no function gave a score to a row of {sample.prompt.source}", "", 0.0
                )
            }
        reward = None if failed else self._sum(values)
        if reward is not None and not abs(reward) <= MOST_REWARD:
            failed, reward = self._too_large(values, reward), None
        for name, outcome in failed.items():
            self._report(sample, name, outcome)
        result = Result(
            reward,
            self._parts(outcomes, sample.gated),
            {n: o.status for n, o in failed.items()},
            {n: o.message for n, o in failed.items()},
            math.fsum(o.seconds for o in outcomes.values()),
        )
        self._done.append((sample.key, result))

    def _sum(self, values: Mapping[str, float]) -> float:
        """NaN where it is beyond all floats."""
        try:
            total = math.fsum(self._weights[n] * v for n, v in values.items())
        except (OverflowError, ValueError):
            return math.nan
        if self._cfg.clip:
            low, high = self._cfg.clip
            total = max(low, min(high, total))
        return total

    def _too_large(self, values: Mapping[str, float], total: float) -> dict[str, Outcome]:
        """The failure of the function whose share of the sum is the largest."""
        name = max(values, key=lambda n: abs(self._weights[n] * values[n]))
        message = (
            f"{name} gave {values[name]:g}, its weight is {self._weights[name]:g}: the reward would be {total:g}, and "
            f"the largest there can be is {MOST_REWARD:g}"
        )
        return {name: Outcome(None, {}, "bad_value", message, "", 0.0)}

    def _parts(self, outcomes: Mapping[str, Outcome], gated: bool | None) -> dict[str, float]:
        parts = {n: o.reward for n, o in outcomes.items() if o.reward is not None}
        for name, outcome in outcomes.items():
            for part, value in outcome.parts.items():
                taken = part in parts or part in self.names or part == GATED
                parts[f"{name}/{part}" if taken else part] = value
        return parts if gated is None else parts | {GATED: float(gated)}

    def _report(self, sample: _Scoring, name: str, outcome: Outcome) -> None:
        said = f"{name}: {outcome.status}: {outcome.message}"
        self.errors[self._first_of.setdefault(kind(said), said)] += 1
        if self._quarantine is not None:
            quarantine.put(self._quarantine, sample.prompt, sample.response, name, outcome)

    def _wait(self, seconds: float) -> None:
        """Until a lane may have something, or `seconds` are over."""
        poll, seconds = select.poll(), min(seconds, _LOOK_SECONDS)
        for pool in self._pools:
            poll.register(pool.fileno(), select.POLLIN)
        if any(lane.pending for lane in self._added):
            seconds = min(seconds, _ASK_SECONDS)
        poll.poll(seconds * 1000)


def _is_rule(spec: str) -> bool:
    """A built-in plain function; the built-in classes hold connections or run code, and have processes of their own."""
    return spec in BUILTIN and BUILTIN[spec].rpartition(".")[2][0].islower()


def _passes(outcome: Outcome) -> bool:
    """Whether the gate is open: a function that failed closes it, one that does not apply to the sample opens it."""
    return not outcome.status and (outcome.reward is None or outcome.reward > 0)
