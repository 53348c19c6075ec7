"""`sniproxy demo`: who may reach which Wikipedia, played on this machine, with no network.

Four TLS origins stand for four Wikipedias, with certificates of a throwaway authority. The proxy runs as it would in
a pod, as a process of its own, with a config and a policy that are written out below. Two workloads, `sleep-us` and
`sleep-canada`, send real TLS through it, each with its identity in a PROXY v2 header, as Envoy would send it. Then
the demo shows what each got, what the proxy logged, and which metrics moved.
"""

import contextlib
import datetime
import json
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from sniproxy.wire.proxy_protocol import SocketAddress, Tlv, encode_proxy_header

_LOOPBACK = "127.0.0.1"
_PRINCIPAL_TLV = 0xD0
_TIMEOUT = 10.0

TITLES = {
    "en.wikipedia.org": "Wikipedia, the free encyclopedia",
    "de.wikipedia.org": "Wikipedia – Die freie Enzyklopädie",
    "es.wikipedia.org": "Wikipedia, la enciclopedia libre",
    "fr.wikipedia.org": "Wikipédia, l'encyclopédie libre",
}

ALLOWED = {
    "sleep-us": {"en.wikipedia.org", "es.wikipedia.org"},
    "sleep-canada": {"en.wikipedia.org", "fr.wikipedia.org"},
}

POLICY = """\
rules:
  - name: us-wikipedia
    action: allow
    principals: [cluster.local/ns/default/sa/sleep-us]
    sni: [en.wikipedia.org, es.wikipedia.org]
  - name: canada-wikipedia
    action: allow
    principals: [cluster.local/ns/default/sa/sleep-canada]
    sni: [en.wikipedia.org, fr.wikipedia.org]
"""

_CONFIG = """\
listeners:
  - address: 127.0.0.1:0
    proxy_protocol: required
    trusted_peers: [127.0.0.0/8]
upstream:
  hosts:
{hosts}
policy:
  files: [policy.yaml]
  gateway:
    labels: {{app: istio-egressgateway-with-sni-proxy}}
access_log: {{path: {log}}}
admin: {{address: 127.0.0.1:0}}
workers: 1
"""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One row of the story."""

    who: str
    name: str
    expected: str
    got: str
    title: str

    @property
    def is_right(self) -> bool:
        return self.expected == self.got and (self.got != "served" or self.title == TITLES[self.name])


@dataclass(frozen=True, slots=True)
class RunningProxy:
    """A proxy process, and where it listens."""

    address: tuple[str, int]
    admin: str

    def metrics(self) -> dict[str, float]:
        """Every series and its value."""
        with urllib.request.urlopen(f"http://{self.admin}/metrics", timeout=_TIMEOUT) as answer:
            lines = answer.read().decode().splitlines()
        series = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in series}


def run_demo() -> int:
    """Play the story and print it; 0 if everyone got what the policy says, else 1."""
    with tempfile.TemporaryDirectory(prefix="sniproxy-demo-") as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        authority = Authority()
        trust = ssl.create_default_context(cadata=authority.certificate_pem)
        ports = {name: stack.enter_context(serve_title(title, authority.server_context(name)))
                 for name, title in TITLES.items()}  # fmt: skip
        config, log = write_config(home, ports)
        print(f"The policy:\n\n{_indented(POLICY)}")
        with run_proxy(config) as proxy:
            before = proxy.metrics()
            attempts = [_attempt(who, name, proxy, trust) for who in ALLOWED for name in TITLES]
            after = _settled(proxy)
        _print_table(attempts)
        print(f"The access log:\n\n{_indented(log.read_text())}")
        _print_moved(before, after)
    wrong = [attempt for attempt in attempts if not attempt.is_right]
    print(f"{len(attempts) - len(wrong)} of {len(attempts)} got what the policy says.")
    return 1 if wrong else 0


def write_config(home: Path, ports: dict[str, int]) -> tuple[Path, Path]:
    """The proxy's config in `home`, with a static host for each origin; and the path of its access log."""
    config, log = home / "sniproxy.yaml", home / "access.log"
    hosts = "\n".join(f'    {name}: ["{_LOOPBACK}:{port}"]' for name, port in ports.items())
    config.write_text(_CONFIG.format(hosts=hosts, log=log))
    (home / "policy.yaml").write_text(POLICY)
    return config, log


@contextlib.contextmanager
def run_proxy(config: Path) -> Iterator[RunningProxy]:
    """`sniproxy run` in a process of its own. Ends with a drain, so that its log is complete afterwards."""
    command = [sys.executable, "-m", "sniproxy", "run", "--config", str(config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield _wait_until_listening(process)
    finally:
        process.terminate()
        _, said = process.communicate(timeout=_TIMEOUT)
        if process.returncode:
            print(said, file=sys.stderr)


def _wait_until_listening(process: subprocess.Popen[str]) -> RunningProxy:
    errors: IO[str] | None = process.stderr
    said = []
    for line in errors or ():
        said.append(line)
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("event") == "listening":
            host, _, port = event["addresses"][0].rpartition(":")
            return RunningProxy((host, int(port)), event["admin"][0])
    raise RuntimeError(f"the proxy did not start:\n{''.join(said)}")


def _settled(proxy: RunningProxy) -> dict[str, float]:
    """The metrics, once the proxy has seen the end of every connection."""
    deadline = time.monotonic() + _TIMEOUT
    while (metrics := proxy.metrics())["sniproxy_connections_active"] and time.monotonic() < deadline:
        time.sleep(0.01)
    return metrics


def _attempt(who: str, name: str, proxy: RunningProxy, trust: ssl.SSLContext) -> Attempt:
    expected = "served" if name in ALLOWED[who] else "refused"
    try:
        got, title = "served", fetch_title(f"cluster.local/ns/default/sa/{who}", name, proxy.address, trust)
    except ssl.SSLError as error:
        got, title = "refused", (error.reason or str(error)).lower().replace("_", " ")
    return Attempt(who, name, expected, got, title)


def fetch_title(principal: str, name: str, proxy: tuple[str, int], trust: ssl.SSLContext) -> str:
    """What `name` serves to `principal`, by TLS through the proxy. Raises ssl.SSLError when refused."""
    with socket.create_connection(proxy, timeout=_TIMEOUT) as sock:
        source = SocketAddress(*sock.getsockname())
        identity = Tlv(_PRINCIPAL_TLV, f"spiffe://{principal}".encode())
        sock.sendall(encode_proxy_header(source, SocketAddress(*proxy), [identity]))
        with trust.wrap_socket(sock, server_hostname=name) as tls:
            tls.sendall(f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode())
            page = b"".join(iter(lambda: tls.recv(4096), b""))
            tls.unwrap()  # both say goodbye, so that neither closes with words of the other unread, which is a reset
    return page.decode().partition("<title>")[2].partition("</title>")[0]


@contextlib.contextmanager
def serve_title(title: str, context: ssl.SSLContext) -> Iterator[int]:
    """A TLS origin with one page; its port."""
    body = f"<title>{title}</title>".encode()
    page = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\nContent-Length: %d\r\n\r\n%s"
    with socket.create_server((_LOOPBACK, 0)) as server:

        def answer(client: socket.socket) -> None:
            with contextlib.suppress(OSError), client, context.wrap_socket(client, server_side=True) as tls:
                tls.recv(4096)
                tls.sendall(page % (len(body), body))
                tls.unwrap()

        def accept() -> None:
            with contextlib.suppress(OSError):  # the listening socket is closed: the story is over
                while True:
                    threading.Thread(target=answer, args=(server.accept()[0],), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


class Authority:
    """A certificate authority that lives as long as the demo."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sniproxy demo")])
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        builder = self._builder(self._name, self._key.public_key()).add_extension(constraints, critical=True)
        self._certificate = builder.sign(self._key, hashes.SHA256())

    @property
    def certificate_pem(self) -> str:
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def server_context(self, name: str) -> ssl.SSLContext:
        """A TLS server's context with a certificate for `name`."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        certificate = self._builder(subject, key.public_key()).add_extension(names, critical=False)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        with tempfile.NamedTemporaryFile() as file:  # the ssl module loads certificates from files only
            file.write(certificate.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
            file.write(
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                )
            )
            file.flush()
            context.load_cert_chain(file.name)
        return context

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )


# Printing.


def _print_table(attempts: Sequence[Attempt]) -> None:
    print(f"{'who':14}{'name':20}{'expected':10}{'got':10}")
    for attempt in attempts:
        mark = "" if attempt.is_right else "   <-- WRONG"
        print(f"{attempt.who:14}{attempt.name:20}{attempt.expected:10}{attempt.got:10}{attempt.title}{mark}")
    print()


def _print_moved(before: dict[str, float], after: dict[str, float]) -> None:
    print("The metrics that moved:\n")
    for name, value in after.items():
        moved = value - before.get(name, 0.0)
        if moved and not name.startswith(("python_", "process_")) and "_bucket" not in name:
            print(f"    {name} +{moved:g}")
    print()


def _indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())
