"""Crash points: what may be on the disk after each operation of a fetch, and what comes of it.

`make torture` tries all of them; the ordinary run of the tests tries some.
"""
