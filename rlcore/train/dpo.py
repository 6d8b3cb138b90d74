"""`rlcore dpo`: the policy learns from preference pairs without a reward model (DPO, arXiv 2305.18290).

The reference is the policy before its first update. Its log-probabilities of what will be learned from are a column
that is computed once, before the first update, and kept in the run directory: no reference ranks are needed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlcore.data.preferences import ResponsePairs
from rlcore.errors import CheckpointError
from rlcore.files import remove, written_aside
from rlcore.records import Batch, Group
from rlcore.train.credit import Column, require_finite
from rlcore.train.learner import Learner
from rlcore.train.supervised import Supervised

if TYPE_CHECKING:
    from torch import Tensor

    from rlcore.workers.actor import Actor

_FILE, _DIGEST = "reference_logp.safetensors", "sha256"


class DirectPreference(Supervised):
    """A policy, on columns of chosen and rejected responses."""

    whole_groups = True
    shown = {"actor/loss": "loss", "actor/margin": "margin", "actor/accuracy": "ranked_right"}

    def read(self, sources: Sequence[str]) -> ResponsePairs:
        cfg = self.cfg
        return ResponsePairs(sources, cfg.data, self.tokenizer, cfg.seed, cfg.rollout.max_response_tokens, self.ends)

    def columns(self) -> dict[str, Column]:
        cfg = self.cfg
        of = {"model.path": cfg.model.path, "model.dtype": cfg.model.dtype.value}
        self.reference = ReferenceLogp(self.model, Path(str(cfg.run_dir)) / _FILE, of, cfg.prompts_per_step)
        return {"ref_logp": self.reference}

    def make_learner(self, columns: Mapping[str, Column]) -> Learner:
        return _FromItsBeginning(self)

    def upcoming(self, state: Mapping[str, Any] | None) -> list[Group]:
        """What will be learned from after `state`, a checkpoint's, and what is held out."""
        done, where = (0, None) if state is None else (state["step"], state["data"])
        held_out = [group for groups in self.held_out.values() for group in groups]
        return [*self.rows.ahead((self.cfg.steps - done) * self.cfg.prompts_per_step, where), *held_out]


class _FromItsBeginning(Learner):
    """Before a checkpoint is loaded, the model is the one that the run began with."""

    def __init__(self, stage: DirectPreference) -> None:
        super().__init__(stage.model)
        self.stage = stage

    def begin(self, state: Mapping[str, Any] | None) -> None:
        if state is None:
            remove(self.stage.reference.file)  # of an attempt that left no checkpoint
        self.stage.reference.compute(self.stage.upcoming(state))


class ReferenceLogp:
    """The column `ref_logp`: log-probabilities under the weights that `actor` has when `compute` is called.

    What is in `file` is taken from there; `of` names the model it must be of. `each` groups are computed at a time.
    """

    def __init__(self, actor: Actor, file: Path, of: dict[str, str], each: int) -> None:
        self.actor, self.file, self.of, self.each = actor, file, of, each
        self.known: dict[str, Tensor] = {}

    def compute(self, groups: Sequence[Group]) -> None:
        """Have the column of these. Raises CheckpointError for a file that is no such column, or another model's."""
        from safetensors.torch import save_file

        self.known = self._read() if self.file.is_file() else {}
        named = {tuple(name for name, _ in _parts(Batch.from_groups([group]))): group for group in groups}
        new = [group for names, group in named.items() if not self.known.keys() >= set(names)]
        for start in range(0, len(new), self.each):
            batch = Batch.from_groups(some := new[start : start + self.each])
            column = self.actor.logp(batch)
            require_finite("ref_logp", column, batch, some)
            self.known |= {name: column[tokens].clone() for name, tokens in _parts(batch)}
        if new:
            with written_aside(self.file) as file:
                save_file(self.known, file, metadata=self.of | {_DIGEST: _digest(self.known)})

    def _read(self) -> dict[str, Tensor]:
        from safetensors import safe_open

        try:
            with safe_open(self.file, framework="pt") as opened:
                of, known = opened.metadata() or {}, {name: opened.get_tensor(name) for name in opened.keys()}
        except Exception as e:  # safetensors raises its own error for a torn file
            raise CheckpointError(f"{self.file}: {e}; delete it to compute it anew") from e
        if of.get(_DIGEST) != _digest(known):
            raise CheckpointError(f"{self.file}: its content is not what was saved; delete it to compute it anew")
        wrong = [f"{key} {of.get(key)}, not {value}" for key, value in self.of.items() if of.get(key) != value]
        if wrong:
            raise CheckpointError(
                f"{self.file} is of {', '.join(wrong)}: a run goes on from the model it began with, its reference"
            )
        return known

    def __call__(self, batch: Batch) -> Tensor:
        """(N,) float32."""
        import torch

        return torch.cat([self.known[name] for name, _ in _parts(batch)])


def _digest(columns: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(columns):
        digest.update(name.encode() + columns[name].numpy().tobytes())
    return digest.hexdigest()


def _parts(batch: Batch) -> Iterator[tuple[str, slice]]:
    """Of each rollout: a name made of its tokens and mask, and where it lies."""
    offsets = batch.offsets.tolist()
    for start, end in zip(offsets[:-1], offsets[1:], strict=True):
        digest = hashlib.blake2b(batch.tokens[start:end].numpy().tobytes(), digest_size=16)
        digest.update(batch.mask[start:end].numpy().tobytes())
        yield digest.hexdigest(), slice(start, end)
