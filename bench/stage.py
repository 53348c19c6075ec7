"""The stage that every proxy of a run performs on: origin, DNS and load generator, all on the load core.

The origin listens on one port of several loopback addresses, and each address has a script (origin.c). DNS
gives each name its address. So the name in a ClientHello chooses the work, and a proxy needs one
configuration for all of it:

    a to j.bench.example    answer 1,000 bytes and close: short connections, spread over ten addresses so that
                            no pair of addresses runs out of ports
    echo.bench.example      answer 1,000 bytes, stay open, and echo what comes
    100kb.bench.example     send 100,000 bytes and close
    10mb.bench.example      send 10,000,000 bytes and close
    stream.bench.example    send `Sizes.stream` bytes and close
    warm.bench.example      the same, with `Sizes.warm` bytes
    upload.bench.example    take `Sizes.stream` bytes, answer 1,000 and close
    duplex.bench.example    send `Sizes.duplex` bytes while it takes as many, and close
    denied.example          would answer, but no proxy may let it
"""

import contextlib
import json
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

from bench.hello import HELLO_BYTES, client_hello, proxy_header
from bench.processes import Cores, give_to_unprivileged, is_root, on_cores, running

HERE = Path(__file__).parent
BUILD = HERE / "build"
ANSWER_BYTES = 1000
KB, MB, GB = 10**3, 10**6, 10**9
SHORT_NAMES = tuple(f"{letter}.bench.example" for letter in "abcdefghij")
DENIED_NAME = "denied.example"
DNS_TTL_SECONDS = 300  # longer than any one proxy lives here: every proxy asks once a name
READY_SECONDS = 20.0
_OUTGOING_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LISTENING_PORTS = 16_000
SOURCE_ADDRESSES = 10  # 127.1.0.1 and up: ten times the ports of one


class MissingToolError(Exception):
    """Something that the stage itself needs is not on this machine."""

    def __init__(self, tool: str, package: str) -> None:
        super().__init__(f"{tool} is not installed: try the package {package}")


@dataclass(frozen=True)
class Sizes:
    """Bytes that the origin's long answers have."""

    stream: int
    warm: int
    duplex: int


@dataclass(frozen=True)
class Load:
    """One run of the load generator; load.c says what the options do."""

    names: tuple[str, ...]
    count: int
    expect: int = ANSWER_BYTES
    concurrency: int = 1
    rate: int = 0
    upload: int = 0
    pings: int = 0
    hold: bool = False
    refused: bool = False
    words: int = 0
    word_rate: int = 1
    speakers: int = 1
    timeout: int = 60
    seed: int = 1
    tell: bool = False

    def slice(self, number: int, slices: int) -> "Load":
        """One of so many parts of it, with arrivals of its own; it tells its latencies."""
        return replace(self, count=self.count // slices, seed=number + 1, tell=True)

    def options(self) -> list[str]:
        options = {
            "count": self.count,
            "expect": self.expect,
            "concurrency": self.concurrency,
            "rate": self.rate,
            "upload": self.upload,
            "pings": self.pings,
            "words": self.words,
            "word-rate": self.word_rate,
            "speakers": self.speakers,
            "sources": SOURCE_ADDRESSES,
            "seed": self.seed,
            "timeout": self.timeout,
        }
        numbers = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        flags = {"--hold": self.hold, "--refused": self.refused, "--tell": self.tell}
        return [*numbers, *(flag for flag, is_set in flags.items() if is_set)]


@dataclass(frozen=True)
class LoadResult:
    """What the load generator saw. The latencies are of connections, or of round trips where it made any."""

    asked: int
    ok: int
    bytes: int
    seconds: float
    errors: dict[str, int]
    samples: int
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    latencies_us: Sequence[float] = ()  # where the load tells them

    @classmethod
    def joined(cls, parts: Sequence["LoadResult"]) -> "LoadResult":
        """One load that was made in slices, which told their latencies: its quantiles are those of all of them."""
        latencies = sorted(chain.from_iterable(part.latencies_us for part in parts)) or [0.0]

        def quantile(share: float) -> float:
            return latencies[int(share * (len(latencies) - 1))]

        errors: Counter[str] = Counter()
        for part in parts:
            errors.update(part.errors)
        return cls(
            asked=sum(part.asked for part in parts),
            ok=sum(part.ok for part in parts),
            bytes=sum(part.bytes for part in parts),
            seconds=sum(part.seconds for part in parts),
            errors=dict(errors),
            samples=sum(part.samples for part in parts),
            p50_us=quantile(0.5),
            p90_us=quantile(0.9),
            p99_us=quantile(0.99),
            p999_us=quantile(0.999),
            max_us=quantile(1.0),
        )

    def problems(self, load: Load) -> list["Problem"]:
        """What is wrong with this result, if anything: every connection whole, every byte counted."""
        found = []
        if self.errors or self.ok != load.count:
            kinds = ", ".join(f"{kind} {count}" for kind, count in self.errors.items())
            found.append(Problem("connections failed", f"{self.asked - self.ok} of {self.asked}: {kinds}"))
        if self.bytes != load.count * load.expect:
            due = load.count * load.expect
            found.append(Problem("bytes are missing", f"{self.bytes:,} of {due:,} came"))
        return found


@dataclass(frozen=True)
class Problem:
    """Why a figure must be read with care: the kind, and what it was this time."""

    kind: str
    detail: str


class Held:
    """Connections that stay open for as long as a block; `result` is there once it has ended."""

    result: LoadResult

    def __init__(self, process: "subprocess.Popen[bytes]", load: Load) -> None:
        self._process = process
        self._load = load
        self._said()  # "held N": all of them are open, or the time is up

    def speak(self) -> list[Problem]:
        """Let the speakers say all their words, and return once they have."""
        if self._process.stdin is not None:
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        spoke = self._said()
        return [] if spoke == self._load.words else [Problem("words are missing", f"{spoke} of {self._load.words}")]

    def _said(self) -> int:
        line = self._process.stdout.readline() if self._process.stdout is not None else b""
        return int(line.split()[1]) if line else 0


@dataclass(frozen=True)
class Target:
    """Where the load goes, as HOST:PORT, and whether it puts a PROXY header before the hello there."""

    address: str
    proxy_header: bool


@dataclass
class Stage:
    """The running stage. `directory` is where the run keeps its files; it goes when the stage does."""

    directory: Path
    cores: Cores
    sizes: Sizes
    proxy_protocol: bool
    origin_port: int
    dns_port: int
    _hellos: dict[tuple[tuple[str, ...], bool], Path] = field(default_factory=dict)

    def target(self, port: int) -> Target:
        """A proxy that listens on a port of 127.0.0.1."""
        return Target(f"127.0.0.1:{port}", self.proxy_protocol)

    def origin(self, name: str) -> Target:
        """The origin itself, where a proxy would find it by this name."""
        return Target(f"{_ADDRESSES[name]}:{self.origin_port}", proxy_header=False)

    def load(self, load: Load, target: Target) -> LoadResult:
        """Run the load generator to its end."""
        command = self._load_command(load, target)
        done = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=True)
        return LoadResult(**json.loads(done.stdout))

    @contextlib.contextmanager
    def holding(self, load: Load, target: Target) -> Iterator[Held]:
        """`load.count` connections, open for as long as the block."""
        command = self._load_command(load, target)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            held = Held(process, load)
            yield held
            output, _ = process.communicate()  # which ends its standard input, and so the hold
        held.result = LoadResult(**json.loads(output))

    def _load_command(self, load: Load, target: Target) -> list[str]:
        hellos = self._hello_file(load.names, with_header=target.proxy_header)
        program = [str(BUILD / "load"), "--target", target.address, "--hellos", str(hellos)]
        return on_cores([self.cores.load], [*program, *load.options()])

    def _hello_file(self, names: tuple[str, ...], *, with_header: bool) -> Path:
        key = (names, with_header)
        if key not in self._hellos:
            path = self.directory / f"hellos-{len(self._hellos)}"
            path.write_bytes(pack_hellos(names, with_header=with_header))
            self._hellos[key] = path
        return self._hellos[key]


_ADDRESSES = {
    **{name: f"127.0.0.{10 + i}" for i, name in enumerate(SHORT_NAMES)},
    DENIED_NAME: "127.0.0.10",
    "echo.bench.example": "127.0.0.30",
    "100kb.bench.example": "127.0.0.31",
    "10mb.bench.example": "127.0.0.32",
    "stream.bench.example": "127.0.0.33",
    "warm.bench.example": "127.0.0.34",
    "upload.bench.example": "127.0.0.35",
    "duplex.bench.example": "127.0.0.36",
}


def pack_hellos(names: tuple[str, ...], *, with_header: bool) -> bytes:
    """The file that load.c reads. Each name has a client address of its own, as behind a gateway."""
    packed = bytearray()
    for i, name in enumerate(names, start=1):
        header = proxy_header(f"10.0.0.{i}", "10.1.0.1", 443) if with_header else b""
        hello = header + client_hello(name)
        packed += len(hello).to_bytes(4, "little") + hello
    return bytes(packed)


def free_ports() -> tuple[int, int]:
    """Two different TCP ports of 127.0.0.1 that nothing listens on at this moment.

    They are below those that the kernel gives to outgoing connections, of which a proxy under load makes thousands a
    second: one of them, or what is left of one, could have taken the port before the next proxy listens on it.
    """
    lowest_outgoing = int(_OUTGOING_PORTS.read_text().split()[0])
    below = range(max(1024, lowest_outgoing - _LISTENING_PORTS), lowest_outgoing)
    found = []
    for port in random.sample(below, len(below)):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == 2:
            return found[0], found[1]
    raise OSError(f"no two ports are free between {below.start} and {below.stop}")


def compile_tools() -> None:
    """Build load and origin where their sources are newer."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise MissingToolError("a C compiler (cc)", "gcc libc6-dev")
    BUILD.mkdir(exist_ok=True)
    for name in ("load", "origin"):
        source, program = HERE / f"{name}.c", BUILD / name
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            options = ["-O2", "-std=gnu11", "-Wall", "-Wextra"]
            subprocess.run([compiler, *options, "-o", str(program), str(source), "-lm"], check=True)


@contextlib.contextmanager
def staged(cores: Cores, sizes: Sizes, *, proxy_protocol: bool) -> Iterator[Stage]:
    """Origin and DNS, running for as long as the block."""
    dnsmasq = shutil.which("dnsmasq", path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if dnsmasq is None:
        raise MissingToolError("dnsmasq", "dnsmasq-base")
    compile_tools()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sniproxy-bench-")))
        give_to_unprivileged(directory)
        origin_port, dns_port = free_ports()
        stage = Stage(directory, cores, sizes, proxy_protocol, origin_port, dns_port)
        said = directory / "origin.log"
        _wait_until_ready(stack.enter_context(running(_origin_command(stage), output=said)), said)
        stack.enter_context(running(_dns_command(dnsmasq, stage), output=directory / "dns.log"))
        yield stage


def _wait_until_ready(origin: "subprocess.Popen[bytes]", said: Path) -> None:
    """Ready is when it says so: all of its addresses listen."""
    deadline = time.monotonic() + READY_SECONDS
    while b"ready" not in said.read_bytes():
        if origin.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the origin does not listen; it said: {said.read_text(errors='replace')}")
        time.sleep(0.01)


def _origin_command(stage: Stage) -> list[str]:
    answer = f"{HELLO_BYTES},{ANSWER_BYTES}"
    scripts = dict.fromkeys((*SHORT_NAMES, DENIED_NAME), f"{answer},close") | {
        "echo.bench.example": f"{answer},echo",
        "100kb.bench.example": f"{HELLO_BYTES},{100 * KB},close",
        "10mb.bench.example": f"{HELLO_BYTES},{10 * MB},close",
        "stream.bench.example": f"{HELLO_BYTES},{stage.sizes.stream},close",
        "warm.bench.example": f"{HELLO_BYTES},{stage.sizes.warm},close",
        "upload.bench.example": f"{HELLO_BYTES + stage.sizes.stream},{ANSWER_BYTES},close",
        "duplex.bench.example": f"{HELLO_BYTES},{stage.sizes.duplex},duplex",
    }
    # denied.example shares an address, and so a script, with one of the short names
    arguments = sorted({f"{_ADDRESSES[name]},{script}" for name, script in scripts.items()})
    return on_cores([stage.cores.load], [str(BUILD / "origin"), str(stage.origin_port), *arguments])


def _dns_command(dnsmasq: str, stage: Stage) -> list[str]:
    command = [
        dnsmasq,
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file=",
        "--no-resolv",
        "--no-hosts",
        "--bind-interfaces",
        "--listen-address=127.0.0.1",
        f"--port={stage.dns_port}",
        f"--local-ttl={DNS_TTL_SECONDS}",
        *(f"--host-record={name},{address}" for name, address in _ADDRESSES.items()),
    ]
    if is_root():
        command.append("--user=root")  # it would drop to an account of its own, which a container may not have
    return on_cores([stage.cores.load], command)
