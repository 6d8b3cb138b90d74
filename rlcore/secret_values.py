"""Secrets: refused where one is written down, and taken out of every text that is written or shown.

A secret is given as ${oc.env:NAME}, or is in an environment variable whose name says so (MY_API_KEY). Values stay in
memory; the names of the variables go to the processes started from here, which have the same environment.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, urlsplit

HIDDEN = "***"
VARIABLES = "RLCORE_SECRETS"  # an environment variable: the names of those whose values a config has as secrets

_REFERENCE = re.compile(r"\$\{oc\.env:\s*([^},\s]+)\s*(?:,([^}]*))?\}")
_URL = re.compile(r"""[A-Za-z][A-Za-z0-9+.-]*://[^\s"'<>]+""")
# What an option or a header is called that holds a secret; `eos_token` and `api_key_env` do not.
_OPTION = (
    r"token|(.*_)?(api_?key|access_?key|secret_?key|private_?key|auth_?key|subscription_?key|secret|password"
    r"|passwd|passphrase|pwd|auth|bearer|credentials?|authorization|cookie|signature|(access|auth|api|bearer|refresh|session|hf|hub|id|secret)_?token)"
)
_IN_A_QUERY = r"code|(.*_)?(key|token|sig|pass)|" + _OPTION
_VARIABLE = r"(.*_)?(KEY|APIKEY|TOKEN|SECRET|PASSWORD|PASSWD|PASS|PW|PAT|CREDENTIALS?)"
_SCHEME = re.compile(r"(?:bearer\s+(\S{4,})|basic\s+([A-Za-z0-9+/=]{12,}))", re.IGNORECASE)
# Keys whose makers gave them a form that tells.
_FORM = re.compile(
    r"(?<![\w-])(?:sk-[\w-]{16,}|hf_[A-Za-z0-9]{16,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|AKIA[0-9A-Z]{16}|xox[abp]-[\w-]{10,}|AIza[\w-]{30,})"
)
# Characters at least. A shorter value may be a word of any text, which would be spoiled without it.
_BY_PLACE, _IN_FREE_FORM, _BY_NAME = 4, 6, 8

_AS_IT_IS = "!$%&'()*+,/:;=?@[\\]^`{|}~"  # in the query of a URL, by those who change least

_of_variables: dict[str, str] = {}  # values of variables whose names say that they are secret -> the name
_known: set[str] = set()
_pattern: re.Pattern[str] | None = None
_looked = False


def written_in(key: str, value: Any, free_form: bool = False) -> str | None:
    """What is wrong with a line of a config: a secret stands in it, and where; None if none does. Not the secret.

    What the line takes from environment variables is a secret from now on where its place or the variable's name says
    so, and under a free-form key always.
    """
    for place, text in _texts(key, value):
        suspects = list(_suspects(place.rpartition(".")[2], text))
        for reference in _REFERENCE.finditer(text):
            if _says_secret(reference[1]) or any(reference[0] in s for s in suspects):
                _keep_variable(reference[1], _BY_PLACE)
            elif free_form:
                _keep_variable(reference[1], _IN_FREE_FORM)
        literal = [s for s in suspects if "${" not in s or any(r[2] for r in _REFERENCE.finditer(s))]
        for secret in literal:
            _keep(secret, _BY_PLACE)
        _look()
        holds = next((name for secret, name in _of_variables.items() if secret in text), None)
        if literal or holds:
            what = f"the value of the environment variable {holds}" if holds else "a secret"
            use = "write ${oc.env:NAME} for it, so that it gets into no file, no log and no list of processes"
            return f"{place} has {what} in it; {use}"
    return None


def variables_in(value: Any) -> list[str]:
    """The environment variables that a config's line cannot do without."""
    return [found[1] for _, text in _texts("", value) for found in _REFERENCE.finditer(text) if found[2] is None]


def without_secrets(text: str) -> str:
    """`text` with every secret that this process knows as ***."""
    _look()
    return text if _pattern is None else _pattern.sub(HIDDEN, text)


def clean(value: Any) -> Any:
    """`without_secrets` of all text in a value that becomes JSON; of what JSON cannot hold too, as text."""
    if isinstance(value, dict):
        return {clean(k) if isinstance(k, str) else k: clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    if isinstance(value, str):
        return without_secrets(value)
    return value if value is None or isinstance(value, (int, float)) else without_secrets(str(value))


def _texts(key: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, inside in value.items():
            yield from _texts(f"{key}.{name}", inside)
    elif isinstance(value, (list, tuple)):
        for inside in value:
            yield from _texts(key, inside)
    elif value is not None and not isinstance(value, bool):
        yield key, str(value)


def _suspects(option: str, text: str) -> Iterator[str]:
    """Parts of a text that by where they stand, or by their form, are secrets or references to some."""
    scheme = _SCHEME.fullmatch(text.strip())
    if scheme is not None:
        yield scheme[1] or scheme[2]
    elif text and _is_called(_OPTION, option):
        yield text
    yield from (found[0] for found in _FORM.finditer(text))
    for url in _URL.finditer(text):
        yield from _of_url(url[0].rstrip(",])}") if "${" not in url[0] else url[0])


def _of_url(url: str) -> Iterator[str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return
    user, at, _ = parts.netloc.rpartition("@")
    if at and "${" in user:
        yield user
    elif at and (":" in user or parts.scheme in ("http", "https")):
        yield user.partition(":")[2] or user
    for name, value in parse_qsl(parts.query):
        if _is_called(_IN_A_QUERY, name):
            yield value


def _is_called(names: str, name: str) -> bool:
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).replace("-", "_")  # clientSecret, X-Api-Key
    return re.fullmatch(names, words.lower()) is not None


def _says_secret(variable: str) -> bool:
    return re.fullmatch(_VARIABLE, variable.upper()) is not None


def _keep_variable(name: str, least: int) -> None:
    listed = [n for n in os.environ.get(VARIABLES, "").split(",") if n]
    if name not in listed:
        os.environ[VARIABLES] = ",".join([*listed, name])
    _keep(os.environ.get(name, ""), least)


def _look() -> None:
    """Once a process, at what the names of the environment's variables, or who started it, say is secret."""
    global _looked
    if _looked:
        return
    _looked = True
    for name in os.environ.get(VARIABLES, "").split(","):
        _keep(os.environ.get(name, ""), _BY_PLACE)
    for name, value in os.environ.items():
        if _says_secret(name) and len(value) >= _BY_NAME and not os.path.exists(value):
            _of_variables[value] = name
            _keep(value, _BY_NAME)


def _keep(value: str, least: int) -> None:
    global _pattern
    if len(value) < least or value in _known:
        return
    _known.add(value)
    forms = sorted({form for v in _known for form in _forms(v) if len(form) >= _BY_PLACE}, key=len, reverse=True)
    _pattern = re.compile("|".join(map(re.escape, forms)))


def _forms(value: str) -> set[str]:
    """A value as it is, and as URLs, JSON, Python and headers have it."""
    encoded = value.encode(errors="surrogateescape")
    in_urls = {quote(encoded, safe=safe) for safe in ("", "/", _AS_IT_IS)} | {
        quote_plus(encoded),
        quote_plus(encoded, "/"),
    }
    in_code = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
    return {value, value.strip(), base64.b64encode(encoded).decode().rstrip("=")} | in_urls | in_code
