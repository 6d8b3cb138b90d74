"""What ends a run: too many samples without a score."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rlcore.errors import RewardError, kind
from rlcore.records import Group, Rollout


def require_scores(groups: Sequence[Group], most: float, quarantine: str) -> None:
    """Raise RewardError when more than the fraction `most` of the rollouts, greedy ones too, ended without a score."""
    failed: list[Rollout] = [r for g in groups for r in g.drawn if r.reward is None]
    total = sum(len(g.drawn) for g in groups)
    if len(failed) > most * total:
        errors = [(name, status, r.why.get(name, "")) for r in failed for name, status in r.status.items()]
        kinds = Counter((name, status, kind(why)) for name, status, why in errors)
        commonest, n = kinds.most_common(1)[0]
        name, status, why = next(e for e in errors if (e[0], e[1], kind(e[2])) == commonest)
        raise RewardError(
            f"{len(failed)} of {total} rollouts have no score, more than reward.max_failed_fraction {most:g}; "
            f"commonest: {name} ended with status {status!r} {n} times{why and ': '}{why}; tracebacks, rows and texts "
            f"are in {quarantine}"
        )
