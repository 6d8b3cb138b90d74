"""Reward functions: plain `(prompt, response) -> Score | float`, one task a file. `pool.py` runs them isolated.

Values of BUILTIN are dotted paths, not functions, so that only a worker that scores mathematics loads math-verify.
"""

BUILTIN = {
    "gsm8k": "rewards.gsm8k.gsm8k",
    "gsm8k_strict": "rewards.gsm8k.gsm8k_strict",
    "boxed_math": "rewards.boxed_math.boxed_math",
    "format": "rewards.format.think_answer",
}
