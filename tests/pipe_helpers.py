"""A pipe that nobody writes to, and that yet holds no thread of a test up for ever."""

import contextlib
import os
import threading

PATIENCE_SECONDS = 0.5  # of whoever waits for it; nobody should


@contextlib.contextmanager
def lonely_pipe(path):
    """Make a pipe that nobody may wait for; whoever does reads an empty file in the end."""
    waited = []

    def end_it():
        with contextlib.suppress(OSError):  # nobody has it open
            os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
            waited.append(path)

    os.mkfifo(path)
    ending = threading.Timer(PATIENCE_SECONDS, end_it)
    ending.start()
    try:
        yield
    finally:
        ending.cancel()
        ending.join()
    assert not waited
