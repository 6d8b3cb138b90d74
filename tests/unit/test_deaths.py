"""One line out of what Ray writes about a death: its own words, shortened."""

from __future__ import annotations

import pytest

from rlcore.cluster.deaths import notice, short

PACKAGES = "/x/site-packages"
RAISED = """ray.exceptions.ActorDiedError: The actor died because of an error raised in its creation task, \
\x1b[36mray::Rank.__init__()\x1b[39m (pid=3862, ip=192.0.2.2, actor_id=2b49, repr=<rank.Rank object at 0x7f6b>)
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/home/u/rank.py", line 2, in __init__
    self.x = {}["nope"]
             ~~^^^^^^^^
KeyError: 'nope'
"""
IMPORTED = """The actor died because of an error raised in its creation task, \x1b[36mray::Engine.__init__()\x1b[39m
           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
RuntimeError: The actor with name Engine failed to import on the worker. This may be because needed library \
dependencies are not installed in the worker environment:

\x1b[36mray::Engine.__init__()\x1b[39m (pid=3923, ip=192.0.2.2, actor_id=ee4d, repr=<rollout.TemporaryActor>)
                  ^^^^^^^^^^^^^^^^^^^^^^^^^^^
"""
OF_A_FILE = """  File "/home/u/rollout.py", line 4, in <module>
    inner()
  File "/home/u/rollout.py", line 3, in inner
    raise RuntimeError("a file\\nof the user's")
RuntimeError: a file
of the user's
"""
EXIT = """The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: \
Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the OOM killer"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (RAISED, "its creation failed: KeyError: 'nope' (/home/u/rank.py:2)"),
        (
            f"Traceback (most recent call last):\n\n  File \"{PACKAGES}/a.py\", line 1, in a\n\nKeyError: 'nope'\n\n"
            f"\nDuring handling of the above exception, another exception occurred:\n\n{RAISED}",
            "its creation failed: KeyError: 'nope' (/home/u/rank.py:2)",
        ),
        (f"{IMPORTED}{OF_A_FILE}", "its creation failed: RuntimeError: a file (/home/u/rollout.py:3)"),
        (
            f"{IMPORTED}ModuleNotFoundError: No module named 'vllm'",
            "its creation failed: ModuleNotFoundError: No module named 'vllm'",
        ),
        (
            EXIT,
            "Worker unexpectedly exits with a connection error code 2. End of file. "
            "(killed, out of memory, or crashed; LOGS)",
        ),
        ("The actor is dead because nobody refers to it.\nmore", "The actor is dead because nobody refers to it."),
    ],
)  # fmt: skip
def test_a_death_in_one_line(text: str, said: str) -> None:
    assert short(text, "LOGS") == said


def test_rays_table_says_it_in_a_field_of_one_of_several_contexts() -> None:
    from ray.core.generated.common_pb2 import ActorDeathCause

    cause = ActorDeathCause()
    assert notice(cause) == "cause unknown"
    cause.actor_died_error_context.error_message = EXIT
    assert notice(cause) == EXIT
    cause.creation_task_failure_context.formatted_exception_string = RAISED
    assert notice(cause) == RAISED
