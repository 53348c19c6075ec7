"""The files of queries that `sniproxy explain --file` takes."""

from ipaddress import ip_address

from sniproxy.config.yaml_source import BadInputError
from sniproxy.identity.spiffe import UNKNOWN, parse_principal
from sniproxy.queries import read_queries
from tests.fuzz.files import check_error, file_of
from tests.fuzz.server_name import check_name


def fuzz(data: bytes) -> None:
    with file_of(data, "queries.yaml") as path:
        try:
            queries = read_queries(path, 443)
        except BadInputError as error:
            check_error(error, data)
            return
    assert queries
    for query in queries:
        check_name(query.request.server_name)
        assert query.expect in ("allow", "deny")
        identity = query.request.identity
        assert identity is UNKNOWN or identity == parse_principal(str(identity))
        assert query.request.source_ip in ("", str(ip_address(query.request.source_ip or "::")))
        assert isinstance(query.request.ech, bool)
