"""OpenSSL in this process, without a socket: as a client for its hellos, and as a server for the name that it sees."""

import ssl
import sys
from enum import Enum

import trustme


class Unseen(Enum):
    """Why a server has not looked at a name."""

    REFUSED = "it answered with an alert before it looked for a name"
    WAITING = "it waits for more bytes"


def openssl_hello(name: str, protocols: list[str], maximum: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED) -> bytes:
    """The first flight of an OpenSSL client. Its random bytes are others each time."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.maximum_version = maximum
    context.set_alpn_protocols(protocols)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake without a server")


class Server:
    """An OpenSSL server that reports the name it saw in a hello, once it has accepted the hello up to there."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._seen: bytes | Unseen | None = Unseen.REFUSED

    def _note(self, _: ssl.SSLObject, name: str | None, __: ssl.SSLContext) -> int:
        self._seen = None if name is None else name.encode("ascii")
        return ssl.ALERT_DESCRIPTION_ACCESS_DENIED  # enough seen: spare the key exchange

    def _note_undecodable(self, unraisable: "sys.UnraisableHookArgs") -> None:
        """Python decodes the name before it calls `_note`, and reports one that is no ASCII here instead."""
        assert isinstance(unraisable.exc_value, UnicodeDecodeError)
        self._seen = unraisable.exc_value.object

    def name_in(self, hello: bytes) -> bytes | Unseen | None:
        """The name that a server of these bytes would serve, None for a hello without a name, or why it has none."""
        self._seen = Unseen.REFUSED
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        incoming.write(hello)
        server = self._context.wrap_bio(incoming, outgoing, server_side=True)
        hook, sys.unraisablehook = sys.unraisablehook, self._note_undecodable
        try:
            server.do_handshake()
        except ssl.SSLWantReadError:
            return Unseen.WAITING if self._seen is Unseen.REFUSED else self._seen
        except ssl.SSLError:
            return self._seen
        finally:
            sys.unraisablehook = hook
        raise AssertionError("a handshake without an answer")

    @classmethod
    def new(cls) -> "Server":
        """With every version that this OpenSSL has: the more it accepts, the more it can see differently."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.set_ciphers("ALL:@SECLEVEL=0")
        trustme.CA().issue_cert("example.org").configure_cert(context)
        server = cls(context)
        context.sni_callback = server._note
        return server
