"""The flags of the commands; their values travel as text and are read where all settings are."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = [
    "AllowedHosts",
    "Checksums",
    "ConnectTimeout",
    "Deadline",
    "Dest",
    "Endpoint",
    "Json",
    "LimitRate",
    "MaxRetries",
    "MinFreeSpace",
    "ParallelFiles",
    "PollInterval",
    "PollMaxInterval",
    "Quiet",
    "RetryMaxDelay",
    "SegmentSize",
    "Segments",
    "StallTimeout",
    "State",
    "Verbose",
    "VerifyLevel",
    "given",
]

Text = str | None


def _setting(flag: str, metavar: str, meaning: str) -> object:
    return typer.Option(flag, metavar=metavar, help=meaning, show_default=False)


Dest = Annotated[Text, _setting("--dest", "DIR", "Where results go: DIR/TASK_ID. [default: .]")]
State = Annotated[
    Text,
    _setting(
        "--state", "PATH|URL", "State file, or a postgresql+psycopg:// URL without its password."
    ),
]
Endpoint = Annotated[Text, _setting("--endpoint", "URL", "The platform.")]
Deadline = Annotated[
    Text,
    _setting("--timeout", "TIME", "Give up on a task that is not ready by then. [default: 7d]"),
]
PollInterval = Annotated[
    Text, _setting("--poll-interval", "TIME", "First pause between polls. [5s]")
]
PollMaxInterval = Annotated[
    Text, _setting("--poll-max-interval", "TIME", "Longest pause between polls. [5m]")
]
RetryMaxDelay = Annotated[
    Text, _setting("--retry-max-delay", "TIME", "Longest pause between attempts. [1m]")
]
MaxRetries = Annotated[Text, _setting("--max-retries", "N", "Retries of a platform call. [3]")]
StallTimeout = Annotated[
    Text, _setting("--stall-timeout", "TIME", "No byte for so long: a new attempt. [30s]")
]
ConnectTimeout = Annotated[
    Text, _setting("--connect-timeout", "TIME", "No connection by then: a new attempt. [10s]")
]
Segments = Annotated[Text, _setting("--segments", "N", "Most connections for one file. [16]")]
SegmentSize = Annotated[
    Text, _setting("--segment-size", "SIZE", "Most bytes of one ranged request. [64M]")
]
ParallelFiles = Annotated[Text, _setting("--parallel-files", "N", "Most files at a time. [64]")]
Connections = Annotated[Text, _setting("--connections", "N", "Most connections in all. [64]")]
BufferMemory = Annotated[
    Text, _setting("--buffer-memory", "SIZE", "Memory for bytes on their way to the disk. [16M]")
]
LimitRate = Annotated[Text, _setting("--limit-rate", "RATE", "Bytes/s over all transfers (20M).")]
MinFreeSpace = Annotated[
    Text, _setting("--min-free-space", "SIZE", "Bytes that stay free on the disk. [0]")
]
AllowedHosts = Annotated[
    Text, _setting("--allowed-hosts", "HOST,...", "Hosts that may be downloaded from.")
]
Checksums = Annotated[
    Text, _setting("--checksums", "sha256,md5", "Also write SHA256SUMS, MD5SUMS. [none]")
]
VerifyLevel = Annotated[
    Text, _setting("--verify", "full|quick|off", "How far VCF and index are checked. [full]")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes: errors only.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Log every call to stderr.")]


def given(**flags: object) -> dict[str, object]:
    """Return the flags that were given, by the names of their settings."""
    return {name: value for name, value in flags.items() if value is not None}
