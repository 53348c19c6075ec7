"""Work for a proxy that counts which way its code goes, so that GCC can lay it out by that.

    python -m bench.training

Of what is compiled, a connection runs each line once or twice. So it costs what it takes to bring those lines to the
CPU, and who knows which they are can put them side by side. `SNIPROXY_PROFILE=record` (setup.py) compiles the package
so that each process counts, and leaves its counts beside the objects as it ends; `SNIPROXY_PROFILE=use` compiles it
once more, by them. This runs in between, as `make compiled` and the Dockerfile have it.

The work is what most proxies do most: names that are looked up, small answers and large ones, many connections at a
time and one, a few that are refused. It needs nothing but Python, and stays on loopback.
"""

import asyncio
import contextlib
import json
import struct
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

from bench.hello import client_hello, proxy_header

LOOPBACK = "127.0.0.1"
DENIED = "denied.training.example"
ECHO = "echo.training.example"
ANSWERS = {f"{size}.training.example": size for size in (300, 1_000, 5_000, 200_000)}  # bytes
SECONDS = 60.0  # until the proxy must listen, or have ended

_READ = 64 * 1024

# Counts are written by exit(3), and a worker ends by _exit(2), which is to skip what its parent registered.
_PROXY = """
import ctypes, os, sys
os._exit = ctypes.CDLL(None).exit
from sniproxy.cli import run_command
sys.exit(run_command(sys.argv[1:]))
"""

_CONFIG = """\
listeners: [{{address: "127.0.0.1:0", proxy_protocol: required, trusted_peers: [127.0.0.0/8]}}]
upstream:
  port: {origin}
  resolver: {{nameservers: ["127.0.0.1:{dns}"]}}
  allow_networks: [127.0.0.0/8]
policy: {{files: [policy.yaml]}}
access_log: {{path: {home}/access.log}}
admin: {{address: "127.0.0.1:0"}}
workers: 1
"""
_POLICY = """\
rules:
  - {name: training, action: allow, principals: ["cluster.local/ns/*"], sni: ["*.training.example"]}
  - {name: denied, action: deny, sni: [denied.training.example]}
"""


class Nameserver(asyncio.DatagramProtocol):
    """Says of each name that it is on loopback, and that it has no IPv6 address (RFC 1035, section 4)."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        end = data.index(0, 12) + 5  # of the question: a name, a type and a class
        answers = data[end - 3] == 1  # of type A
        header = data[:2] + struct.pack("!5H", 0x8180, 1, answers, 0, 0)
        record = struct.pack("!3HIH4B", 0xC00C, 1, 1, 30, 4, 127, 0, 0, 1) if answers else b""
        self._transport.sendto(header + data[12:end] + record, addr)


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """An origin: sends what its name says and closes, or echoes until the client closes."""
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        hello = await reader.readexactly(len(client_hello(ECHO)))
        if ECHO.encode() in hello:
            while word := await reader.read(_READ):
                writer.write(word)
        for name, size in ANSWERS.items():
            if name.encode() in hello:
                writer.write(bytes(size))
        await writer.drain()


@contextlib.asynccontextmanager
async def proxy(home: Path) -> AsyncIterator[int]:
    """A proxy of the package that runs this, with its name server and its origin: its port."""
    origin = await asyncio.start_server(answer, LOOPBACK, 0)
    loop = asyncio.get_running_loop()
    dns, _ = await loop.create_datagram_endpoint(Nameserver, local_addr=(LOOPBACK, 0))
    ports = {"origin": origin.sockets[0].getsockname()[1], "dns": dns.get_extra_info("sockname")[1]}
    (home / "sniproxy.yaml").write_text(_CONFIG.format(home=home, **ports))
    (home / "policy.yaml").write_text(_POLICY)
    command = (sys.executable, "-c", _PROXY, "run", "--config", str(home / "sniproxy.yaml"))
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    said = cast(asyncio.StreamReader, process.stderr)
    try:
        yield await asyncio.wait_for(_port(said), SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        async with asyncio.timeout(SECONDS):
            words, status = await said.read(), await process.wait()
        dns.close()
        origin.close()
    if status:
        raise RuntimeError(f"the proxy ended with {status}: {words.decode()}")


async def _port(said: asyncio.StreamReader) -> int:
    lines = []
    async for line in said:
        event = json.loads(line) if line.startswith(b"{") else {}
        if event.get("event") == "listening":
            return int(event["addresses"][0].rpartition(":")[2])
        lines.append(line.decode())
    raise RuntimeError(f"the proxy does not listen: {''.join(lines)}")


async def visit(port: int, name: str, *, words: int = 0, in_pieces: bool = False) -> None:
    """One connection for `name`, to its end. Raises RuntimeError if it did not get what it should."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    with contextlib.closing(writer):
        header, hello = proxy_header(LOOPBACK, LOOPBACK, port), client_hello(name)
        if in_pieces:
            writer.write(header)
            await asyncio.sleep(0.01)
            writer.write(hello[:100])
            await asyncio.sleep(0.01)
            writer.write(hello[100:])
        else:
            writer.write(header + hello)
        for _ in range(words):
            writer.write(b"word")
            if await reader.readexactly(4) != b"word":
                raise RuntimeError(f"{name}: no echo")
        if words:
            writer.write_eof()
        got = len(await reader.read())
    expected = 7 if name == DENIED else ANSWERS.get(name, 0)  # an alert is a record of two bytes
    if got != expected:
        raise RuntimeError(f"{name}: got {got} bytes, and expected {expected}")


async def visits(port: int, times: int, at_a_time: int) -> None:
    """So many connections, most of them for small answers."""
    names = [*ANSWERS][:3] * 10 + [*ANSWERS][3:] + [DENIED]
    gate = asyncio.Semaphore(at_a_time)

    async def one(number: int) -> None:
        async with gate:
            await visit(port, names[number % len(names)])

    await asyncio.gather(*(one(number) for number in range(times)))


async def train() -> None:
    with tempfile.TemporaryDirectory(prefix="sniproxy-training-") as home:
        async with proxy(Path(home)) as port:
            await visits(port, 6_000, 32)
            await visits(port, 3_000, 1)
            for _ in range(20):
                await visit(port, ECHO, words=50)
                await visit(port, "300.training.example", in_pieces=True)


if __name__ == "__main__":
    asyncio.run(train())
