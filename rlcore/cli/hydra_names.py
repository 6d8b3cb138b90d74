"""`python -m rlcore.train --config-name NAME key=value`: the same as `rlcore train NAME key=value`."""

from __future__ import annotations

import sys

from rlcore.cli import train_command


def main() -> None:
    """Hydra's own command line: `--config-name NAME` (and `--config-dir DIR`), then flags and overrides."""
    args = sys.argv[1:]
    name = directory = None
    rest: list[str] = []
    while args:
        arg = args.pop(0)
        flag, equals, value = arg.partition("=")
        if flag not in ("--config-name", "-cn", "--config-dir", "-cd"):
            rest.append(arg)
            continue
        if not equals and args and not args[0].startswith("-"):
            value = args.pop(0)
        if not value:
            print(f"rlcore: ConfigError: {flag} needs a value: --config-name NAME [--config-dir DIR]", file=sys.stderr)
            sys.exit(2)
        name, directory = (value, directory) if flag in ("--config-name", "-cn") else (name, value)
    if directory and name:
        name = f"{directory}/{name if name.endswith(('.yaml', '.yml')) else f'{name}.yaml'}"
    sys.exit(train_command([*([name] if name else []), *rest]))
