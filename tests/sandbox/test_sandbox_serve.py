"""The two stand-ins together: the sandbox, a folder of the user's own, and the command's heart."""

import asyncio
import os
import signal
import uuid

import pytest

from downloader.errors import InvalidSettings
from downloader.sandbox import Sandbox, samples
from downloader.sandbox.serve import serve


def fill(directory):
    """Make a folder as a user may have it."""
    for name in ("b/two.vcf.gz", "b/two.vcf.gz.tbi", "one.vcf.gz", "one.vcf.gz.csi"):
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(name.encode())
    for name in ("alone.vcf.gz", "notes.txt", ".hidden.vcf.gz"):
        (directory / name).write_bytes(b"x")


async def test_the_environment_is_all_that_the_program_needs():
    async with Sandbox() as sandbox:
        assert sandbox.environment() == {
            "BGE_ENDPOINT": sandbox.endpoint,
            "BGE_APP_KEY": "sandbox-key",
            "BGE_APP_SECRET": "sandbox-secret-not-real",
            "BGE_ALLOWED_HOSTS": "127.0.0.1",
        }
        assert sandbox.endpoint.startswith("http://127.0.0.1:")


async def test_each_pair_of_a_folder_is_a_task_and_all_together_one_more(tmp_path):
    fill(tmp_path)
    async with Sandbox() as sandbox:
        tasks = sandbox.serve_directory(tmp_path)
        assert list(tasks.values()) == [
            ["b/two.vcf.gz", "b/two.vcf.gz.tbi"],
            ["one.vcf.gz", "one.vcf.gz.csi"],
            ["alone.vcf.gz", "b/two.vcf.gz", "b/two.vcf.gz.tbi", "one.vcf.gz", "one.vcf.gz.csi"],
        ]
        assert all(uuid.UUID(task_id) for task_id in tasks)
        assert set(sandbox.store.keys) == set(list(tasks.values())[-1])
        assert sandbox.platform.task_ids[1:] == list(tasks)
    async with Sandbox() as again:
        assert again.serve_directory(tmp_path) == tasks


@pytest.mark.parametrize("name", ["", "missing", "file"])
async def test_a_folder_without_vcfs_is_a_clear_error(tmp_path, name):
    (tmp_path / "file").write_bytes(b"")
    async with Sandbox() as sandbox:
        with pytest.raises(InvalidSettings, match="nothing to serve"):
            sandbox.serve_directory(tmp_path / name)


async def test_a_platform_that_cannot_start_takes_the_store_with_it():
    async with Sandbox() as first:
        second = Sandbox(port=int(first.endpoint.rsplit(":", 1)[1]))
        with pytest.raises(InvalidSettings, match="cannot listen"):
            async with second:
                pass
        assert second.store._server._runner is None


class Screen:
    """Keeps lines, and has an event for the last one."""

    def __init__(self):
        self.lines = []
        self.ready = asyncio.Event()

    def __call__(self, line):
        self.lines.append(line)
        if "running" in line:
            self.ready.set()


async def test_serve_says_what_to_export_and_what_to_type(tmp_path):
    fill(tmp_path)
    screen, stop = Screen(), asyncio.Event()
    serving = asyncio.create_task(serve(tmp_path, out=screen, stop=stop))
    await screen.ready.wait()
    stop.set()
    await serving
    assert screen.lines[0].startswith("export BGE_ENDPOINT=http://127.0.0.1:")
    assert screen.lines[1:4] == [
        "export BGE_APP_KEY=sandbox-key",
        "export BGE_APP_SECRET=sandbox-secret-not-real",
        "export BGE_ALLOWED_HOSTS=127.0.0.1",
    ]
    typed = [line for line in screen.lines if line.startswith("bge-downloader fetch ")]
    assert len(typed) == 3
    assert "#   b/two.vcf.gz.tbi" in screen.lines


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_serve_makes_a_sample_and_ends_with_a_signal(number):
    screen = Screen()
    serving = asyncio.create_task(serve(out=screen))
    await screen.ready.wait()
    os.kill(os.getpid(), number)
    await serving
    assert "#   sample.vcf.gz" in screen.lines
    assert "#   sample.vcf.gz.tbi" in screen.lines


async def test_a_small_pair_of_the_samples_is_served_as_it_is():
    vcf, tbi = samples.small_pair()
    async with Sandbox() as sandbox:
        sandbox.add_task({"s.vcf.gz": vcf, "s.vcf.gz.tbi": tbi})
        assert sandbox.store.get("s.vcf.gz").size == len(vcf)
