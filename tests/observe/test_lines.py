"""Access log lines in JSON: what each field says, and that nothing breaks a line."""

import json
import re
import select
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.config.log_template import VARIABLES
from sniproxy.config.model import Gateway
from sniproxy.identity.spiffe import MAX_LENGTH, SCHEME, parse_principal
from sniproxy.observe import lines
from sniproxy.observe.lines import JsonLines, LineFormat, LogIdentity, level_of
from sniproxy.observe.text_lines import EnvoyLines, NginxLines
from sniproxy.outcome import Event, Reason
from sniproxy.policy.model import NO_GROUND, DryRun, Ground
from sniproxy.record import Record
from tests.observe.records import HOSTILE, IDENTITY, POD, as_recorded, refused, relayed


def line(record: Record, event: Event, now: float = 100.6) -> bytes:
    return JsonLines(IDENTITY, "1f-abc123").line(record, event, now)


def told(record: Record, event: Event) -> dict[str, Any]:
    """A line, read back."""
    fields: dict[str, Any] = json.loads(line(record, event))
    return fields


# The product's list of fields, in its order.
FIELDS = (
    "level time instance connectionEvent connectionId requestedServerName sourcePrincipal sourceNamespace source "
    "sourceName sourceWorkload sourceIp destinationIp destinationPort destinationApp protocol receivedBytes sentBytes "
    "connectionDuration decision policy rule reason responseCodeDetails tlsVersion alpn"
)


@pytest.mark.parametrize("event", Event)
def test_every_line_has_the_same_fields_in_the_same_order(event: Event) -> None:
    assert " ".join(told(relayed(), event)) == FIELDS


def test_the_line_of_a_connection_that_was_served() -> None:
    fields = told(relayed(), Event.CLOSE)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", fields.pop("time"))
    assert fields == {
        "level": "info",
        "instance": "egress-access.logentry.istio-system",
        "connectionEvent": "close",
        "connectionId": "1f-abc123-7",
        "requestedServerName": "en.wikipedia.org",
        "sourcePrincipal": "cluster.local/ns/default/sa/sleep-us",
        "sourceNamespace": "default",
        "source": "istio-egressgateway-with-sni-proxy",
        "sourceName": POD,
        "sourceWorkload": "istio-egressgateway-with-sni-proxy",
        "sourceIp": "10.1.2.3",
        "destinationIp": "208.80.154.224",
        "destinationPort": 443,
        "destinationApp": "",
        "protocol": "tcp",
        "receivedBytes": 298,
        "sentBytes": 4711,
        "connectionDuration": "0.600s",
        "decision": "allow",
        "policy": "policy.yaml",
        "rule": "us-wikipedia",
        "reason": "done",
        "responseCodeDetails": "",
        "tlsVersion": "TLSv1.3",
        "alpn": "h2,http/1.1",
    }


def test_what_is_not_known_says_so() -> None:
    """A connection that ended before its hello."""
    record = Record(1, "", 100.0)
    record.end(Reason.HELLO_TIMEOUT, "no complete ClientHello within 10s")
    said = ("requestedServerName", "sourcePrincipal", "sourceNamespace", "sourceIp", "destinationIp", "tlsVersion")
    fields = told(record, Event.FAIL)
    assert {name: fields[name] for name in said} == dict.fromkeys(said, "unknown")
    assert (fields["policy"], fields["rule"], fields["alpn"]) == (NO_GROUND.policy, NO_GROUND.rule, "")


def test_a_principal_of_no_namespace_has_an_unknown_one() -> None:
    record = relayed()
    record.identity = parse_principal("example.org/host/web-1")
    fields = told(record, Event.CLOSE)
    assert (fields["sourcePrincipal"], fields["sourceNamespace"]) == ("example.org/host/web-1", "unknown")


EVENTS: dict[str, tuple[Record, Event, tuple[str, str, str]]] = {
    "open": (relayed(), Event.OPEN, ("info", "allow", "")),
    "close": (relayed(), Event.CLOSE, ("info", "allow", "done")),
    "a refusal is an error": (refused(), Event.DENY, ("error", "deny", "rule")),
    "a failure before the decision is a warning": (
        refused(Reason.CLIENT_CLOSED),
        Event.FAIL,
        ("warning", "none", "client_closed"),
    ),
}


@pytest.mark.parametrize(("record", "event", "expected"), EVENTS.values(), ids=EVENTS)
def test_level_decision_and_reason(record: Record, event: Event, expected: tuple[str, str, str]) -> None:
    fields = told(record, event)
    assert (fields["level"], fields["decision"], fields["reason"]) == expected


def test_a_line_of_opening_has_no_duration_yet() -> None:
    assert told(relayed(), Event.OPEN)["connectionDuration"] == "0s"


FORMATS: dict[str, Callable[[], LineFormat]] = {
    "JSON": lambda: JsonLines(IDENTITY, "p"),
    "nginx": lambda: NginxLines("|".join(f"${name}" for name in VARIABLES), "p"),
    "Envoy": EnvoyLines,
}


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_an_opening_that_is_told_late_is_told_as_it_was(
    form: Callable[[], LineFormat], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it happened, and what was known by then: nothing of how it went on."""
    monkeypatch.setattr(lines, "_time", lambda: 1.0e9 + lines._monotonic())
    record = Record(7, "10.1.2.3", 100.0)
    record.allowed, record.head_size, record.note = True, 280, "the hello offers ECH"
    monkeypatch.setattr(lines, "_monotonic", lambda: 100.1)
    at_once = form().line(record, Event.OPEN, 100.1)
    record.received, record.sent = 298, 4711
    record.end(Reason.SNI_CHANGED, "another name")
    monkeypatch.setattr(lines, "_monotonic", lambda: 102.6)
    assert form().line(record, Event.OPEN, 100.1) == at_once


SEED_GREPS = {
    "seed 4, event": ('"connectionEvent":"open"', Event.OPEN),
    "seed 4, pod": ('"sourceName":"istio-egressgateway', Event.OPEN),
    "seed 4, host": ("wikipedia.org", Event.OPEN),
    "the log entry by its instance": ("egress-access.logentry.istio-system", Event.OPEN),
    "the caller by its principal": ('"sourcePrincipal":"cluster.local/ns/default/sa/sleep-us"', Event.OPEN),
    "seed 3, errors": ('"level":"error"', Event.DENY),
}


@pytest.mark.parametrize(("pattern", "event"), SEED_GREPS.values(), ids=SEED_GREPS)
def test_the_greps_of_the_seeds_find_their_lines(pattern: str, event: Event) -> None:
    assert pattern in line(relayed(), event).decode()


def test_who_the_log_says_it_is() -> None:
    environments: list[dict[str, str]] = [{"POD_NAME": "a", "HOSTNAME": "b"}, {"HOSTNAME": "b"}, {}]
    assert [LogIdentity.of(Gateway(namespace="edge"), environment) for environment in environments] == [
        LogIdentity("egress-access.logentry.edge", "unknown", pod) for pod in ("a", "b", socket.gethostname())
    ]


def test_a_lost_worker_has_a_line_of_its_own() -> None:
    fields = json.loads(JsonLines(IDENTITY, "supervisor").worker_lost(2, 17))
    del fields["time"]
    assert fields == {
        "level": "error",
        "instance": "egress-access.logentry.istio-system",
        "connectionEvent": "worker_lost",
        "worker": 2,
        "connections": 17,
    }


@pytest.mark.parametrize("sni", HOSTILE.values(), ids=HOSTILE)
def test_no_name_breaks_its_line(sni: bytes) -> None:
    record = refused(Reason.INVALID_SNI)
    record.server_name = as_recorded(sni)
    text = line(record, Event.DENY).decode()
    assert [char for char in text if not char.isprintable()] == ["\n"]
    assert text.endswith("\n")
    assert json.loads(text)["requestedServerName"] == as_recorded(sni)


@given(
    sni=st.binary(min_size=1, max_size=255), detail=st.text(), rule=st.text(max_size=128), alpn=st.text(max_size=300)
)
def test_every_line_is_one_json_object_within_pipe_buf(sni: bytes, detail: str, rule: str, alpn: str) -> None:
    """A longer one could be torn by another worker's (pipe(7))."""
    record = refused()
    record.server_name = as_recorded(sni)
    record.ground = Ground("p.yaml", rule, "p.yaml", 1)
    record.alpn = (alpn,)
    record.end(Reason.RULE, detail)
    written = line(record, Event.DENY)
    assert len(written) <= select.PIPE_BUF
    assert (written.count(b"\n"), " ".join(json.loads(written))) == (1, FIELDS)


def longest(char: str) -> Record:
    """Everything at its bound, in characters of which JSON makes much."""
    record = relayed()
    namespace = "n" * (MAX_LENGTH - len(f"{SCHEME}td/ns//sa/a"))
    record.identity = parse_principal(f"td/ns/{namespace}/sa/a")
    record.server_name = char * 255
    record.ground = Ground(char * 255, char * 128, "/etc/p.yaml", 1)
    record.source_ip = record.destination_ip = "2001:db8:1111:2222:3333:4444:5555:6666"
    record.alpn = (char * 300,)
    record.received = record.sent = 2**63
    record.audit = record.ground
    record.dry_run = DryRun(True, Reason.IDENTITY_REQUIRED, record.ground)
    record.end(Reason.DESTINATION_FORBIDDEN, char * 2000)
    return record


@pytest.mark.parametrize("char", ["a", "\\", "\x01", "\U0001d400"])
def test_the_longest_line_stays_within_pipe_buf_and_keeps_the_principal(char: str) -> None:
    record = longest(char)
    pod = LogIdentity.of(Gateway(namespace="n" * 63, labels={"app": "a" * 63}), {"POD_NAME": "p" * 1000})
    written = JsonLines(pod, "ffffffff-abcdef").line(record, Event.DENY, 1e9)
    fields = json.loads(written)
    assert len(written) <= select.PIPE_BUF
    assert fields["sourcePrincipal"] == str(record.identity)
    assert char * 10 in fields["requestedServerName"]
    assert char * 10 in fields["rule"]


class TestWhatWasNotEnforced:
    """Fields that a line has only where there is something to tell."""

    def test_an_ordinary_line_says_nothing_of_it(self) -> None:
        assert (
            not {"wouldDeny", "dryRunPolicy", "dryRunRule", "dryRunReason", "auditPolicy"}
            & told(relayed(), Event.CLOSE).keys()
        )

    def test_what_monitor_mode_lets_pass_is_an_error_with_its_rule(self) -> None:
        record = relayed()
        record.dry_run = DryRun(True, Reason.RULE, Ground("p.yaml", "no-english", "/etc/p.yaml", 4))
        fields = told(record, Event.CLOSE)
        assert ("error", "close", "allow") == (fields["level"], fields["connectionEvent"], fields["decision"])
        assert (True, "p.yaml", "no-english", "rule") == (
            fields["wouldDeny"],
            fields["dryRunPolicy"],
            fields["dryRunRule"],
            fields["dryRunReason"],
        )

    def test_what_would_be_allowed_is_told_too(self) -> None:
        record = refused()
        record.dry_run = DryRun(False, None, Ground("p.yaml", "soon", "/etc/p.yaml", 9))
        fields = told(record, Event.DENY)
        assert (False, "soon", "") == (fields["wouldDeny"], fields["dryRunRule"], fields["dryRunReason"])

    def test_an_audit_rule_is_named(self) -> None:
        record = relayed()
        record.audit = Ground("p.yaml", 'watch-"this', "/etc/p.yaml", 9)
        fields = told(record, Event.CLOSE)
        assert ("info", "p.yaml", 'watch-"this') == (fields["level"], fields["auditPolicy"], fields["auditRule"])


def test_a_name_that_is_one_is_never_cut() -> None:
    record = longest("a")
    record.server_name = ".".join(["a" * 63] * 4)[:253]
    assert told(record, Event.DENY)["requestedServerName"] == record.server_name


def test_what_monitor_mode_lets_pass_has_the_level_of_what_is_refused() -> None:
    record = relayed()
    assert [level_of(record, event) for event in Event] == ["info", "info", "error", "warning"]
    record.dry_run = DryRun(False, None, NO_GROUND)
    assert level_of(record, Event.OPEN) == "info"
    record.dry_run = DryRun(True, Reason.RULE, NO_GROUND)
    assert level_of(record, Event.OPEN) == "error"


def test_a_client_that_asks_for_another_name_when_it_is_served_makes_an_error() -> None:
    record = relayed()
    record.end(Reason.SNI_CHANGED)
    assert level_of(record, Event.CLOSE) == "error"
