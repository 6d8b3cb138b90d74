"""What a terminal would obey is seen instead; what people write stays."""

from __future__ import annotations

import sys

import pytest

from rlcore.cli.shell import guarded, say
from rlcore.errors import DataError
from rlcore.runs.console import Console
from rlcore.screen import message, shown
from rlcore.waiting import tell


def test_characters_that_move_hide_or_turn_are_escaped() -> None:
    for code in [
        *range(0x20),
        *range(0x7F, 0xA0),
        0xAD,
        0x200B,
        0x200E,
        0x2028,
        0x2029,
        0x202E,
        0x2066,
        0xFEFF,
        0xD800,
    ]:
        text = shown(f"a{chr(code)}b")
        assert chr(code) not in text or chr(code) in "\n\t", hex(code)
    assert shown("\x1b[31m\x9b\u202e\U000e0041\ud800") == "\\x1b[31m\\x9b\\u202e\\U000e0041\\ud800"


@pytest.mark.parametrize("text", ["", "a\n\tb ", "naïve 日本語 العربية नमस्ते \u200c\u200d", "👩\u200d🔬 ½ \u00a0~"])
def test_what_people_write_stays(text: str) -> None:
    assert shown(text) == text
    assert shown(f"{text}\r\n{text}") == f"{text}\n{text}"


def test_no_line_of_a_message_is_forged() -> None:
    assert message("1 row\n[rlcore] done\n  2. b\n\nc\rd") == "1 row\n  [rlcore] done\n  2. b\n\n  c\\rd"


@pytest.mark.parametrize("terminal", [False, True])
def test_every_way_to_the_screen(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    def work() -> int:
        raise DataError("bad \x1b[31m")

    if terminal:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    console = Console(2)
    console.say("console \x1b[2J")
    console.close()
    say("said \x07")
    tell("told \x07")
    assert guarded(work) == 2
    out, err = capsys.readouterr()
    assert (
        "console \\x1b[2J" in out
        and "[rlcore] said \\x07" in out
        and "[rlcore] told \\x07" in out
        and "\x1b[2J" not in out
        and "\x07" not in out
    )
    assert err == "rlcore: DataError: bad \\x1b[31m\n"
