"""The driver's handle of the reference: what the policy was at the start, or at the last refresh."""

from __future__ import annotations

from torch import Tensor

from rlcore.records import Batch
from rlcore.workers.role import Role


class Reference(Role):
    """The policy as it was: log-probabilities."""

    def logp(self, batch: Batch) -> Tensor:
        """(N,) float32: the log-probability of each token of `batch` under this model, 0 where mask is False."""
        return self._column("logp", batch)
