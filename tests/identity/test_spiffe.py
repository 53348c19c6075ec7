"""SPIFFE IDs and principals."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sniproxy.identity.spiffe import UNKNOWN, InvalidSpiffeIdError, Principal, Unknown, parse_principal

SLEEP = "cluster.local/ns/default/sa/sleep-us"


@pytest.mark.parametrize("text", [SLEEP, "spiffe://" + SLEEP])
def test_a_principal_has_parts_and_istio_s_form(text: str) -> None:
    """With a scheme, as in certificates, or without, as in Istio's policies: the same value."""
    principal = parse_principal(text)
    assert Principal("cluster.local", "/ns/default/sa/sleep-us") == principal
    assert ("default", "sleep-us") == (principal.namespace, principal.service_account)
    assert SLEEP == str(principal)
    assert "default" == principal.namespace_label


@pytest.mark.parametrize(
    ("text", "trust_domain", "path"),
    [
        ("example.org", "example.org", ""),
        ("example.org/9eebccd2-12bf-40a6-b262-65fe0487d453", "example.org", "/9eebccd2-12bf-40a6-b262-65fe0487d453"),
        ("td/ns/a", "td", "/ns/a"),
        ("td/sa/b/ns/a", "td", "/sa/b/ns/a"),
        ("td/NS/a/SA/b", "td", "/NS/a/SA/b"),
        ("td/xns/a/sa/b", "td", "/xns/a/sa/b"),
        ("ns/a/sa/b", "ns", "/a/sa/b"),
        ("1_2-3.4/...", "1_2-3.4", "/..."),
    ],
)
def test_a_path_may_name_no_namespace(text: str, trust_domain: str, path: str) -> None:
    """Only what stands between /ns/ and a further segment is one."""
    principal = parse_principal(text)
    assert Principal(trust_domain, path) == principal
    assert ((), "", "", "unknown") == (
        principal.namespaces,
        principal.namespace,
        principal.service_account,
        principal.namespace_label,
    )
    assert text == str(principal)


@pytest.mark.parametrize(
    ("path", "namespaces"),
    [
        ("/ns/a/sa/b/c", ("a",)),
        ("/ns/a/b", ("a",)),
        ("/x/ns/a/sa/b", ("a",)),
        ("/ns/a/ns/b/sa/c", ("a", "b")),
        ("/ns/b/ns/a/ns/b/c", ("b", "a")),
        ("/ns/ns/ns/a", ("ns",)),
        ("/ns/a/ns/b", ("a",)),
    ],
)
def test_a_namespace_is_what_istio_would_find(path: str, namespaces: tuple[str, ...]) -> None:
    """What .*/ns/NAMESPACE/.* matches, which can be several; logs take the first. An account is Istio's path alone."""
    principal = parse_principal(f"td{path}")
    assert (namespaces, namespaces[0], namespaces[0], "") == (
        principal.namespaces,
        principal.namespace,
        principal.namespace_label,
        principal.service_account,
    )


def test_a_principal_has_its_text_ready_for_look_ups() -> None:
    principal = parse_principal("spiffe://" + SLEEP)
    assert (SLEEP, SLEEP.encode()) == (principal.text, principal.encoded)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a trust domain has"),
        ("spiffe://", "a trust domain has"),
        ("/ns/default/sa/sleep-us", "a trust domain has"),
        ("spiffe:///ns/default/sa/sleep-us", "a trust domain has"),
        ("SPIFFE://" + SLEEP, "a trust domain has"),
        ("spiffe://spiffe://" + SLEEP, "a trust domain has"),
        ("https://example.org/", "a trust domain has"),
        ("Cluster.local/a", "a trust domain has"),
        ("user@example.org/a", "a trust domain has"),
        ("example.org:443/a", "a trust domain has"),
        ("example.org?a", "a trust domain has"),
        ("bücher/a", "a trust domain has"),
        ("*/ns/default/sa/sleep-us", "a trust domain has"),
        (" " + SLEEP, "a trust domain has"),
        ("unknown\n", "a trust domain has"),
        ("-\x00", "a trust domain has"),
        ("a" * 256, "longer than 255 bytes"),
        ("td/", "empty segment"),
        ("td//a", "empty segment"),
        ("td/a/", "empty segment"),
        ("td/./a", "relative segment"),
        ("td/a/..", "relative segment"),
        ("td/a b", "a path has"),
        ("td/a?b", "a path has"),
        ("td/a#b", "a path has"),
        ("td/a%2fb", "a path has"),
        ("td/a*", "a path has"),
        ("td/a\n", "a path has"),
        ("td/ns/default/sa/sleep,spiffe://td/ns/default/sa/other", "a path has|empty segment"),
        ("td/" + "a" * 2037, "longer than 2048 bytes"),
        ("spiffe://td/" + "a" * 2037, "longer than 2048 bytes"),
    ],
)
def test_what_is_no_spiffe_id_is_refused(text: str, reason: str) -> None:
    """Nothing is normalised and nothing repaired: two spellings of one workload would be two answers."""
    with pytest.raises(InvalidSpiffeIdError, match=reason) as refused:
        parse_principal(text)
    assert len(str(refused.value)) < 500
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["a" * 255, "td/" + "a" * 2036, "spiffe://td/" + "a" * 2036])
def test_the_longest_spiffe_ids_are_read(text: str) -> None:
    """255 bytes of trust domain, 2048 in all with the scheme, whether or not it was written."""
    assert text.removeprefix("spiffe://") == str(parse_principal(text))


def test_an_unknown_caller_is_no_principal() -> None:
    """It has words for the log and nothing to match: a namespace may really be called "unknown"."""
    assert ("unknown", "unknown") == (str(UNKNOWN), UNKNOWN.namespace_label)
    assert not hasattr(UNKNOWN, "namespace")
    assert not hasattr(UNKNOWN, "trust_domain")
    assert not isinstance(UNKNOWN, Principal)
    assert 2 == len({UNKNOWN, parse_principal("unknown")})
    assert [UNKNOWN] == list(Unknown)


def test_equal_principals_are_one_value() -> None:
    """They hash and compare by trust domain and path, share memory, and survive a trip between processes."""
    one, other = parse_principal(SLEEP), parse_principal("spiffe://" + SLEEP)
    assert {one} == {other}
    assert parse_principal(SLEEP) is one
    copy = pickle.loads(pickle.dumps(one))  # noqa: S301 - our own bytes
    assert (one, SLEEP, "default") == (copy, str(copy), copy.namespace)


SEGMENTS = st.from_regex(r"[a-zA-Z0-9._-]{1,30}", fullmatch=True).filter(lambda text: text not in (".", ".."))


@given(
    st.from_regex(r"[a-z0-9._-]{1,100}", fullmatch=True),
    st.lists(SEGMENTS, max_size=6).map(lambda segments: "".join("/" + segment for segment in segments)),
)
def test_every_valid_id_is_read_back(trust_domain: str, path: str) -> None:
    """Parsing loses nothing."""
    principal = parse_principal(f"spiffe://{trust_domain}{path}")
    assert (trust_domain, path) == (principal.trust_domain, principal.path)
    assert principal == parse_principal(str(principal))


@given(st.text(max_size=60) | st.text("ad/.:-@spife", max_size=30))
def test_no_text_raises_anything_but_an_invalid_spiffe_id(text: str) -> None:
    """And what is read says what was written."""
    try:
        principal = parse_principal(text)
    except InvalidSpiffeIdError:
        return
    assert text.removeprefix("spiffe://") == str(principal)


def test_a_principal_survives_pickling() -> None:
    """A reader process hands configs over that way. Its bytes are parsed, as all others are."""
    principal = parse_principal("cluster.local/ns/default/sa/sleep-us")
    copy = pickle.loads(pickle.dumps(principal))  # noqa: S301 - our own
    assert (copy, copy.namespace) == (principal, "default")
