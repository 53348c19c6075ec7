"""URI names out of certificates."""

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sniproxy.identity.certificate import CertificateError, uri_sans
from tests.identity.certificates import SUBJECT_ALT_NAME, certificate, with_doubled_extension

SLEEP = "spiffe://cluster.local/ns/default/sa/sleep-us"
SLEEP_CERTIFICATE = certificate(SLEEP)


@pytest.mark.parametrize(
    ("der", "uris"),
    [
        (SLEEP_CERTIFICATE, (SLEEP,)),
        (certificate(SLEEP, "https://example.org/", SLEEP), (SLEEP, "https://example.org/", SLEEP)),
        (certificate(SLEEP, dns=("a.example",)), (SLEEP,)),
        (certificate(dns=("a.example",)), ()),
        (certificate(common_name=SLEEP), ()),
    ],
)
def test_the_uri_names_are_found_in_order(der: bytes, uris: tuple[str, ...]) -> None:
    """All of them, also equal ones, and nothing from the common name."""
    assert uris == uri_sans(der)


@pytest.mark.parametrize(
    "der",
    [b"", b"\x30\x00", b"garbage", SLEEP_CERTIFICATE[:-1], SLEEP_CERTIFICATE + b"\x00"],
)
def test_bytes_that_are_no_certificate_are_an_error(der: bytes) -> None:
    """A certificate cut short, or with a byte too many, is not read in part."""
    with pytest.raises(CertificateError, match="the client certificate is unreadable"):
        uri_sans(der)


def test_an_extension_that_comes_twice_is_an_error() -> None:
    """With two subjectAltName extensions, another reader might take the other one (RFC 5280 section 4.2)."""
    with pytest.raises(CertificateError, match=r"Duplicate 2\.5\.29\.17"):
        uri_sans(with_doubled_extension(SLEEP_CERTIFICATE, SUBJECT_ALT_NAME))


@st.composite
def mutations(draw: st.DrawFn) -> bytes:
    der = bytearray(SLEEP_CERTIFICATE)
    for _ in range(draw(st.integers(1, 4))):
        der[draw(st.integers(0, len(der) - 1))] = draw(st.integers(0, 255))
    return bytes(der)


@pytest.mark.filterwarnings("ignore::UserWarning")  # cryptography's, of encodings that it will refuse one day
@settings(deadline=None, max_examples=500)
@given(mutations())
def test_no_bytes_raise_anything_but_a_certificate_error(der: bytes) -> None:
    """Whatever the library behind makes of them."""
    try:
        uri_sans(der)
    except CertificateError:
        return


def test_cryptography_is_loaded_by_the_first_certificate_and_not_before() -> None:
    """It costs 8 MB in every worker, and most operators never send one."""
    script = (
        "import sys, sniproxy.identity.evidence;assert not any(name.startswith('cryptography') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
