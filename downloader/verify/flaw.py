"""What a check says when something is wrong, before anybody knows the file's name."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Flaw", "Stop", "Stopped", "never"]

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
