"""Name servers for tests: a real one (dnsmasq), and one that misbehaves on purpose.

Both listen on a loopback port of their own, UDP and TCP. The second says what a script says: a coroutine function
from a question to the replies. The scripts that tests put together are at the end.
"""

import asyncio
import os
import random
import select
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from tests.support.peers import find_program

START_TIMEOUT = 10.0

_LARGEST = 65535  # RFC 1035 section 4.2.2: what a length of two octets can say


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
    """A port that is free for UDP and TCP on every address.

    It is below those that the kernel gives to outgoing connections: one of them could take it before its listener does.
    """
    lowest_outgoing = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(max(1024, lowest_outgoing - 16384), lowest_outgoing)
        with suppress(OSError), socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            tcp.bind(("", port))
            udp.bind(("", port))
            return port


@dataclass(frozen=True)
class Asked:
    """One question as it came in."""

    name: str
    rdtype: str
    transport: str
    query: dns.message.Message
    client: tuple[str, int] = ("", 0)

    def reply(
        self,
        *records: str,
        rcode: dns.rcode.Rcode = dns.rcode.NOERROR,
        soa: str = "",
        authority: Iterable[str] = (),
        additional: Iterable[str] = (),
        recursive: bool = True,
    ) -> bytes:
        """The answer to this question: `records` in zone file form, `soa` and `authority` for the authority section.

        `recursive` is whether this server says that it resolves for others.
        """
        message = dns.message.make_response(self.query, recursion_available=recursive)
        message.set_rcode(rcode)
        message.answer = _rrsets(*records)
        message.authority = _rrsets(*filter(None, [soa]), *authority)
        message.additional = _rrsets(*additional)
        return message.to_wire(max_size=_LARGEST)

    def truncated(self) -> bytes:
        message = dns.message.make_response(self.query)
        message.flags |= dns.flags.TC
        return message.to_wire()


def _rrsets(*records: str) -> list[dns.rrset.RRset]:
    """One for each record: dnspython shuffles the records of an RRset when it writes them."""
    fields = (record.split(maxsplit=3) for record in records)
    return [dns.rrset.from_text(name, int(ttl), "IN", rdtype, data) for name, ttl, rdtype, data in fields]


class Raw(bytes):
    """Bytes for a stream as they stand, without their length before them."""


# What a script gives for a question: the datagrams to send, one after the other; none is silence.
Script = Callable[[Asked], Awaitable[list[bytes]]]


@dataclass
class ScriptedServer:
    """A name server that says what its script says, and remembers what it was asked.

    The script may be changed between questions. What it raises is silence to who asked, and raised again at the end.
    """

    script: Script
    address: str = ""
    asked: list[Asked] = field(default_factory=list)
    faults: list[Exception] = field(default_factory=list)
    _running: set["asyncio.Task[None]"] = field(default_factory=set)

    def questions(self) -> list[tuple[str, str]]:
        return [(asked.rdtype, asked.transport) for asked in self.asked]

    def names(self) -> set[str]:
        return {asked.name for asked in self.asked}

    async def replies_to(self, wire: bytes, transport: str, client: tuple[str, int]) -> list[bytes]:
        query = dns.message.from_wire(wire)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True)
        asked = Asked(name, dns.rdatatype.to_text(question.rdtype), transport, query, client)
        self.asked.append(asked)
        try:
            return await self.script(asked)
        except Exception as error:
            self.faults.append(error)
            raise

    def serve_datagram(self, transport: asyncio.DatagramTransport, wire: bytes, client: tuple[str, int]) -> None:
        async def serve() -> None:
            for reply in await self.replies_to(wire, "udp", client):
                transport.sendto(reply, client)

        task = asyncio.create_task(serve())
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def serve_stream(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if (task := asyncio.current_task()) is not None:
            self._running.add(task)
            task.add_done_callback(self._running.discard)
        client = writer.get_extra_info("peername")
        try:
            length = int.from_bytes(await reader.readexactly(2), "big")
            for reply in await self.replies_to(await reader.readexactly(length), "tcp", client):
                writer.write(reply if isinstance(reply, Raw) else len(reply).to_bytes(2, "big") + reply)
        except asyncio.IncompleteReadError:
            pass  # who asked has gone
        finally:
            writer.close()

    async def stop(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, server: ScriptedServer) -> None:
        self._server = server

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, because asyncio's own transport does not have this base class everywhere.
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
    if server.faults:
        raise server.faults[0]


@contextmanager
def scripted_server_in_thread(script: Script) -> Iterator[ScriptedServer]:
    """The same for a test without an event loop: the server has one of its own, in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    context = scripted_server(script)
    try:
        server = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result(START_TIMEOUT)
        try:
            yield server
        finally:
            asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result(START_TIMEOUT)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def silence(_asked: Asked) -> list[bytes]:
    return []


def always(reply: Callable[[Asked], bytes]) -> Script:
    async def script(asked: Asked) -> list[bytes]:
        return [reply(asked)]

    return script


def answering(*records: str) -> Script:
    """The same records for every question, in zone file form."""
    return always(lambda asked: asked.reply(*records))


def refusing(rcode: dns.rcode.Rcode, soa: str = "") -> Script:
    return always(lambda asked: asked.reply(rcode=rcode, soa=soa))


def by_tcp(script: Script) -> Script:
    """Datagrams are cut; the script gets the question that comes by TCP."""
    return by_transport(udp=always(Asked.truncated), tcp=script)


def by_transport(*, udp: Script, tcp: Script) -> Script:
    async def script(asked: Asked) -> list[bytes]:
        return await (udp if asked.transport == "udp" else tcp)(asked)

    return script


def by_family(*, ipv4: Script, ipv6: Script) -> Script:
    async def script(asked: Asked) -> list[bytes]:
        return await (ipv6 if asked.rdtype == "AAAA" else ipv4)(asked)

    return script


def by_name(scripts: Mapping[str, Script], others: Script) -> Script:
    async def script(asked: Asked) -> list[bytes]:
        return await scripts.get(asked.name, others)(asked)

    return script


def in_turn(*scripts: Script) -> Script:
    """One script for each question, and the last one for the rest."""
    remaining = iter(scripts)
    last = scripts[-1]

    async def script(asked: Asked) -> list[bytes]:
        return await next(remaining, last)(asked)

    return script
