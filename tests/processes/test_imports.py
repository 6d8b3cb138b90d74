"""What must not be imported: each would cost every process of a run its time or its memory."""

from __future__ import annotations

import subprocess
import sys


def test_rewards_do_not_load_torch() -> None:
    code = (
        "import sys, rlcore.isolated.pool, rewards.signatures; "
        "[rewards.signatures.load(n) for n in ('gsm8k', 'format')];"
        "heavy = {'torch', 'ray', 'sympy', 'numpy', 'transformers'} & set(sys.modules); assert not heavy, heavy;"
        "rewards.signatures.load('boxed_math'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_text_rules_do_not_load_sympy() -> None:
    code = (
        "import sys, rewards.exact, rewards.multiple_choice;"
        "heavy = {'torch', 'sympy', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
