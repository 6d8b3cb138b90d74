"""What a command finds around it, put out of the way: the user's folder, proxies, a TMPDIR that is not there.

`settle` comes before all other imports, so only what every interpreter has loaded by then is imported at the top.
"""

from __future__ import annotations

import io
import os
import sys

_HUB_SECONDS = 5.0
_PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def settle() -> None:
    """First thing in a command. What it changes in the environment reaches every process that the command starts."""
    three_streams()
    try:
        installed_first()
    except FileNotFoundError:
        print("rlcore: ConfigError: the working directory has been deleted; cd to one that is there", file=sys.stderr)
        sys.exit(2)
    near_ones_direct()
    if (named := os.environ.get("TMPDIR")) and not os.access(named, os.W_OK | os.X_OK):
        del os.environ["TMPDIR"]  # Python passes over it, other programs fail
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a text that a narrow encoding lacks must not end a run
            stream.reconfigure(errors="backslashreplace")


def three_streams() -> None:
    """Of those that were closed (`>&-`), one that goes nowhere: else the next file that is opened takes its number."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
    for name, number in (("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(number, "w", closefd=False)))


def installed_first() -> None:
    """The user's folder comes last on the import path: a `random.py` or `rollout.py` there is not taken for another.

    It stays on it, for functions that are given as a dotted path. Python programs that are started do not put it, or
    their script's folder, first either (PYTHONSAFEPATH).
    """
    here, ours = os.getcwd(), os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
    script = os.path.dirname(os.path.realpath(sys.argv[0])) if sys.argv and sys.argv[0] else here
    places = {entry: os.path.realpath(entry or here) for entry in sys.path}
    last = {os.path.realpath(here), script}
    first = [entry for entry in sys.path if places[entry] not in last]
    if ours not in map(places.get, first):  # an editable install is found after the whole path, so after that folder
        first.append(ours)
    its_own = [script] if script in places.values() and script != os.path.realpath(here) else []
    sys.path[:] = [*first, *its_own, here]
    os.environ["PYTHONSAFEPATH"] = "1"
    if given := os.environ.get("PYTHONPATH"):
        kept = [entry for entry in given.split(os.pathsep) if entry and os.path.realpath(entry) not in last]
        os.environ["PYTHONPATH"] = os.pathsep.join(kept)


def near_ones_direct() -> None:
    """This machine is not asked through a proxy: with `http_proxy` and no `no_proxy`, a judge on 127.0.0.1 would be."""
    if not any(os.environ.get(name) or os.environ.get(name.upper()) for name in _PROXIES):
        return
    import socket

    listed = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    direct = [host.strip() for host in listed.split(",") if host.strip()]
    direct += [h for h in ("localhost", "127.0.0.1", "::1", socket.gethostname(), _own_address()) if h not in direct]
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(direct)


def _own_address() -> str:
    """Of this machine, as other machines see it. Nothing is sent."""
    import socket

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.connect(("192.0.2.1", 9))
            return s.getsockname()[0]
    except OSError:
        return "127.0.0.1"


def offline_without_hub() -> None:
    """Where the Hugging Face hub does not answer, its libraries use what they have cached, at once: each would ask five
    times a file, for a minute. To be called before something is looked for there."""
    import urllib.error
    import urllib.request

    if os.environ.get("HF_HUB_OFFLINE"):
        return
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    try:
        urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=_HUB_SECONDS).close()
    except urllib.error.HTTPError:
        return  # an answer
    except (OSError, ValueError) as e:
        print(f"[rlcore] {hub} does not answer ({e}): only what is cached of it is used", flush=True)
        os.environ["HF_HUB_OFFLINE"] = "1"
        for library in ("huggingface_hub.constants", "datasets.config"):  # those that are imported have read it
            if library in sys.modules:
                vars(sys.modules[library])["HF_HUB_OFFLINE"] = True
