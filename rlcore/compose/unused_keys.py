"""Keys that nothing reads under this configuration, as far as other keys decide it: known before a run, not at its end.

What is not in the table is found when the run is over (cli.py compares with what was read).
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any, NamedTuple

from rlcore.compose.function_names import built_in
from rlcore.config import Config, all_keys, value_of


class _Needs(NamedTuple):
    """A key is read only where the value of another one, `key`, passes `test`; `remedy` says how it would."""

    key: str
    test: Callable[[Any], bool]
    remedy: str


def _one_of(key: str, *names: str) -> _Needs:
    *others, last = names
    choice = f"{', '.join(others)} or {last}" if others else last
    return _Needs(key, lambda value: _plain(value) in names, f"choose {choice}")


def _above_0(key: str) -> _Needs:
    return _Needs(key, lambda value: value > 0, f"set {key} above 0")


_GRPO, _CLIPPED = _one_of("advantage.name", "grpo"), _one_of("loss.name", "ppo_clip", "gspo", "cispo")
_SAPO, _KL, _TARGET = _one_of("loss.name", "sapo"), _above_0("kl.coef"), _Needs("kl.target", bool, "set kl.target")
_READ_WITH: dict[str, tuple[_Needs, ...]] = {
    "advantage.std_normalize": (_GRPO,),
    "advantage.epsilon": (_GRPO, _Needs("advantage.std_normalize", bool, "set advantage.std_normalize=true")),
    "advantage.gamma": (_one_of("advantage.name", "gae", "reinforce_plus_plus"),),
    "advantage.gae_lambda": (_one_of("advantage.name", "gae"),),
    "loss.clip_low": (_CLIPPED,),
    "loss.clip_high": (_CLIPPED,),
    "loss.dual_clip": (_one_of("loss.name", "ppo_clip"),),
    "loss.tau_positive": (_SAPO,),
    "loss.tau_negative": (_SAPO,),
    "loss.length_constant": (_one_of("loss.aggregation", "constant_length"),),
    "correction.low": (_one_of("correction.name", "mask_token", "reject_sequence"),),
    "correction.high": (
        _one_of("correction.name", "truncate_token", "truncate_sequence", "mask_token", "reject_sequence"),
    ),
    "kl.place": (_KL,),
    "kl.estimator": (_KL,),
    "kl.unbiased_gradient": (_KL, _one_of("kl.place", "loss")),
    "kl.target": (_KL,),
    "kl.horizon": (_KL, _TARGET),
    "reference.ranks": (_KL,),
    "reference.refresh_steps": (_KL,),
    "reward.overlong_penalty": (_above_0("reward.overlong_fraction"),),
} | {key: (_above_0("critic.ranks"),) for key in all_keys() if key.startswith("critic.") and key != "critic.ranks"}
_READ_WITH |= {
    f"reward_model.{leaf}": (_Needs("reward.fns", lambda fns: "reward_model" in fns, "add reward_model to reward.fns"),)
    for leaf in ("path", "ranks")
}
# Only one kind of device reads these. A recipe that runs on both may set both.
OF_ONE_DEVICE = {"rollout.kv_cache_gib", "rollout.device_memory_fraction", "actor.offload"}
_READ_BY_A_FUNCTION = ("advantage.name", "loss.name")  # which gets its whole section
DECIDING = {"algorithm"} | {needs.key for all_of in _READ_WITH.values() for needs in all_of}


def idle(cfg: Config, set_by: dict[str, str]) -> dict[str, str]:
    """Of the keys in `set_by` (key -> where it was set) those without effect: key -> the error in words.

    A user's own advantage or loss function may read whatever is in its section.
    """
    own = [k.partition(".")[0] for k in _READ_BY_A_FUNCTION if value_of(cfg, k) not in built_in(k)]
    errors: dict[str, str] = {}
    for key, origin in set_by.items():
        for needs in _READ_WITH.get(key, ()) if key.partition(".")[0] not in own else ():
            value = value_of(cfg, needs.key)
            if not needs.test(value):
                how = f"nothing reads it with {needs.key} {_plain(value)}; remove it or {needs.remedy}"
                errors[key] = f"{key} ({origin}): {how}"
                break
    return errors


def _plain(value: Any) -> str:
    """As it is written in a recipe."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value.value if isinstance(value, Enum) else value)
