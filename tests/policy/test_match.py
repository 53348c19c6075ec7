"""Patterns, and the keys that must find them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.identity.spiffe import UNKNOWN, Identity, parse_principal
from sniproxy.names import parse_server_name
from sniproxy.policy.match import (
    identity_keys,
    name_keys,
    namespace_key,
    namespace_matches,
    parse_identity_pattern,
    parse_name_pattern,
)

SLEEP = parse_principal("cluster.local/ns/default/sa/sleep-us")
VIRTUAL_MACHINE = parse_principal("example.org/host/web-1")

NAMES = {
    "an exact name matches itself": ("en.wikipedia.org", "en.wikipedia.org", True),
    "and no name under it": ("wikipedia.org", "en.wikipedia.org", False),
    "and no name that ends alike": ("wikipedia.org", "notwikipedia.org", False),
    "case does not count in a pattern": ("EN.Wikipedia.ORG", "en.wikipedia.org", True),
    "nor in a name": ("en.wikipedia.org", "EN.Wikipedia.ORG", True),
    "one dot at the end does not count in a pattern": ("en.wikipedia.org.", "en.wikipedia.org", True),
    "nor in a name, ": ("en.wikipedia.org", "en.wikipedia.org.", True),
    "nor behind a suffix": ("*.wikipedia.org.", "en.wikipedia.org", True),
    "a suffix matches a name under it": ("*.wikipedia.org", "en.wikipedia.org", True),
    "at any depth": ("*.wikipedia.org", "a.b.en.wikipedia.org", True),
    "but not itself": ("*.wikipedia.org", "wikipedia.org", False),
    "nor a name that ends alike": ("*.wikipedia.org", "en.notwikipedia.org", False),
    "a suffix may be one label": ("*.com", "example.com", True),
    "a star matches every name": ("*", "localhost", True),
    "underscores are letters": ("*.example.org", "_sip._tls.example.org", True),
    "names in their xn-- form are names": ("*.xn--bcher-kva.de", "www.xn--bcher-kva.de", True),
}


@pytest.mark.parametrize(("pattern", "name", "matches"), NAMES.values(), ids=NAMES)
def test_names(pattern: str, name: str, matches: bool) -> None:
    assert parse_name_pattern(pattern).matches(parse_server_name(name.encode())) is matches


IDENTITIES: dict[str, tuple[str, Identity, bool]] = {
    "an exact principal matches itself": ("cluster.local/ns/default/sa/sleep-us", SLEEP, True),
    "with its scheme, too": ("spiffe://cluster.local/ns/default/sa/sleep-us", SLEEP, True),
    "and none that begins alike": ("cluster.local/ns/default/sa/sleep", SLEEP, False),
    "case counts in a path": ("cluster.local/ns/default/sa/Sleep-us", SLEEP, False),
    "a folder matches what is in it": ("cluster.local/ns/default/sa/*", SLEEP, True),
    "at any depth": ("cluster.local/*", SLEEP, True),
    "but no folder that begins alike": ("cluster.local/ns/def/*", SLEEP, False),
    "and not itself": ("cluster.local/ns/default/sa/sleep-us/*", SLEEP, False),
    "a star matches every identity that is known": ("*", VIRTUAL_MACHINE, True),
    "an unknown one matches not even a star": ("*", UNKNOWN, False),
    "nor its own word": ("unknown", UNKNOWN, False),
}


@pytest.mark.parametrize(("pattern", "identity", "matches"), IDENTITIES.values(), ids=IDENTITIES)
def test_identities(pattern: str, identity: Identity, matches: bool) -> None:
    assert parse_identity_pattern(pattern).matches(identity) is matches


NAMESPACES: dict[str, tuple[str, Identity, bool]] = {
    "a namespace matches its workloads": ("default", SLEEP, True),
    "and those of no other": ("defaul", SLEEP, False),
    "a star matches every namespace": ("*", SLEEP, True),
    "a principal of no namespace is in none": ("*", VIRTUAL_MACHINE, False),
    "an unknown identity is in none": ("*", UNKNOWN, False),
    "nor in one of that name": ("unknown", UNKNOWN, False),
}


@pytest.mark.parametrize(("pattern", "identity", "matches"), NAMESPACES.values(), ids=NAMESPACES)
def test_namespaces(pattern: str, identity: Identity, matches: bool) -> None:
    assert namespace_matches(pattern, identity) is matches


NAME = "is not a DNS host name; write en.wikipedia.org, *.wikipedia.org or *"
STAR = "is no pattern; a star stands alone, or first with a dot behind it: *.wikipedia.org"
ALONE = "write the name alone, without a scheme, a port or a path: en.wikipedia.org"
IP = "is an IP address, and a server name is a DNS host name (RFC 6066 section 3)"

NO_NAMES = {
    "": f"'' {NAME}",
    "*.": f"'*.' {NAME}",
    "**": f"'**' {STAR}",
    "*wikipedia.org": f"'*wikipedia.org' {STAR}",
    "en.*": f"'en.*' {STAR}",
    "en.*.org": f"'en.*.org' {STAR}",
    "*.*.org": f"'*.*.org' {STAR}",
    ".wikipedia.org": f"'.wikipedia.org' {NAME}",
    "en..org": f"'en..org' {NAME}",
    "en.wikipedia.org..": f"'en.wikipedia.org..' {NAME}",
    "-en.org": f"'-en.org' {NAME}",
    "~^en": f"'~^en' {NAME}",
    "en wikipedia.org": f"'en wikipedia.org' {NAME}",
    "en.wikipedia.org:443": f"'en.wikipedia.org:443' is not a DNS host name; {ALONE}",
    "https://en.wikipedia.org/": f"'https://en.wikipedia.org/' is not a DNS host name; {ALONE}",
    "10.0.0.1": f"'10.0.0.1' {IP}; write en.wikipedia.org, *.wikipedia.org or *",
    "*.0.0.1": f"'*.0.0.1' {IP}; write en.wikipedia.org, *.wikipedia.org or *",
    "0x7f.1": f"'0x7f.1' {IP}; write en.wikipedia.org, *.wikipedia.org or *",
    "bücher.de": "'bücher.de' is not a DNS host name; write a name outside ASCII in its xn-- form",
    "\udcff": "'\\udcff' is not a DNS host name; write a name outside ASCII in its xn-- form",
}


@pytest.mark.parametrize(("text", "message"), NO_NAMES.items())
def test_what_is_no_pattern_of_names(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        parse_name_pattern(text)
    assert str(caught.value) == message


WRITE = "write it as cluster.local/ns/default/sa/sleep"
NO_IDENTITIES = {
    "*x": "'*x' is no pattern; a star stands alone, or last: cluster.local/ns/default/*",
    "*/ns/default": "'*/ns/default' is no pattern; a star stands alone, or last: cluster.local/ns/default/*",
    "a/*/b": "'a/*/b' is no pattern; a star stands alone, or last: cluster.local/ns/default/*",
    "a/ns-*": "'a/ns-*' is no pattern; a star stands alone, or last: cluster.local/ns/default/*",
    "a//b": f"'a//b' is not a SPIFFE ID: its path has an empty segment or a slash at the end; {WRITE}",
    "sleep us": (
        "'sleep us' is not a SPIFFE ID: a trust domain has lower-case letters, digits, '.', '-' and '_'; " + WRITE
    ),
}


@pytest.mark.parametrize(("text", "message"), NO_IDENTITIES.items())
def test_what_is_no_pattern_of_identities(text: str, message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the whole message is compared
        parse_identity_pattern(text)
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["en.wikipedia.org", "*.wikipedia.org", "*"])
def test_a_name_pattern_is_shown_as_it_is_written(text: str) -> None:
    assert str(parse_name_pattern(text)) == text


LABELS = st.sampled_from(["a", "b", "ab", "org"])
HOSTS = st.lists(LABELS, min_size=1, max_size=4).map(".".join)
NAME_PATTERNS = st.one_of(HOSTS, HOSTS.map(lambda host: f"*.{host}"), st.just("*"))


@given(NAME_PATTERNS, HOSTS)
def test_a_name_is_looked_up_under_the_keys_of_the_patterns_that_match_it(text: str, host: str) -> None:
    pattern, name = parse_name_pattern(text), parse_server_name(host.encode())
    assert pattern.matches(name) is (pattern.key in name_keys(name))


PATHS = st.one_of(
    st.lists(LABELS, max_size=3).map(lambda parts: "/".join(["td", *parts])),
    st.tuples(LABELS, LABELS).map(lambda pair: f"td/ns/{pair[0]}/sa/{pair[1]}"),
)
CALLERS = st.one_of(st.just(UNKNOWN), PATHS.map(parse_principal))
IDENTITY_PATTERNS = st.one_of(PATHS, PATHS.map(lambda path: f"{path}/*"), st.just("*"))


@given(IDENTITY_PATTERNS, CALLERS)
def test_an_identity_is_looked_up_under_the_keys_of_the_patterns_that_match_it(text: str, identity: Identity) -> None:
    pattern = parse_identity_pattern(text)
    assert pattern.matches(identity) is (pattern.key in identity_keys(identity))


@given(st.sampled_from(["a", "b", "ab", "org", "*"]), CALLERS)
def test_an_identity_is_looked_up_under_the_keys_of_the_namespaces_it_is_in(namespace: str, identity: Identity) -> None:
    assert namespace_matches(namespace, identity) is (namespace_key(namespace) in identity_keys(identity))
