"""The command line as a shell sees it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlcore.cli.shell import typed
from rlcore.cli.train import last_words, with_next_seed


def rlcore(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", *args], capture_output=True, text=True, timeout=60)


def test_the_command_line_prints_the_resolved_run() -> None:
    done = rlcore("rlcore.train", "--config-name", "demo", "seed=3", "algorithm=dapo", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    shown = OmegaConf.create(done.stdout)
    assert (shown.seed, shown.algorithm, shown.loss.clip_high, shown.kl.coef) == (3, "dapo", 0.28, 0.0)


def test_a_suggested_command_can_be_pasted_into_a_shell(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [
        "data.train=[generate:countdown?size=20&seed=2, b c.jsonl]",
        "reward.sources={odd: [gsm8k_strict]}",
        "steps=2",
    ]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/rlcore"])
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    again = with_next_seed("train", "demo", [*given, "seed=4", f"run_dir={tmp_path}/a"], seed=4)
    shown = subprocess.run(["sh", "-c", f"printf '%s\\n' {again}"], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines() == ["rlcore", "train", "demo", *given, "seed=5"]

    metrics = tmp_path / "a b" / "metrics.jsonl"
    (metrics.parent / "rollouts").mkdir(parents=True)
    metrics.write_text('{"time": 0, "step": 0}\n')
    last_words(metrics.parent, metrics.parent / "export", again, 1.0)
    assert f"[rlcore] next: {again}\n" in capsys.readouterr().out
    assert typed("resume", metrics.parent) == f"rlcore resume '{metrics.parent}'"
    monkeypatch.setattr(sys, "argv", ["/my programs/rlcore"])
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert typed("export", "r") == "'/my programs/rlcore' export r"


def test_a_wrong_key_exits_2_before_anything_heavy_is_imported() -> None:
    done = rlcore("rlcore.train", "--config-name", "demo", "rollout.engine=2")
    assert done.returncode == 2
    assert "did you mean rollout.engines?" in done.stderr and "Traceback" not in done.stderr
    code = "import sys, rlcore.compose.compose; print([m for m in ('torch', 'ray', 'vllm') if m in sys.modules])"
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert heavy.stdout.strip() == "[]", heavy.stdout + heavy.stderr


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--resolve"], "--resolve goes with --cfg job"),
        (["--cfg"], "--cfg needs one of job, hydra, all"),
        (["--cfg", "jobs"], "--cfg needs one of job, hydra, all"),
        (["--multirum"], "no flag --multirum; did you mean --multirun?"),
        (["-m", "seed=1,2", "-c", "job"], "only one of --multirun, --cfg at a time"),
        (["--cfg", "job", "hydra.foo=1"], "Could not override 'hydra.foo'"),
        (["run_dir=FILE"], "run_dir: cannot write to FILE: File exists; give another directory"),
        (["run_dir=FILE/run"], "run_dir: cannot write to FILE/run: Not a directory; give another directory"),
    ],
)
def test_what_is_wrong_on_a_command_line_is_one_line_and_exit_2(args: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    args, said = [[x.replace("FILE", f"{tmp_path}/file") for x in each] for each in (args, [said])]
    done = rlcore("rlcore.train", "--config-name", "demo", *args)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said[0] in done.stderr and done.stderr.count("\n") == 1


def test_hydras_flags_work_with_and_without_a_value() -> None:
    for args in (["--info", "config"], ["--info=config"], ["--cfg=job", "--package", "rollout"]):
        done = rlcore("rlcore.train", "--config-name", "demo", *args)
        assert done.returncode == 0 and "kv_cache_gib: " in done.stdout, done.stderr


def test_a_closed_pipe_ends_silently() -> None:
    command = f"{sys.executable} -m rlcore.train --config-name demo --cfg job"
    for shown in (f"{command} | head -1", f"{command.replace(' --cfg job', ' --help')} | true"):
        done = subprocess.run(["bash", "-c", f"{shown}; exit ${{PIPESTATUS[0]}}"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) in ((141, ""), (0, "")), shown  # 0: it fitted into the pipe


def test_a_closed_pipe_ends_a_job_silently(tmp_path: Path) -> None:
    code = """
import sys
from rlcore.cli.shell import guarded, say
from rlcore.compose.compose import compose, run_with_hydra
from rlcore.runs.directory import recorded
def work():
    composed, for_hydra = compose("demo", ["run_dir=run", "seed=1,2"], multirun=True)
    return run_with_hydra(composed, for_hydra, ["--multirun"], job)
def job(cfg, composed):
    with recorded(__import__("pathlib").Path(cfg.run_dir)):
        for _ in range(100_000):
            say(cfg.run_dir)
    return 0
sys.exit(guarded(work))
"""
    shown = f"{sys.executable} -c '{code}' | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (141, "[rlcore] run/0\n", "")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["0"]  # no other job is begun


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_fault(closed: str) -> None:
    for args, code in (("--config-name demo --cfg job", 0), ("--help", 0), ("--config-name nonsense", 2)):
        done = subprocess.run(["bash", "-c", f"{sys.executable} -m rlcore.train {args} {closed}"], capture_output=True)
        assert done.returncode == code and b"Traceback" not in done.stderr, done.stderr


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_is_exit_129(tmp_path: Path, ignored: bool) -> None:
    """Whether it is told by the signal or, after `disown`, by what can no longer be written."""
    code = """
import signal, sys, time
from pathlib import Path
from rlcore.cli.shell import guarded, say
from rlcore.runs.directory import recorded
def work():
    with recorded(Path("run")):
        try:
            while True:
                say("here")
                time.sleep(0.1)
        finally:
            print("the end")
if sys.argv[1] == "True":
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
sys.exit(guarded(work))
"""
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(tmp_path)
        os.execv(sys.executable, [sys.executable, "-c", code, str(ignored)])
    while b"here" not in os.read(terminal, 1000):
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129


def test_a_full_disk_is_exit_7(tmp_path: Path) -> None:
    """Of a file system of 1 MiB, in a mount namespace of its own."""
    code = f"""
import sys
from rlcore.cli.shell import guarded
from rlcore.runs.directory import recorded
from pathlib import Path
def work():
    with recorded(Path("{tmp_path}/run")):
        (Path("{tmp_path}/run") / "metrics.jsonl").write_bytes(b"x" * 2_000_000)
    return 0
sys.exit(guarded(work))
"""
    mount = f"mount -t tmpfs -o size=1m none {tmp_path} && exec {sys.executable} -c '{code}'"
    done = subprocess.run(["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount], capture_output=True)
    err = done.stderr.decode()
    if done.returncode == 32 or "unshare failed" in err:
        pytest.skip(f"no mount namespace here: {err}")
    assert done.returncode == 7 and "Traceback" not in err, err
    assert err.splitlines()[-1] == f"rlcore: DiskError: {tmp_path}/run: No space left on device"
