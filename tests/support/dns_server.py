"""Name servers for tests: a real one (dnsmasq), and one that misbehaves on purpose.

Both listen on a loopback port of their own, UDP and TCP.
"""

import asyncio
import os
import select
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from tests.support.peers import find_program

START_TIMEOUT = 10.0


@contextmanager
def dnsmasq(*records: str) -> Iterator[str]:
    """A dnsmasq that knows `records` (its options) and nothing else. Yields its "127.0.0.1:port"."""
    program = find_program("dnsmasq")
    port = unused_port()
    server = subprocess.Popen(
        [
            program,
            "--no-daemon",
            "--conf-file=/dev/null",
            "--user=",  # stay who we are
            f"--port={port}",
            "--listen-address=127.0.0.1",
            "--bind-interfaces",
            "--no-resolv",
            "--no-hosts",
            "--log-facility=-",
            *(f"--{record}" for record in records),
        ],
        stderr=subprocess.PIPE,
    )
    try:
        _wait_for_start(server)
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        server.communicate()


def _wait_for_start(server: "subprocess.Popen[bytes]") -> None:
    """dnsmasq binds its sockets first and then says so."""
    assert server.stderr is not None
    said = b""
    while b"started" not in said:
        readable, _, _ = select.select([server.stderr], [], [], START_TIMEOUT)
        chunk = os.read(server.stderr.fileno(), 4096) if readable else b""
        said += chunk
        if not chunk:
            pytest.fail(f"dnsmasq did not start: {said.decode()}")


def unused_port() -> int:
    """A port of 127.0.0.1 that is free for UDP and TCP."""
    while True:
        with (
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tcp,
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        ):
            tcp.bind(("127.0.0.1", 0))
            port: int = tcp.getsockname()[1]
            try:
                udp.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@dataclass(frozen=True)
class Asked:
    """One question as it came in."""

    name: str
    rdtype: str
    transport: str
    query: dns.message.Message

    def reply(self, *records: str, rcode: dns.rcode.Rcode = dns.rcode.NOERROR, soa: str = "") -> bytes:
        """The answer to this question: `records` in zone file form, `soa` for the authority section."""
        message = dns.message.make_response(self.query, recursion_available=True)
        message.set_rcode(rcode)
        message.answer = _rrsets(*records)
        message.authority = _rrsets(*filter(None, [soa]))
        return message.to_wire()

    def truncated(self) -> bytes:
        message = dns.message.make_response(self.query)
        message.flags |= dns.flags.TC
        return message.to_wire()


def _rrsets(*records: str) -> list[dns.rrset.RRset]:
    """One for each record: dnspython shuffles the records of an RRset when it writes them."""
    fields = (record.split(maxsplit=3) for record in records)
    return [dns.rrset.from_text(name, int(ttl), "IN", rdtype, data) for name, ttl, rdtype, data in fields]


# What a script gives for a question: the datagrams to send, one after the other; none is silence.
Script = Callable[[Asked], Awaitable[list[bytes]]]


@dataclass
class ScriptedServer:
    """A name server that says what its script says, and remembers what it was asked.

    The script may be changed between questions.
    """

    script: Script
    address: str = ""
    asked: list[Asked] = field(default_factory=list)
    _running: set["asyncio.Task[None]"] = field(default_factory=set)

    def questions(self) -> list[tuple[str, str]]:
        return [(asked.rdtype, asked.transport) for asked in self.asked]

    async def replies_to(self, wire: bytes, transport: str) -> list[bytes]:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        asked = Asked(name, dns.rdatatype.to_text(question.rdtype), transport, query)
        self.asked.append(asked)
        return await self.script(asked)

    def serve_datagram(self, transport: asyncio.DatagramTransport, wire: bytes, client: tuple[str, int]) -> None:
        async def serve() -> None:
            for reply in await self.replies_to(wire, "udp"):
                transport.sendto(reply, client)

        task = asyncio.create_task(serve())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int.from_bytes(await reader.readexactly(2), "big")
        for reply in await self.replies_to(await reader.readexactly(length), "tcp"):
            writer.write(len(reply).to_bytes(2, "big") + reply)
        writer.close()

    async def stop(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: ScriptedServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, because neither asyncio's own transport nor uvloop's has this base class everywhere.
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._server.serve_datagram(self._transport, data, addr)


@asynccontextmanager
async def scripted_server(script: Script) -> AsyncIterator[ScriptedServer]:
    """A name server in this event loop, for as long as the context lasts."""
    port = unused_port()
    server = ScriptedServer(script, f"127.0.0.1:{port}")
    loop = asyncio.get_running_loop()
    udp, _ = await loop.create_datagram_endpoint(lambda: _Datagrams(server), local_addr=("127.0.0.1", port))
    tcp = await asyncio.start_server(server.serve_stream, "127.0.0.1", port)
    try:
        yield server
    finally:
        udp.close()
        tcp.close()
        await server.stop()
