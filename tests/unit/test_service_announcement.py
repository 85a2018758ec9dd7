"""What hooks are told, and what they never are: no child and no socket here."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from downloader.errors import InvalidSettings
from downloader.service.announcement import MAX_MESSAGE, Announcement
from downloader.service.child_process import OUTPUT_BYTES, OutputTail
from downloader.service.hook_command import check_command, environment_for
from downloader.service.hooks import Hooks
from downloader.service.webhook import Webhook, check_webhook, signature

DOCS = Path(__file__).parents[2] / "docs" / "hooks.md"
RESULT = Path("/data/results/task-1")
COMPLETE = Announcement(
    key="0f" * 16,
    event="complete",
    task_id="task-1",
    path=RESULT,
    manifest=RESULT / "bge-manifest.json",
    message=None,
    exit_code=0,
    attempt=2,
)
FAILURE = replace(COMPLETE, event="failure", manifest=None, message="The task failed", exit_code=3)
TOLD = {
    "BGE_EVENT": "complete",
    "BGE_TASK_ID": "task-1",
    "BGE_RESULT_PATH": "/data/results/task-1",
    "BGE_MANIFEST": "/data/results/task-1/bge-manifest.json",
    "BGE_MESSAGE": "",
    "BGE_EXIT_CODE": "0",
    "BGE_ATTEMPT": "2",
    "BGE_IDEMPOTENCY_KEY": "0f" * 16,
}


def test_a_command_is_told_of_a_result():
    assert environment_for(COMPLETE, {}) == TOLD


def test_a_command_is_told_of_a_failure_by_the_same_variables():
    """None is left out, so that a script may run with `set -u`."""
    told = environment_for(FAILURE, {"BGE_MANIFEST": "of an earlier one"})
    assert told == TOLD | {
        "BGE_EVENT": "failure",
        "BGE_MANIFEST": "",
        "BGE_MESSAGE": "The task failed",
        "BGE_EXIT_CODE": "3",
    }


@pytest.mark.parametrize(
    "name",
    [
        "BGE_APP_KEY",
        "BGE_APP_SECRET",
        "BGE_ON_COMPLETE",  # an argument may be a secret
        "BGE_ON_FAILURE",
        "BGE_STATE",  # a URL may hold a password
        "BGE_WEBHOOK",  # those of chat services are secrets
        "BGE_WEBHOOK_SECRET",
        "PGPASSWORD",
        "CREDENTIALS_DIRECTORY",
        "NOTIFY_SOCKET",
        "LISTEN_FDS",
        "LISTEN_PID",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
    ],
)
def test_a_command_does_not_get_what_is_the_services_own(name):
    kept = {"PATH": "/bin", "LANG": "C.UTF-8", "BGE_DEST": "/data"}
    assert environment_for(COMPLETE, kept | {name: "hush"}) == kept | TOLD


def test_a_relative_result_directory_is_told_whole(monkeypatch, tmp_path):
    """A command is started in `/`."""
    monkeypatch.chdir(tmp_path)
    told = environment_for(replace(COMPLETE, path=Path("a"), manifest=Path("a/m.json")), {})
    assert told["BGE_RESULT_PATH"] == str(tmp_path / "a")
    assert told["BGE_MANIFEST"] == str(tmp_path / "a" / "m.json")


@pytest.mark.parametrize(
    ("message", "told"),
    [
        ("two\nlines\0and a \x1b[31mNUL", "two lines?and a ?[31mNUL"),
        ("https://b.example/a?Signature=aHVzaA%3D&x=1", "https://b.example/a?Signature=…&x=1"),
        ("\ud800 cannot be encoded", "? cannot be encoded"),
        ("磁盘已满", "磁盘已满"),
        ("x" * 10_000, "x" * MAX_MESSAGE + "…"),
    ],
)
def test_a_message_is_one_bounded_line_without_secrets(message, told):
    failure = replace(FAILURE, message=message)
    assert failure.safe_message == told
    assert environment_for(failure, {})["BGE_MESSAGE"] == told


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "no program"),
        ([" "], "no program"),
        (["notify", "a\0b"], "a NUL"),
        (["./notify"], "is a relative path"),
        (["~/bin/notify"], "is a relative path"),
    ],
)
def test_a_command_that_cannot_be_meant_is_refused(words, reason):
    with pytest.raises(InvalidSettings, match=reason):
        check_command(words)


@pytest.mark.parametrize("words", [["notify"], ["/usr/local/bin/notify", "", "a b"]])
def test_a_program_is_named_by_its_whole_path_or_found_on_the_path(words):
    check_command(words)


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example.org/bge",
        "https://hooks.example.org:8443/services/T0/B0/x%20y?token=a&b=@c",
        "http://127.0.0.1:8000/",
        "http://localhost/hook",
        "http://[::1]:9000",
    ],
)
def test_a_webhook_may_be_https_or_on_this_machine(url):
    check_webhook(url)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://hooks.example.org/hush", "plain http"),
        ("https://bob:hush@hooks.example.org/", "a user name"),
        ("https://@hooks.example.org/hush", "a user name"),
        ("https://hooks.example.org/#hush", "a fragment"),
        ("ftp://hooks.example.org/hush", "no http address"),
        ("hooks.example.org/hush", "no http address"),
        ("https:///hush", "no http address"),
        ("https://hooks.example.org:0/hush", "no http address"),
        ("https://hooks.example.org:hush/", "no http address"),
        ("https://[hush/", "no http address"),
        ("https://hooks.example.org/hush hush", "no http address"),
        ("https://hooks.example.org\\@evil.example/hush", "no http address"),
        ("https://hooks.example.org/hush\n", "no http address"),
        ("https://hooks.example。org/hush", "no http address"),
    ],
)
def test_another_address_is_refused_in_a_sentence_that_does_not_repeat_it(url, reason):
    with pytest.raises(InvalidSettings, match=reason) as refused:
        check_webhook(url)
    assert "hush" not in str(refused.value)


def test_a_signature_is_the_hmac_of_time_and_body():
    """Made with `openssl dgst -sha256 -hmac not-a-real-secret`."""
    told = signature(
        b'{"event": "task.complete"}', timestamp=1767225600, secret="not-a-real-secret"
    )
    assert told == "sha256=23dd79b0c35f7efec82bad38977aa9104c110c9bc30df0d62f4e55c734f561ee"


def test_the_ways_are_those_that_the_settings_name():
    hooks = Hooks(on_complete=["notify"], webhook="https://hooks.example.org/bge")
    assert hooks.ways("complete") == ("command", "webhook")
    assert hooks.ways("failure") == ("webhook",)
    assert Hooks().ways("complete") == ()


async def test_a_way_that_the_settings_name_no_more_is_given_up():
    """What was still to be announced may be older than the settings."""
    for way in ("command", "webhook"):
        delivery = await Hooks().deliver(way, COMPLETE)
        assert (delivery.is_done, delivery.may_help_again) == (False, False)
        assert "no " + way in delivery.summary


def test_no_repr_shows_a_secret():
    hooks = Hooks(
        on_complete=["notify", "hush"],
        webhook="https://hooks.example.org/hush",
        webhook_secret="hush",
    )
    assert "hush" not in repr(hooks) + repr(Webhook("https://h.example/hush", timeout=1))


def heard(*chunks):
    tail = OutputTail()
    for chunk in chunks:
        tail.add(chunk)
    return tail.text()


@pytest.mark.parametrize(
    ("chunks", "text"),
    [
        ([], ""),
        ([b"one\n", b"two"], "one\ntwo"),
        ([b"\xe7\xa3", b"\x81\xe7\x9b\x98\n"], "磁盘"),
        ([b"\xff\x1b[2J\a\tx\0"], "\ufffd?[2J? x?"),
        ([b"50%\r100%\r\n"], "50%\n100%"),
        ([b"GET https://b.example/a?Signature=aHVzaA"], "GET https://b.example/a?Signature=…"),
    ],
)
def test_output_is_told_in_printable_lines_without_secrets(chunks, text):
    assert heard(*chunks) == text


def test_the_end_of_long_output_is_told():
    lines = [b"%d\n" % number for number in range(100_000)]
    text = heard(*lines)
    assert text == heard(b"".join(lines))
    assert text.startswith("…\n9")
    assert text.endswith("\n99998\n99999")
    assert OUTPUT_BYTES - 10 < len(text) <= OUTPUT_BYTES


def test_a_secret_of_which_the_name_is_cut_off_is_not_told():
    """Its name is what it would be known by."""
    assert heard(b"?Signature=" + b"hush" * OUTPUT_BYTES + b"\nend") == "…\nend"
    assert heard(b"?Signature=" + b"hush" * OUTPUT_BYTES) == "…"


def test_the_handbook_names_every_variable_header_and_member():
    text = DOCS.read_text(encoding="utf-8")
    _, headers = Webhook("https://h.example", secret="hush", timeout=1)._request(COMPLETE)
    body, _ = Webhook("https://h.example", timeout=1)._request(COMPLETE)
    names = [
        *TOLD,
        *(name for name in headers if name.startswith(("X-", "Idem"))),
        *json.loads(body),
    ]
    assert [name for name in names if f"`{name}`" not in text] == []
    assert len(re.findall(r"```python", text)) == 1
