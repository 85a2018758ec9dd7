"""Writes systemd/bge-downloader.toml.example out of the settings themselves; a test compares.

python tests/example_settings.py --write
"""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from pathlib import Path
from unittest import mock

from downloader.config import describe_settings, service_defaults

EXAMPLE = Path(__file__).parents[1] / "systemd" / "bge-downloader.toml.example"
WIDTH = 100
STATE_DIRECTORY = "/var/lib/bge-downloader"  # what systemd tells the service
OF_THE_SERVICE = "Service: "
PLACES = ("app_key", "app_secret", "app_secret_file", "endpoint", "dest", "state")
INTRODUCTION = """\
Every setting of bge-downloader, with its meaning and its default. Copy what you want to change to
/etc/bge-downloader/config.toml, which the user of the service must be able to read. The variable
BGE_<NAME> in the service's environment wins over this file. After a change:
systemctl reload bge-downloader.

Durations are seconds, or as in 30s, 5m, 1h30m, 7d. In sizes and rates K, M, G and T are powers
of 1024. Relative paths are taken from the working directory, so give whole ones."""
# What a setting could be that is nothing by default.
INSTEAD_OF_NOTHING = {
    "app_key": "the-key-that-was-issued",
    "app_secret": "the-secret-that-belongs-to-it",
    "app_secret_file": "/etc/bge-downloader/app_secret",
    "inbox": f"{STATE_DIRECTORY}/inbox",
    "on_complete": ["/usr/local/bin/result-is-there", "--quiet"],
    "on_failure": ["/usr/local/bin/result-is-missing"],
    "webhook": "https://lab.example.org/results",
    "webhook_secret": "a-secret-that-the-other-side-knows",
    "webhook_secret_file": "/etc/bge-downloader/webhook_secret",
}
# Beside it; what the setting's own meaning has no room for.
NOTES = {
    "app_key": "Better a credential: LoadCredential= in the unit reads it as root.",
    "app_secret": "Better a credential, as app_key: what it can read here, others may too.",
}
SETTING = re.compile(r"^#(?=[a-z0-9_]+ = )", re.MULTILINE)


def example():
    """Return the whole text."""
    docs = describe_settings()
    service = [doc for doc in docs if doc.meaning.startswith(OF_THE_SERVICE)]
    places = [doc for doc in docs if doc.name in PLACES]
    others = [doc for doc in docs if doc not in service and doc not in places]
    chapters = {
        "Who you are, and where things are": places,
        "The service": service,
        "Asking, transferring, verifying": others,
    }
    parts = [_commented(INTRODUCTION)]
    for title, members in chapters.items():
        parts += [f"# --- {title} ---", *map(_entry, members)]
    return "\n\n".join(parts) + "\n"


def uncommented(text):
    """Return the text with every setting set to what is shown."""
    return SETTING.sub("", text)


def _entry(doc):
    shown = doc.default if doc.default != "not set" else INSTEAD_OF_NOTHING[doc.name]
    preferred = _preferred_by_the_service().get(doc.name)
    meaning = doc.meaning.removeprefix(OF_THE_SERVICE)
    lines = [
        meaning[0].upper() + meaning[1:],
        *([NOTES[doc.name]] if doc.name in NOTES else []),
        f"Value: {doc.type}",
        f"Default: {doc.default}" + (f"; the service's: {preferred}" if preferred else ""),
    ]
    return "\n".join([*map(_commented, lines), f"#{doc.name} = {_toml(preferred or shown)}"])


def _preferred_by_the_service():
    with mock.patch.dict(os.environ, {"STATE_DIRECTORY": STATE_DIRECTORY}):
        preferred = service_defaults()
    return {name: _size(value) for name, value in preferred.items()}


def _size(value):
    """Return whole GiB as one would write them."""
    is_whole = isinstance(value, int) and value % 1024**3 == 0
    return f"{value // 1024**3}G" if is_whole else value


def _toml(value):
    is_number = isinstance(value, str) and re.fullmatch(r"[0-9]+(\.[0-9]+)?", value)
    return value if is_number else json.dumps(value)


def _commented(text):
    paragraphs = [
        textwrap.fill(part, WIDTH - 2, break_on_hyphens=False) for part in text.split("\n\n")
    ]
    return "\n".join(f"# {line}".rstrip() for line in "\n\n".join(paragraphs).split("\n"))


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        EXAMPLE.write_text(example(), encoding="utf-8")
    else:
        sys.stdout.write(example())
