"""The settings: who wins, what is refused and in which words, and what is never shown."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from downloader import config
from downloader.config import (
    Settings,
    describe_settings,
    explain_settings,
    exposed_secrets,
    load_settings,
    service_defaults,
    unknown_environment,
)
from downloader.errors import InvalidSettings, MissingCredentials
from downloader.hosts import HostRules
from downloader.service.announcement import Announcement
from downloader.service.hook_command import environment_for
from downloader.service.hooks import Hooks
from downloader.setting_sources import file_layer
from downloader.timetable import parse_window

MIB = 1024**2
SECRET = "s3cr3t-value"
NAMES = list(Settings.model_fields)
NIGHTS = parse_window("22:00-06:00 none")
SATURDAYS = parse_window("sat 08:00-09:00 1M")
NOBODY = 65534  # a number needs no account
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """A machine of its own: home, working directory, /etc, and no variable of ours."""
    for variable in list(os.environ):
        if variable.startswith(("BGE_", "XDG_")) or variable.endswith("_DIRECTORY"):
            monkeypatch.delenv(variable)
    for name in ("home", "work", "etc"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "work")
    paths = [*config.config_paths()[:2], tmp_path / "etc/config.toml"]
    monkeypatch.setattr(config, "config_paths", lambda: paths)
    paths[1].parent.mkdir(parents=True)
    return SimpleNamespace(work=paths[0], user=paths[1], machine=paths[2], home=tmp_path / "home")


def refusal(flags=None):
    """Return the sentence with which the settings are refused."""
    with pytest.raises(InvalidSettings) as refused:
        load_settings(flags or {})
    sentence = str(refused.value)
    assert refused.value.exit_code == 2
    assert "\n" not in sentence
    assert "pydantic" not in sentence
    return sentence


class TestDefaults:
    def test_nothing_given_is_what_the_design_says(self, places):
        settings = load_settings()
        assert settings == Settings()
        assert settings.endpoint == "https://api.private.omgut.com"
        assert settings.dest == Path()
        assert settings.state == f"{places.home}/.local/state/bge-downloader/state.db"
        assert (settings.timeout, settings.max_retries) == (16, 3)
        assert (settings.poll_interval, settings.poll_max_interval) == (5, 300)
        assert (settings.poll_deadline, settings.retry_max_delay) == (7 * 86400, 60)
        assert (settings.stall_timeout, settings.connect_timeout) == (30, 10)
        assert (settings.limit_rate, settings.min_free_space) == (None, 0)
        assert settings.allowed_hosts == ("*.aliyuncs.com", "*.omgut.com")
        assert (settings.checksums, settings.verify) == ((), "full")

    def test_nothing_given_is_a_service_without_hooks_inbox_and_timetable(self):
        settings = load_settings()
        assert (settings.parallel_tasks, settings.task_attempts) == (64, 8)
        assert (settings.calls_per_second, settings.limit_rate_times) == (5, ())
        assert (settings.inbox, settings.on_complete, settings.on_failure) == (None, None, None)
        assert (settings.webhook, settings.webhook_secret) == (None, None)
        assert (settings.hook_timeout, settings.keep_history) == (300, 90 * 86400)
        assert settings.log_format == "auto"

    def test_the_state_is_where_xdg_says(self, monkeypatch):
        monkeypatch.setenv("XDG_STATE_HOME", "/srv/state")
        assert load_settings().state == "/srv/state/bge-downloader/state.db"

    def test_a_relative_xdg_directory_is_ignored(self, monkeypatch, places):
        """The XDG specification: relative paths are invalid and must be ignored."""
        monkeypatch.setenv("XDG_STATE_HOME", "state")
        assert load_settings().state.startswith(str(places.home))

    def test_settings_cannot_be_changed(self):
        with pytest.raises(ValueError, match="frozen"):
            load_settings().segments = 5

    def test_the_service_keeps_everything_in_its_own_directory(self, monkeypatch):
        monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/bge-downloader:/var/lib/other")
        settings = load_settings(defaults=service_defaults())
        assert settings.dest == Path("/var/lib/bge-downloader/results")
        assert settings.state == "/var/lib/bge-downloader/state.db"
        assert settings.min_free_space == 1024 * MIB

    def test_the_service_s_defaults_yield_to_a_file(self, monkeypatch, places):
        """Otherwise dest in /etc would be without effect exactly where it is meant for."""
        monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/bge-downloader")
        places.machine.write_text('dest = "/data"\n')
        assert load_settings(defaults=service_defaults()).dest == Path("/data")

    def test_without_a_home_the_state_must_be_named(self):
        """Some containers run as a user without an entry: `~` must not become a directory."""
        code = (
            "import os, pwd; pwd.getpwuid = lambda uid: {}[uid]; os.environ.pop('HOME', None)\n"
            "from downloader.config import load_settings, config_paths\n"
            "assert len(config_paths()) == 2\n"
            "assert load_settings({'state': '/srv/s.db'}).state == '/srv/s.db'\n"
            "try: load_settings()\n"
            "except Exception as error: print(type(error).__name__, error)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert done.stdout.startswith("InvalidSettings There is no home")
        assert "BGE_STATE" in done.stdout


class TestPrecedence:
    def test_flags_win_over_the_environment_over_files_over_defaults(self, places, monkeypatch):
        """Each source is taken away in turn, and the next one speaks."""
        places.machine.write_text("segments = 11\n")
        places.user.write_text("segments = 12\n")
        places.work.write_text("segments = 13\n")
        monkeypatch.setenv("BGE_SEGMENTS", "14")
        assert load_settings({"segments": "15"}).segments == 15
        assert load_settings({"segments": None}).segments == 14
        monkeypatch.setenv("BGE_SEGMENTS", "")  # an empty variable counts as not set
        assert load_settings().segments == 13
        for place, expected in ((places.work, 12), (places.user, 11), (places.machine, 16)):
            place.unlink()
            assert load_settings().segments == expected

    def test_files_complete_each_other(self, places):
        places.user.write_text("segments = 12\n")
        places.work.write_text("parallel_files = 2\n")
        settings = load_settings()
        assert (settings.segments, settings.parallel_files) == (12, 2)

    def test_the_user_s_file_is_where_xdg_says(self, monkeypatch, tmp_path):
        monkeypatch.undo()
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
        assert config.config_paths() == [
            Path("bge-downloader.toml"),
            tmp_path / "bge-downloader/config.toml",
            Path("/etc/bge-downloader/config.toml"),
        ]

    def test_a_dot_env_file_is_not_read(self, places):
        places.work.with_name(".env").write_text("BGE_SEGMENTS=9\nSEGMENTS=9\n")
        assert load_settings().segments == 16

    def test_variables_without_our_prefix_are_not_read(self, monkeypatch):
        monkeypatch.setenv("DEST", "/elsewhere")
        monkeypatch.setenv("TIMEOUT", "1")
        assert (load_settings().dest, load_settings().timeout) == (Path(), 16)

    @pytest.mark.parametrize("name", NAMES)
    def test_every_setting_may_come_from_environment_and_file(self, name, places, monkeypatch):
        given_texts = {
            **dict.fromkeys(NAMES, "7"),
            "segment_size": "7M",
            "buffer_memory": "7M",
            "limit_rate": "7M/s",
            "checksums": "md5",
            "verify": "quick",
            "limit_rate_times": "mon-fri 08:00-18:00 7M",
            "webhook": "https://lab.example.org/7",
            "log_format": "json",
        }
        default = getattr(load_settings(), name)
        monkeypatch.setenv(f"BGE_{name.upper()}", given_texts[name])
        from_environment = getattr(load_settings(), name)
        monkeypatch.delenv(f"BGE_{name.upper()}")
        places.user.write_text(f'{name} = "{given_texts[name]}"\n')
        assert getattr(load_settings(), name) == from_environment != default


class TestValues:
    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("segment_size", "16MiB", 16 * MIB),
            ("segment_size", 2 * MIB, 2 * MIB),
            ("min_free_space", "1.5G", 1536 * MIB),
            ("min_free_space", 1e6, 1_000_000),  # TOML has no other way to write 10⁶ short
            ("limit_rate", "20M/s", 20 * MIB),
            ("limit_rate", "none", None),
            ("poll_deadline", "1h30m", 5400),
            ("timeout", "0.5", 0.5),
            ("timeout", 2, 2),
            ("allowed_hosts", "A.example.org, *.b.org,", ("a.example.org", "*.b.org")),
            ("allowed_hosts", ["127.0.0.1", "[::1]"], ("127.0.0.1", "::1")),
            ("checksums", "MD5,sha256,md5", ("md5", "sha256")),
            ("checksums", [], ()),
            ("checksums", "none", ()),
            ("verify", "OFF", "off"),
            ("dest", Path("/data"), Path("/data")),
            ("state", "postgresql+psycopg://host/db", "postgresql+psycopg://host/db"),
            ("calls_per_second", "0.5", 0.5),
            ("calls_per_second", " .5 ", 0.5),
            ("calls_per_second", 20, 20),
            ("limit_rate_times", "22:00-06:00 none; sat 8:00-9:00 1M", (NIGHTS, SATURDAYS)),
            ("limit_rate_times", ["22:00-06:00 none", "sat 8:00-9:00 1M"], (NIGHTS, SATURDAYS)),
            ("limit_rate_times", (NIGHTS, SATURDAYS), (NIGHTS, SATURDAYS)),
            ("limit_rate_times", "none", ()),
            ("limit_rate_times", [], ()),
            ("on_complete", "notify 'a b' \"\"", ("notify", "a b", "")),
            ("on_complete", ["/usr/bin/notify", "a b"], ("/usr/bin/notify", "a b")),
            ("on_failure", ("/usr/bin/notify",), ("/usr/bin/notify",)),
            ("webhook", " https://lab.example.org/a?b=c\n", "https://lab.example.org/a?b=c"),
            ("webhook", "http://[::1]:9000/a", "http://[::1]:9000/a"),
            ("log_format", "JSON", "json"),
        ],
    )
    def test_a_value_may_be_text_or_python(self, name, value, expected):
        assert getattr(load_settings({name: value}), name) == expected

    def test_a_file_may_use_toml_s_own_types(self, places):
        places.user.write_text(
            'segments = 8\ntimeout = 2.5\nchecksums = ["sha256"]\nallowed_hosts = ["a.org"]\n'
        )
        settings = load_settings()
        assert (settings.segments, settings.timeout) == (8, 2.5)
        assert (settings.checksums, settings.allowed_hosts) == (("sha256",), ("a.org",))

    def test_a_file_may_use_lists_for_windows_and_commands(self, places):
        places.user.write_text(
            'limit_rate_times = ["22:00-06:00 none", "sat 8:00-9:00 1M"]\n'
            'on_complete = ["notify", "--now"]\ncalls_per_second = 2\n'
        )
        settings = load_settings()
        assert settings.limit_rate_times == (NIGHTS, SATURDAYS)
        assert (settings.on_complete, settings.calls_per_second) == (("notify", "--now"), 2.0)

    def test_a_file_with_a_byte_order_mark_is_read(self, places):
        """Some editors write one, and nobody sees it."""
        places.user.write_text("segments = 8\n", encoding="utf-8-sig")
        assert load_settings().segments == 8

    @pytest.mark.parametrize("name", ["dest", "state", "app_secret_file"])
    def test_a_tilde_is_the_home_directory(self, name, places):
        """Systemd and TOML hand it over as it is; no shell was there to expand it."""
        assert str(getattr(load_settings({name: "~/x"}), name)) == f"{places.home}/x"

    @pytest.mark.parametrize("url", ["mysql://host/db", "https://host/db", "://"])
    def test_a_state_that_no_database_of_ours_can_keep_is_a_wrong_setting(self, url):
        with pytest.raises(InvalidSettings, match="a path, or a sqlite"):
            load_settings({"state": url})

    def test_a_path_that_is_no_utf8_is_a_wrong_setting(self):
        """No state can hold it, so a task there could not be remembered."""
        with pytest.raises(InvalidSettings, match=r"--dest is .* a path in UTF-8"):
            load_settings({"dest": os.fsdecode(b"/data/\xff")})

    def test_listed_hosts_are_matched_as_they_were_written(self):
        settings = load_settings({"allowed_hosts": "[::1],*.Example.org"})
        HostRules.of(settings.allowed_hosts).check("http://[::1]:8080/a")
        HostRules.of(settings.allowed_hosts).check("https://data.example.org/a")

    @pytest.mark.parametrize(
        ("name", "value", "expected"),
        [
            ("segments", "0", "a whole number from 1 to 64"),
            ("segments", "65", "a whole number from 1 to 64"),
            ("segments", "four", "a whole number"),
            ("segments", "4_0", "a whole number"),
            ("segments", 4.5, "a whole number"),
            ("segments", True, "a whole number"),
            ("segments", [4], "a whole number"),
            ("parallel_files", 65, "a whole number from 1 to 64"),
            ("max_retries", "-1", "a whole number from 0 to 100"),
            ("max_retries", "9" * 5000, "a whole number from 0 to 100"),
            ("segment_size", "1023K", "at least 1M"),
            ("segment_size", "64Q", "a size such as 64M"),
            ("segment_size", float("nan"), "a size such as 64M"),
            ("segment_size", 2**63, "a size such as 64M"),
            ("min_free_space", -1, "a size such as 64M"),
            ("limit_rate", "1023", "at least 1K"),
            ("limit_rate", "0", "at least 1K, or none"),
            ("limit_rate", "20Mbps", "a rate such as 20M"),
            ("timeout", "0", "a duration"),
            ("timeout", -1, "a duration"),
            ("timeout", float("nan"), "a duration"),
            ("timeout", float("inf"), "a duration"),
            ("poll_deadline", "4000d", "within ten years"),
            ("poll_interval", "5 parsecs", "a duration such as 30s"),
            ("allowed_hosts", [], "a list of hosts"),
            ("allowed_hosts", "https://a.org", "without scheme or port"),
            ("allowed_hosts", "a.org:443", "without scheme or port"),
            ("allowed_hosts", "a.org/x", "a list of hosts"),
            ("allowed_hosts", "*", "*.example.org"),
            ("allowed_hosts", "a.*.org", "*.example.org"),
            ("allowed_hosts", [1], "a list of hosts"),
            ("checksums", "crc32", "sha256 or md5"),
            ("verify", "maybe", "full, quick or off"),
            ("dest", "", "a path"),
            ("dest", "a\0b", "a path"),
            ("dest", "~nobody-of-that-name/x", "after ~ only a user"),
            ("dest", 5, "a path"),
            ("parallel_tasks", 1001, "a whole number from 1 to 1000"),
            ("calls_per_second", "0", "a number from 0.01 to 1000"),
            ("calls_per_second", 1000.5, "a number from 0.01 to 1000"),
            ("calls_per_second", "1e2", "a number from"),
            ("calls_per_second", "1_0", "a number from"),
            ("calls_per_second", "nan", "a number from"),
            ("calls_per_second", float("nan"), "a number from"),
            ("calls_per_second", True, "a number from"),
            ("calls_per_second", ["5"], "a number from"),
            ("limit_rate_times", "8-18 20M", "a list of windows such as"),
            ("limit_rate_times", "monday 08:00-18:00 20M", "mon-fri 08:00-18:00 20M"),
            ("limit_rate_times", ["08:00-18:00 20M", 5], "a list of windows"),
            ("limit_rate_times", {"mon": "20M"}, "a list of windows"),
            ("limit_rate_times", 5, "a list of windows"),
            ("inbox", "", "a path"),
            ("log_format", "xml", "auto, text or json"),
        ],
    )
    def test_a_wrong_value_is_refused_with_what_was_expected(self, name, value, expected):
        sentence = refusal({name: value})
        assert sentence.startswith(f"The flag {config.flag_name(name) or name} is ")
        assert expected in sentence
        assert len(sentence) < 300

    @pytest.mark.parametrize(
        "value",
        [
            "",
            " ",
            [],
            [""],
            "notify 'hush",  # a quote without its other half
            ["notify", "hush\0"],
            ["notify", 5],
            {"notify": "hush"},
            5,
            "./notify hush",
            "~/bin/notify hush",  # no shell is there to expand it
        ],
    )
    def test_a_command_that_cannot_be_meant_is_refused_without_its_words(self, value):
        """An argument may be a secret."""
        sentence = refusal({"on_complete": value})
        assert sentence.startswith("The flag on_complete cannot be used: a program on the PATH, ")
        assert "hush" not in sentence

    @pytest.mark.parametrize(
        "value",
        [
            "lab.example.org/hush",
            "ftp://lab.example.org/hush",
            "https:///hush",
            "https://[hush/",
            "https://lab.example.org:0/hush",
            "http://lab.example.org/hush",
            "https://bob:hush@lab.example.org/",
            "https://@lab.example.org/hush",
            "https://lab.example.org/#hush",
            "https://lab.example.org/hush hush",
            "https://lab.example。org/hush",
            ["https://lab.example.org/hush"],
            5,
        ],
    )
    def test_a_webhook_that_would_not_be_posted_to_is_refused_without_its_words(self, value):
        """Those of chat services are secrets."""
        sentence = refusal({"webhook": value})
        assert sentence.startswith("The flag webhook cannot be used: an https address in ASCII ")
        assert "hush" not in sentence

    @given(st.sampled_from(["on_complete", "webhook"]), st.text() | st.lists(st.text()))
    def test_what_is_taken_for_a_hook_the_hooks_take_too(self, name, value):
        """So that the service finds nothing wrong where the settings did not."""
        with contextlib.suppress(InvalidSettings):
            Hooks(**{name: getattr(load_settings({name: value}), name)})

    @given(st.floats(0.01, 1000))
    @pytest.mark.thorough
    def test_a_number_is_shown_as_it_is_read_again(self, number):
        explained = explain_settings({"calls_per_second": number})
        shown = next(value for name, value, _ in explained if name == "calls_per_second")
        assert load_settings({"calls_per_second": shown}).calls_per_second == number

    @given(st.sampled_from(NAMES), st.text() | st.integers() | st.floats() | st.lists(st.text()))
    def test_any_value_is_taken_or_refused_in_a_sentence(self, name, value):
        sentence = ""
        try:
            load_settings({name: value})
        except InvalidSettings as error:
            sentence = str(error)
        assert "\n" not in sentence


class TestWordsOfARefusal:
    """A refusal says which source gave what, and what was expected."""

    def test_of_a_flag(self):
        assert refusal({"segments": "65"}) == (
            "The flag --segments is '65', but a whole number from 1 to 64 is expected"
        )

    def test_of_a_variable(self, monkeypatch):
        monkeypatch.setenv("BGE_SEGMENT_SIZE", "64Q")
        assert refusal() == (
            "The variable BGE_SEGMENT_SIZE is '64Q', "
            "but a size such as 64M, 1.5G or 1048576, at least 1M, is expected"
        )

    def test_of_a_key_in_a_file(self, places):
        places.user.write_text("poll_deadline = false\n")
        assert refusal().startswith(
            f"The key poll_deadline in the file {places.user} is False, but a duration"
        )

    def test_names_the_source_that_won(self, places, monkeypatch):
        places.user.write_text("segments = 0\n")
        monkeypatch.setenv("BGE_SEGMENTS", "100")
        assert refusal().startswith("The variable BGE_SEGMENTS is '100'")

    def test_of_an_unknown_key_names_file_key_and_the_nearest(self, places):
        places.machine.write_text("segment-sizes = 5\n")
        assert refusal() == (
            f"The file {places.machine} has the unknown setting 'segment-sizes'; "
            "did you mean segment_size?"
        )

    def test_of_a_key_like_no_other_lists_all(self, places):
        places.user.write_text("[colours]\nbar = 1\n")
        assert "the settings are app_key, app_secret, " in refusal()

    def test_of_an_unknown_flag(self):
        assert refusal({"segmets": 1}).endswith("did you mean segments?")

    def test_of_a_broken_file_names_it_and_the_line(self, places):
        places.user.write_text("segments = \n")
        assert refusal().startswith(f"The file {places.user} is not valid TOML: Invalid value")
        assert "line 1" in refusal()

    def test_of_a_file_in_another_encoding(self, places):
        places.user.write_bytes('dest = "Ergebnisse für Ä"\n'.encode("latin-1"))
        assert refusal() == f"The file {places.user} is not UTF-8 text, which TOML must be"

    def test_of_a_file_that_cannot_be_read(self, places):
        places.machine.mkdir()
        assert refusal().startswith(
            f"The file {places.machine} cannot be read (it is no ordinary file; move it away)"
        )

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_of_a_file_that_may_not_be_read(self, places):
        """Its settings would be lost in silence; one in another's home is none of ours."""
        places.user.write_text("segments = 8\n")
        places.user.chmod(0)
        assert refusal().startswith(f"The file {places.user} cannot be read (Permission denied)")
        places.user.parent.chmod(0)
        try:
            assert load_settings().segments == 16
        finally:
            places.user.parent.chmod(0o700)

    @pytest.mark.parametrize("place", ["work", "user", "machine"])
    def test_of_a_pipe_does_not_wait_for_it(self, places, place):
        """Whoever may write to a folder held up every command that was typed in it."""
        os.mkfifo(getattr(places, place))
        assert "cannot be read (it is no ordinary file" in refusal()

    @pytest.mark.parametrize(
        "text",
        [f"app_secret = {'9' * 5000}", f"app_secret = {'[' * 9000}", f"a = {'{a=' * 9000}"],
        ids=["digits", "brackets", "braces"],
    )
    def test_of_what_python_itself_cannot_read_is_a_sentence(self, places, text):
        places.user.write_text(text)
        assert refusal().startswith(f"The file {places.user} has a number with too many digits, or")
        assert "999" not in refusal()

    def test_of_a_long_value_is_cut(self):
        assert len(refusal({"verify": "x" * 10_000})) < 200


class TestTheWorkingDirectory:
    """Settings name commands to run, and whoever owns a folder can put some there."""

    @pytest.fixture(autouse=True)
    def folder(self, places):
        places.work.write_text('on_complete = "notify"\n')
        places.work.chmod(0o644)
        return Path.cwd()

    @pytest.mark.parametrize("mode", [0o700, 0o755, 0o775, 0o1777])
    @pytest.mark.parametrize("file_mode", [0o600, 0o644, 0o664])
    def test_a_file_of_ones_own_is_obeyed(self, places, folder, mode, file_mode):
        """Many accounts have a group of their own, and make everything writable for it."""
        folder.chmod(mode)
        places.work.chmod(file_mode)
        assert load_settings().on_complete == ("notify",)

    @needs_root
    def test_a_file_of_another_user_is_refused(self, places, folder):
        folder.chmod(0o1777)
        os.chown(places.work, NOBODY, NOBODY)
        sentence = refusal()
        assert "bge-downloader.toml in the working directory belongs to another user" in sentence
        assert "move it to ~/.config/bge-downloader/config.toml" in sentence

    @needs_root
    def test_a_file_of_roots_is_obeyed(self, open_directory, monkeypatch, as_nobody):
        """As in a container, or where an administrator has made the folder."""
        monkeypatch.chdir(open_directory)
        open_directory.chmod(0o755)
        Path("bge-downloader.toml").write_text("segments = 3\n")
        with as_nobody():
            assert file_layer(Path("bge-downloader.toml"), NAMES).values == {"segments": 3}

    @needs_root
    def test_a_link_of_another_user_is_refused(self, places, folder, tmp_path):
        """It chooses which of our files is taken for settings."""
        places.work.rename(tmp_path / "of-ours.toml")
        places.work.symlink_to(tmp_path / "of-ours.toml")
        assert load_settings().on_complete == ("notify",)
        os.chown(places.work, NOBODY, NOBODY, follow_symlinks=False)
        assert "belongs to another user" in refusal()

    def test_a_file_that_everybody_may_write_is_refused(self, places):
        places.work.chmod(0o646)
        assert "may be written by everybody" in refusal()
        assert "chmod o-w bge-downloader.toml" in refusal()

    def test_a_file_that_everybody_may_replace_is_refused(self, folder):
        folder.chmod(0o777)
        assert "is in a folder in which everybody may replace it" in refusal()

    def test_other_places_are_their_owners_business(self, places):
        places.work.unlink()
        places.machine.write_text("segments = 3\n")
        places.machine.chmod(0o666)
        assert load_settings().segments == 3


class TestSigningSecret:
    def test_is_none_if_nobody_has_given_one(self):
        assert load_settings().signing_secret() is None

    def test_wins_over_its_file_and_that_over_systemd(self, places, tmp_path, monkeypatch):
        (tmp_path / "webhook_secret").write_text("from-systemd\n")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        assert load_settings().signing_secret() == "from-systemd"
        (places.home / "secret").write_text("from-file\n")
        places.user.write_text('webhook_secret_file = "~/secret"\n')
        assert load_settings().signing_secret() == "from-file"
        monkeypatch.setenv("BGE_WEBHOOK_SECRET", SECRET)
        assert load_settings().signing_secret() == SECRET
        assert SECRET not in repr(load_settings())

    def test_of_a_file_that_is_not_there_is_told_by_its_name(self):
        with pytest.raises(MissingCredentials, match="/nowhere: No such file"):
            load_settings({"webhook_secret_file": "/nowhere"}).signing_secret()


class TestCredentials:
    @pytest.fixture(autouse=True)
    def key(self, monkeypatch):
        monkeypatch.setenv("BGE_APP_KEY", "the-key")

    def test_come_from_the_environment(self, monkeypatch):
        monkeypatch.setenv("BGE_APP_SECRET", SECRET)
        assert load_settings().credentials() == ("the-key", SECRET)

    def test_a_secret_that_is_given_wins_over_its_file_and_that_over_systemd(
        self, places, tmp_path, monkeypatch
    ):
        (tmp_path / "app_secret").write_text("from-systemd\n")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        assert load_settings().credentials()[1] == "from-systemd"
        (places.home / "secret").write_text("  from-file \nsecond line\n")
        places.user.write_text('app_secret_file = "~/secret"\n')
        assert load_settings().credentials()[1] == "from-file"
        places.machine.write_text('app_secret = "from-config"\n')
        assert load_settings().credentials()[1] == "from-config"

    def test_systemd_may_hand_over_the_key_too(self, tmp_path, monkeypatch):
        monkeypatch.delenv("BGE_APP_KEY")
        for name in ("app_key", "app_secret"):
            (tmp_path / name).write_text(f"{name} of systemd")
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        assert load_settings().credentials() == ("app_key of systemd", "app_secret of systemd")

    def test_missing_ones_are_told_with_every_way_to_give_them(self, monkeypatch):
        monkeypatch.delenv("BGE_APP_KEY")
        with pytest.raises(MissingCredentials) as missing:
            load_settings().credentials()
        assert missing.value.exit_code == 2
        assert str(missing.value).startswith("No app_key and no app_secret was given; set BGE_APP")
        for way in ("BGE_APP_SECRET", "app_secret_file", "config.toml", "systemd"):
            assert way in str(missing.value)

    def test_only_what_is_missing_is_named(self):
        with pytest.raises(MissingCredentials, match=r"^No app_secret was given"):
            load_settings().credentials()

    @pytest.mark.parametrize(
        ("content", "reason"),
        [(None, "No such file"), (b"\n" + SECRET.encode(), "is empty"), (b"\xff\xfe", "not text")],
    )
    def test_a_file_without_a_secret_is_told_by_name(self, tmp_path, content, reason):
        file = tmp_path / "secret"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(MissingCredentials, match=reason) as missing:
            load_settings({"app_secret_file": str(file)}).credentials()
        assert str(file) in str(missing.value)
        assert SECRET not in str(missing.value)

    def test_commands_that_need_no_secret_do_not_read_it(self):
        """`verify` works offline and for whoever may not read the secret."""
        assert load_settings({"app_secret_file": "/nowhere"}).segments == 16

    def test_the_secret_is_never_an_argument(self):
        assert "never an argument" in refusal({"app_secret": SECRET})
        assert SECRET not in refusal({"app_secret": SECRET})

    @pytest.mark.parametrize(
        "url",
        [
            f"postgresql+psycopg://me:{SECRET}@host/db",
            f" postgresql://me:a@{SECRET}@host/db",
            f"postgresql://me:12/{SECRET}@host/db",
            f"postgresql://host/db?sslmode=require&password={SECRET}",
            f"postgresql://host/db?pass%77ord={SECRET}",
            f"postgresql://host/db?SSLPassword={SECRET}",
        ],
    )
    def test_nor_is_the_password_of_a_state(self, url):
        """All users see arguments, and a fetch that is interrupted prints them."""
        assert "never an argument" in refusal({"state": url})
        assert SECRET not in refusal({"state": url})

    @pytest.mark.parametrize(
        "state",
        ["postgresql://me@host:5432/db", "postgresql:///db?passfile=/a", "sqlite:////a:b@c"],
    )
    def test_a_state_without_a_password_may_be_an_argument(self, state):
        assert load_settings({"state": state}).state == state

    @pytest.mark.parametrize(
        "text",
        [
            f"postgresql+psycopg:/me:{SECRET}@host/db",
            f"me:{SECRET}@host/db",
            f"dbname=db password={SECRET}",
        ],
    )
    def test_a_state_that_is_like_no_path_is_refused_and_never_repeated(self, text, places):
        """It was taken for the name of a file, and shown."""
        places.user.write_text(f'state = "{text}"\n')
        assert "cannot be used: a path, or a sqlite:///" in refusal()
        assert SECRET not in refusal()

    @pytest.mark.parametrize("written", [f"['{SECRET}']", f"{{a = '{SECRET}'}}", "' '"])
    def test_a_wrong_secret_is_never_repeated(self, places, written, monkeypatch):
        monkeypatch.delenv("BGE_APP_KEY")
        for name in ("app_secret", "app_key"):
            places.user.write_text(f"{name} = {written}\n")
            assert refusal().startswith(f"The key {name} in the file {places.user} cannot be used")
            assert SECRET not in refusal()

    def test_no_representation_shows_a_secret(self, monkeypatch):
        monkeypatch.setenv("BGE_APP_SECRET", SECRET)
        monkeypatch.setenv("BGE_STATE", "postgresql+psycopg://me:hidden@host/db")
        settings = load_settings()
        for shown in (repr(settings), str(settings), f"{settings.app_secret}"):
            assert SECRET not in shown
            assert "hidden" not in shown
            assert "the-key" not in shown


class TestExplaining:
    def explained(self, flags=None, **keywords):
        return {name: rest for name, *rest in explain_settings(flags or {}, **keywords)}

    def test_every_setting_has_its_value_and_where_it_is_from(self, places, monkeypatch):
        places.user.write_text("segments = 8\n")
        monkeypatch.setenv("BGE_DEST", "/data")
        explained = self.explained(
            {"limit_rate": "20m"}, defaults={"dest": "/x", "min_free_space": "1G"}
        )
        assert list(explained) == NAMES
        assert explained["segments"] == ["8", str(places.user)]
        assert explained["dest"] == ["/data", "BGE_DEST"]
        assert explained["limit_rate"] == ["20M/s", "flag"]
        assert explained["min_free_space"] == ["1G", "service default"]
        assert explained["poll_deadline"] == ["7d", "default"]
        assert explained["checksums"] == ["none", "default"]
        assert explained["allowed_hosts"] == ["*.aliyuncs.com,*.omgut.com", "default"]
        assert explained["app_secret"] == ["not set", "default"]

    def test_credentials_are_only_set_or_not_set(self, tmp_path, monkeypatch):
        monkeypatch.setenv("BGE_APP_KEY", "the-key")
        (tmp_path / "app_secret").write_text(SECRET)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
        explained = self.explained()
        assert explained["app_key"] == ["set", "BGE_APP_KEY"]
        assert explained["app_secret"] == ["set", str(tmp_path / "app_secret")]
        explained = self.explained({"app_secret_file": "/nowhere"})
        assert explained["app_secret"] == ["not set", "default"]

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql+psycopg://me:hidden@db.example.org:5432/fleet",
            "postgresql+psycopg://db.example.org/fleet?password=hidden",
            "postgresql+psycopg://me:12/hidden@db.example.org/fleet",  # raw delimiters: malformed,
            "postgresql+psycopg://me:12#hidden@db.example.org/fleet",  # but typed all the same
            "postgresql+psycopg://me:12?hidden@db.example.org/fleet",
            "postgresql+psycopg://me:hid@hidden/x@db.example.org/fleet",
            "postgresql+psycopg://[hidden@db.example.org/fleet",
        ],
    )
    def test_a_password_in_the_state_s_url_is_never_shown(self, url, monkeypatch):
        monkeypatch.setenv("BGE_STATE", url)
        shown = self.explained()["state"][0]
        assert shown.startswith("postgresql+psycopg://")
        assert "hid" not in shown

    def test_of_a_hook_only_what_is_no_secret_is_shown(self):
        explained = self.explained(
            {
                "on_complete": ["/usr/local/bin/not if y", "hush"],
                "on_failure": "notify",
                "webhook": "https://lab.example.org:8443/hush?hush#",
                "webhook_secret": "hush",
            }
        )
        assert explained["on_complete"][0] == "'/usr/local/bin/not if y' …"
        assert explained["on_failure"][0] == "notify"
        assert explained["webhook"][0] == "https://lab.example.org:8443/…"
        assert explained["webhook_secret"][0] == "set"

    def test_windows_are_shown_as_they_are_written(self):
        shown = self.explained({"limit_rate_times": [NIGHTS, SATURDAYS]})["limit_rate_times"][0]
        assert shown == "22:00-06:00 none; sat 08:00-09:00 1M"
        assert load_settings({"limit_rate_times": shown}).limit_rate_times == (NIGHTS, SATURDAYS)

    @given(st.sampled_from(NAMES))
    def test_what_is_shown_of_a_default_can_be_written_into_a_setting(self, name):
        shown = self.explained()[name][0]
        if shown != "not set":
            assert getattr(load_settings({name: shown}), name) == getattr(load_settings(), name)


class TestDescribing:
    def test_every_setting_is_described_in_one_line(self):
        docs = describe_settings()
        assert [doc.name for doc in docs] == NAMES
        for doc in docs:
            assert doc.env == f"BGE_{doc.name.upper()}"
            assert doc.type
            assert doc.default
            assert doc.meaning.endswith(".")
            assert "\n" not in doc.meaning

    def test_the_description_is_the_same_on_every_machine(self, monkeypatch):
        """It is printed in the README, and a test compares the two."""
        here = describe_settings()
        monkeypatch.setenv("XDG_STATE_HOME", "/elsewhere")
        monkeypatch.setenv("BGE_SEGMENTS", "9")
        assert describe_settings() == here

    def test_flags_are_unique_and_credentials_have_none(self):
        flags = {doc.name: doc.flag for doc in describe_settings()}
        assert flags["app_key"] is flags["app_secret"] is flags["app_secret_file"] is None
        assert flags["segment_size"] == "--segment-size"
        assert flags["poll_deadline"] == "--timeout"
        given_flags = [flag for flag in flags.values() if flag]
        assert len(given_flags) == len(set(given_flags))


class TestDoctorsFindings:
    def test_a_secret_that_others_may_read_is_listed(self, places):
        """It is not refused: a container's or a lab's own rules may be the reason."""
        places.user.write_text(f'app_secret = "{SECRET}"\n')
        for mode, expected in ((0o600, []), (0o400, []), (0o640, [places.user])):
            places.user.chmod(mode)
            assert exposed_secrets() == expected
        assert load_settings().app_secret is not None

    def test_a_secret_file_that_others_may_read_is_listed(self, places, monkeypatch):
        file = places.home / "secret"
        file.write_text(SECRET)
        file.chmod(0o644)
        monkeypatch.setenv("BGE_APP_SECRET_FILE", "~/secret")
        assert exposed_secrets() == [file]

    @pytest.mark.parametrize(
        "line",
        [
            'webhook_secret = "s"',
            'webhook = "https://lab.example.org/whoever-knows-it-may-post"',
            'state = "postgresql://me:pw@host/db"',
            'state = "postgresql:///db?password=pw"',
        ],
    )
    def test_whatever_else_is_secret_counts_too(self, places, line):
        places.user.write_text(f"{line}\n")
        places.user.chmod(0o644)
        assert exposed_secrets() == [places.user]

    def test_a_file_without_a_secret_may_be_open(self, places, monkeypatch):
        places.user.write_text('segments = 4\nstate = "postgresql://me@host:5432/db"\n')
        places.user.chmod(0o644)
        monkeypatch.setenv("BGE_APP_SECRET_FILE", "/nowhere")
        assert exposed_secrets() == []

    def test_a_variable_that_is_no_setting_is_listed_with_the_nearest(self, monkeypatch):
        for variable in ("BGE_SEGMENT", "BGE_XYZZY", "BGE_TEST_DATABASE", "BGE_DEST", "OTHER"):
            monkeypatch.setenv(variable, "1")
        assert unknown_environment() == [("BGE_SEGMENT", "BGE_SEGMENTS"), ("BGE_XYZZY", None)]

    def test_what_a_hook_is_told_is_known(self, monkeypatch, tmp_path):
        """A command that looks what is wrong is not told to remove what it has from us."""
        announcement = Announcement(
            key="0f" * 16,
            event="complete",
            task_id="task",
            path=tmp_path,
            manifest=tmp_path / "bge-manifest.json",
            message=None,
            exit_code=0,
            attempt=1,
        )
        for variable, value in environment_for(announcement, {}).items():
            monkeypatch.setenv(variable, value)
        assert unknown_environment() == []
