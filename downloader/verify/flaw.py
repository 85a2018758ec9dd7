"""What a check says when something is wrong, before anybody knows the file's name."""

from __future__ import annotations

__all__ = ["Flaw"]


class Flaw(Exception):
    """Something is wrong with the file that is being checked.

    The message is the predicate of a sentence ("ends without …"): whoever knows the name under
    which people know the file puts it in front.
    """
