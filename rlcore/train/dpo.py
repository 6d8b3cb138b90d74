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
from rlcore.files import written_aside
from rlcore.records import Batch, Group
from rlcore.train.credit import Column
from rlcore.train.learner import Learner
from rlcore.train.supervised import Supervised

if TYPE_CHECKING:
    from torch import Tensor

    from rlcore.workers.actor import Actor

_FILE = "reference_logp.safetensors"


class Preferred(Supervised):
    """A policy, on columns of chosen and rejected responses."""

    whole_groups = True
    shown = {"actor/loss": "loss", "actor/margin": "margin", "actor/accuracy": "ranked_right"}

    def read(self, sources: Sequence[str]) -> ResponsePairs:
        cfg = self.cfg
        return ResponsePairs(sources, cfg.data, self.tokenizer, cfg.seed, cfg.rollout.max_response_tokens)

    def columns(self) -> dict[str, Column]:
        cfg = self.cfg
        groups = [*self.rows.ahead(cfg.steps * cfg.prompts_per_step)]
        groups += [group for held_out in self.held_out.values() for group in held_out]
        file = Path(str(cfg.run_dir)) / _FILE
        self.reference = ReferenceLogp(self.model, file, groups, cfg.prompts_per_step)
        return {"ref_logp": self.reference}

    def make_learner(self, columns: Mapping[str, Column]) -> Learner:
        return _FromItsBeginning(self.model, self.sampling, self.reference)


class _FromItsBeginning(Learner):
    def __init__(self, model: Actor, sampling: Any, reference: ReferenceLogp) -> None:
        super().__init__(model, sampling)
        self.reference = reference

    def begin(self) -> None:
        self.reference.compute()


class ReferenceLogp:
    """The column `ref_logp`: log-probabilities under the weights that `actor` has when `compute` is called, of the
    rollouts of `groups`. Those in `file` are taken from there; `each` groups are computed at a time."""

    def __init__(self, actor: Actor, file: Path, groups: Sequence[Group], each: int) -> None:
        self.actor, self.file, self.groups, self.each = actor, file, groups, each
        self.known: dict[str, Tensor] = {}

    def compute(self) -> None:
        """Raises CheckpointError for a file that is no such column."""
        from safetensors.torch import load_file, save_file

        if self.file.is_file():
            try:
                self.known = load_file(self.file)
            except Exception as e:  # safetensors raises its own error for a torn file
                raise CheckpointError(f"{self.file}: {e}; delete it to compute it anew") from e
        named = {tuple(name for name, _ in _parts(_batch([group]))): group for group in self.groups}
        new = [group for names, group in named.items() if not self.known.keys() >= set(names)]
        for start in range(0, len(new), self.each):
            batch = _batch(new[start : start + self.each])
            column = self.actor.logp(batch)
            self.known |= {name: column[tokens].clone() for name, tokens in _parts(batch)}
        if new:
            with written_aside(self.file) as file:
                save_file(self.known, file)

    def __call__(self, batch: Batch) -> Tensor:
        """(N,) float32."""
        import torch

        return torch.cat([self.known[name] for name, _ in _parts(batch)])


def _batch(groups: Sequence[Group]) -> Batch:
    return Batch.from_groups(groups)


def _parts(batch: Batch) -> Iterator[tuple[str, slice]]:
    """Of each rollout: a name made of its tokens and mask, and where it lies."""
    offsets = batch.offsets.tolist()
    for start, end in zip(offsets[:-1], offsets[1:], strict=True):
        digest = hashlib.blake2b(batch.tokens[start:end].numpy().tobytes(), digest_size=16)
        digest.update(batch.mask[start:end].numpy().tobytes())
        yield digest.hexdigest(), slice(start, end)
