"""What a reward model learns from: pairs of responses of which one was preferred."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry(chosen: Tensor, rejected: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """(p,): `-log sigmoid(chosen - rejected)`, the negative log-likelihood of the preference under the model of Bradley
    and Terry (1952), as in arXiv 1706.03741 (section 2.2.3) and arXiv 2203.02155 (eq. 1).

    `chosen` and `rejected` (p,) are the scores of each pair's responses, with gradient. Beside it, (p,) each:
    `accuracy`, 1 where the chosen one has the higher score, one half at a tie; `margin`, chosen - rejected.
    """
    margin = chosen - rejected
    right = (margin > 0).float() + 0.5 * (margin == 0).float()
    return -logsigmoid(margin), {"accuracy": right, "margin": margin.detach()}
