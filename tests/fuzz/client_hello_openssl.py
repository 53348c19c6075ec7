"""The ClientHello reader beside OpenSSL: whatever the bytes, both see one name, or one of them refuses."""

from sniproxy.wire.client_hello import HelloError, NoServerName
from sniproxy.wire.hello_records import read_client_hello
from sniproxy.wire.need_more import NEED_MORE
from tests.support.openssl import Server, Unseen

_SERVER = Server.new()


def fuzz(data: bytes) -> None:
    theirs = _SERVER.name_in(data)
    try:
        hello = read_client_hello(data)
        if hello is NEED_MORE:
            assert isinstance(theirs, Unseen), "OpenSSL has seen a name where we wait for more"
            return
        hello.server_name()
    except HelloError:
        return
    assert not isinstance(hello.raw_server_name, NoServerName)
    assert isinstance(theirs, Unseen) or theirs == hello.raw_server_name
