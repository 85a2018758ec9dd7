"""The example of a settings file tells of every setting, and all that it shows may be set so."""

import sys
import tomllib
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

import example_settings

from downloader.config import describe_settings, explain_settings

TEXT = example_settings.EXAMPLE.read_text(encoding="utf-8")
SHOWN = tomllib.loads(example_settings.uncommented(TEXT))


def test_it_is_up_to_date():
    """`python tests/example_settings.py --write` makes it so."""
    assert example_settings.example() == TEXT


def test_as_it_stands_it_sets_nothing():
    assert tomllib.loads(TEXT) == {}


def test_every_setting_is_shown_once():
    names = [line[1:].split(" = ")[0] for line in TEXT.splitlines() if line[:2].strip("#").strip()]
    assert sorted(names) == sorted(doc.name for doc in describe_settings())
    assert sorted(SHOWN) == sorted(names)


def test_no_line_is_too_long():
    assert [line for line in TEXT.splitlines() if len(line) > 100] == []


@pytest.fixture
def explained(tmp_path, monkeypatch):
    """Give what the program makes of the file once every comment is taken away."""
    directory = tmp_path / "bge-downloader"
    directory.mkdir()
    (directory / "config.toml").write_text(example_settings.uncommented(TEXT), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return {name: value for name, value, _ in explain_settings()}


@pytest.mark.parametrize("doc", describe_settings(), ids=lambda doc: doc.name)
def test_what_is_shown_is_accepted_and_is_the_default(doc, explained):
    """Except where there is none, or where the service has another."""
    if doc.default == "not set":
        assert explained[doc.name] != "not set"
    elif doc.name in ("dest", "state", "min_free_space"):
        assert f"; the service's: {explained[doc.name]}\n" in TEXT
    else:
        assert explained[doc.name] == doc.default
