"""`rlcore serve-reward`: load a reward function, listen, and score until Ctrl-C.

On loopback unless RLCORE_REWARD_TOKEN is set, to a token of at least 16 characters: whoever reaches the port can make
the function run on a text of theirs. With a token every request needs `Authorization: Bearer TOKEN`. The traffic is not
encrypted: across an untrusted network put it behind TLS.
"""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import os
import re
import socket
import typing
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rewards.over_http.serve import TOKEN_VARIABLE, serve
from rewards.pools import reward_pool
from rewards.signatures import Fn
from rlcore.cli.shell import Arguments
from rlcore.errors import ConfigError
from rlcore.secret_values import variables_in, written_in

MAKE_TOKEN = f"export {TOKEN_VARIABLE}=$(python -c 'import secrets; print(secrets.token_urlsafe(32))')"

_TOKEN_CHARACTERS = 16  # at least, where other machines can try tokens
_LOAD_SECONDS = 300.0  # for the function to load in every process
_ABOUT = "Answer reward requests over HTTP with one function, in isolated, killable processes as in training."


def serve_reward(args: list[str]) -> int:
    """Raises ConfigError, RewardError."""
    given = _arguments(args)
    token = token_for(given.host)
    fn = Fn(given.function.replace(":", ".").rpartition(".")[2], given.function, _options(given.args))
    with contextlib.closing(_listen(given.host, given.port)) as listening:
        pool = reward_pool([fn], given.workers, given.timeout, given.memory_mib)
        try:
            pool.ready(_LOAD_SECONDS)
            serve(pool, fn.name, token, listening)
        finally:
            pool.close()
    return 0


def _arguments(args: list[str]) -> argparse.Namespace:
    parser = Arguments(prog="rlcore serve-reward", description=_ABOUT)
    parser.add_argument("function", help="FILE.py:function, a dotted path or a built-in name")
    parser.add_argument("--args", default="{}", metavar="JSON", help="the function's options, as in reward.args")
    parser.add_argument("--host", default="127.0.0.1", help=f"other than loopback needs {TOKEN_VARIABLE}")
    parser.add_argument("--port", type=int, default=8010, help="0: any free one")
    parser.add_argument("--workers", type=int, default=1, help="processes that score side by side")
    parser.add_argument("--timeout", type=float, default=10.0, metavar="S", help="seconds for one sample")
    parser.add_argument("--memory-mib", type=int, default=4096, help="memory of one process, at least 256")
    given = parser.parse_args(args)
    if given.workers < 1 or not given.timeout > 0 or given.memory_mib < 256:
        raise ConfigError("--workers must be at least 1, --timeout above 0, --memory-mib at least 256")
    return given


def _options(text: str) -> dict[str, Any]:
    try:
        options = json.loads(text)
    except ValueError as e:
        raise ConfigError(f"--args is not JSON: {e}") from None
    if not isinstance(options, dict):
        raise ConfigError('--args must be an object, as in {"tolerance": 0.1}')
    if wrong := written_in("--args", options, free_form=True):
        raise ConfigError(wrong)
    if unset := [name for name in variables_in(options) if name not in os.environ]:
        raise ConfigError(f"--args: the environment variable {unset[0]} is not set")
    try:
        return typing.cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.create(options), resolve=True))
    except OmegaConfBaseException as e:
        raise ConfigError(f"--args: {str(e).splitlines()[0]}") from None


def token_for(host: str) -> str | None:
    """The token that requests must have, taken out of the environment. ConfigError when the host needs one."""
    token = os.environ.pop(TOKEN_VARIABLE, "").strip()  # out of what the scoring processes inherit
    if token and not re.fullmatch(r"[!-~]+", token):
        raise ConfigError(f"{TOKEN_VARIABLE} has characters that a header cannot carry")
    if len(token) < _TOKEN_CHARACTERS and not _is_loopback(host):
        given = f", its {len(token)} characters can be guessed" if token else ""
        raise ConfigError(
            f"--host {host} can be reached from other machines: set {TOKEN_VARIABLE} to a random text of at least "
            f"{_TOKEN_CHARACTERS} characters first{given}: {MAKE_TOKEN}; or stay on 127.0.0.1"
        )
    return token or None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listen(host: str, port: int) -> socket.socket:
    """Before the processes start: a port that is taken is known at once."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as e:
        raise ConfigError(f"cannot listen on {host} port {port}: {e}") from None
