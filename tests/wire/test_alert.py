"""The alerts, as bytes and as real TLS clients understand them."""

import ssl

import pytest

from sniproxy.wire.alert import Alert


@pytest.mark.parametrize(
    ("alert", "record"),
    [
        (Alert.ACCESS_DENIED, "15 0303 0002 02 31"),
        (Alert.INTERNAL_ERROR, "15 0303 0002 02 50"),
        (Alert.UNRECOGNIZED_NAME, "15 0303 0002 02 70"),
    ],
)
def test_an_alert_is_one_record_of_seven_bytes(alert: Alert, record: str) -> None:
    """Type, version, length, fatal, description."""
    assert bytes.fromhex(record) == alert.record


@pytest.mark.parametrize(
    ("alert", "reason"),
    [
        (Alert.ACCESS_DENIED, "ALERT_ACCESS_DENIED"),
        (Alert.INTERNAL_ERROR, "ALERT_INTERNAL_ERROR"),
        (Alert.UNRECOGNIZED_NAME, "UNRECOGNIZED_NAME"),
    ],
)
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_names_the_alert_that_ended_its_handshake(version: ssl.TLSVersion, alert: Alert, reason: str) -> None:
    """OpenSSL takes it in place of a ServerHello, whichever single version it speaks; curl prints this reason."""
    context = ssl.create_default_context()
    context.minimum_version = context.maximum_version = version
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname="en.wikipedia.org")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    incoming.write(alert.record)
    with pytest.raises(ssl.SSLError) as ended:
        client.do_handshake()
    assert ended.value.reason is not None
    assert ended.value.reason.endswith(reason)
