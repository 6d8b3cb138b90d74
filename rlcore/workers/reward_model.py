"""The driver's handles of reward models: one that learns from pairs, and one that scores a run's samples."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import ray

from rlcore.algo.schedule import learning_rate
from rlcore.algo.stats import Learned, learned
from rlcore.cluster.deadlines import Worker
from rlcore.config import Config
from rlcore.errors import WorkerError
from rlcore.records import Batch, Prompt, Response
from rlcore.workers.group import WorkerGroup
from rlcore.workers.packing import plan
from rlcore.workers.role import Role

if TYPE_CHECKING:
    from rlcore.isolated.outcome import Outcome


class RewardModel(Role):
    """A reward model that learns from pairs: rollouts 2i and 2i + 1 of a batch are the chosen and the rejected one."""

    def update(self, pairs: Batch, step: int) -> Learned:
        """One optimizer update, step `step` (0-based) of the run; metrics `train/...`: loss and margin, means over the
        pairs, and accuracy, the share of pairs ranked right."""
        return self._run(pairs, learning_rate(step, self.cfg.steps, self.cfg.actor))

    def look(self, pairs: Batch) -> Learned:
        """The loss and its statistics on pairs that are not learned from."""
        return self._run(pairs, 0.0)

    def _run(self, pairs: Batch, rate: float) -> Learned:
        each = [(work, rate) for work in self._split(pairs, epochs=1, whole_groups=True)]
        stats = self.group.call("update", each=each, seconds=self.group.deadline.update_seconds)
        return learned(stats, "train", rate)


class RewardModelLane:
    """The reward model as one of the things that score: what the collector finishes queues here and goes to the ranks
    in calls of about actor.microbatch_tokens a rank, one call at a time. Nothing here waits for a rank."""

    names = ["reward_model"]

    def __init__(self, group: WorkerGroup, cfg: Config) -> None:
        self.group, self.each = group, cfg.actor.microbatch_tokens
        self._queue: deque[tuple[Any, Prompt, Response]] = deque()
        self._calls: dict[ray.ObjectRef, tuple[Worker, list[Any]]] = {}  # and the keys, in the call's order
        self._until = 0.0

    @property
    def pending(self) -> int:
        """Samples without an outcome yet."""
        return len(self._queue) + sum(len(keys) for _, keys in self._calls.values())

    def ready(self, deadline_seconds: float) -> None:
        """Nothing: the ranks are started with those of all roles."""

    def submit(self, key: Any, prompt: Prompt, response: Response, names: Sequence[str] | None = None) -> None:
        """Queue the conversation of `prompt.messages` and the response; `poll` gives its outcome, with `key`."""
        self._queue.append((key, prompt, response))

    def poll(self, wait_seconds: float) -> list[tuple[Any, dict[str, Outcome]]]:
        """What has come back, after at most `wait_seconds`. Raises WorkerError when a rank has raised or died, or a
        call takes longer than deadline.update_seconds."""
        self._send()
        if not self._calls:
            return []
        watch, done = self.group.watch, list[tuple[Any, "dict[str, Outcome]"]]()
        for ref in watch.any({ref: worker for ref, (worker, _) in self._calls.items()}, wait_seconds):
            worker, keys = self._calls.pop(ref)
            outcomes = watch.get(ref, worker)
            done += [(key, {self.names[0]: outcome}) for key, outcome in zip(keys, outcomes, strict=True)]
        if self._calls and time.monotonic() > self._until:
            late = ", ".join(str(worker) for worker, _ in self._calls.values())
            seconds = self.group.deadline.update_seconds
            raise WorkerError(f"reward_model.score: no answer from {late} within {seconds:g} s, phase {watch.phase}")
        self._send()
        return done

    def close(self) -> None:
        """Forget what is queued; the ranks end with the cluster."""
        self._queue.clear()
        self._calls.clear()

    def _send(self) -> None:
        """One call on every rank, which is collective, with the oldest of what has queued."""
        if self._calls or not self._queue:
            return
        ranks = len(self.group.workers)
        taken, lengths = [], list[int]()
        while self._queue and (not taken or sum(lengths) + _length(*self._queue[0]) <= ranks * self.each):
            taken.append(self._queue.popleft())
            lengths.append(_length(*taken[-1]))
        shares = [[i for micro in rank for i in micro] for rank in plan(lengths, ranks, self.each)]
        conversations = [[_conversation(*taken[i][1:]) for i in share] for share in shares]
        refs = self.group.begin("score", each=[(rank,) for rank in conversations])
        for ref, worker, share in zip(refs, self.group.workers, shares, strict=True):
            self._calls[ref] = worker, [taken[i][0] for i in share]
        self._until = time.monotonic() + self.group.deadline.update_seconds


def _length(_key: Any, prompt: Prompt, response: Response) -> int:
    """Tokens of the policy, about as many as the reward model's; its ranks count theirs."""
    return len(prompt.tokens) + response.tokens + 1


def _conversation(prompt: Prompt, response: Response) -> list[dict[str, Any]]:
    """With the response as the assistant's message, or as what it says after its words that end the prompt."""
    last = prompt.messages[-1:]
    if not last or last[0]["role"] != "assistant":
        return [*prompt.messages, {"role": "assistant", "content": response.text}]
    own = response.text.removeprefix(prompt.opened)
    return [*prompt.messages[:-1], {**last[0], "content": last[0]["content"] + own}]
