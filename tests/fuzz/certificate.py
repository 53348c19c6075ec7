"""The URI names of an X.509 certificate, which a trusted proxy hands on as a client sent it."""

import warnings

from sniproxy.identity.certificate import CertificateError, uri_sans
from tests.fuzz.proxy_header import check_sentence


def fuzz(data: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a certificate must not make the program write to standard error
        try:
            uris = uri_sans(data)
        except CertificateError as error:
            check_sentence(error)
            return
    assert uris == uri_sans(data)
    assert all(isinstance(uri, str) for uri in uris)
    assert sum(map(len, uris)) <= len(data)
