"""What the load generator is given, and what it makes of the answer."""

from pathlib import Path

import pytest

from bench.hello import HELLO_BYTES
from bench.stage import ANSWER_BYTES, Load, LoadResult, free_ports, pack_hellos

LOAD = Load(("a.bench.example",), count=2)


def result(ok: int = 2, received: int = 2 * ANSWER_BYTES, **errors: int) -> LoadResult:
    return LoadResult(2, ok, received, 0.1, errors, ok, 1, 1, 1, 1, 1)


@pytest.mark.parametrize(
    ("seen", "kinds"),
    [
        (result(), []),
        (result(ok=1, reset=1), ["connections failed"]),
        (result(received=ANSWER_BYTES), ["bytes are missing"]),
    ],
    ids=["whole", "a connection failed", "bytes are missing"],
)
def test_a_result_says_what_is_wrong_with_it(seen: LoadResult, kinds: list[str]) -> None:
    assert [problem.kind for problem in seen.problems(LOAD)] == kinds


def test_hellos_are_packed_behind_their_lengths() -> None:
    packed = pack_hellos(("a.bench.example", "b.bench.example"), with_header=False)
    assert packed[:4] == HELLO_BYTES.to_bytes(4, "little")
    assert len(packed) == 2 * (4 + HELLO_BYTES)


def test_two_ports_are_two_that_no_outgoing_connection_takes() -> None:
    """A proxy that is given one port twice, or one that a connection has taken meanwhile, does not start."""
    lowest_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for one, other in (free_ports() for _ in range(50)):
        assert one != other
        assert 1024 <= min(one, other) <= max(one, other) < lowest_outgoing
