"""The list of targets: what each is called, how its inputs are changed, and where they are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz import (
    authorization_policy,
    certificate,
    client_hello,
    client_hello_message,
    client_hello_openssl,
    config_file,
    dns_reply,
    evidence,
    hellos,
    log_template,
    own_policy,
    patterns,
    proxy_header,
    query_file,
    server_name,
    service_entry,
    spiffe,
    tlvs,
    units,
    words,
    yaml_source,
)
from tests.fuzz.mutate import Mutate, of_bytes, of_documents, of_hellos, of_messages, of_text, of_tlvs

ROOT = Path(__file__).parent.parent.parent
CORPUS = ROOT / "tests" / "data" / "corpus"
_SCENARIOS = ROOT / "config"


@dataclass(frozen=True)
class Target:
    """`fuzz` raises where a promise is broken. `mutate` makes an input from another one that is nearly right.

    `slowness` is about how many times the time of the quickest it takes: who has little time runs it less often.
    """

    name: str
    fuzz: Callable[[bytes], None]
    mutate: Mutate = of_bytes
    recorded: Callable[[], Iterator[bytes]] = lambda: iter(())
    slowness: int = 1

    @property
    def corpus(self) -> Path:
        """Seeds, with names that say what they are, and regressions, with the names that atheris gave them."""
        return CORPUS / self.name

    def seeds(self) -> dict[str, bytes]:
        """The committed inputs, and those that stand elsewhere in the repository."""
        files = {path.name: path.read_bytes() for path in sorted(self.corpus.glob("*")) if path.is_file()}
        return files | {f"recorded-{number}": data for number, data in enumerate(self.recorded())}


def _hellos() -> Iterator[bytes]:
    yield from hellos.recorded().values()


def _messages() -> Iterator[bytes]:
    yield from (hello[9:] for hello in hellos.recorded().values())


def _files(kind: str) -> Callable[[], Iterator[bytes]]:
    """The ready policies and their queries, by the words that only those files have."""

    def files() -> Iterator[bytes]:
        for path in sorted(_SCENARIOS.rglob("*.yaml")):
            if kind in path.read_text():
                yield path.read_bytes()

    return files


TARGETS = (
    Target("client_hello", client_hello.fuzz, of_hellos, _hellos, slowness=6),
    Target("client_hello_message", client_hello_message.fuzz, of_messages, _messages, slowness=6),
    Target("client_hello_openssl", client_hello_openssl.fuzz, of_hellos, _hellos),
    Target("proxy_header", proxy_header.fuzz, slowness=3),
    Target("tlvs", tlvs.fuzz, of_tlvs),
    Target("dns_reply", dns_reply.fuzz, slowness=2),
    Target("certificate", certificate.fuzz),
    Target("evidence", evidence.fuzz, of_tlvs, slowness=2),
    Target("server_name", server_name.fuzz, of_text(words.NAMES)),
    Target("patterns", patterns.fuzz, of_text(words.NAMES)),
    Target("units", units.fuzz, of_text(words.UNITS)),
    Target("spiffe", spiffe.fuzz, of_text(words.NAMES)),
    Target("yaml_source", yaml_source.fuzz, of_documents(words.OWN_POLICY), _files("rules:\n  - "), slowness=4),
    Target("config_file", config_file.fuzz, of_documents(words.CONFIG), _files("listeners:"), slowness=4),
    Target("own_policy", own_policy.fuzz, of_documents(words.OWN_POLICY), _files("rules:\n  - "), slowness=10),
    Target(
        "authorization_policy",
        authorization_policy.fuzz,
        of_documents(words.AUTHORIZATION_POLICY),
        _files("AuthorizationPolicy"),
        slowness=10,
    ),
    Target("service_entry", service_entry.fuzz, of_documents(words.SERVICE_ENTRY), _files("ServiceEntry"), slowness=6),
    Target("log_template", log_template.fuzz, of_text(words.TEMPLATE)),
    Target("query_file", query_file.fuzz, of_documents(words.QUERIES), _files("expect:"), slowness=4),
)
