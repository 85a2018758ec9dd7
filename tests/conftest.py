"""What every test starts from: nobody's environment, real processes, and a real PostgreSQL."""

import contextlib
import ctypes
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import figures
import hypothesis
import pytest
import secret_search
from sqlalchemy import create_engine, make_url, text

from state import StateStore, schema

PR_SET_PDEATHSIG = 1  # prctl(2)
NOBODY = 65534  # a number needs no account


hypothesis.settings.register_profile("quick", max_examples=25)
hypothesis.settings.register_profile("thorough", max_examples=400)
hypothesis.settings.load_profile("thorough" if os.environ.get("BGE_TEST_TORTURE") else "quick")


def pytest_collection_modifyitems(config, items):
    """Leave what is thorough to `make torture`: the suite is to end before anybody looks away."""
    if os.environ.get("BGE_TEST_TORTURE"):
        return
    thorough = [item for item in items if item.get_closest_marker("thorough")]
    if thorough:
        config.hook.pytest_deselected(items=thorough)
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]


def pytest_terminal_summary(terminalreporter, exitstatus):
    """Tell what thorough tests have counted; `make torture` wants it written down, too."""
    stats = terminalreporter.stats
    found = figures.found_in([*stats.get("passed", ()), *stats.get("failed", ())])
    if found:
        terminalreporter.section("figures")
    for line in figures.told(found):
        terminalreporter.line(line)
    if os.environ.get("BGE_TEST_WRITE_FIGURES") and exitstatus == 0:
        figures.write(found)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Let a test fail after which a secret is in an output, a log, a state or a manifest."""
    report = yield
    if report.when == "teardown" and report.passed:
        found = [*secret_search.leaks_in_sections(report.sections)]
        if place := item.funcargs.get("tmp_path"):
            found += secret_search.leaks_below(place)
        if found:
            report.outcome = "failed"
            report.longrepr = f"secrets were told or kept: {'; '.join(found)}"
    return report


@pytest.fixture
def tmp_path(tmp_path_factory, request):
    """Give a directory of the test's own, as pytest does.

    That one numbers them, and looks at all the others each time: with thousands, for seconds.
    """
    name = re.sub(r"\W", "_", request.node.name)[:30]
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=tmp_path_factory.getbasetemp()))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    """Take the caller's settings, proxies and credentials away, and the caller's home."""
    for name in [*os.environ]:
        is_ours = name.startswith("BGE_") and not name.startswith("BGE_TEST_")
        is_proxy = name.lower().endswith("_proxy")
        if is_ours or is_proxy or name.startswith("XDG_"):
            monkeypatch.delenv(name)
    for name in ("STATE_DIRECTORY", "CREDENTIALS_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def start_python():
    """Give a function that starts Python on a text, with pipes; none outlives its test."""
    with contextlib.ExitStack() as started:

        def start(code, *arguments):
            process = subprocess.Popen(
                [sys.executable, "-c", code, *map(str, arguments)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield start


@pytest.fixture
def as_nobody():
    """Give a context in which this process may do no more than an ordinary user.

    Permissions do not bind root, and tests in a container often run as root.
    """

    @contextlib.contextmanager
    def unprivileged():
        if os.geteuid() != 0:
            yield
            return
        os.seteuid(NOBODY)
        try:
            yield
        finally:
            os.seteuid(0)

    return unprivileged


@pytest.fixture
def open_directory():
    """Give a directory that every user can reach, which pytest's own are not."""
    with tempfile.TemporaryDirectory(prefix="bge-test-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


@pytest.fixture(scope="session")
def postgresql_server():
    """Give the URL of a PostgreSQL server: the one that is named, or one of this session's own.

    With pytest-xdist every worker has its own: they share nothing, so they need no lock.
    """
    if named := os.environ.get("BGE_TEST_POSTGRESQL_URL"):
        yield named
        return
    binaries = _postgresql_binaries()
    account = _unprivileged_account()
    with tempfile.TemporaryDirectory(prefix="bge-pg-") as name:
        home = Path(name)
        if account:
            os.chown(home, account["user"], account["group"])
        _make_cluster(binaries, home, account)
        with _running_server(binaries, home, account):
            yield f"postgresql+psycopg://postgres@/postgres?host={home}"


def _postgresql_binaries():
    """Return the directory of the server's programs; Debian keeps them off the PATH."""
    on_path = shutil.which("initdb")
    places = [Path(on_path).resolve().parent] if on_path else []
    places += sorted(
        Path("/usr/lib/postgresql").glob("*/bin"),
        key=lambda place: [int(part) for part in place.parent.name.split(".") if part.isdecimal()],
        reverse=True,
    )
    for place in places:
        if (place / "initdb").is_file() and (place / "postgres").is_file():
            return place
    pytest.skip(
        "no PostgreSQL server: no initdb and postgres on the PATH or in /usr/lib/postgresql, "
        "and BGE_TEST_POSTGRESQL_URL is not set"
    )


def _unprivileged_account():
    """Return whom the server runs as: it refuses to be root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    pytest.skip("no PostgreSQL server: it refuses to run as root, and no account is there for it")


def _make_cluster(binaries, home, account):
    options = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync"]
    made = subprocess.run(
        [binaries / "initdb", "--pgdata", home / "data", *options],
        **account,
        cwd=home,
        env={"LC_ALL": "C", "PATH": os.defpath},
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, f"initdb failed:\n{made.stdout}{made.stderr}"


@contextlib.contextmanager
def _running_server(binaries, home, account):
    """Run the server on a socket in `home`, without a port; it is gone when this is left."""
    settings = {
        "listen_addresses": "",
        "unix_socket_directories": str(home),
        "fsync": "off",  # nothing here outlives the session
        "synchronous_commit": "off",
        "full_page_writes": "off",
        "autovacuum": "off",
        "shared_buffers": "16MB",
        "log_min_messages": "log",  # its pipe is read until it is ready, and must not fill later
        "log_checkpoints": "off",
    }
    switches = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    libc = ctypes.CDLL(None)
    with subprocess.Popen(
        [binaries / "postgres", "-D", home / "data", *switches],
        **account,
        cwd=home,
        env={"LC_ALL": "C", "PATH": os.defpath},
        stderr=subprocess.PIPE,
        text=True,
        # Even a killed test run leaves no server behind.
        preexec_fn=lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGQUIT),  # noqa: PLW1509
    ) as server:
        try:
            _wait_until_ready(server)
            yield
        finally:
            server.send_signal(signal.SIGQUIT)
            try:
                server.wait(timeout=10)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait_until_ready(server):
    told = []
    for line in server.stderr:
        told.append(line)
        if "ready to accept connections" in line:
            return
    pytest.fail("PostgreSQL did not start:\n" + "".join(told))


@pytest.fixture
def postgresql_url(postgresql_server):
    """Give the URL of a schema of its own, which is dropped at the end."""
    with _schema(postgresql_server) as url:
        yield url


@pytest.fixture(scope="session")
def _postgresql_state(postgresql_server):
    """Make one state for all tests that only want an empty one: its tables take a while."""
    with _schema(postgresql_server) as url:
        with StateStore.open(url):
            pass
        yield url


@pytest.fixture
def empty_postgresql_state(_postgresql_state):
    """Give the URL of a state on a server, up to date and empty."""
    engine = create_engine(_postgresql_state)
    names = ", ".join(table for table in schema.metadata.tables if table != "meta")
    try:
        with engine.begin() as connection:
            connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY CASCADE"))
    finally:
        engine.dispose()
    return _postgresql_state


@contextlib.contextmanager
def _schema(server):
    name = f"bge_test_{secrets.token_hex(4)}"
    engine = create_engine(server)
    try:
        with engine.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {name}"))
        url = make_url(server).update_query_dict({"options": f"-csearch_path={name}"})
        yield url.render_as_string(hide_password=False)
        with engine.begin() as connection:
            connection.execute(text(f"DROP SCHEMA {name} CASCADE"))
    finally:
        engine.dispose()
