"""Builds the libraries in C that tests load in front of libc."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["build"]


def build(source: Path, directory: Path) -> Path | None:
    """Compile a library into the directory; None where there is no C compiler, or no Linux."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None or sys.platform != "linux" or sys.maxsize < 2**32:
        return None
    library = directory / source.with_suffix(".so").name
    flags = ["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread"]
    headers = f"-I{Path(__file__).parent}"
    subprocess.run([compiler, *flags, headers, "-o", library, source], check=True)
    return library
