"""What patterns mean, in our own format and in Istio's, and the keys that must find them."""

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.identity.spiffe import UNKNOWN, Identity, parse_principal
from sniproxy.names import ServerName, parse_server_name
from sniproxy.policy.match import (
    SEPARATORS,
    check_of,
    cut,
    encoded,
    holds,
    key_of,
    namespaces_in,
    parse_identity_pattern,
    parse_name_pattern,
    passes,
)
from sniproxy.policy.model import Attribute, Condition, Request
from tests.policy.plain import CALLERS, CONDITIONS, REQUESTS, VALUES, does_condition_hold, is_matched

SLEEP = parse_principal("cluster.local/ns/default/sa/sleep-us")
VIRTUAL_MACHINE = parse_principal("example.org/host/web-1")

ANY = Request(ServerName("en.wikipedia.org"), SLEEP, "10.1.2.3")


def has(attribute: Attribute, value: str, request: Request) -> bool:
    return holds(Condition(attribute, (value,)), request)


# Our own format.

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
    request = ANY._replace(server_name=parse_server_name(name.encode()))
    assert has(Attribute.SNI, parse_name_pattern(pattern), request) is matches


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
    assert has(Attribute.PRINCIPAL, parse_identity_pattern(pattern), ANY._replace(identity=identity)) is matches


CANONICAL = {
    "EN.Wikipedia.ORG": "en.wikipedia.org",
    "en.wikipedia.org.": "en.wikipedia.org",
    "*.Wikipedia.org.": "*.wikipedia.org",
    "*": "*",
}


@pytest.mark.parametrize(("text", "canonical"), CANONICAL.items())
def test_a_pattern_of_names_is_read_once(text: str, canonical: str) -> None:
    """Into lower case, and without the dot at the end; to read the result changes nothing."""
    assert [parse_name_pattern(text), parse_name_pattern(canonical)] == [canonical, canonical]


@pytest.mark.parametrize("text", ["cluster.local/ns/default/sa/sleep", "cluster.local/ns/default/*"])
def test_a_pattern_of_principals_is_read_without_its_scheme(text: str) -> None:
    assert [parse_identity_pattern(text), parse_identity_pattern(f"spiffe://{text}")] == [text, text]


# Istio's strings, and what else a condition may ask for.

STRINGS = {
    "an exact text is all of it": ("en.wikipedia.org", "en.wikipedia.org", True),
    "and no part of it": ("wikipedia.org", "en.wikipedia.org", False),
    "a star at the end: it begins so": ("en.wiki*", "en.wikipedia.org", True),
    "or is just that": ("en.wikipedia.org*", "en.wikipedia.org", True),
    "or does not begin so": ("de.*", "en.wikipedia.org", False),
    "a star at the beginning: it ends so": ("*pedia.org", "en.wikipedia.org", True),
    "or is just that, too": ("*en.wikipedia.org", "en.wikipedia.org", True),
    "or does not end so": ("*.com", "en.wikipedia.org", False),
    "a suffix without a dot has the names that end alike": ("*wikipedia.org", "evilwikipedia.org", True),
    "a suffix with a dot has not": ("*.wikipedia.org", "evilwikipedia.org", False),
    "nor the name itself": ("*.wikipedia.org", "wikipedia.org", False),
    "a star alone is every name": ("*", "localhost", True),
    "a star inside is a star": ("en.*.org", "en.wikipedia.org", False),
    "with a star at both ends, the second one is a star": ("*wikipedia*", "en.wikipedia.org", False),
    "case counts: who loads them writes them in lower case": ("EN.wikipedia.org", "en.wikipedia.org", False),
}


@pytest.mark.parametrize(("value", "name", "matches"), STRINGS.values(), ids=STRINGS)
def test_strings(value: str, name: str, matches: bool) -> None:
    assert has(Attribute.SNI, value, ANY._replace(server_name=ServerName(name))) is matches


PRINCIPALS: dict[str, tuple[str, Identity, bool]] = {
    "a prefix needs no border": ("cluster.local/ns/def*", SLEEP, True),
    "a suffix needs none": ("*-us", SLEEP, True),
    "a suffix may span segments": ("*/sa/sleep-us", SLEEP, True),
    "of any trust domain": ("*/sa/sleep-us", parse_principal("other.org/ns/default/sa/sleep-us"), True),
    "a scheme is none of a principal's text": ("spiffe://cluster.local/*", SLEEP, False),
    "a star alone is any that is known": ("*", VIRTUAL_MACHINE, True),
    "and not one that is not": ("*", UNKNOWN, False),
    "which does not even end in nothing": ("*nknown", UNKNOWN, False),
    "case counts": ("*/sa/Sleep-us", SLEEP, False),
}


@pytest.mark.parametrize(("value", "identity", "matches"), PRINCIPALS.values(), ids=PRINCIPALS)
def test_principals(value: str, identity: Identity, matches: bool) -> None:
    assert has(Attribute.PRINCIPAL, value, ANY._replace(identity=identity)) is matches


NAMESPACES = {
    "a namespace has its workloads": ("default", "cluster.local/ns/default/sa/sleep", True),
    "and those of no other": ("defaul", "cluster.local/ns/default/sa/sleep", False),
    "in any trust domain": ("default", "other.org/ns/default/sa/sleep", True),
    "wherever the path has it": ("default", "td/cluster/one/ns/default/pod/x", True),
    "but not where it ends": ("default", "td/ns/default", False),
    "nor under another word": ("default", "td/xns/default/sa/sleep", False),
    "a path with two is in both: the first": ("a", "td/ns/a/ns/b/sa/x", True),
    "and the second": ("b", "td/ns/a/ns/b/sa/x", True),
    "a star is any of them": ("*", "cluster.local/ns/default/sa/sleep", True),
    "and not a principal that has none": ("*", "example.org/host/web-1", False),
    "nor one that is not known": ("*", "", False),
    "nor is that in one of this name": ("unknown", "", False),
    "a star at the end": ("prod-*", "td/ns/prod-eu/sa/x", True),
    "need not stand for anything": ("prod-*", "td/ns/prod-/sa/x", True),
    "a star in the middle": ("prod-*-eu", "td/ns/prod-1-eu/sa/x", True),
    "a star at the beginning": ("*-eu", "td/ns/prod-eu/sa/x", True),
    "must be followed by the rest": ("*-eu", "td/ns/prod-us/sa/x", False),
    "several stars": ("*a*b*", "td/ns/xaxbx/sa/x", True),
    "in their order": ("*a*b*", "td/ns/xbxax/sa/x", False),
    "what stands between them does not overlap": ("aba*aba", "td/ns/ababa/sa/x", False),
    "a star runs on over slashes, as Istio's does": ("a*b", "td/ns/a/sa/b/c", True),
    "a dot is a dot": ("a.b", "td/ns/axb/sa/x", False),
}


@pytest.mark.parametrize(("value", "who", "matches"), NAMESPACES.values(), ids=NAMESPACES)
def test_namespaces(value: str, who: str, matches: bool) -> None:
    identity = parse_principal(who) if who else UNKNOWN
    assert has(Attribute.NAMESPACE, value, ANY._replace(identity=identity)) is matches


NETWORKS = {
    "an address is in its network": ("10.0.0.0/8", "10.1.2.3", True),
    "and in no other": ("10.2.0.0/16", "10.1.2.3", False),
    "a network of one address": ("10.1.2.3/32", "10.1.2.3", True),
    "all of IPv4": ("0.0.0.0/0", "10.1.2.3", True),
    "has no IPv6": ("0.0.0.0/0", "fd00::1", False),
    "all of IPv6": ("::/0", "fd00::1", True),
    "has no IPv4": ("::/0", "10.1.2.3", False),
    "a network of IPv6": ("fd00::/8", "fd12::1", True),
    "no address is in no network": ("0.0.0.0/0", "", False),
}


@pytest.mark.parametrize(("value", "address", "matches"), NETWORKS.values(), ids=NETWORKS)
def test_networks(value: str, address: str, matches: bool) -> None:
    assert has(Attribute.SOURCE_IP, value, ANY._replace(source_ip=address)) is matches


@pytest.mark.parametrize(("value", "matches"), [("443", True), ("8443", False), ("44", False)])
def test_ports(value: str, matches: bool) -> None:
    assert has(Attribute.PORT, value, ANY._replace(port=443)) is matches


SIDES: dict[str, tuple[tuple[str, ...], tuple[str, ...], bool]] = {
    "one of the values is enough": (("a.org", "*.wikipedia.org"), (), True),
    "one of them is needed": (("a.org", "b.org"), (), False),
    "none of the others may match": (("*.wikipedia.org",), ("a.org", "en.*"), False),
    "and if none does": (("*.wikipedia.org",), ("a.org", "de.*"), True),
    "with no values, the others decide": ((), ("a.org",), True),
    "either way": ((), ("*",), False),
    "with neither, it holds": ((), (), True),
}


@pytest.mark.parametrize(("values", "not_values", "answer"), SIDES.values(), ids=SIDES)
def test_a_condition_holds_when(values: tuple[str, ...], not_values: tuple[str, ...], answer: bool) -> None:
    assert holds(Condition(Attribute.SNI, values, not_values), ANY) is answer


def test_where_there_is_no_identity_only_what_is_left_out_can_hold() -> None:
    """No value matches it, and so none of those that must not."""
    nobody = ANY._replace(identity=UNKNOWN)
    for attribute in (Attribute.PRINCIPAL, Attribute.NAMESPACE):
        assert not holds(Condition(attribute, ("*",)), nobody)
        assert holds(Condition(attribute, (), ("*",)), nobody)


@given(CONDITIONS, REQUESTS)
def test_a_condition_holds_as_regular_expressions_say(condition: Condition, request_: Request) -> None:
    assert holds(condition, request_) is does_condition_hold(condition, request_)


# The index.

KEYS = {
    "an exact name": (Attribute.SNI, "a.b.org", (0, 0, b"a.b.org")),
    "the names under a domain, by its labels": (Attribute.SNI, "*.b.org", (1, 2, b".b.org")),
    "names that end so, by the bytes": (Attribute.SNI, "*b.org", (2, 5, b"b.org")),
    "names by their first labels": (Attribute.SNI, "www.*", (3, 1, b"www.")),
    "names that begin so": (Attribute.SNI, "ww*", (4, 2, b"ww")),
    "a principal": (Attribute.PRINCIPAL, "td/ns/a/sa/b", (0, 0, b"td/ns/a/sa/b")),
    "all below a path, by its segments": (Attribute.PRINCIPAL, "td/ns/a/*", (3, 3, b"td/ns/a/")),
    "all of an account": (Attribute.PRINCIPAL, "*/sa/b", (1, 2, b"/sa/b")),
    "a namespace": (Attribute.NAMESPACE, "a", (0, 0, b"a")),
    "a port": (Attribute.PORT, "443", (0, 0, b"443")),
}


@pytest.mark.parametrize(("attribute", "value", "key"), KEYS.values(), ids=KEYS)
def test_keys(attribute: Attribute, value: str, key: tuple[int, int, bytes]) -> None:
    assert key_of(attribute, value) == key


KEYLESS = [
    (Attribute.SNI, "*"),
    (Attribute.PRINCIPAL, "*"),
    (Attribute.NAMESPACE, "*"),
    (Attribute.NAMESPACE, "prod-*"),
    (Attribute.NAMESPACE, "a/sa"),
]


@pytest.mark.parametrize(("attribute", "value"), KEYLESS)
def test_some_values_have_no_key(attribute: Attribute, value: str) -> None:
    """They can only be tried."""
    assert key_of(attribute, value) is None


def subjects(attribute: Attribute, request: Request) -> list[bytes]:
    """What keys are cut out of."""
    principal = b"" if request.identity is UNKNOWN else request.identity.encoded
    match attribute:
        case Attribute.SNI:
            return [request.server_name.encode()]
        case Attribute.PRINCIPAL:
            return [principal]
        case Attribute.NAMESPACE:
            return namespaces_in(principal)
        case Attribute.SOURCE_IP:
            return [ip_address(request.source_ip).packed] if request.source_ip else [b""]
        case Attribute.PORT:
            return [str(request.port).encode()]


VALUES_OF = st.sampled_from(Attribute).flatmap(lambda attribute: st.tuples(st.just(attribute), VALUES[attribute]))


@given(VALUES_OF, REQUESTS)
def test_a_request_is_looked_up_under_the_keys_of_the_values_that_match_it(
    value: tuple[Attribute, str], request_: Request
) -> None:
    key = key_of(*value)
    if key is not None:
        separator = SEPARATORS.get(value[0], b"")
        own = [cut(key.shape, subject, separator) for subject in subjects(value[0], request_)]
        assert (key.text in own) is is_matched(*value, request_)


@given(VALUES_OF, REQUESTS)
def test_a_value_that_is_tried_matches_the_same_requests(value: tuple[Attribute, str], request_: Request) -> None:
    attribute, _ = value
    of = Attribute.PRINCIPAL if attribute is Attribute.NAMESPACE else attribute  # a namespace is found in the principal
    assert passes(check_of(*value), subjects(of, request_)[0]) is is_matched(*value, request_)


@given(CALLERS)
def test_a_principal_s_namespaces_are_the_same_in_bytes(who: str) -> None:
    principal = parse_principal(who)
    assert tuple(dict.fromkeys(map(encoded, principal.namespaces))) == tuple(
        dict.fromkeys(namespaces_in(principal.encoded))
    )


# What is no pattern in our own format.

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
