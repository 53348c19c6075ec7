"""The sentinel of the incremental readers."""

import pickle

from sniproxy.wire.need_more import NEED_MORE, NeedMore


def test_there_is_one_need_more_and_is_finds_it() -> None:
    """`is NEED_MORE` is the whole test that a caller makes, also on a value that crossed a process."""
    assert list(NeedMore) == [NEED_MORE]
    assert pickle.loads(pickle.dumps(NEED_MORE)) is NEED_MORE  # noqa: S301 - our own bytes
