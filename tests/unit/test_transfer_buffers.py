"""Buffers: nobody else's while they are lent, and never more memory than was allowed."""

from downloader.transfer.buffers import LARGE_BYTES, SMALL_BYTES, BufferPool

MIB = 1024 * 1024


def test_a_buffer_is_nobody_elses_while_it_is_lent():
    pool = BufferPool(4 * MIB)
    first, second = pool.lend(), pool.lend()
    assert first is not second
    pool.give_back(first)
    assert pool.lend() is first


def test_whoever_comes_first_gets_a_large_one_and_the_others_small_ones():
    pool = BufferPool(4 * MIB)
    lent = [pool.lend() for _ in range(pool.most)]
    assert [len(one) for one in lent] == [LARGE_BYTES] * 2 + [SMALL_BYTES] * 16
    assert sum(map(len, lent)) == 4 * MIB


def test_a_large_one_that_came_back_is_lent_again_as_such():
    pool = BufferPool(4 * MIB)
    lent = [pool.lend() for _ in range(pool.most)]
    pool.give_back(lent[0])
    pool.give_back(lent[-1])
    assert pool.lend() is lent[0]
    assert pool.lend() is lent[-1]


def test_some_memory_there_must_be():
    assert BufferPool(1).most == 2


def test_what_is_not_lent_can_be_freed():
    pool = BufferPool(2 * MIB)
    buffers = [pool.lend(), pool.lend()]
    for one in buffers:
        pool.give_back(one)
    pool.clear()
    assert pool.lend() not in buffers
