"""The platform, and where there is no nginx the store too, as a process: both are the sandbox's.

`python -m tests.bench.other_side ORDER`, a JSON file; it says its address on stdout, and ends with
its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path

from downloader.sandbox import FakeObjectStore, FakePlatform, Sandbox


async def serve(order: dict[str, object]) -> None:
    host, stores, tasks = str(order["host"]), order["stores"], order["tasks"]
    assert isinstance(stores, list)
    assert isinstance(tasks, dict)
    async with contextlib.AsyncExitStack() as stack:
        unused = FakeObjectStore(host=host)
        platform = FakePlatform(
            app_key=Sandbox.app_key, app_secret=Sandbox.app_secret, links=unused, host=host
        )
        await stack.enter_async_context(platform)
        for task_id, links in tasks.items():
            platform.add_task(task_id, states=("SUCCESS",), result=links)
        for one in stores:
            store = FakeObjectStore(
                host=host, port=one["port"], public=True, bytes_per_second=one["bytes_per_second"]
            )
            for key, path in one["objects"].items():
                store.put(key, Path(path))
            await stack.enter_async_context(store)
        sys.stdout.write(f"{platform.url}\n")
        sys.stdout.flush()
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(serve(json.loads(Path(sys.argv[1]).read_text())))
