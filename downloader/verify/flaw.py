"""What a check says when something is wrong, before anybody knows the file's name."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["MAX_RATIO", "Flaw", "Stop", "Stopped", "never"]

# Bytes that one byte on disk may unpack to in what has to be held whole, once it is large. Headers
# of very regular names reach 50, indexes 12; DEFLATE goes up to 1,032, for one byte repeated.
MAX_RATIO = 128

Stop = Callable[[], bool]  # tells whether a check is to end, since nobody waits for it any more


class Flaw(Exception):
    """Something is wrong with the file that is being checked.

    The message is the predicate of a sentence ("ends without …"): whoever knows the name under
    which people know the file puts it in front.
    """


class Stopped(Exception):
    """The check was told to stop; it says nothing about the file."""


def never() -> bool:
    """Stop never."""
    return False
