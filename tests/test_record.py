"""The record of a connection: empty at first, and told at its end."""

from sniproxy.identity.spiffe import UNKNOWN
from sniproxy.outcome import Reason
from sniproxy.policy.model import NO_GROUND
from sniproxy.record import Record


def test_a_record_begins_with_what_accept_tells() -> None:
    """A story that ends without a reason has ended by a fault of ours."""
    record = Record(7, "10.1.2.3", 100.0)
    assert {name: getattr(record, name) for name in Record.__slots__} == {
        "number": 7,
        "source_ip": "10.1.2.3",
        "began": 100.0,
        "opened": 0.0,
        "identity": UNKNOWN,
        "server_name": "",
        "tls_version": "",
        "alpn": (),
        "ech": False,
        "allowed": False,
        "ground": NO_GROUND,
        "dry_run": None,
        "audit": None,
        "destination_ip": "",
        "destination_port": 0,
        "head_size": 0,
        "note": "",
        "received": 0,
        "sent": 0,
        "reason": Reason.INTERNAL,
        "detail": "",
    }


def test_a_record_ends_with_a_reason_and_the_facts() -> None:
    record = Record(7, "10.1.2.3", 100.0)
    record.end(Reason.DNS_NXDOMAIN, "en.wikipedia.org does not exist")
    assert (record.reason, record.detail) == (Reason.DNS_NXDOMAIN, "en.wikipedia.org does not exist")


def test_what_was_noted_stays_where_the_end_has_nothing_to_tell() -> None:
    record = Record(7, "10.1.2.3", 100.0)
    record.note = "the hello offers ECH"
    record.end(Reason.DONE)
    assert (record.note, record.detail) == ("the hello offers ECH", "the hello offers ECH")
    record.end(Reason.CLIENT_RESET, "another end")
    assert (record.note, record.detail) == ("the hello offers ECH", "another end")
