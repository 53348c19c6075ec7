"""The config, as far as it is read without looking at the files that it names."""

from sniproxy.config.load import read_config
from sniproxy.config.model import Config
from sniproxy.config.yaml_source import BadInputError, parse_documents
from tests.fuzz.files import check_error


def fuzz(data: bytes) -> None:
    try:
        for document in parse_documents(data, "sniproxy.yaml"):
            _check(read_config(document, "sniproxy.yaml"))
    except BadInputError as error:
        check_error(error, data)


def _check(config: Config) -> None:
    """What the program relies on: nobody is trusted by accident, and every bound is one."""
    assert config.listeners
    for listener in config.listeners:
        assert bool(listener.trusted_peers) is (listener.proxy_protocol == "required")
    assert 1 <= config.upstream.port <= 65535
    assert config.timeouts.client_hello > 0
    assert config.limits.connections >= 1
    assert 512 <= config.limits.client_hello_bytes <= 1 << 20
    assert config.access_log
    assert len({log.path for log in config.access_log}) == len(config.access_log)
    assert hash(config.listeners) is not None
