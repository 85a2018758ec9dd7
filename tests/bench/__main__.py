"""`python -m tests.bench [CASE...]`: what `make bench` runs."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from tests.bench import report
from tests.bench.arena import Arena, Case, Result
from tests.bench.cases import QUICK, Sizes, all_cases
from tests.bench.measure import BenchError
from tests.bench.objects import MIB, Objects
from tests.bench.resume import resume
from tests.bench.servers import nginx_program
from tests.bench.wan import what_is_missing


def main() -> int:
    sizes, options = _options()
    jobs, skipped = _jobs(sizes)
    wanted = options.cases or [*jobs, *skipped]
    if unknown := [name for name in wanted if name not in jobs and name not in skipped]:
        _say(f"There is no case {unknown[0]!r}; there are {', '.join([*jobs, *skipped])}")
        return 2
    if options.write and (options.cases or options.quick):
        _say("--write is for a whole run: no CASE, no --quick")
        return 2
    # Many GiB are removed, and servers ended, however this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with _workplace(options.work) as work:
        arena = Arena(work, options.rounds, Objects(work / "objects"), _progress)
        told = report.facts(work, options.rounds)
        _say("\n".join(told))
        results = []
        for name in wanted:
            _say("")
            results.append(skipped[name] if name in skipped else _run(jobs[name], arena, name))
            _say(report.as_text(results[-1]))
        results.append(report.memory(results))
        _say(f"\n{report.as_text(results[-1])}")
        if options.write:
            report.write(results, told)
    return 0


def _options() -> tuple[Sizes, argparse.Namespace]:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="which cases; all without any")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds (5)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the bench itself")
    parser.add_argument("--resume-size", type=int, metavar="MIB", help="of the resumed object")
    parser.add_argument(
        "--work", default="/var/tmp", help="where it is measured: a directory on a real disk"
    )
    parser.add_argument("--write", action="store_true", help="put the result into docs/")
    options = parser.parse_args()
    sizes = QUICK if options.quick else Sizes()
    if options.resume_size:
        fields = {name: getattr(sizes, name) for name in Sizes.__slots__}
        sizes = Sizes(**fields | {"resumed": options.resume_size * MIB})
    return sizes, options


def _jobs(sizes: Sizes) -> tuple[dict[str, Callable[[Arena], Result]], dict[str, Result]]:
    """Return what can be run here, and why the rest cannot."""
    jobs: dict[str, Callable[[Arena], Result]] = {}
    skipped = {}
    for case in all_cases(sizes):
        if reason := _obstacle(case):
            skipped[case.name] = Result(case.name, case.title, notes=[f"skipped: {reason}"])
        else:
            jobs[case.name] = partial(Arena.run, case=case)
    jobs["resume"] = partial(resume, size=sizes.resumed)
    return jobs, skipped


def _obstacle(case: Case) -> str | None:
    if case.wan and (missing := what_is_missing()):
        return missing
    if case.way == "tls" and not nginx_program():
        return "nginx is not installed, and the sandbox's store speaks no TLS"
    return None


def _run(job: Callable[[Arena], Result], arena: Arena, name: str) -> Result:
    """Run one case; one that fails says so and lets the others run."""
    try:
        return job(arena)
    except BenchError as error:
        return Result(name, "it failed", notes=[str(error)])


@contextlib.contextmanager
def _workplace(parent: str) -> Iterator[Path]:
    work = Path(tempfile.mkdtemp(prefix="bge-bench-", dir=parent))
    try:
        yield work
    finally:
        shutil.rmtree(work)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _progress(line: str) -> None:
    sys.stderr.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
