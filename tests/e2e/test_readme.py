"""The documents fail when they lie: commands, flags, settings and exit codes are the code's own."""

import re
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1]))

import readme

from downloader.cli import app
from downloader.config import describe_settings

ROOT = Path(__file__).parents[2]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
BOTH = pytest.mark.parametrize("text", [ENGLISH, CHINESE], ids=["English", "Chinese"])
COMMANDS = get_command(app).commands


def flags_of(command):
    return {flag for parameter in COMMANDS[command].params for flag in parameter.opts}


def test_the_generated_tables_are_up_to_date():
    """`make readme` writes them; this is what notices that nobody did."""
    assert readme.filled(ENGLISH) == ENGLISH


@BOTH
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_told_of(text, command):
    assert re.search(rf"^\| `{command}[ `]", text, re.MULTILINE)


@BOTH
@pytest.mark.parametrize("doc", describe_settings(), ids=lambda doc: doc.name)
def test_every_setting_has_its_row(text, doc):
    row = next(line for line in text.splitlines() if line.startswith(f"| `{doc.name}` |"))
    told = [f"`{doc.flag}`" if doc.flag else "| - |", f"`{doc.env}`", f"`{doc.default}`"]
    assert [cell for cell in told if cell not in row] == []


@pytest.mark.parametrize(
    "doc", [doc for doc in describe_settings() if doc.flag], ids=lambda doc: doc.name
)
def test_every_setting_with_a_flag_is_a_flag_of_fetch(doc):
    assert doc.flag in flags_of("fetch")


@BOTH
@pytest.mark.parametrize("code", readme.EXIT_CODES)
def test_every_exit_code_is_told_of(text, code):
    assert f"| {code} |" in text


def test_no_error_ends_with_a_code_that_is_not_in_the_table():
    assert readme.exit_codes_of_the_errors() <= set(readme.EXIT_CODES)


@BOTH
def test_every_flag_that_is_shown_exists(text):
    known = {flag for name in COMMANDS for flag in flags_of(name)} | {
        *("--install-completion", "--version", "--strict"),
        "--now",  # of systemctl
    }
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text))
    assert shown - known == set()


@BOTH
def test_every_make_target_that_is_shown_exists(text):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"[`$] ?make ([a-z]+)", text)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("arguments", [["--help"], *([name, "-h"] for name in COMMANDS)])
def test_help_is_not_cut_short(arguments):
    """A stranger reads it; a sentence that ends in dots tells less than none."""
    shown = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert shown.exit_code == 0
    assert not re.search(r"\w\.\.\.$", shown.output, re.MULTILINE)
