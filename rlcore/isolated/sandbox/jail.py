"""Start one program in namespaces of its own: `python -I -S jail.py SPEC REPORT LIFELINE`, three inherited descriptors.

SPEC is a file of JSON, REPORT takes one line of it, LIFELINE reports the end of the caller. Three processes: this one,
outside; the init of the new pid namespace, which ends with all in it; and the program. What the isolation needs and the
kernel refuses is reported as {"refused": ...}; nothing is run then. Standard library only, nothing of rlcore.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import struct
import sys
import time
from typing import Any, NoReturn

# linux/sched.h: mount, cgroup, uts, ipc, user, pid, network
_NAMESPACES = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8  # the same numbers in mount() and in mount_setattr()
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE, _MNT_DETACH = 32, 4096, 16384, 1 << 18, 2
_OPEN_TREE, _MOVE_MOUNT, _MOUNT_SETATTR = 428, 429, 442  # system calls, numbered alike on every machine
_AT_FDCWD, _AT_EMPTY_PATH, _AT_RECURSIVE, _CLONE = -100, 0x1000, 0x8000, 1
_PDEATHSIG, _DUMPABLE, _SECCOMP, _CAPBSET_DROP, _NO_NEW_PRIVS = 1, 4, 22, 24, 38

_INSIDE = 1000  # uid and gid of the program as it sees them
_NOBODY = 65534  # ... and outside, when we are root: so that no file of root's is its own
_HERE = "/tmp"  # the scratch folder inside, and the place where the new root is put together
_TICK_SECONDS = 0.05

_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SYSTEM += ("/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

# System calls the program may not make: memory that no limit counts, other processes, the kernel's rarer doors.
_DENIED = {
    "x86_64": (
        *(29, 64, 68, 240, 319, 447),  # shmget semget msgget mq_open memfd_create memfd_secret
        *(101, 310, 311, 312),  # ptrace process_vm_readv process_vm_writev kcmp
        *(155, 165, 166, 272, 304, 308),  # pivot_root mount umount2 unshare open_by_handle_at setns
        *(
            248,
            249,
            250,
            298,
            321,
            323,
            425,
        ),  # add_key request_key keyctl perf_event_open bpf userfaultfd io_uring_setup
    ),
    "aarch64": (
        *(194, 190, 186, 180, 279, 447),
        *(117, 270, 271, 272),
        *(41, 40, 39, 97, 265, 268),
        *(217, 218, 219, 241, 280, 282, 425),
    ),
}
_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h

_libc = ctypes.CDLL(None, use_errno=True)


def _call(what: str, function: str, *args: int | bytes | None | ctypes.Array[Any] | ctypes.Structure) -> int:
    """A function of the C library. `what` says in plain words what an error is about."""
    values = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    result = getattr(_libc, function)(*values)
    if result == -1:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error), what)
    return result


def _report(fd: int, message: dict[str, Any]) -> None:
    os.write(fd, json.dumps(message).encode() + b"\n")


def main() -> None:
    spec_fd, report, lifeline = (int(argument) for argument in sys.argv[1:4])
    with os.fdopen(spec_fd, "rb") as f:
        spec = json.loads(f.read())
    for fd in (report, lifeline, *spec["stdio"]):
        os.set_inheritable(fd, False)  # the program gets none of them but as 0, 1 and 2
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the caller's
    try:
        _write("/proc/self/oom_score_adj", "1000")  # when the machine runs out of memory, first us
        _new_namespaces()
        init = os.fork()
    except OSError as e:
        _report(report, {"refused": _words(e)})
        return
    if init == 0:
        _init(spec, report, lifeline)
    os.close(report)
    _end_with_us(init)
    os.waitpid(init, 0)  # returns when every process in the namespace is gone


def _end_with_us(init: int) -> None:
    """SIGTERM ends the namespace instead of us. Through a descriptor: its number may be another process's by then."""
    process = os.pidfd_open(init)

    def end(*_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)

    signal.signal(signal.SIGTERM, end)


def _words(e: OSError) -> str:
    return f"{e.filename}: {e.strerror}"


def _new_namespaces() -> None:
    """Leave for new namespaces; the next child is the first process of the new pid namespace.

    A helper that stays behind maps the user numbers: only from outside can root map two of them.
    """
    outside, uid, gid = os.getpid(), os.geteuid(), os.getegid()
    gone, go = os.pipe()
    helper = os.fork()
    if helper == 0:
        os.close(go)
        try:
            if os.read(gone, 1):
                _map_ids(outside, uid, gid)
        except OSError as e:
            os._exit(e.errno or 1)
        os._exit(0)
    try:
        _call("new namespaces (user, mount, pid, network, ipc, uts, cgroup)", "unshare", _NAMESPACES)
        os.write(go, b"x")
    finally:
        os.close(go)
        failed = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
    if failed:
        raise OSError(failed, os.strerror(abs(failed)), "map of the user numbers (/proc/self/uid_map)")


def _map_ids(pid: int, uid: int, gid: int) -> None:
    if uid:
        _write(f"/proc/{pid}/setgroups", "deny")
    for kind, own in (("uid", uid), ("gid", gid)):
        _write(f"/proc/{pid}/{kind}_map", f"{_INSIDE} {own} 1" if uid else f"0 {own} 1\n{_INSIDE} {_NOBODY} 1")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    except OSError as e:
        raise OSError(e.errno, e.strerror, path) from e
    finally:
        os.close(fd)


def _init(spec: dict[str, Any], report: int, lifeline: int) -> NoReturn:
    """The first process of the namespace: builds what the program sees, starts it, watches it, and takes all along."""
    _call("parent-death signal", "prctl", _PDEATHSIG, signal.SIGKILL)
    _call("not to be traced", "prctl", _DUMPABLE, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    try:
        _file_system(spec)
        program = os.fork()
    except OSError as e:
        _report(report, {"refused": _words(e)})
        os._exit(1)
    if program == 0:
        _program(spec, report)
    _report(report, _watch(program, spec, lifeline))
    os._exit(0)


def _file_system(spec: dict[str, Any]) -> None:
    """A new root of read-only views and one writable folder; the old root is gone afterwards."""
    _call("private mounts", "mount", b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)
    links = {path: os.readlink(path) for path in _SYSTEM if os.path.islink(path)}
    shown = [path for path in _SYSTEM if path not in links and os.path.exists(path)]
    for path in sorted(spec["show"], key=len):
        if not any(f"{path}/".startswith(f"{other}/") for other in shown):
            shown.append(path)
    trees = {path: _view(path, _RDONLY | _NOSUID | _NODEV) for path in shown}
    trees |= {path: _view(path, _RDONLY | _NOSUID | _NOEXEC) for path in _DEVICES}
    _tmpfs(_HERE, "size=1m,nr_inodes=1000,mode=755")
    os.mkdir(_HERE + _HERE)
    _tmpfs(_HERE + _HERE, f"size={spec['scratch_mib']}m,nr_inodes={spec['scratch_files']},mode=777")
    for path, tree in trees.items():  # after the scratch folder: some may lie in it
        _place(tree, path)
    for path, target in links.items():
        os.symlink(target, _HERE + path)
    _proc(_HERE + "/proc")
    os.symlink(_HERE, _HERE + "/dev/shm")
    _attributes(_AT_FDCWD, _HERE, _RDONLY | _NOSUID | _NODEV, 0)
    os.chdir(_HERE)
    _call("pivot_root", "pivot_root", b".", b".")
    _call("unmount of the old root", "umount2", b".", _MNT_DETACH)
    os.chdir(_HERE)
    for name, text in spec["files"].items():
        with open(name, "wb") as f:
            f.write(text.encode("utf-8", "surrogatepass"))


def _view(path: str, attributes: int) -> int:
    """A descriptor of a copy of the mounts at `path` and below, with these attributes; not yet anywhere."""
    flags = _CLONE | os.O_CLOEXEC | _AT_RECURSIVE
    fd = _call(f"view of {path} (open_tree)", "syscall", _OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)
    _attributes(fd, "", attributes, _AT_RECURSIVE | _AT_EMPTY_PATH)
    return fd


def _attributes(fd: int, path: str, attributes: int, flags: int) -> None:
    what = "read-only mount (mount_setattr, Linux 5.12)"
    setting = ctypes.create_string_buffer(struct.pack("=QQQQ", attributes, 0, 0, 0), 32)
    _call(what, "syscall", _MOUNT_SETATTR, fd, os.fsencode(path), flags, setting, 32)


def _place(tree: int, path: str) -> None:
    target = _HERE + path
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.isdir(f"/proc/self/fd/{tree}"):
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_CLOEXEC, 0o644))
    _call(f"mount of {path} (move_mount)", "syscall", _MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), 4)
    os.close(tree)


def _tmpfs(path: str, options: str) -> None:
    _call("mount of a tmpfs", "mount", b"tmpfs", path.encode(), b"tmpfs", _NOSUID | _NODEV, options.encode())


def _proc(path: str) -> None:
    """The /proc of the new pid namespace, read-only once what it takes to set has been set."""
    os.mkdir(path)
    flags = _NOSUID | _NODEV | _NOEXEC
    _call("mount of /proc (masked in this container?)", "mount", b"proc", path.encode(), b"proc", flags, None)
    _write(f"{path}/sys/user/max_user_namespaces", "0")  # no further ones, with full capabilities, inside
    flags |= _MS_REMOUNT | _MS_BIND | _RDONLY
    _call("read-only /proc", "mount", b"none", path.encode(), None, flags, None)


def _program(spec: dict[str, Any], report: int) -> NoReturn:
    """Become the program: no privilege, no descriptor, no variable but those it was given."""
    try:
        os.setsid()
        for fd, given in enumerate(spec["stdio"]):
            os.dup2(given, fd)
        _limit(spec["rlimits"])
        _drop_privileges()
        _prove_process_limit()
        for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.umask(0o022)
        _filter_system_calls()
    except OSError as e:
        _report(report, {"refused": _words(e)})
        os._exit(1)
    try:
        os.execvpe(spec["argv"][0], spec["argv"], spec["environment"])
    except (OSError, ValueError) as e:
        _report(report, {"unstarted": f"{spec['argv'][0]}: {e}"})
    os._exit(1)


def _limit(limits: dict[str, int]) -> None:
    for name, value in limits.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # A program that holds on past the soft limit of CPU time is killed at the hard one.
        resource.setrlimit(number, (value, value + 1 if name == "RLIMIT_CPU" and value != hard else value))


def _drop_privileges() -> None:
    for capability in range(64):
        if _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0) == -1:
            break  # past the last one that this kernel has
    if os.geteuid() == 0:
        os.setgroups([])
    os.setresgid(_INSIDE, _INSIDE, _INSIDE)
    os.setresuid(_INSIDE, _INSIDE, _INSIDE)
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0), 8)
    _call("no capabilities", "capset", header, ctypes.create_string_buffer(24))
    _call("no new privileges", "prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)


def _prove_process_limit() -> None:
    """Fork with no process left to us: the kernel must refuse. It does not limit a user who is root of the machine,
    which a user namespace around us can hide; a fork bomb would then take the machine down."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (min(1, soft), hard))
    try:
        child = os.fork()
    except BlockingIOError:
        resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))
        return
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    raise OSError(errno.EPERM, "this kernel does not enforce it for this user", "limit of processes")


def _filter_system_calls() -> None:
    """Refuse _DENIED with EPERM. On machines it has no numbers for there is no filter: the rest holds without."""
    machine = os.uname().machine
    if machine not in _DENIED:
        return
    denied = _DENIED[machine]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    n = len(denied)
    steps = [(load, 0, 0, 4), (equal, 1, 0, _ARCH[machine]), (give, 0, 0, 0x80000000), (load, 0, 0, 0)]
    steps += [(at_least, n + 1, 0, 0x40000000)]  # x32: the same calls under other numbers
    steps += [(equal, n - i, 0, number) for i, number in enumerate(denied)]
    steps += [(give, 0, 0, 0x7FFF0000), (give, 0, 0, 0x00050001)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(steps), ctypes.addressof(code)))
    _call("filter of system calls (seccomp)", "prctl", _SECCOMP, 2, program, 0, 0)


def _watch(program: int, spec: dict[str, Any], lifeline: int) -> dict[str, Any]:
    """Wait for the program and adopt what it leaves behind, until it ends or is over a limit that has no rlimit."""
    deadline = time.monotonic() + spec["wall_seconds"]
    caller = select.poll()
    caller.register(lifeline, 0)  # the end of the other side is reported unasked
    while True:
        signal.sigtimedwait({signal.SIGCHLD}, _TICK_SECONDS)
        for _ in range(1000):  # a program that forks for ever must not keep us here for ever
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == program:
                return {"code": os.waitstatus_to_exitcode(status), "reason": ""}
            if pid == 0:
                break
        if caller.poll(0):
            os._exit(1)
        if time.monotonic() > deadline:
            return {"code": None, "reason": "wall"}
        if _resident_mib() > spec["memory_mib"]:
            return {"code": None, "reason": "memory"}


def _resident_mib() -> float:
    """Memory of all processes of the namespace but this one, shared pages counted by each."""
    kib = 0
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or pid == "1":
            continue
        try:
            with open(f"/proc/{pid}/status", "rb") as f:
                lines = f.read().splitlines()
        except OSError:
            continue
        kib += sum(int(line.split()[1]) for line in lines if line.startswith((b"RssAnon:", b"RssShmem:")))
    return kib / 1024


if __name__ == "__main__":
    main()
