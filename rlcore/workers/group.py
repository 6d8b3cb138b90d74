"""The driver's handle on the n ranks of a role: split by tokens, scatter, call, gather.

A driver never talks to one rank: it calls a method on all of them and waits through `Watch`, which has a deadline and
knows who died.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import torch
from torch import Tensor

from rlcore.algo.schedule import learning_rate
from rlcore.algo.stats import merge
from rlcore.algo.value import ReturnScale, explained_variance
from rlcore.cluster.deadlines import Watch, Worker
from rlcore.cluster.placement import Cluster
from rlcore.config import Config, DeadlineConfig
from rlcore.errors import WorkerError
from rlcore.records import Batch, Prompt, Response
from rlcore.workers.packing import Work, plan, split, split_pairs

if TYPE_CHECKING:
    from rlcore.isolated.outcome import Outcome


class WorkerGroup:
    """The ranks of one role, each a Ray actor on its own share of a device.

    `make(rank)` gives the constructor's arguments; `devices_each` is how many bundles of the placement group one
    worker spans. Workers are created at once; `call("start", ...)` does the slow part.
    """

    def __init__(
        self, role: str, cls: type, ranks: int, cluster: Cluster, watch: Watch, deadline: DeadlineConfig,
        make: Callable[[int], tuple[Any, ...]], devices_each: int = 1,
    ) -> None:  # fmt: skip
        self.role, self.watch, self.deadline = role, watch, deadline
        remote = ray.remote(cls)
        self.workers = [
            Worker(
                role,
                rank,
                remote.options(**cluster.options(role, rank * devices_each, devices_each)).remote(*make(rank)),
            )
            for rank in range(ranks)
        ]
        watch.workers += self.workers

    def call(self, method: str, *args: Any, seconds: float, each: list[tuple[Any, ...]] | None = None) -> list[Any]:
        """`method(*args)` on every rank at the same time (`each` gives a rank its own arguments); results by rank."""
        return self.finish(method, self.begin(method, *args, each=each), seconds)

    def begin(self, method: str, *args: Any, each: list[tuple[Any, ...]] | None = None) -> list[ray.ObjectRef]:
        """The first half of `call`: does not wait."""
        own = each or [args] * len(self.workers)
        return [getattr(w.handle, method).remote(*a) for w, a in zip(self.workers, own, strict=True)]

    def finish(self, method: str, refs: list[ray.ObjectRef], seconds: float) -> list[Any]:
        """The second half: results by rank, within `seconds` from now."""
        return self.watch.gather(self.workers, refs, f"{self.role}.{method}", seconds)

    def fields_read(self) -> set[str]:
        return set().union(*self.call("fields_read", seconds=60))


def rank_group(role: str, cls: type, ranks: int, cfg: Config, cluster: Cluster, watch: Watch) -> WorkerGroup:
    """A group whose ranks meet in one torch process group."""
    host, port = cluster.address(role)
    return WorkerGroup(
        role, cls, ranks, cluster, watch, cfg.deadline, lambda rank: (rank, ranks, host, port, cfg, cluster.device)
    )


class Scorer:
    """The ranks of a model: a number for every token of a batch from them."""

    def __init__(self, group: WorkerGroup, cfg: Config) -> None:
        self.group, self.cfg = group, cfg

    def _column(self, method: str, batch: Batch) -> Tensor:
        """(N,) float32: `method` of each rank on its share of `batch`, 0 where mask is False. Rollouts without a masked
        token are not sent."""
        useful = batch.rollout_of_token[batch.mask].unique()
        ranks, most = len(self.group.workers), self.cfg.actor.microbatch_tokens
        plans = plan(batch.lengths[useful].tolist(), ranks, most)
        mine = [[int(useful[i]) for microbatch in rank for i in microbatch] for rank in plans]
        each = []
        for indices, rank in zip(mine, plans, strict=True):
            local = iter(range(len(indices)))
            each.append((batch.select(indices), [[next(local) for _ in microbatch] for microbatch in rank]))
        parts = self.group.call(method, each=each, seconds=self.group.deadline.update_seconds)
        column = torch.zeros(len(batch.tokens))
        for indices, part in zip(mine, parts, strict=True):
            column[batch.tokens_of(indices)] = part
        return column

    def _split(self, batch: Batch, epochs: int) -> list[list[Work]]:
        """rank -> its part of each optimizer step. A minibatch without a masked token on any rank is no step: AdamW's
        momentum would move the weights all the same."""
        cfg = self.cfg.actor
        work = split(batch, len(self.group.workers), cfg.microbatch_tokens, cfg.minibatches_per_step, epochs)
        return [[part for part in rank if part.totals.tokens] for rank in work]

    def _on_disk(self, method: str, directory: Path) -> None:
        self.group.call(method, str(directory.resolve()), seconds=self.group.deadline.update_seconds)


class Reference(Scorer):
    """The policy as it was: log-probabilities."""

    def logp(self, batch: Batch) -> Tensor:
        """(N,) float32: the log-probability of each token of `batch` under this model, 0 where mask is False."""
        return self._column("logp", batch)

    def load(self, directory: Path) -> None:
        """Take the weights that `Actor.save_weights` wrote."""
        self._on_disk("load", directory)


class Actor(Scorer):
    """The policy being trained: log-probabilities, updates, weights out, checkpoints."""

    def logp(self, batch: Batch) -> Tensor:
        """(N,) float32: the log-probability of each token of `batch` under this model, 0 where mask is False."""
        return self._column("logp", batch)

    def update(self, batch: Batch, step: int, kl_coef: float = 0.0) -> dict[str, float]:
        """All optimizer updates of step `step` (0-based) on its batch; metrics `actor/...`, `sync/...` and those of
        the loss. In the critic's `warmup_steps` nothing is learned: the rate is 0."""
        rate = self._learning_rate(step)
        work = self._split(batch, self.cfg.actor.epochs_per_step if rate else 1)
        each = [(w, rate, kl_coef) for w in work]
        stats = self.group.call("update", each=each, seconds=self.group.deadline.update_seconds)
        return merge(stats, "actor") | {"actor/lr": rate}

    def _learning_rate(self, step: int) -> float:
        """The schedule begins when the critic is warm, and ends with the run."""
        wait = self.cfg.critic.warmup_steps if self.cfg.critic.ranks > 0 else 0
        return 0.0 if step < wait else learning_rate(step - wait, self.cfg.steps - wait, self.cfg.actor)

    def connect(self, engines: list[Worker], backend: str, join: Callable[..., Any] | None, seconds: float) -> None:
        """Open the way for weights; `join` opens an nccl group with the engines (rollout.receiver.join_nccl)."""
        self.group.call("connect", [e.handle for e in engines], backend, seconds, join, seconds=seconds)

    def publish(self, version: int) -> dict[str, float]:
        """Send the weights to every engine as `version`, verified there; see rlcore/weights.py."""
        return self.group.call("publish", version, seconds=self.group.deadline.publish_seconds)[0]

    def save(self, directory: Path) -> None:
        self._on_disk("save", directory)

    def save_weights(self, directory: Path) -> None:
        """The weights alone, in Hugging Face format, float32."""
        self._on_disk("save_weights", directory)

    def load(self, directory: Path) -> None:
        self._on_disk("load", directory)


class Critic(Scorer):
    """The value model: its guesses, and its updates beside the actor's, by the same minibatches and schedule.

    With `critic.whiten_returns` its ranks learn and say numbers in deviations from the running mean of the returns;
    everything outside this class is in the reward's unit, but for the loss.
    """

    def __init__(self, group: WorkerGroup, cfg: Config) -> None:
        super().__init__(group, cfg)
        self.scale = ReturnScale()
        self._begun: tuple[list[ray.ObjectRef], dict[str, float]] | None = None

    def value(self, batch: Batch) -> Tensor:
        """(N,) float32: the guess, before each token of `batch`, of the rewards from it on; 0 where mask is False."""
        return self.scale.denormalize(self._column("value", batch)).where(batch.mask, 0.0)

    def begin(self, batch: Batch, step: int) -> None:
        """Start all optimizer updates of step `step` (0-based), and do not wait. `value` and `returns` are filled."""
        assert batch.value is not None and batch.returns is not None and self._begun is None
        cfg = self.cfg
        rate = learning_rate(step, cfg.steps, cfg.actor, peak=cfg.critic.learning_rate)
        known = {"critic/lr": rate, "critic/explained_variance": explained_variance(batch)}
        # What the ranks said, in their own unit, is what their clip compares with; the targets are by the newest scale.
        value = self.scale.normalize(batch.value)
        if cfg.critic.whiten_returns:
            self.scale.observe(batch.returns, batch.mask)
        returns = self.scale.normalize(batch.returns)
        unused = dict.fromkeys(("old_logp", "ref_logp", "penalty", "advantage"))
        targets = dataclasses.replace(batch, **unused, value=value, returns=returns)
        work = self._split(targets, cfg.actor.epochs_per_step)
        self._begun = self.group.begin("update", each=[(w, rate) for w in work]), known

    def finish(self) -> dict[str, float]:
        """Wait for what `begin` started; metrics `critic/...`. `critic/explained_variance` is of the values the
        advantages were made of: 1 is perfect, 0 or less no better than a constant."""
        assert self._begun is not None
        refs, known = self._begun
        self._begun = None
        metrics = merge(self.group.finish("update", refs, self.group.deadline.update_seconds), "critic") | known
        if "critic/value" in metrics:
            metrics["critic/value"] = float(self.scale.denormalize(torch.tensor(metrics["critic/value"])))
        return metrics

    def state(self) -> dict[str, float]:
        """What `save` leaves out; JSON."""
        return self.scale.state()

    def restore(self, state: dict[str, float]) -> None:
        self.scale.restore(state)

    def save(self, directory: Path) -> None:
        """The same files as the actor's."""
        self._on_disk("save", directory)

    def load(self, directory: Path) -> None:
        self._on_disk("load", directory)


class PreferenceModel(Scorer):
    """A reward model that learns from pairs: rollouts 2i and 2i + 1 of a batch are the chosen and the rejected one."""

    def update(self, pairs: Batch, step: int) -> dict[str, float]:
        """One optimizer update, step `step` (0-based) of the run; metrics `train/...`: loss and margin, means over the
        pairs, and accuracy, the share of pairs ranked right."""
        rate = learning_rate(step, self.cfg.steps, self.cfg.actor)
        return self._run(pairs, rate) | {"train/lr": rate}

    def evaluate(self, pairs: Batch) -> dict[str, float]:
        """`{"loss", "accuracy", "margin"}` of the current weights on these pairs."""
        found = self._run(pairs, 0.0)
        return {name: found[f"train/{name}"] for name in ("loss", "accuracy", "margin")}

    def _run(self, pairs: Batch, rate: float) -> dict[str, float]:
        work = split_pairs(pairs, len(self.group.workers), self.cfg.actor.microbatch_tokens)
        each = [([part], rate) for part in work]
        return merge(self.group.call("update", each=each, seconds=self.group.deadline.update_seconds), "train")

    def save(self, directory: Path) -> None:
        """The same files as the actor's."""
        self._on_disk("save", directory)

    def load(self, directory: Path) -> None:
        self._on_disk("load", directory)


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
    return [*prompt.messages, {"role": "assistant", "content": response.text}]
