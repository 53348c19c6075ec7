"""Why connections end: one vocabulary for the story, the log and the metrics."""

import pytest

from sniproxy.outcome import ConnectionEndedError, Event, Reason

# The product's list, event by event.
REASONS = {
    Event.DENY: (
        "rule default registry no_sni sni_is_ip invalid_sni not_tls malformed_hello hello_too_large sni_mismatch ech "
        "identity_required untrusted_peer bad_proxy_header destination_forbidden rate_limited connection_limit"
    ),
    Event.FAIL: (
        "hello_timeout client_closed dns_nxdomain dns_timeout dns_failed connect_refused connect_timeout "
        "connect_failed internal"
    ),
    Event.CLOSE: "done client_reset upstream_reset idle_timeout policy_changed sni_changed drain",
    Event.OPEN: "",
}


@pytest.mark.parametrize("event", Event)
def test_the_reasons_of_an_event(event: Event) -> None:
    assert " ".join(reason.word for reason in Reason if reason.event is event) == REASONS[event]


def test_no_two_reasons_share_a_word() -> None:
    assert len({reason.word for reason in Reason}) == len(Reason)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConnectionEndedError(Reason.NO_SNI), "no_sni"),
        (ConnectionEndedError(Reason.RULE, "matched policy[a]"), "rule: matched policy[a]"),
        (ConnectionEndedError(Reason.INVALID_SNI, "{0} %s"), "invalid_sni: {0} %s"),
    ],
)
def test_the_end_of_a_story_says_why(error: ConnectionEndedError, text: str) -> None:
    assert str(error) == text
