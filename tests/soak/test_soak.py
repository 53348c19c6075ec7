"""Minutes, not seconds: the parsers against ever new bytes, and the proxy under churn with its memory watched.

`make soak` runs these; `make test` does not. SOAK_SECONDS sets how long each takes (60 by default).
"""

import os
import random
import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from sniproxy.wire.client_hello import HelloError, read_client_hello
from sniproxy.wire.proxy_protocol import ProxyHeaderError, read_proxy_header
from tests.e2e.conftest import allowing
from tests.support.clients import connected, hello_for, proxy_header, sleep_principal
from tests.support.origins import origin, read_exactly, read_to_end
from tests.support.proxy import ProxyProcess, running_proxy

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("SOAK_SECONDS", "60"))
NAME = "soak.wikipedia.org"
HELLO = hello_for(NAME)
RESET = b"\1\0\0\0\0\0\0\0"


def mutated(data: bytes, dice: random.Random) -> bytes:
    """A few bytes changed, cut out, or put in."""
    bytes_ = bytearray(data)
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(bytes_) + 1)
        match dice.randrange(4):
            case 0:
                bytes_[at : at + 1] = bytes([dice.randrange(256)])
            case 1:
                del bytes_[at : at + dice.randint(1, 8)]
            case 2:
                bytes_[at:at] = dice.randbytes(dice.randint(1, 8))
            case _:
                bytes_ = bytes_[:at] or bytearray(b"\x16")
    return bytes(bytes_)


def test_no_bytes_make_a_parser_raise_what_it_does_not_say() -> None:
    """Mutations of right bytes: a value, a wish for more, or the parser's own error."""
    seed = random.randrange(2**32)
    dice = random.Random(seed)
    header = proxy_header(sleep_principal("sleep-us"))
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        hello, prefix = mutated(HELLO, dice), mutated(header, dice)
        try:
            read_client_hello(hello)
        except HelloError:
            pass
        except Exception as error:
            raise AssertionError(f"seed {seed}: {hello.hex()}") from error
        try:
            read_proxy_header(prefix)
        except ProxyHeaderError:
            pass
        except Exception as error:
            raise AssertionError(f"seed {seed}: {prefix.hex()}") from error


def test_memory_and_descriptors_stay_flat_under_churn(tmp_path: Path) -> None:
    """Short, refused, malformed, reset and long connections for a while: what is over leaves nothing behind."""

    def serve(sock: socket.socket) -> None:
        read_exactly(sock, len(HELLO))
        sock.sendall(bytes(100_000))
        read_to_end(sock)

    def churn(proxy: ProxyProcess, seed: int, until: float) -> int:
        dice, count = random.Random(seed), 0
        while time.monotonic() < until:
            with connected(proxy.address) as sock:
                kind = dice.randrange(4)
                sock.sendall((HELLO, hello_for(f"n{dice.random()}.example.org"), mutated(HELLO, dice), HELLO)[kind])
                if kind == 0:
                    read_exactly(sock, 100_000)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET if kind == 3 else bytes(8))
            count += 1
        return count

    with origin(serve) as port, ThreadPoolExecutor(8) as pool:
        config = {
            "upstream": {"hosts": {NAME: [f"127.0.0.1:{port}"]}},
            "timeouts": {"client_hello": "1s", "idle": "2s"},
            "access_log": {"path": "/dev/null"},
        }
        with running_proxy(tmp_path, config, allowing("*.wikipedia.org")) as proxy:
            worker = proxy.children()[0]

            def run(seconds: float) -> tuple[int, int, int]:
                until = time.monotonic() + seconds
                counts = [pool.submit(churn, proxy, seed, until) for seed in range(8)]
                total = sum(count.result() for count in counts)
                proxy.wait_until_idle()
                return total, resident(worker), len(os.listdir(f"/proc/{worker}/fd"))

            _, memory_before, descriptors_before = run(SECONDS / 3)
            count, memory_after, descriptors_after = run(SECONDS)
    assert count > 100
    assert descriptors_after <= descriptors_before + 4  # a pipe or two more in the pool
    assert memory_after - memory_before < 4096, (memory_before, memory_after)


def resident(pid: int) -> int:
    """KiB of memory of a process's own."""
    match = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1])
