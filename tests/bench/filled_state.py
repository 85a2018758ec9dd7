"""A state that remembers many tasks, written in one transaction instead of through the store."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import create_engine

from state import Phase, StateStore, schema

FILES = 2
EVENTS = ("added", "planned", "transferred", "published")


def fill(path: Path, count: int) -> None:
    """Make a state of `count` published tasks, each with a pair of files and its history."""
    with StateStore.open(path):
        pass
    now = datetime.now(UTC)
    tasks = [
        {
            "id": number,
            "task_id": f"earlier-{number}",
            "dest": "/data/results",
            "phase": Phase.PUBLISHED,
            "status": "SUCCESS",
            "polls": 1,
            "created_at": now,
            "updated_at": now,
            "published_at": now,
        }
        for number in range(1, count + 1)
    ]
    files = [
        {
            "task": task["id"],
            "name": f"sample-{number}.vcf.gz",
            "bucket": "bucket",
            "key": f"results/{task['task_id']}/sample-{number}.vcf.gz",
            "etag": '"5d41402abc4b2a76b9719d911017c592"',
            "size": 1024,
        }
        for task in tasks
        for number in range(FILES)
    ]
    events = [
        {"task": task["id"], "at": now, "kind": kind, "message": kind, "facts": json.dumps({})}
        for task in tasks
        for kind in EVENTS
    ]
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        connection.execute(schema.tasks.insert(), tasks)
        connection.execute(schema.files.insert(), files)
        connection.execute(schema.events.insert(), events)
    engine.dispose()
