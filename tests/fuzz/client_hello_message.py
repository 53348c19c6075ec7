"""The ClientHello parser on messages whose records and header are right, so that every input gets as far as the fields.

The input is what follows the handshake header.
"""

from sniproxy.wire.client_hello import HelloError, parse_client_hello
from tests.fuzz.client_hello import check_detail, check_hello
from tests.fuzz.client_hello import fuzz as fuzz_stream
from tests.wire.build import as_records
from tests.wire.reading import Outcome


def fuzz(data: bytes) -> None:
    message = b"\x01" + len(data).to_bytes(3, "big") + data
    said: Outcome
    try:
        hello = said = parse_client_hello(message)
        check_hello(hello)
    except HelloError as error:
        check_detail(error)
        said = error.fault
    for wrong in (message[:-1], message + b"\x00"):
        _check_refused(wrong)
    if len(data) < 2000:
        fuzz_stream(as_records(message, fragment_size=len(data) // 3 + 1))
    assert said == _again(message)


def _check_refused(message: bytes) -> None:
    """A message that its header does not fit is none, whatever is in it."""
    try:
        parse_client_hello(message)
    except HelloError as error:
        check_detail(error)
        return
    raise AssertionError("a message of the wrong length was read")


def _again(message: bytes) -> Outcome:
    """The parser remembers common fields: what it remembers must not differ from what it reads."""
    try:
        return parse_client_hello(message)
    except HelloError as error:
        return error.fault
