"""The state as a file: what is not ours stays as it is, what is ours survives everything."""

import os
import shutil
import signal
import sqlite3
import stat
import sys
from contextlib import closing, contextmanager
from datetime import UTC, datetime

import pytest
from sqlalchemy import create_engine, event, inspect, text
from state_helpers import DATABASES

from state import (
    Checkpoint,
    Phase,
    Segment,
    StateError,
    StateStore,
    StateTooNew,
    StateUnreadable,
    Wanted,
    current_owner,
    engine,
    look_at,
    migrations,
    schema,
)

NOBODY = 65534  # a number needs no account
START = datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)
MIB = 1024 * 1024
LEFT_AS_IT_IS = "left as it is"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state.db"


def open_and_close(where):
    StateStore.open(where).close()


def make_state(path, tasks=1):
    with StateStore.open(path, clock=lambda: START) as store:
        for number in range(tasks):
            task = store.ensure_task(f"t-{number}", "/data").id
            store.add_event(task, "note", "x" * 5000)


def make_database(path, *statements, wal=False):
    """Make an SQLite file that is somebody else's, as readable as theirs are."""
    with closing(sqlite3.connect(path)) as connection:
        if wal:
            connection.execute("PRAGMA journal_mode=WAL")
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    path.chmod(0o644)


@contextmanager
def untouched(path):
    """Check that the file keeps its bytes, its mode and its time."""

    def look():
        facts = path.stat()
        return path.read_bytes(), facts.st_mode, facts.st_mtime_ns, facts.st_ino

    before = look()
    yield
    assert look() == before


def refuse(path, error=StateUnreadable):
    """Open what must not be opened; return the sentence."""
    with untouched(path), pytest.raises(error) as caught:
        open_and_close(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_look_at_a_state_changes_nothing(path, mode):
    """No mode of it, and no file beside it."""
    make_state(path, tasks=2)
    path.chmod(mode)
    with untouched(path):
        assert look_at(path) == (str(path), 2)
    assert list(path.parent.iterdir()) == [path]


def test_a_look_sees_what_is_still_in_the_log_of_a_state_in_use(path):
    with StateStore.open(path) as store:
        store.ensure_task("t", "/data")
        assert look_at(path) == (str(path), 1)


# What is not ours, or no more


@pytest.mark.parametrize(
    "content",
    [
        b"x",
        b"a diary\n",
        b"SQLite format 3\0",  # the beginning of one, and no more
        b"\0" * 100,
        b"\0" * 8192,  # what a power loss leaves of a file that was never synced
        b"PK\3\4" + b"\0" * 4096,
        "\u53d8\u5f02\n".encode() * 500,
    ],
)
def test_a_file_that_is_no_database_is_named_and_left(path, content):
    path.write_bytes(content)
    assert f"is not a database; it was {LEFT_AS_IT_IS}" in refuse(path)


def test_a_truncated_state_is_damaged_and_left(path):
    make_state(path, tasks=6)
    os.truncate(path, path.stat().st_size // 2)
    assert f"is damaged and was {LEFT_AS_IT_IS}" in refuse(path)


@pytest.mark.parametrize("page", [1, 2, 4])
def test_a_state_with_a_page_of_noise_is_damaged_and_left(path, page):
    make_state(path, tasks=6)
    with path.open("r+b") as file:
        file.seek(4096 * page)
        file.write(b"\xa5" * 4096)
    assert f"is damaged and was {LEFT_AS_IT_IS}" in refuse(path)


def test_an_empty_file_is_a_new_state(path):
    """A crash at the very first start leaves one, and must not ask anybody for help."""
    path.touch()
    make_state(path)
    with StateStore.open(path) as store:
        assert [task.task_id for task in store.find_tasks()] == ["t-0"]


def test_a_directory_in_its_place_is_named_and_left(path):
    path.mkdir()
    with pytest.raises(StateUnreadable, match="it is not a regular file") as caught:
        open_and_close(path)
    assert str(path) in str(caught.value)
    assert list(path.iterdir()) == []


def test_a_pipe_in_its_place_is_refused_and_not_waited_for(path):
    os.mkfifo(path)
    with pytest.raises(StateUnreadable, match="it is not a regular file"):
        open_and_close(path)


def test_a_link_to_nowhere_is_refused_and_makes_nothing(path, tmp_path):
    path.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StateUnreadable, match="No such file"):
        open_and_close(path)
    assert not (tmp_path / "nowhere").exists()


def test_a_state_of_a_newer_program_is_left_to_it(path):
    make_state(path)
    newer = migrations.LATEST_VERSION + 1
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"UPDATE meta SET value = '{newer}'")
        connection.commit()
    sentence = refuse(path, StateTooNew)
    assert f"schema version {newer}, this program knows up to {newer - 1}" in sentence
    assert LEFT_AS_IT_IS in sentence


OURS_BY_NAME = [f"CREATE TABLE {name} (name TEXT, value TEXT)" for name in schema.metadata.tables]


@pytest.mark.parametrize("wal", [False, True])
@pytest.mark.parametrize(
    "statements",
    [
        ["CREATE TABLE photos (id)"],
        ["CREATE VIEW photos AS SELECT 1 AS id"],
        ["CREATE TABLE meta (id)"],
        # Others keep a version in a table of that name, too.
        [
            "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT)",
            "INSERT INTO meta VALUES ('schema_version', '2')",
            "CREATE TABLE photos (id)",
        ],
        [*OURS_BY_NAME],
        *(
            [*OURS_BY_NAME, f"INSERT INTO meta VALUES ('schema_version', {value})"]
            for value in ("NULL", "'0'", "'-1'", "'two'", "x'32'", f"'{'9' * 5000}'", "1.5")
        ),
    ],
)
@pytest.mark.thorough
def test_somebody_elses_database_is_named_and_left(path, statements, wal):
    make_database(path, *statements, wal=wal)
    assert f"is a database, but not a state of bge-downloader; it was {LEFT_AS_IT_IS}" in refuse(
        path
    )


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO meta VALUES ('schema_version', '1'), ('schema_version', '2')",
        "INSERT INTO meta VALUES ('schema_version', CAST(x'ff' AS TEXT))",
    ],
)
def test_a_database_that_can_hardly_be_read_is_left_too(path, statement):
    make_database(path, *OURS_BY_NAME, statement)
    refuse(path)


def test_somebody_elses_database_keeps_what_is_still_in_its_log(path, tmp_path):
    """Their program crashed: what it wrote last is in the -wal file alone."""
    with closing(sqlite3.connect(tmp_path / "theirs.db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE photos (id)")
        connection.commit()
        for suffix in ("", "-wal"):
            shutil.copy(tmp_path / f"theirs.db{suffix}", f"{path}{suffix}")
    with untouched(path.with_name("state.db-wal")):
        refuse(path)


@pytest.mark.parametrize("version", ["", "x", "0", "-1", "1", "2", b"\xff", "9" * 5000])
def test_a_state_whose_version_was_damaged_is_named_and_left(path, version):
    """Of what it was, nothing tells; with another state, whoever follows the sentence goes on."""
    make_state(path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE meta SET value = ? WHERE name = 'schema_version'", [version])
    with untouched(path):
        assert "name another place with the setting `state`" in refuse(path)


# Names and places


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a\0b", "null"),
        ("x" * 300, "File name too long"),
        ("\ud800", "surrogates"),
        ("~nobody-has-that-name/state.db", "home directory"),
        ("/dev/null/state.db", "Not a directory"),
        ("/dev/full", "not a regular file"),
    ],
)
def test_a_name_that_no_file_can_have_is_told_in_a_sentence(tmp_path, name, told):
    place = name if name.startswith(("~", "/")) else f"{tmp_path}/{name}"
    with pytest.raises(StateUnreadable, match=told):
        open_and_close(place)


@pytest.mark.parametrize("name", ["a?b#c%41.db", "\u53d8\u5f02.db", "a b", "\udcff.db", "'\".db"])
def test_any_name_that_a_file_can_have_will_do(tmp_path, name):
    path = tmp_path / name
    make_state(path)
    with StateStore.open(path) as store:  # a second time: it is looked at first
        assert len(store.find_tasks()) == 1
    assert path.is_file()


@pytest.mark.parametrize("name", ["a:b@c.db", "host=a password=b", "sqlite:", "postgresql:/a/b"])
def test_a_whole_path_is_a_path_whatever_it_is_like(tmp_path, name):
    make_state(tmp_path / name)
    open_and_close(f"{tmp_path}/{name}")


@pytest.mark.parametrize("name", ["a:b.db", "a@b.db", "a=b.db", "run=1/state.db", "3:15.db"])
def test_a_relative_path_may_be_unlike_a_url(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    make_state(name)
    assert (tmp_path / name).is_file()


def test_a_url_and_a_home_name_the_same_file(tmp_path):
    """`~` is the user's home, and here that is the test's directory."""
    make_state("~/state.db")
    with StateStore.open(f"sqlite:///{tmp_path}/state.db") as store:
        assert len(store.find_tasks()) == 1


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("sqlite://data/state.db", "three slashes"),  # SQLAlchemy takes `data` for a host
        ("sqlite://user:geheim@/state.db", "three slashes"),
        ("mysql://user:geheim@host/state", "cannot be kept in mysql"),
        ("postgres://user:geheim@host/state", "cannot be kept in postgres"),
        ("nonsense+x://user:geheim@host/state", "cannot be kept in nonsense"),
        ("postgresql://user:geheim@host:port/state", "cannot be parsed"),
        ("postgresql://user:geheim@[::1/state", "cannot be parsed"),
        ("://geheim", "cannot be parsed"),
        ("postgresql+psycopg://user:geheim@127.0.0.1:1/state", "refused"),
        ("postgresql+psycopg://user:geheim@127.0.0.1:99999/state", "invalid port"),
        ("postgresql+psycopg:///state?host=/nowhere&password=geheim", "No such file"),
        ("postgresql+psycopg:///state?bogus=1&password=geheim", "invalid connection option"),
        ("postgresql+psycopg://user:geheim@127.0.0.1:1/\udcff", "can't encode"),
        ("postgresql+other://user:geheim@127.0.0.1:1/state", "refused"),
        # Raw delimiters, a forgotten slash or scheme: the rest of it was taken for something else.
        ("postgresql+psycopg://user:a@geheim@127.0.0.1:1/state", "write `%40`"),
        ("postgresql+psycopg://user:a@geheim/b@127.0.0.1:1/state", "write `%40`"),
        ("postgresql+psycopg://user/geheim@127.0.0.1:1/state", "write `%40`"),
        ("postgresql+psycopg://127.0.0.1:1/state?connect_timeout=geheim", "connect_timeout: '…'"),
        ("postgresql+psycopg://127.0.0.1:1/state?sslmode=geheim", 'sslmode value: "…"'),
        ("postgresql+psycopg://127.0.0.1:1/state?password=a&geheim=b", "invalid connection option"),
        ("postgresql+psycopg:/user:geheim@host/state", "like no path"),
        ("postgresql:user:geheim@host/state", "like no path"),
        ("user:geheim@host/state", "like no path"),
        ("host=127.0.0.1 dbname=state password=geheim", "like no path"),
        ("application_name=me password = geheim", "like no path"),
    ],
)
def test_no_error_of_a_url_tells_its_password(url, told):
    with pytest.raises(StateUnreadable, match=told) as caught:
        open_and_close(url)
    assert "geheim" not in str(caught.value)


def test_a_server_without_its_driver_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(StateUnreadable, match=r"install `bge-downloader\[postgresql\]`") as caught:
        open_and_close("postgresql+psycopg://user:geheim@127.0.0.1:1/state")
    assert "geheim" not in str(caught.value)


def test_a_servers_name_for_people_tells_no_user_and_no_options(postgresql_url):
    with StateStore.open(postgresql_url) as store:
        assert store.location.startswith("postgresql://")
        assert not {"@", "?", "search_path"} & set(store.location.split("/"))
        assert "search_path" not in store.location


def test_a_server_whose_tables_are_somebody_elses_is_refused(postgresql_url):
    with closing_engine(postgresql_url) as other, other.begin() as connection:
        connection.execute(text("CREATE TABLE tasks (id INTEGER)"))
    with pytest.raises(StateUnreadable, match="not a state of bge-downloader"):
        open_and_close(postgresql_url)


def test_a_server_may_keep_somebody_elses_tables_beside_ours(postgresql_url):
    with closing_engine(postgresql_url) as other, other.begin() as connection:
        connection.execute(text("CREATE TABLE photos (id INTEGER)"))
    make_state(postgresql_url)
    make_state(postgresql_url)


# Migrations


@contextmanager
def closing_engine(where):
    opened = create_engine(where if "://" in str(where) else f"sqlite:///{where}")
    try:
        yield opened
    finally:
        opened.dispose()


@pytest.fixture(params=DATABASES)
def where(request, path):
    return path if request.param == "sqlite" else request.getfixturevalue("postgresql_url")


OLD_ROWS = (
    """INSERT INTO tasks (task_id, dest, phase, status, polls, created_at, updated_at)
       VALUES ('old', '/data', 'transferring', 'SUCCESS', 7, {time}, {time})""",
    """INSERT INTO files (task, name, bucket, key, etag, size, checkpoint_at)
       VALUES (1, 'a.vcf.gz', 'results', 'r/a.vcf.gz', '"E"', 10, {time})""",
    "INSERT INTO segments VALUES (1, 0, 6, 6), (1, 6, 10, 1)",
    """INSERT INTO events (task, at, kind, message, facts)
       VALUES (1, {time}, 'started', 'Began.', '{{"polls": 7}}')""",
)


def make_version(where, version):
    """Make a state as an older version did, with a task of it under way."""
    with closing_engine(where) as old, old.begin() as connection:
        migrations.bring_up_to_date(connection, "old", latest=version)
        is_sqlite = old.dialect.name == "sqlite"
        time = "'2024-02-29 12:00:00.123456'" + (
            "" if is_sqlite else "::timestamp at time zone 'UTC'"
        )
        for statement in OLD_ROWS:
            connection.exec_driver_sql(statement.format(time=time))


OLDER_VERSIONS = range(1, migrations.LATEST_VERSION)


@pytest.mark.parametrize("version", OLDER_VERSIONS)
def test_a_state_of_an_older_version_comes_up_to_date_with_its_data(where, version):
    make_version(where, version)
    for _ in range(2):
        with StateStore.open(where) as store:
            expect_old_rows(store)
    with closing_engine(where) as opened, opened.connect() as connection:
        assert migrations.found_version(connection, "it") == migrations.LATEST_VERSION


def expect_old_rows(store):
    [task] = store.find_tasks()
    assert (task.task_id, task.phase, task.polls) == ("old", Phase.TRANSFERRING, 7)
    assert task.created_at == START
    [file] = store.list_files(task.id)
    assert store.load_checkpoint(file.id) == Checkpoint(
        etag='"E"',
        size=10,
        segments=(
            Segment(start=0, stop=6, watermark=6),
            Segment(start=6, stop=10, watermark=1),
        ),
    )
    [event] = store.list_events(task.id)
    assert (event.at, event.facts) == (START, {"polls": 7})


def test_what_an_older_version_was_about_to_tell_is_told_in_its_words(where):
    make_version(where, 3)
    with closing_engine(where) as old, old.begin() as connection:
        connection.exec_driver_sql("UPDATE tasks SET message = 'No.', exit_code = 5")
        for event in ("failure", "complete"):
            connection.exec_driver_sql(
                "INSERT INTO notices (task, event, key, due_at, attempts, delivered) "
                f"VALUES (1, '{event}', '{event}', '2024-02-29 12:00:00+00', 0, '')"
            )
    with StateStore.open(where) as store:
        told = store.notices.take_due(9, claim_seconds=60)
    assert [(one.event, one.message, one.exit_code) for one in told] == [
        ("failure", "No.", 5),
        ("complete", None, None),
    ]


@pytest.mark.parametrize("version", OLDER_VERSIONS)
def test_a_task_of_an_older_version_is_nobodys_until_it_is_watched(where, version):
    """Only fetches knew of it; a service that begins by itself would surprise."""
    make_version(where, version)
    owner = current_owner()
    with StateStore.open(where) as store:
        [task] = store.find_tasks()
        assert not task.is_watched
        assert (task.watched_since, task.asked_at, task.ready_after_seconds) == (None, None, None)
        assert task.tries == 0
        assert store.agenda.take_due(owner, 9, lease_seconds=60) == []
        assert store.agenda.watch(["old"], "/data")[0][1] is Wanted.ADDED
        assert [one.id for one in store.agenda.take_due(owner, 9, lease_seconds=60)] == [task.id]
        assert store.list_files(task.id)


@pytest.mark.parametrize("version", OLDER_VERSIONS)
@pytest.mark.thorough
def test_two_programs_that_bring_a_state_up_to_date_at_once_both_succeed(
    where, version, start_python
):
    make_version(where, version)
    open_together(start_python, where)
    with StateStore.open(where) as store:
        assert [task.polls for task in store.find_tasks()] == [7] + [2] * 20
        assert [event.kind for event in store.list_events(1)] == ["started"]


@pytest.mark.parametrize("version", OLDER_VERSIONS)
def test_a_look_brings_no_state_up_to_date(where, version):
    make_version(where, version)
    before = described(where)
    assert look_at(where)[1] == 1
    assert described(where) == before


def described(where):
    """Return what a database says of its tables, in words that both have."""
    with closing_engine(where) as opened:
        seen = inspect(opened)
        return {table: reflected(seen, table) for table in seen.get_table_names()}


def reflected(seen, table):
    columns = seen.get_columns(table)
    return {
        "columns": {
            each["name"]: (kind(each["type"]), is_nullable(seen, table, each)) for each in columns
        },
        "primary key": seen.get_pk_constraint(table)["constrained_columns"],
        "unique": sorted(
            tuple(each["column_names"]) for each in seen.get_unique_constraints(table)
        ),
        "foreign keys": sorted(
            (*key["constrained_columns"], key["referred_table"], *key["referred_columns"])
            for key in seen.get_foreign_keys(table)
        ),
        "on delete": on_delete(seen, table),
        "indexes": sorted(
            (each["name"], *each["column_names"])
            for each in seen.get_indexes(table)
            if "duplicates_constraint" not in each
        ),
    }


def on_delete(seen, table):
    if seen.dialect.name == "sqlite":  # where SQLAlchemy sees it only if it is written one way
        with seen.bind.connect() as connection:
            rows = connection.exec_driver_sql(f"PRAGMA foreign_key_list({table})").mappings()
            return sorted(row["on_delete"] for row in rows)
    return sorted(key["options"]["ondelete"] for key in seen.get_foreign_keys(table))


def kind(column_type):
    # SQLite numbers its rows in an INTEGER and nowhere else; 64 bits either way.
    word = str(column_type).partition("(")[0]
    return {"BIGINT": "INTEGER", "TIMESTAMP": "DATETIME"}.get(word, word)


def is_nullable(seen, table, column):
    # SQLite calls the columns of a primary key nullable unless told twice.
    is_key = column["name"] in seen.get_pk_constraint(table)["constrained_columns"]
    return column["nullable"] and not is_key


@pytest.mark.parametrize("version", [None, *OLDER_VERSIONS])
def test_the_migrations_end_where_the_tables_are_described(where, version, tmp_path):
    """The queries are written for the described tables; the files have the migrated ones."""
    if version is not None:
        make_version(where, version)
    open_and_close(where)
    migrated = described(where)

    reference = tmp_path / "described.db" if "://" not in str(where) else where
    with closing_engine(reference) as opened:
        if reference is where:
            schema.metadata.drop_all(opened)
        schema.metadata.create_all(opened)
    assert migrated == described(reference)
    assert set(migrated) == set(schema.metadata.tables)


@pytest.mark.parametrize("version", OLDER_VERSIONS)
def test_a_migration_that_fails_changes_nothing(where, version, monkeypatch):
    make_version(where, version)
    before = described(where)
    broken = [*migrations._MIGRATIONS]
    broken[-1] = (*broken[-1], "CREATE NONSENSE")
    with monkeypatch.context() as patched:
        patched.setattr(migrations, "_MIGRATIONS", tuple(broken))
        with pytest.raises(StateUnreadable, match="NONSENSE"):
            open_and_close(where)
    assert described(where) == before
    with closing_engine(where) as opened, opened.connect() as connection:
        assert migrations.found_version(connection, "it") == version


# Who may read it


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277])
def test_the_state_is_its_owners_alone_whatever_the_umask(tmp_path, umask):
    path = tmp_path / "new" / "deep" / "state.db"
    before = os.umask(umask)
    try:
        with StateStore.open(path) as store:
            store.ensure_task("t", "/data")
            modes = {each.name: stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"state.db": 0o600, "state.db-wal": 0o600, "state.db-shm": 0o600}
    for directory in (path.parent, path.parent.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_a_state_that_others_could_read_is_taken_from_them(path):
    """It was copied, or made by a careless hand; its companions inherit its mode."""
    make_state(path)
    path.chmod(0o664)
    with StateStore.open(path) as store:
        store.ensure_task("t", "/data")
        modes = {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()}
    assert modes == {0o600}


@pytest.mark.parametrize("suffix", ["-wal", "-shm", "-journal"])
def test_a_link_beside_the_state_is_refused_and_changes_nothing_elsewhere(path, tmp_path, suffix):
    """Whoever may write to the directory could have any file of ours taken from its readers."""
    make_state(path)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("for everybody to read")
    elsewhere.chmod(0o644)
    path.with_name(path.name + suffix).symlink_to(elsewhere)
    with untouched(elsewhere):
        assert f"{path}{suffix} is not a regular file" in refuse(path)


@pytest.mark.parametrize("use", [open_and_close, look_at])
def test_a_pipe_beside_the_state_is_refused_and_not_waited_for(path, use):
    """SQLite would wait for ever for the beginning of a rollback journal."""
    make_state(path)
    os.mkfifo(f"{path}-journal")
    with pytest.raises(StateUnreadable, match="-journal is not a regular file"):
        use(path)


def test_a_state_behind_a_link_is_taken_from_others_where_it_lies(path, tmp_path):
    """As on a larger disk; SQLite keeps its companions there too, and not beside the link."""
    (tmp_path / "larger").mkdir()
    path.symlink_to(tmp_path / "larger" / "of-mine.db")
    make_state(path.readlink())
    path.readlink().chmod(0o664)
    with StateStore.open(path) as store:
        store.ensure_task("t", "/data")
        modes = {
            each.name: stat.S_IMODE(each.stat().st_mode)
            for each in path.readlink().parent.iterdir()
        }
    assert modes == {"of-mine.db": 0o600, "of-mine.db-wal": 0o600, "of-mine.db-shm": 0o600}


def test_a_directory_that_was_there_keeps_its_mode(tmp_path):
    tmp_path.chmod(0o750)
    make_state(tmp_path / "state.db")
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o750


def test_the_file_is_in_wal_mode_and_synced_at_every_commit(path):
    with StateStore.open(path) as store, store._database.reading() as connection:
        told = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert told == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}


def test_a_directory_that_cannot_be_written_is_told_at_once(open_directory, as_nobody):
    """SQLite would open the file read-only, and fail at the first write, hours later."""
    path = open_directory / "state.db"
    with as_nobody():
        make_state(path)
    open_directory.chmod(0o555)
    with untouched(path), as_nobody(), pytest.raises(StateUnreadable) as caught:
        open_and_close(path)
    open_directory.chmod(0o777)
    assert f"{open_directory} cannot be written" in str(caught.value)


def test_a_new_state_where_nothing_may_be_made_is_told_at_once(open_directory, as_nobody):
    open_directory.chmod(0o555)
    with as_nobody(), pytest.raises(StateUnreadable, match="Permission denied"):
        open_and_close(open_directory / "new" / "state.db")
    assert list(open_directory.iterdir()) == []


def test_a_file_that_cannot_be_written_is_told_at_once(open_directory, as_nobody):
    path = open_directory / "state.db"
    make_state(path)
    path.chmod(0o444)
    with (
        untouched(path),
        as_nobody(),
        pytest.raises(StateUnreadable, match="cannot be written"),
    ):
        open_and_close(path)


only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def nobodys(open_directory):
    """Give a directory that belongs to an account, as a service's does."""
    os.chown(open_directory, NOBODY, NOBODY)
    open_directory.chmod(0o755)
    return open_directory


def belongings(directory):
    return {each.name: each.stat().st_uid for each in directory.rglob("*")}


@only_root
@pytest.mark.parametrize("place", ["state.db", "new/deep/state.db"])
def test_what_root_makes_in_the_directory_of_a_service_belongs_to_the_service(
    nobodys, as_nobody, place
):
    """`sudo bge-downloader add` may come before the service has ever run."""
    path = nobodys / place
    with StateStore.open(path) as store:
        store.ensure_task("roots", "/data")
        assert {f"state.db{suffix}" for suffix in ("", "-wal", "-shm")} <= {*belongings(nobodys)}
        assert {*belongings(nobodys).values()} == {NOBODY}
        with as_nobody(), StateStore.open(path) as other:
            other.ensure_task("services", "/data")
    with as_nobody(), StateStore.open(path) as store:
        assert [task.task_id for task in store.find_tasks()] == ["roots", "services"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@only_root
def test_root_leaves_the_companions_of_a_services_state_to_the_service(nobodys, as_nobody):
    path = nobodys / "state.db"
    with as_nobody():
        make_state(path)
    with StateStore.open(path) as store:
        store.ensure_task("roots", "/data")
        assert belongings(nobodys) == dict.fromkeys(
            ["state.db", "state.db-wal", "state.db-shm"], NOBODY
        )


@only_root
def test_in_a_directory_of_everybodys_what_root_makes_is_roots(nobodys):
    """Whoever owns `/tmp` has no part in what lies there."""
    nobodys.chmod(0o1777)
    make_state(nobodys / "state.db")
    make_state(nobodys / "new" / "state.db")
    assert {*belongings(nobodys).values()} == {0}


@only_root
def test_a_state_of_roots_that_was_there_stays_roots(nobodys):
    (nobodys / "state.db").touch(0o600)
    make_state(nobodys / "state.db")
    assert belongings(nobodys) == {"state.db": 0}


# Other processes


OPENER = """
import sys
from state import StateStore
print("ready", flush=True)
sys.stdin.readline()
with StateStore.open(sys.argv[1]) as store:
    for number in range(20):
        store.ensure_task(f"t-{number}", "/data")
        store.record_poll(store.find_tasks(task_id=f"t-{number}")[0].id, "PENDING")
    print(len(store.find_tasks()), flush=True)
"""


def open_together(start_python, where):
    """Let two processes open a state in the same moment, and work with it."""
    openers = [start_python(OPENER, where) for _ in range(2)]
    assert [opener.stdout.readline() for opener in openers] == ["ready\n"] * 2
    for opener in openers:
        opener.stdin.write("\n")
        opener.stdin.flush()
    assert [opener.wait(timeout=30) for opener in openers] == [0, 0]


def test_two_processes_that_make_a_new_state_at_once_both_succeed(where, start_python):
    open_together(start_python, where)
    with StateStore.open(where) as store:
        assert [task.polls for task in store.find_tasks()] == [2] * 20


HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA locking_mode=EXCLUSIVE")
connection.execute(sys.argv[2])
connection.execute("UPDATE tasks SET polls = polls + 1")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("journal", ["PRAGMA journal_mode=DELETE", "BEGIN IMMEDIATE"])
def test_a_state_that_another_process_holds_is_told_and_is_free_with_its_end(
    path, start_python, monkeypatch, journal
):
    make_state(path)
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0)
    holder = start_python(HOLDER, path, journal)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StateUnreadable, match="locked by another process") as caught:
        open_and_close(path)
    assert str(path) in str(caught.value)
    holder.kill()
    holder.wait()
    open_and_close(path)


def test_a_write_that_waits_too_long_is_told_and_reading_goes_on(path, start_python, monkeypatch):
    make_state(path)
    monkeypatch.setattr(engine, "BUSY_SECONDS", 0)
    with StateStore.open(path) as store:
        holder = start_python(HOLDER.replace("EXCLUSIVE", "NORMAL"), path, "BEGIN IMMEDIATE")
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StateUnreadable, match="locked by another process"):
            store.ensure_task("other", "/data")
        assert [task.task_id for task in store.find_tasks()] == ["t-0"]


WRITER = """
import sys
from state import Checkpoint, Segment, StateStore
store = StateStore.open(sys.argv[1])
task = store.ensure_task("t", "/data").id
class Planned:
    name = bucket = key = "a"
file = store.save_plan(task, [Planned])[0].id
for mark in range(1, 1_000_000):
    safe = mark % 1000
    parts = [Segment(start=at, stop=at + 1000, watermark=safe) for at in range(0, 64_000, 1000)]
    store.save_checkpoint(file, Checkpoint(etag=str(safe), size=64_000, segments=tuple(parts)))
    print(mark, flush=True)
"""


@pytest.mark.parametrize("after", [1, 20])
def test_a_writer_that_is_killed_in_the_middle_leaves_a_whole_checkpoint(path, start_python, after):
    """The one that it reported last, or the one that it was writing; never a mixture."""
    writer = start_python(WRITER, path)
    for _ in range(after):
        reported = int(writer.stdout.readline())
    writer.send_signal(signal.SIGKILL)
    rest = writer.stdout.read().split()
    reported = int(rest[-1]) if rest else reported
    with StateStore.open(path) as store:
        [task] = store.find_tasks()
        [file] = store.list_files(task.id)
        checkpoint = store.load_checkpoint(file.id)
        store.set_phase(task.id, Phase.FAILED)
    marks = {segment.watermark for segment in checkpoint.segments}
    assert len(checkpoint.segments) == 64
    assert marks == {int(checkpoint.etag)}
    assert int(checkpoint.etag) in {reported % 1000, (reported + 1) % 1000}


CRASHER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
for pragma in ("journal_mode=DELETE", "cache_size=1", "cache_spill=1"):
    connection.execute(f"PRAGMA {pragma}")
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE events SET message = hex(randomblob(2500))")
print("half written", flush=True)
sys.stdin.read()
"""


def test_a_transaction_that_a_crash_left_half_written_is_undone(path, start_python):
    """Where WAL cannot be, as on some network disks, and before it is: a rollback journal."""
    make_state(path, tasks=6)
    crasher = start_python(CRASHER, path)
    assert crasher.stdout.readline() == "half written\n"
    crasher.kill()
    crasher.wait()
    assert path.with_name("state.db-journal").stat().st_size
    with StateStore.open(path) as store:
        messages = [store.list_events(task.id)[0].message for task in store.find_tasks()]
    assert messages == ["x" * 5000] * 6


def test_a_look_undoes_no_half_written_transaction_and_believes_none(path, start_python):
    make_state(path, tasks=6)
    crasher = start_python(CRASHER, path)
    assert crasher.stdout.readline() == "half written\n"
    crasher.kill()
    crasher.wait()
    before = {each: each.read_bytes() for each in path.parent.iterdir()}
    assert look_at(path) == (str(path), None)
    assert {each: each.read_bytes() for each in path.parent.iterdir()} == before


def test_a_table_that_somebody_dropped_is_a_sentence_and_no_traceback(path):
    make_state(path)
    with StateStore.open(path) as store:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("DROP TABLE events")
            connection.commit()
        with pytest.raises(StateError, match="no such table"):
            store.add_event(1, "note", "late")


def test_tidying_writes_back_what_is_in_the_log_and_changes_nothing_else(path):
    with StateStore.open(path) as store:
        store.ensure_task("t", "/data")
        store.tidy()
        assert b"/data" in path.read_bytes()
        assert [task.task_id for task in store.find_tasks()] == ["t"]


def test_a_server_tidies_itself(postgresql_url):
    with StateStore.open(postgresql_url) as store:
        store.tidy()


def test_tidying_a_state_that_was_overwritten_is_a_sentence_and_no_traceback(path):
    make_state(path)
    with StateStore.open(path) as store:
        path.write_bytes(b"no database any more" * 500)
        with pytest.raises(StateUnreadable) as caught:
            store.tidy()
    assert str(path) in str(caught.value)


# Plans of any size


def test_a_plan_of_many_files_can_be_replaced_by_another(path):
    """One statement with a value for each file would be refused by the database."""

    class Planned:
        bucket = "b"

        def __init__(self, name):
            self.name = self.key = name

    with StateStore.open(path) as store:
        task = store.ensure_task("t", "/data").id
        with store._database.writing() as connection:
            raw = connection.connection.driver_connection
            raw.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 100)
        store.save_plan(task, [Planned(f"old-{number}") for number in range(500)])
        saved = store.save_plan(task, [Planned("new")])
        assert store.list_files(task) == saved


def test_no_question_about_one_task_reads_the_rows_of_others(path):
    """With 10,000 tasks in the state each answer must take as long as with one."""
    asked = []

    def see(*arguments):
        _, _, statement, parameters, _, executemany = arguments
        asked.append((statement, parameters[0] if executemany else parameters))

    class Planned:
        name = bucket = key = "a"

    one = Checkpoint(etag="e", size=9, segments=(Segment(start=0, stop=9),))
    two = Checkpoint(etag="e", size=9, segments=(Segment(start=1, stop=9, watermark=1),))
    with StateStore.open(path) as store:
        event.listen(store._database._writer, "before_cursor_execute", see)
        task = store.ensure_task("t", "/data").id
        [file] = store.save_plan(task, [Planned])
        store.save_checkpoint(file.id, one)
        store.save_checkpoint(file.id, two, previous=one)
        store.save_checkpoints({file.id: one})
        store.load_checkpoint(file.id)
        store.load_checkpoints(task)
        store.progress(task)
        store.add_event(task, "note", "")
        store.list_events(task, 3)
        store.find_tasks("t")
        store.find_tasks("t", "/data")
        store.find_tasks(phase=Phase.WAITING, limit=16)
        store.record_poll(task, "PENDING")
        store.acquire(task, "me", 3)
        store.renew(task, "me", 3)
        store.release(task, "me")
        store.clear_checkpoints([file.id])
        store.save_plan(task, [])
        store.forget_task(task)
    questions = {
        question: values
        for question, values in asked
        if question.startswith(("SELECT", "UPDATE", "DELETE"))
    }
    assert len(questions) > 15
    with closing(sqlite3.connect(path)) as raw:
        for question, values in questions.items():
            plan = raw.execute(f"EXPLAIN QUERY PLAN {question}", values).fetchall()
            assert not any(step[-1].startswith("SCAN") for step in plan), (question, plan)


# What is never written


@pytest.mark.parametrize("secret", ["Signature=", "security-token=", "OSSAccessKeyId="])
def test_no_byte_of_a_secret_is_anywhere_in_the_file(path, secret):
    link = f"https://b.aliyuncs.com/k?Expires=1&{secret}geheim%2B"
    with StateStore.open(path) as store:
        task = store.ensure_task("t", "/data").id
        store.add_event(task, "note", f"got {link}", link=link, deep=[{"x": {link: [link]}}])
        store.record_poll(task, f"<{link}>")
        store.set_phase(task, Phase.FAILED, message=f"'{link}' was refused", exit_code=1)
        everything = b"".join(each.read_bytes() for each in path.parent.glob("state.db*"))
        message = store.list_events(task)[0].message
    assert message == "got https://b.aliyuncs.com/k?\u2026"
    assert b"geheim" not in everything
    assert secret.encode() not in everything
