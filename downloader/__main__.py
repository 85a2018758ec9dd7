"""`python -m downloader` is `bge-downloader`."""

from __future__ import annotations

import atexit
import gc
import os
import signal

__all__ = ["main"]


def main() -> None:
    """Run the program; Ctrl-C before it has begun is no error of ours either."""
    # What has not begun is not interrupted but ended, as any other program is: Python would raise
    # an error in the middle of whatever it loads. `downloader.cli.running` makes it one in time.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Modules are no garbage. To look for some in them takes a fifth of a short run: again and again
    # while they are loaded (`downloader.cli.running` ends that), and once more at the very end.
    gc.disable()
    atexit.register(gc.freeze)
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # sought in all that is installed
    from downloader.cli import main as run  # noqa: PLC0415 - not before what is above

    run()


if __name__ == "__main__":
    main()
