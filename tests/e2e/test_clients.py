"""Real clients get the right site by name, and are told when they may not."""

import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import allowing
from tests.support.clients import fetch
from tests.support.origins import NAMES, Authority, page_of
from tests.support.peers import find_program
from tests.support.proxy import running_proxy

VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}


@pytest.fixture(scope="module")
def ca_file(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.ca.cert_pem.write_to_path(str(path))
    return str(path)


def curl(proxy: tuple[str, int], ca_file: str, name: str, *options: str) -> subprocess.CompletedProcess[str]:
    host, port = proxy
    through = ["--connect-to", f"::{host}:{port}", "--cacert", ca_file, "--max-time", "20"]
    command = [find_program("curl"), "--silent", "--show-error", *through, *options, f"https://{name}/"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_curl_is_served_what_is_allowed_and_told_of_what_is_not(
    tmp_path: Path, wikipedias: dict[str, Any], ca_file: str
) -> None:
    """S4: all of *.wikipedia.org except en.wikipedia.org. curl ends with 35 and names the alert."""
    policy = {
        "rules": [
            {"name": "wikipedia", "action": "allow", "sni": ["*.wikipedia.org"]},
            {"name": "no-english", "action": "deny", "sni": ["en.wikipedia.org"]},
        ]
    }
    with running_proxy(tmp_path, {"upstream": {"hosts": wikipedias}}, policy) as proxy:
        got = {name: curl(proxy.address, ca_file, name) for name in NAMES}
        proxy.wait_for_finals(len(NAMES))
    assert {name: result.stdout for name, result in got.items()} == {
        name: "" if name == "en.wikipedia.org" else page_of(name) for name in NAMES
    }
    assert got["en.wikipedia.org"].returncode == 35
    assert "access denied" in got["en.wikipedia.org"].stderr
    refusal = next(line for line in proxy.finals if line["connectionEvent"] == "deny")
    assert (refusal["requestedServerName"], refusal["rule"], refusal["level"]) == (
        "en.wikipedia.org",
        "no-english",
        "error",
    )


@pytest.mark.parametrize("version", ["--tls-max 1.2", "--tlsv1.3"])
def test_curl_speaks_either_version(tmp_path: Path, wikipedias: dict[str, Any], ca_file: str, version: str) -> None:
    """TLS 1.2 and 1.3 by curl."""
    with running_proxy(tmp_path, {"upstream": {"hosts": wikipedias}}, allowing("*.wikipedia.org")) as proxy:
        result = curl(proxy.address, ca_file, "de.wikipedia.org", *version.split())
    assert (result.stdout, result.returncode) == (page_of("de.wikipedia.org"), 0)


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl_s_client_verifies_the_origin_behind_the_proxy(
    tmp_path: Path, wikipedias: dict[str, Any], ca_file: str, version: str
) -> None:
    """The handshake is the origin's: the certificate chain verifies for the name that was asked for."""
    name = "fr.wikipedia.org"
    with running_proxy(tmp_path, {"upstream": {"hosts": wikipedias}}, allowing("*.wikipedia.org")) as proxy:
        host, port = proxy.address
        where = ["-connect", f"{host}:{port}", "-servername", name, "-verify_hostname", name, "-CAfile", ca_file]
        command = [find_program("openssl"), "s_client", *where, "-verify_return_error", version, "-quiet", "-ign_eof"]
        request = f"GET / HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n"
        result = subprocess.run(command, input=request, capture_output=True, text=True, check=False, timeout=20)
    assert page_of(name) in result.stdout, result.stderr


@pytest.mark.parametrize("version", VERSIONS)
def test_python_ssl_is_served_by_name(
    tmp_path: Path, wikipedias: dict[str, Any], authority: Authority, version: str
) -> None:
    """Python's ssl, with one version allowed."""
    trust = authority.client_context()
    trust.minimum_version = trust.maximum_version = VERSIONS[version]
    with running_proxy(tmp_path, {"upstream": {"hosts": wikipedias}}, allowing("*.wikipedia.org")) as proxy:
        pages = {name: fetch(proxy.address, name, trust) for name in NAMES}
        offered = {line["tlsVersion"] for line in proxy.wait_for_finals(len(NAMES))}
    assert pages == {name: page_of(name) for name in NAMES}
    assert offered == {VERSIONS[version].name.replace("_", ".")}
