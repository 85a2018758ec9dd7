"""Crash points: what may be on the disk after each operation, and what comes of it.

Of a fetch, and of a repair. `make torture` tries all of them; the ordinary run of the tests some.
"""
