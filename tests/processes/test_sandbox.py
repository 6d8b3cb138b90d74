"""The sandbox against programs that try to get out, to stay, or to take more than they were given."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlcore.isolated.sandbox import sandbox
from rlcore.isolated.sandbox.sandbox import Limits, Ran, SandboxError, SandboxUnavailable, run, start

REPO = Path(__file__).parents[2]
PATIENT = Limits(wall_seconds=30)
PYTHON = [sandbox.python(), "-S", "-s", "-P"]

needs_sandbox = pytest.mark.skipif(
    "refused: new namespaces" in sandbox.missing(), reason=f"no user namespaces here: {sandbox.missing()}"
)


def python(code: str, *args: str, limits: Limits = PATIENT, **given: Any) -> Ran:
    return run([*PYTHON, "-c", code, *args], limits=limits, **given)


def alive(marker: str) -> list[str]:
    """Command lines of processes of this machine that carry the marker; zombies have none."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            line = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if marker in line and int(pid) != os.getpid():
            found.append(line)
    return found


def gone(marker: str) -> bool:
    until = time.monotonic() + 20
    while alive(marker) and time.monotonic() < until:
        time.sleep(0.02)
    return not alive(marker)


# Each attack is a piece of Python; what it answers is the class of the exception it dies of, or its value.
ATTACKS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "read shadow": ("open('/etc/shadow').read()", lambda a: a == "FileNotFoundError"),
    "home is scratch": ("os.path.expanduser('~') + os.getcwd()", lambda a: a == "/tmp/tmp"),
    "secret file": ("open(SECRET).read()", lambda a: a == "FileNotFoundError"),
    "repository": ("os.listdir(os.path.join(REPO, 'recipes'))", lambda a: a == "FileNotFoundError"),
    "write secret": ("open(SECRET, 'w').write('x')", lambda a: a == "FileNotFoundError"),
    "write root": ("open('/x', 'w')", lambda a: a == "OSError 30"),
    "write usr": ("open('/usr/x', 'w')", lambda a: a in ("OSError 30", "PermissionError")),
    "write interpreter": ("open(os.path.join(sys.prefix, 'x'), 'w')", lambda a: a in ("OSError 30", "PermissionError")),
    "write sysctl": ("open('/proc/sys/kernel/core_pattern', 'w')", lambda a: a in ("OSError 30", "PermissionError")),
    "other scratch": ("sorted(os.listdir('/tmp'))", lambda a: a == ["given.txt"]),
    "shared memory": ("open('/dev/shm/x', 'w').close() or os.listdir('/tmp')", lambda a: "x" in a),
    "symlink out": ("os.symlink(SECRET, 'l') or open('l').read()", lambda a: a == "FileNotFoundError"),
    "root of init": ("os.listdir('/proc/1/root')", lambda a: a == "PermissionError"),
    "memory of init": ("open('/proc/1/mem', 'rb')", lambda a: a == "PermissionError"),
    "environ of init": ("open('/proc/1/environ').read()", lambda a: a == "PermissionError"),
    "descriptors": ("sorted(int(f) for f in os.listdir('/proc/self/fd'))[:-1]", lambda a: a == [0, 1, 2]),
    "environment": ("CANARY in os.environ", lambda a: a is False),
    "processes": ("sorted(int(p) for p in os.listdir('/proc') if p.isdigit())", lambda a: a == [1, 2]),
    "kill parent": ("os.kill(os.getppid(), 9)", lambda a: a in (None, "PermissionError")),
    "stop parent": ("os.kill(os.getppid(), signal.SIGSTOP)", lambda a: a in (None, "PermissionError")),
    "kill caller": ("os.kill(CALLER, 9)", lambda a: a == "ProcessLookupError"),
    "ptrace parent": ("call('ptrace', 16, 1, 0, 0)", lambda a: a == "errno 1"),
    "trace me": ("call('ptrace', 0, 0, 0, 0)", lambda a: a == "errno 1"),
    "no loopback": ("socket.create_connection(('127.0.0.1', PORT), 5)", lambda a: a == "OSError 101"),
    "no internet": ("socket.create_connection(('192.0.2.1', 80), 5)", lambda a: a == "OSError 101"),
    "no raw socket": ("socket.socket(2, 3, 1)", lambda a: a == "PermissionError"),
    "abstract socket": ("socket.socket(1).connect(ABSTRACT)", lambda a: a == "ConnectionRefusedError"),
    "memory device": ("open('/dev/mem', 'rb')", lambda a: a == "FileNotFoundError"),
    "make device": ("os.mknod('m', 0o20666, os.makedev(1, 1))", lambda a: a == "PermissionError"),
    "become root": ("os.setuid(0)", lambda a: a in ("PermissionError", "OSError 22")),
    "chown": ("os.chown('given.txt', 0, 0)", lambda a: a in ("PermissionError", "OSError 22")),
    "chmod outside": ("os.chmod('/usr', 0o777)", lambda a: a in ("OSError 30", "PermissionError")),
    "chroot": ("os.chroot('/tmp')", lambda a: a == "PermissionError"),
    "new user namespace": ("call('unshare', 0x10000000)", lambda a: a == "errno 1"),
    "clone user namespace": (
        "call('syscall', 56, 0x10000000 | 17, 0, 0, 0, 0)",
        lambda a: a in ("errno 28", "errno 22"),
    ),
    "mount": ("call('mount', b't', b'/tmp', b'tmpfs', 0, None)", lambda a: a == "errno 1"),
    "remount": ("call('mount', None, b'/usr', None, 0x1020, None)", lambda a: a == "errno 1"),
    "unmount": ("call('umount2', b'/usr', 2)", lambda a: a == "errno 1"),
    "shared segment": ("call('shmget', 0, 1 << 30, 0o1600)", lambda a: a == "errno 1"),
    "memory file": ("os.memfd_create('x')", lambda a: a == "PermissionError"),
    "raise a limit": ("resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", lambda a: a == "ValueError"),
    "capabilities": ("[l.split()[1] for l in open('/proc/self/status') if l[:4] == 'CapE']", lambda a: a == ["0" * 16]),
}

PROBE = """
import ctypes, json, os, resource, signal, socket, sys
globals().update(json.loads(sys.stdin.read()))
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *args):
    result = getattr(libc, name)(*args)
    if name == 'syscall' and result == 0:
        os._exit(0)  # the child of a clone
    return f'errno {ctypes.get_errno()}' if result == -1 else 'done'
answers = {}
for name, code in ATTACK.items():
    try:
        answer = eval(code)
        answers[name] = answer if isinstance(answer, (int, str, list, type(None))) else repr(answer)
    except Exception as e:
        named = type(e).__name__
        answers[name] = f'{named} {e.errno}' if named == 'OSError' else named
print(json.dumps(answers))
"""


@needs_sandbox
def test_no_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("unharmed")
    monkeypatch.setenv("SANDBOX_CANARY", "1")
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as abstract:
        listener.setblocking(False)
        abstract.bind(f"\0{uuid.uuid4().hex}")
        abstract.listen()
        given = {
            "ATTACK": {name: code for name, (code, _) in ATTACKS.items()},
            "SECRET": str(secret),
            "REPO": str(REPO),
            "CANARY": "SANDBOX_CANARY",
            "CALLER": os.getpid(),
            "PORT": listener.getsockname()[1],
            "ABSTRACT": abstract.getsockname().decode(),
        }
        ran = python(PROBE, stdin=json.dumps(given), files={"given.txt": "x"})
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert ran.exit_code == 0, ran
    assert secret.read_text() == "unharmed"
    answers = json.loads(ran.stdout)
    assert answers.keys() == ATTACKS.keys()
    assert {name: answers[name] for name, (_, is_held) in ATTACKS.items() if not is_held(answers[name])} == {}


@needs_sandbox
def test_a_plain_run() -> None:
    ran = run(["/bin/sh", "-c", "cat; cat given.txt; echo oops >&2; exit 3"], "in ü\n", {"given.txt": "file\ud800\n"})
    assert (ran.exit_code, ran.stdout, ran.stderr, ran.reason) == (3, "in ü\nfile\ufffd\ufffd\ufffd\n", "oops\n", "")
    assert run(["/bin/sh", "-c", "kill -9 $$"]).exit_code == -9
    assert run(["/usr/bin/wc", "-c"], "x" * 50_000_000).stdout == "50000000\n", "a long stdin"
    with pytest.raises(SandboxError, match="no_such_program"):
        run(["no_such_program"])
    with pytest.raises(SandboxError, match="plain names"):
        run(["/bin/true"], files={"../x": ""})
    with pytest.raises(SandboxError, match="/no/such/folder"):
        run(["/bin/true"], show=["/no/such/folder"])


@needs_sandbox
def test_a_folder_is_shown_read_only(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("seen")
    tmp_path.chmod(0o777)
    ran = run(["/bin/sh", "-c", f"cat {tmp_path}/a.txt; echo no > {tmp_path}/b.txt"], show=[str(tmp_path)])
    assert ran.stdout == "seen" and ran.exit_code and not (tmp_path / "b.txt").exists()


GREEDY = {
    "memory": ("x = bytearray(1 << 30)", lambda ran: ran.exit_code == 1 and "MemoryError" in ran.stderr),
    "memory of many": (
        "import os, time\nany(os.fork() == 0 for _ in range(8))\nx = bytearray(50 << 20)\ntime.sleep(60)",
        lambda ran: ran.reason == "memory",
    ),
    "shared memory of many": (
        "import mmap, os, time\nany(os.fork() == 0 for _ in range(8))\nm = mmap.mmap(-1, 50 << 20)\n"
        "for _ in range(50): m.write(b'x' * (1 << 20))\ntime.sleep(60)",
        lambda ran: ran.reason == "memory",
    ),
    "disk": (
        "for i in range(99): open(f'{i}', 'wb').write(b'x' * (1 << 20))",
        lambda ran: ran.exit_code == 1 and "No space left" in ran.stderr,
    ),
    "many files": (
        "for i in range(99999): open(f'{i}', 'w')",
        lambda ran: ran.exit_code == 1 and "No space left" in ran.stderr,
    ),
    "one file": (
        "f = open('f', 'wb')\nwhile True: f.write(b'x' * (1 << 20))",
        lambda ran: ran.exit_code == 1 and "File too large" in ran.stderr,
    ),
    "stdout": (
        "while True: print('x' * (1 << 20))",
        lambda ran: ran.exit_code and "File too large" in ran.stderr and len(ran.stdout) == 2 << 20,
    ),
    "open files": (
        "import os\nkept = [os.open('/dev/null', 0) for _ in range(1000)]",
        lambda ran: ran.exit_code == 1 and "Too many open files" in ran.stderr,
    ),
    "processor": ("while True: pass", lambda ran: ran.reason == "cpu"),
    "processor, stubborn": (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass",
        lambda ran: ran.exit_code == -9,
    ),
    "fork bomb": (
        "import os, time\nn = 0\ntry:\n  while n < 200 and os.fork() > 0: n += 1\n  time.sleep(60)\n"
        "except BlockingIOError: print(n)",
        lambda ran: ran.exit_code == 0 and 10 <= int(ran.stdout) <= 14,
    ),
    "threads": (
        "import threading, time\n"
        "for _ in range(200): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()",
        lambda ran: ran.exit_code == 1 and "can't start new thread" in ran.stderr,
    ),
}


@needs_sandbox
def test_nobody_takes_more_than_given() -> None:
    """All of them at once."""
    limits = Limits(60, cpu_seconds=1, memory_mib=250, file_mib=2, scratch_mib=4, processes=12)
    programs = {what: start([*PYTHON, "-c", code], limits=limits) for what, (code, _) in GREEDY.items()}
    try:
        ran = {what: program.wait() for what, program in programs.items()}
    finally:
        for program in programs.values():
            program.stop()
    over = {what: each for what, each in ran.items() if not GREEDY[what][1](each)}
    assert {
        what: (each.exit_code, each.reason, each.stdout[-300:], each.stderr[-300:]) for what, each in over.items()
    } == {}


# The bombs are small ones, so that a broken limit fails a test and not the machine.
STAYING = {
    "loop": "while True: pass",
    "sleep": "import time; time.sleep(1000)",
    "ignore every signal": (
        "import signal, time\nfor s in set(signal.Signals) - {9, 19}: signal.signal(s, 1)\ntime.sleep(1000)"
    ),
    "stopped": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "endless forks": (
        "import os\nfor _ in range(7):\n  try: os.fork()\n  except OSError: pass\n"
        "while True:\n  try:\n    if os.fork() == 0: os._exit(0)\n  except OSError: pass"
    ),
    "kill all": "import os, signal, time\nif os.fork(): os.kill(-1, signal.SIGKILL)\ntime.sleep(1000)",
    "close all": "import os, time; os.closerange(0, 100); time.sleep(1000)",
}


@needs_sandbox
def test_the_clock_ends_everything_at_once_and_nothing_survives() -> None:
    marker = uuid.uuid4().hex
    limits = Limits(wall_seconds=1.0, cpu_seconds=100)
    programs = {name: start([*PYTHON, "-c", code, marker], limits=limits) for name, code in STAYING.items()}
    try:
        assert {name: program.wait().reason for name, program in programs.items()} == dict.fromkeys(STAYING, "wall")
        assert not alive(marker)
    finally:
        for program in programs.values():
            program.stop()


@needs_sandbox
def test_children_left_behind_are_gone_when_the_program_ends() -> None:
    marker = uuid.uuid4().hex
    daemon = (
        "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "if os.fork() == 0:\n  os.setsid()\n  if os.fork() == 0:\n    print('daemon', flush=True)\n"
        "    time.sleep(1000)\n"
        "  os._exit(0)\nos.wait()\ntime.sleep(0.2)"
    )
    ran = python(daemon, marker)
    assert (ran.exit_code, ran.stdout) == (0, "daemon\n")
    assert not alive(marker)


@needs_sandbox
def test_stop_ends_it_from_another_side() -> None:
    marker = uuid.uuid4().hex
    program = start([*PYTHON, "-c", "import time; time.sleep(1000)", marker], limits=Limits(1000))
    while not alive(marker):
        time.sleep(0.01)
    program.stop()
    assert not alive(marker)


CALLER = """
import sys
from rlcore.isolated.sandbox.sandbox import Limits, python, run
code = "import os, time\\nos.fork()\\nif os.fork() == 0: os.setsid()\\nprint(1)\\ntime.sleep(1000)"
run([python(), "-S", "-c", code, sys.argv[1]], limits=Limits(1000))
"""


@needs_sandbox
@pytest.mark.parametrize("end", ["kill", "kill the group", "kill the jail"])
def test_a_caller_that_is_killed_leaves_nothing(end: str) -> None:
    marker = uuid.uuid4().hex
    caller = subprocess.Popen(
        [sys.executable, "-c", CALLER, marker], cwd=REPO, start_new_session=True, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 60
        while len(alive(marker)) < 5 and time.monotonic() < until:  # the caller itself and four inside
            time.sleep(0.02)
        assert len(alive(marker)) == 5
        if end == "kill the jail":
            jails = Path(f"/proc/{caller.pid}/task/{caller.pid}/children").read_text().split()
            os.kill(int(jails[0]), signal.SIGKILL)
        elif end == "kill the group":
            os.killpg(caller.pid, signal.SIGKILL)
        else:
            caller.kill()
        caller.wait(30)
        assert gone(marker)
    finally:
        caller.kill()
        caller.wait()


REFUSED = """
from rlcore.isolated.sandbox.sandbox import SandboxUnavailable, missing, run
try:
    run(["/bin/sh", "-c", "echo ran without isolation"])
except SandboxUnavailable as e:
    print("refused", e)
print("missing" if missing() else "nothing missing")
"""


@needs_sandbox
def test_without_namespaces_nothing_is_run() -> None:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare(1) to make an environment without user namespaces")
    script = f"echo 0 > /proc/sys/user/max_user_namespaces && exec {sys.executable} -c '{REFUSED}'"
    ran = subprocess.run(["unshare", "-Ur", "sh", "-c", script], cwd=REPO, capture_output=True, text=True)
    assert "refused" in ran.stdout and "user namespaces" in ran.stdout and "max_user_namespaces" in ran.stdout, ran
    assert "missing" in ran.stdout and "without isolation" not in ran.stdout


@needs_sandbox
def test_where_processes_cannot_be_limited_nothing_is_run() -> None:
    """Root of the machine under another name: the kernel exempts it from the limit."""
    if os.geteuid() or shutil.which("unshare") is None:
        pytest.skip("needs root, and unshare(1)")
    as_another = ["unshare", "-U", "--map-user=1234", "--map-group=1234", sys.executable, "-c", REFUSED]
    ran = subprocess.run(as_another, cwd=REPO, capture_output=True, text=True)
    if ran.stdout == "nothing missing\n":
        pytest.skip("this root is not root of the machine: its processes are limited")
    assert "refused" in ran.stdout and "limit of processes" in ran.stdout, ran
    assert "without isolation" not in ran.stdout


AS_A_USER = """
mount -t tmpfs none /mnt && mkdir /mnt/python && mount --bind "$1" /mnt/python || { echo NO MOUNT; exit; }
cd "$2" && exec setpriv --reuid 65533 --regid 65533 --clear-groups /mnt/python/bin/python3 -S -c '
from rlcore.isolated.sandbox.sandbox import *
ran = run(["/bin/sh", "-c", "id -u; grep CapEff /proc/self/status; (:>/usr/x) 2>&1; (:>/proc/sys/kernel/x) 2>&1"])
print(ran.stdout)
loop = "import os\\nn = 0\\ntry:\\n  while n < 200 and os.fork(): n += 1\\nexcept BlockingIOError: print(n)"
ran = run([python(), "-S", "-c", loop], limits=Limits(processes=12))
print("forks", ran.stdout, ran.stderr)'
"""


@needs_sandbox
def test_a_caller_that_is_not_root_has_the_same_sandbox() -> None:
    """Root is one of its callers, a user another: other rights, the same sandbox."""
    if os.geteuid() or not shutil.which("unshare") or not shutil.which("setpriv"):
        pytest.skip("needs root to become a user (for a user the other tests show it), unshare(1) and setpriv(1)")
    ran = subprocess.run(
        ["unshare", "-m", "sh", "-c", AS_A_USER, "sh", os.path.realpath(sys.base_prefix), str(REPO)],
        capture_output=True,
        text=True,
    )
    if "NO MOUNT" in ran.stdout:
        pytest.skip("this root may not mount")
    assert "1000\nCapEff:\t0000000000000000" in ran.stdout, ran
    assert "cannot create /usr/x" in ran.stdout and "cannot create /proc/sys/kernel/x" in ran.stdout, ran
    assert 10 <= int(ran.stdout.partition("forks")[2].split()[0]) <= 14, ran


def test_what_is_not_linux_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxUnavailable, match="darwin"):
        run(["/bin/true"])
