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


def test_slices_are_one_load_when_they_are_joined() -> None:
    """Quantiles are those of all connections: where one slice was slow, so are the slowest of them all."""
    quick, slow = [float(number) for number in range(1, 91)], [1000.0] * 10
    parts = [
        LoadResult(90, 90, 900, 0.5, {}, 90, 1, 1, 1, 1, 1, quick),
        LoadResult(11, 10, 100, 1.0, {"reset": 1}, 10, 1, 1, 1, 1, 1, slow),
    ]
    whole = LoadResult.joined(parts)
    assert (whole.asked, whole.ok, whole.bytes, whole.seconds, whole.errors) == (101, 100, 1000, 1.5, {"reset": 1})
    assert (whole.samples, whole.p50_us, whole.p90_us, whole.max_us) == (100, 50.0, 90.0, 1000.0)
    assert whole.latencies_us == ()


def test_a_slice_has_arrivals_of_its_own() -> None:
    load = Load(("a.bench.example",), count=20, rate=1000)
    slices = [load.slice(number, 4) for number in range(4)]
    assert ({part.count for part in slices}, len({part.seed for part in slices})) == ({5}, 4)


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
