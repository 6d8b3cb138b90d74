"""A user's own advantage or loss that is broken: always a ConfigError with the key, the file and the line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rlcore.algo.advantage import advantage_fn, credit
from rlcore.algo.loss import policy_loss
from rlcore.algo.objective import objective
from rlcore.compose.function_names import wrong_name
from rlcore.config import AdvantageConfig, Config
from rlcore.errors import ConfigError
from rlcore.plugins import Spec, absolute, call, plugin
from rlcore.records import Batch
from rlcore.train.prepare import with_plugins
from rlcore.train.reinforcement import Reinforcement

BROKEN_IMPORTS = [
    ("import surely_no_such_module\n", 1, "ModuleNotFoundError", "No module named 'surely_no_such_module'"),
    ("x = 1\n\ndef f(:\n", 3, "SyntaxError", "invalid syntax"),
    ("x = 1\nraise RuntimeError('not on a Monday')\n", 2, "RuntimeError", "not on a Monday"),
    ("\n\nimport json\njson.loads('}')\n", 4, "JSONDecodeError", "Expecting value"),  # raised in the library it calls
    ("raise SystemExit(0)\n", 1, "SystemExit", ""),  # else the run ends as if all were well
]


def batch_of(*columns: str) -> Batch:
    """Two rollouts of one prompt, a prompt token and two sampled ones each."""
    return Batch(
        tokens=torch.zeros(6, dtype=torch.int32),
        offsets=torch.tensor([0, 3, 6]),
        mask=torch.arange(6) % 3 > 0,
        rollout_logp=torch.zeros(6),
        reward=torch.tensor([1.0, 0.0]),
        group=torch.zeros(2, dtype=torch.int64),
        baseline=torch.zeros(2),
        **{name: torch.zeros(6) for name in columns},
    )


def mine(path: Path, text: str) -> str:
    (path / "mine.py").write_text(text)
    return str(path / "mine.py")


@pytest.mark.parametrize(("text", "line", "error", "says"), BROKEN_IMPORTS)
def test_a_file_that_cannot_be_imported(tmp_path: Path, text: str, line: int, error: str, says: str) -> None:
    file = mine(tmp_path, text)
    with pytest.raises(ConfigError) as e:
        plugin(f"{file}:f", "loss.name")
    for part in (f"loss.name: cannot import {file}: {error} at {file}:{line}: ", says):
        assert part in str(e.value)


@pytest.mark.parametrize(("text", "line", "error", "says"), BROKEN_IMPORTS)
def test_a_module_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, line: int, error: str, says: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / f"broken_by_{error}"  # another each time: Python remembers packages
    package.mkdir()
    (package / "__init__.py").write_text("")
    file = mine(package, text)
    with pytest.raises(ConfigError) as e:
        plugin(f"{package.name}.mine.f", "advantage.name")
    for part in (f"advantage.name: cannot import {package.name}.mine: {error} at {file}:{line}: ", says):
        assert part in str(e.value)


@pytest.mark.parametrize(
    ("text", "home", "name", "is_file"),
    [
        ("a/b.py:f", "a/b.py", "f", True),
        ("c:/b.py:f", "c:/b.py", "f", True),
        ("a/b.py", "a/b.py", "", True),
        ("a/b.py:", "a/b.py", "", True),
        ("a.b.f", "a.b", "f", False),
        ("grpo", "", "grpo", False),
    ],
)
def test_a_function_is_named_in_three_ways(text: str, home: str, name: str, is_file: bool) -> None:
    assert Spec.of(text) == (home, name, is_file)


def test_only_a_file_has_another_path_in_another_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("a/b.py:f") == f"{tmp_path}/a/b.py:f"
    for text in ("grpo", "a.b.f", f"{tmp_path}/c.py:f"):
        assert absolute(text) == text


def test_a_file_is_looked_into_as_it_is_imported(tmp_path: Path) -> None:
    """What the check before a run says of a name, without importing the file, importing it says too."""
    file = mine(tmp_path, "def scores(*args): ...\n")
    for spec in (f"{file}:score", file, f"{file}:", f"{tmp_path}/none.py:f"):
        (said,) = wrong_name("loss.name", spec)
        with pytest.raises(ConfigError) as e:
            plugin(spec, "loss.name")
        assert str(e.value).replace("'", "") == said.replace("'", "")
    assert wrong_name("loss.name", f"{file}:scores") == [] and callable(plugin(f"{file}:scores", "loss.name"))


def test_names_that_stand_for_no_function(tmp_path: Path) -> None:
    file = mine(tmp_path, "f = 0.5\n")
    for spec, says in [
        (file, f"{file} is a file; add the name of the function in it: {file}:function"),
        (f"{file}:", f"add the name of the function in it: {file}:function"),
        (f"{file}:f", f"f in {file} is no function but of type float: 0.5"),
        (f"{file}:g", f"{file} has no function g"),
        (f"{tmp_path}/none.py:f", f"no file {tmp_path}/none.py"),
        ("surely_no_such_module.f", "cannot import surely_no_such_module: ModuleNotFoundError: No module"),
        ("..f", "cannot import"),
    ]:
        with pytest.raises(ConfigError, match=re.escape(says)) as e:
            plugin(spec, "loss.name")
        assert str(e.value).startswith("loss.name: ")


RAISING = """import torch


def divides(*args):
    return helper(0), {}

def helper(x):
    return 1 / x

def in_torch(*args):
    return torch.zeros(2) @ torch.zeros(3), {}

def takes_nothing():
    return 0

@torch.no_grad()
def decorated(*args):
    raise KeyError("oh")

def ends(*args):
    raise SystemExit(0)
"""


@pytest.mark.parametrize(
    ("name", "line", "error"),
    [
        ("divides", 8, "ZeroDivisionError"),
        ("in_torch", 11, "RuntimeError"),
        ("takes_nothing", 13, "TypeError"),
        ("decorated", 18, "KeyError"),
        ("ends", 21, "SystemExit"),
    ],
)
def test_a_function_that_raises(tmp_path: Path, name: str, line: int, error: str) -> None:
    file = mine(tmp_path, RAISING)
    spec, cfg = f"{file}:{name}", Config()
    cfg.advantage.name = cfg.loss.name = spec
    says = f"{spec} raised {error} at {file}:{line}: "
    with pytest.raises(ConfigError, match=f"^advantage.name: {re.escape(says)}") as e:
        credit(batch_of(), advantage_fn(cfg.advantage), cfg.advantage)
    assert type(e.value.__cause__).__name__ == error and e.value.exit_code == 2
    logp = torch.zeros(6, requires_grad=True)
    with pytest.raises(ConfigError, match=f"^loss.name: {re.escape(says)}") as e:
        objective(logp, logp.detach(), batch_of("old_logp", "advantage"), policy_loss(cfg.loss), cfg, 0.0)
    assert type(e.value.__cause__).__name__ == error


def test_asserts_of_the_built_in_ones_stay_asserts() -> None:
    cfg, logp = Config(), torch.zeros(6, requires_grad=True)
    with pytest.raises(AssertionError):
        objective(logp, logp.detach(), batch_of("old_logp"), policy_loss(cfg.loss), cfg, 0.0)
    with pytest.raises(AssertionError):
        credit(batch_of(), advantage_fn(AdvantageConfig(name="gae")), AdvantageConfig(name="gae"))


def test_callables_without_a_line_are_named_too() -> None:
    class Loss:
        def __call__(self, x: int) -> int:
            return x

    for fn in (Loss(), len):
        with pytest.raises(ConfigError, match="^loss.name: mine raised TypeError: "):
            call(fn, "loss.name", "mine")


def test_a_users_loss_that_is_not_finite() -> None:
    """Where it is the function's fault: on masked tokens whose log-probabilities are finite."""

    def run(name: str, loss: list[float], **logps: float) -> tuple[torch.Tensor, Any]:
        cfg, batch = Config(), batch_of("old_logp", "advantage")
        cfg.loss.name = name
        logp = torch.zeros(6)
        logp[1] = logps.get("new", 0.0)
        assert batch.old_logp is not None
        batch.old_logp[1] = logps.get("old", 0.0)
        return objective(logp, torch.zeros(6), batch, lambda x, b, c: (torch.tensor(loss), {}), cfg, 0.0)

    nan, inf = float("nan"), float("inf")
    with pytest.raises(ConfigError, match=r"loss\.name: mine\.py:f .* not finite for 2 of 4 masked tokens"):
        run("mine.py:f", [0, nan, 1, 0, inf, 1])
    run("mine.py:f", [nan, 1, 1, inf, 1, 1])  # off the mask
    run("mine.py:f", [0, nan, 1, 0, 1, 1], new=nan)  # the weights' fault: the update is skipped
    run("mine.py:f", [0, nan, 1, 0, 1, 1], old=-inf)
    run("ppo_clip", [0, nan, 1, 0, inf, 1])


def test_a_users_loss_without_a_gradient() -> None:
    cfg, logp = Config(), torch.zeros(6, requires_grad=True)
    cfg.loss.name = "mine.py:f"
    batch = batch_of("old_logp", "advantage")
    with pytest.raises(ConfigError, match=r"loss\.name: mine\.py:f .* without a gradient"):
        objective(logp, torch.zeros(6), batch, lambda x, b, c: (-x.detach(), {}), cfg, 0.0)
    with torch.no_grad():  # a step in which only the critic learns
        objective(logp.detach(), torch.zeros(6), batch, lambda x, b, c: (-x, {}), cfg, 0.0)


@pytest.mark.parametrize("key", ["advantage", "loss"])
def test_a_run_with_a_broken_function_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    """Before data, rewards and Ray, which are none here; and by a path that is right in a rank's directory too."""
    monkeypatch.chdir(tmp_path)
    mine(tmp_path, "raise RuntimeError('not on a Monday')\n")
    cfg = Config(run_dir=str(tmp_path / "run"))
    getattr(cfg, key).name = "mine.py:f"
    with pytest.raises(ConfigError, match=f"{key}.name: cannot import {tmp_path}/mine.py: .*Monday"):
        Reinforcement(cfg, lambda text: None)


def test_ranks_get_the_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    mine(tmp_path, "def f(*args): ...\ndef g(*args): ...\n")
    cfg = Config()
    cfg.advantage.name, cfg.loss.name = "mine.py:f", "./mine.py:g"
    (tmp_path / "elsewhere").mkdir()
    there = with_plugins(cfg)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert policy_loss(there.loss).__name__ == "g" and advantage_fn(there.advantage).__name__ == "f"  # type: ignore[attr-defined]
    assert (cfg.advantage.name, cfg.loss.name) == ("mine.py:f", "./mine.py:g")
    assert (with_plugins(Config()).advantage.name, with_plugins(Config()).loss.name) == ("grpo", "ppo_clip")
