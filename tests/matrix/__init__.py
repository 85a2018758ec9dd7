"""The fault matrix: every fault that is known of, and what must come of it.

One table (`matrix.table`) is what `tests/sandbox/test_fault_matrix.py` makes happen for real, row
by row, and what `docs/reliability.md` shows: neither can promise what the other does not.
"""
