"""The vendor's own SDK and ours agree on the wire: both talk to the sandbox, and hear the same."""

import asyncio
import json
import subprocess
import sys

import pytest

from downloader.api import AsyncPrivateAPI
from downloader.sandbox import Sandbox
from downloader.sandbox.answers import SAMPLE_TASK_ID

CONDITION = {
    "data_element_identifier_de": "50d78d39-baf7-43c7-aab1-52704b9ab180",
    "operator": "=",
    "concept_code": "c1",
}
CALLS = {
    "task_result": [SAMPLE_TASK_ID],
    "survey_projects": ["P-W19126783988"],
    "survey_target": [[CONDITION]],
    "question_size": ["5c033e04f89dd15e44d48b7d"],
    "wechat_profile": ["5c033e04f89dd15e44d48b7d"],
}
# A process of its own: the SDK is synchronous, and the sandbox lives in this one's loop.
VENDOR = """
import json, sys
from private_sdk import PrivateAPI
endpoint, key, secret, calls = json.loads(sys.argv[1])
api = PrivateAPI(key, secret, endpoint=endpoint, max_retries=0, timeout=16)
print(json.dumps({name: getattr(api, name)(*given).json() for name, given in calls.items()}))
"""


@pytest.fixture
async def sandbox():
    async with Sandbox() as sandbox:
        yield sandbox


async def by_the_vendor(sandbox, *, secret=None):
    facts = [sandbox.endpoint, sandbox.app_key, secret or sandbox.app_secret, CALLS]
    command = [sys.executable, "-c", VENDOR, json.dumps(facts)]
    # The vendor's code signs with local time, which the platform takes in UTC only.
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, check=False, env={"TZ": "UTC"}
    )


async def test_both_clients_hear_the_same(sandbox):
    ended = await by_the_vendor(sandbox)
    assert ended.returncode == 0, ended.stderr
    asked_by_the_vendor = list(sandbox.platform.calls)
    sandbox.platform.calls.clear()
    async with AsyncPrivateAPI(
        sandbox.app_key, sandbox.app_secret, sandbox.endpoint, max_retries=0
    ) as api:
        ours = {name: (await getattr(api, name)(*given)).json() for name, given in CALLS.items()}
    assert json.loads(ended.stdout) == ours
    assert sorted(asked_by_the_vendor) == sorted(sandbox.platform.calls)


async def test_the_vendors_client_is_refused_for_a_wrong_secret(sandbox):
    ended = await by_the_vendor(sandbox, secret="not-the-secret")
    assert "1400" in ended.stderr
    assert sandbox.platform.refused == [("task_result", 1400)]
