"""Pure functions of tensors, and what advantage.name and loss.name may be.

The functions are named by dotted paths, so that to read the names costs no torch.
"""

ADVANTAGES = {
    "grpo": "rlcore.algo.advantage.grpo",
    "gae": "rlcore.algo.advantage.gae",
    "rloo": "rlcore.algo.advantage.rloo",
    "remax": "rlcore.algo.advantage.remax",
    "reinforce_plus_plus": "rlcore.algo.advantage.reinforce_plus_plus",
    "reinforce_plus_plus_baseline": "rlcore.algo.advantage.reinforce_plus_plus_baseline",
    "opo": "rlcore.algo.advantage.opo",
    "gpg": "rlcore.algo.advantage.gpg",
}

LOSSES = {
    "ppo_clip": "rlcore.algo.loss.ppo_clip",
    "gspo": "rlcore.algo.loss.gspo",
    "cispo": "rlcore.algo.loss.cispo",
    "policy_gradient": "rlcore.algo.loss.policy_gradient",
    "sapo": "rlcore.algo.loss.sapo",
    "sft": "rlcore.algo.loss.sft",
    "dpo": "rlcore.algo.preference.dpo",
}
