"""Name servers: those of the system, and how many questions may be open.

What comes of asking them is shown by the resolver's tests.
"""

from pathlib import Path
from resource import RLIM_INFINITY

import pytest

from sniproxy.config.units import TcpAddress
from sniproxy.net.nameservers import MAX_QUESTION_SOCKETS, question_sockets, system_nameservers


class TestSystem:
    def test_those_of_the_system(self, tmp_path: Path) -> None:
        """resolv.conf(5): the first three count; search domains and options do not concern us."""
        path = tmp_path / "resolv.conf"
        path.write_text(
            "# written by the kubelet\nsearch default.svc.cluster.local\noptions ndots:5\n"
            "nameserver 10.96.0.10\nnameserver\nnameserver dns.google\n"
            "nameserver ::1\nnameserver 8.8.8.8\nnameserver 8.8.4.4\n"
        )
        expected = (TcpAddress("10.96.0.10", 53), TcpAddress("::1", 53), TcpAddress("8.8.8.8", 53))
        assert expected == system_nameservers(path)

    def test_without_any_the_one_on_this_host_is_asked(self, tmp_path: Path) -> None:
        assert (TcpAddress("127.0.0.1", 53),) == system_nameservers(tmp_path / "missing")


@pytest.mark.parametrize(
    ("descriptors", "expected"),
    [
        (4, 1),
        (512, 64),
        (1024, 128),
        (20_000, MAX_QUESTION_SOCKETS),
        (RLIM_INFINITY, MAX_QUESTION_SOCKETS),
    ],
)
def test_sockets_for_questions_are_a_share_of_the_descriptors(descriptors: int, expected: int) -> None:
    assert expected == question_sockets(descriptors)
