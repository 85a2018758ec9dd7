"""`python -m downloader` is `bge-downloader`."""

from __future__ import annotations

import atexit
import gc
import os

__all__ = ["main"]


def main() -> None:
    """Run the program; Ctrl-C before it has begun is no error of ours either."""
    # Modules are no garbage. To look for some in them takes a fifth of a short run: again and again
    # while they are loaded (`downloader.cli.running` ends that), and once more at the very end.
    gc.disable()
    atexit.register(gc.freeze)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # sought in all that is installed
    try:
        from downloader.cli import main as run  # noqa: PLC0415 - its imports can be interrupted

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
