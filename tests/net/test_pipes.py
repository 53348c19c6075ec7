"""The pool of pipes: few, kept for the next lease, and none where there is no room."""

import errno
import fcntl
import os

import pytest

from sniproxy.net.pipes import PIPE_SIZE, Pipe, PipePool
from tests.net.loopback import no_descriptor_left, open_descriptors


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def leased(pool: PipePool) -> Pipe:
    pipe = pool.lease()
    assert pipe is not None
    return pipe


def test_a_pipe_carries_bytes_and_makes_nobody_wait() -> None:
    """Neither end blocks, and neither is inherited by a program that we start."""
    pool = PipePool(1)
    pipe = leased(pool)
    with pytest.raises(BlockingIOError):
        os.read(pipe.reader, 1)
    os.write(pipe.writer, b"through")
    assert os.read(pipe.reader, 100) == b"through"
    assert [os.get_inheritable(fd) for fd in pipe] == [False, False]
    pool.give_back(pipe)
    pool.close()


def test_no_more_than_the_limit_are_out_at_once() -> None:
    """None, not an error: whoever asks does without. What comes back can be leased again."""
    pool = PipePool(3)
    out = [leased(pool) for _ in range(3)]
    assert pool.lease() is None
    pool.give_back(out[0])
    assert [out[0], None] == [pool.lease(), pool.lease()]
    for pipe in out:
        pool.give_back(pipe)
    pool.close()


def test_a_pool_of_none_leases_none() -> None:
    pool = PipePool(0)
    assert pool.lease() is None
    pool.close()


def test_a_pipe_that_came_back_is_used_again() -> None:
    """Ten thousand leases, one after the other, need one pipe."""
    before = open_descriptors()
    pool = PipePool(8)
    used = set()
    for _ in range(10_000):
        pipe = leased(pool)
        used.add(pipe)
        pool.give_back(pipe)
    assert (1, before + 2) == (len(used), open_descriptors())
    pool.close()
    assert before == open_descriptors()


def test_a_pipe_with_a_strangers_bytes_is_closed_and_replaced() -> None:
    """What is discarded is never leased again, and makes room for another."""
    pool = PipePool(1)
    pipe = leased(pool)
    os.write(pipe.writer, b"the bytes of a connection that is over")
    pool.discard(pipe)
    assert [False, False] == [is_open(fd) for fd in pipe]
    fresh = leased(pool)
    with pytest.raises(BlockingIOError):
        os.read(fresh.reader, 1)
    pool.give_back(fresh)
    pool.close()


def test_without_descriptors_there_is_no_pipe_and_later_there_is() -> None:
    """Not even half a pipe: one descriptor is not enough, and is not kept."""
    for left in (0, 1):
        pool = PipePool(2)
        with no_descriptor_left(but=left):
            assert [None, None, None] == [pool.lease() for _ in range(3)]
        out = [leased(pool), leased(pool)]
        assert pool.lease() is None
        for pipe in out:
            pool.give_back(pipe)
        pool.close()


def test_a_pipe_is_as_large_as_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte where the kernel gives it; where it refuses, past the user's soft limit, the pipe serves as it is."""

    def refuse(*_: int) -> int:
        raise PermissionError(errno.EPERM, "over pipe-user-pages-soft")

    pool = PipePool(2)
    large = leased(pool)
    with monkeypatch.context() as patch:
        patch.setattr("sniproxy.net.pipes.fcntl.fcntl", refuse)
        small = leased(pool)
    os.write(small.writer, b"x")
    assert os.read(small.reader, 10) == b"x"
    sizes = [fcntl.fcntl(pipe.writer, fcntl.F_GETPIPE_SZ) for pipe in (large, small)]
    assert sizes[0] in (PIPE_SIZE, 64 * 1024)
    assert sizes[1] <= 64 * 1024
    pool.give_back(large)
    pool.give_back(small)
    pool.close()
