"""The URI names in an X.509 certificate, which is where an SVID has its SPIFFE ID (X509-SVID.md section 2).

Who vouches for the certificate is not looked at here: the proxy in front has verified it, and says so.
"""

import warnings
from functools import lru_cache


class CertificateError(ValueError):
    """These bytes are no X.509 certificate that can be read; the message is one sentence."""


@lru_cache(maxsize=256)  # of 16 KiB at most (MAX_HEADER), about 1 KiB in practice
def uri_sans(der: bytes) -> tuple[str, ...]:
    """The URI subject alternative names of the certificate `der`, in order. Raises CertificateError."""
    # Imported by those who are sent certificates: it costs 8 MB in each worker.
    from cryptography import utils, x509  # noqa: PLC0415

    try:
        with warnings.catch_warnings():
            # Of a serial number of zero, say. A client must not be able to write lines of text to standard error.
            warnings.simplefilter("ignore", utils.CryptographyDeprecationWarning)
            certificate = x509.load_der_x509_certificate(der)
            names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return ()
    except (
        ValueError,
        x509.InvalidVersion,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise CertificateError(f"the client certificate is unreadable: {error}") from error
    return tuple(names.value.get_values_for_type(x509.UniformResourceIdentifier))
