"""AuthorizationPolicy: Istio's rules about who may open which connections, read into ours.

Each of its rules becomes one rule here. It holds when one of its `from` entries does, and one of its `to` entries, and
all of its `when`; so its clauses are all pairs of the former two, each followed by the latter. What Istio's admission
refuses is refused, and so is what only a proxy that decrypts could judge.

The semantics are Istio's own. Where they come from, in github.com/istio/istio:

    pilot/pkg/security/authz/model/model.go        what a rule asks for, and what of it TCP cannot answer
    pilot/pkg/security/authz/builder/builder.go    dry-run, and policies without rules
    pilot/pkg/security/trustdomain/bundle.go       trust domains and their aliases
    pkg/config/validation, pkg/config/security     what admission refuses

Two differences are deliberate. SNI values lose their capitals and one trailing dot, as the received names do, where
Istio's would never match. And `ipBlocks` and `remoteIpBlocks` both mean the source address of the trusted PROXY header
(or the peer's, where there is none): behind a gateway, the address of the IP packet is only ever the gateway's own.
"""

import ipaddress
import re
from collections.abc import Callable, Iterator
from itertools import product

from sniproxy.config.fields import Value, nearest, parse_text
from sniproxy.config.units import show
from sniproxy.names import InvalidNameError, parse_server_name
from sniproxy.policy.model import Action, Attribute, Clause, Condition, Ground, Rule

# Sources times operations of one rule.
MAX_CLAUSES = 10_000

# The words of Go's strconv.ParseBool.
_BOOLEANS = dict.fromkeys(("1", "t", "T", "TRUE", "true", "True"), True) | dict.fromkeys(
    ("0", "f", "F", "FALSE", "false", "False"), False
)


class TrustDomains:
    """The mesh's own trust domain and its aliases, which a policy need not tell apart."""

    def __init__(self, domain: str, aliases: tuple[str, ...]) -> None:
        self._domains = (domain, *aliases)

    def expand(self, principal: str) -> tuple[str, ...]:
        """What a principal of a policy stands for: itself, or one for each of the mesh's trust domains.

        The trust domain is looked at only in a text of five parts, as Istio's identities have, and only where it is
        not a star. `cluster.local` stands for the mesh's own, whatever that is called.
        """
        written, _, rest = principal.partition("/")
        if principal.count("/") != 4 or written == "*":
            return (principal,)
        if written != "cluster.local" and not any(_means(written, domain) for domain in self._domains):
            return (principal,)
        return tuple(
            dict.fromkeys(principal if _ends_as(written, domain) else f"{domain}/{rest}" for domain in self._domains)
        )


def _means(written: str, domain: str) -> bool:
    """Whether the first part of a principal, which may end or begin with a star, names this domain."""
    is_prefix = written.endswith("*") and domain.startswith(written.removesuffix("*"))
    return written == domain or is_prefix or _ends_as(written, domain)


def _ends_as(written: str, domain: str) -> bool:
    """Such a pattern matches the domain as it stands: only a star in front is no literal one."""
    return written.startswith("*") and domain.endswith(written.removeprefix("*"))


_SPEC = ("selector", "rules", "action", "provider", "targetRef", "targetRefs")


class AuthorizationPolicy:
    """One policy, called `name`, of `namespace`.

    `selected` has the labels that it asks of a workload, and `doubts` what is worth a warning where it is in force:
    they are known once its rules have been read. What is wrong is noted with the values that it is wrong with.
    """

    def __init__(
        self, document: Value, name: str, namespace: str, annotations: dict[str, Value], domains: TrustDomains
    ) -> None:
        self.name = name
        self.namespace = namespace
        self.domains = domains
        self.doubts: list[tuple[Value, str]] = []
        self._is_dry_run = self._read_annotation(annotations.get("istio.io/dry-run"))
        spec = document.at("spec")
        self._place = spec or document
        self._fields = spec.keys(_SPEC) if spec is not None else {}
        for key, mend in _UNSUPPORTED.items():
            if key in self._fields:
                self._fields[key].refuse(mend)
        self._action = self._read_action(self._fields.get("action"))
        self.selected = self._read_selector(self._fields.get("selector"))

    def rules(self) -> Iterator[Rule]:
        """Its rules in our words, each as it is read."""
        value = self._fields.get("rules")
        if value is None:
            yield self._rule_that_never_holds()
            return
        if value.node.value == []:
            value.refuse("is empty; fill it, or drop it")
        for number, entry in enumerate(value.items()):
            yield self._rule(entry, number)

    def doubt(self, value: Value, sentence: str) -> None:
        self.doubts.append((value, sentence))

    def _read_action(self, value: Value | None) -> Action:
        if value is None:
            return Action.ALLOW
        if value.node.value == "CUSTOM":
            value.refuse("is CUSTOM, where another service decides, which is not supported; use ALLOW, DENY or AUDIT")
            return Action.ALLOW
        return Action((value.choice("ALLOW", "DENY", "AUDIT") or "ALLOW").lower())

    def _read_selector(self, value: Value | None) -> dict[str, str]:
        if value is None:
            return {}
        labels = value.keys(("matchLabels",)).get("matchLabels")
        texts = labels.texts() if labels is not None else {}
        for key, text in texts.items():
            if "*" in f"{key}{text.node.value}":
                text.refuse("has a star, and a selector takes none; write the label as it is")
        if not texts:
            self.doubt(value, "selects every workload, for it names no label; name one, or drop the selector")
        return {key: str(text.node.value) for key, text in texts.items()}

    def _read_annotation(self, value: Value | None) -> bool:
        """Whether the policy is only to be tried. A value that Istio cannot read leaves it enforced."""
        text = str(value.node.value) if value is not None else "false"
        if value is not None and text not in _BOOLEANS:
            self.doubt(value, f"is {show(text)}, which is no boolean, so that the policy is enforced; write 'true'")
        return _BOOLEANS.get(text, False)

    def _ground(self, rule: str, place: Value) -> Ground:
        return Ground(f"ns[{self.namespace}]-policy[{self.name}]", rule, place.file, place.line)

    def _rule_that_never_holds(self) -> Rule:
        """An ALLOW without rules allows nothing, and so refuses all. The others would be meaningless."""
        place, add = self._place, "add rules: [{}] for all connections, or drop the policy"
        if self._action is Action.DENY:
            place.refuse(f"has action DENY and no rules, and so denies nothing; {add}")
        elif self._action is Action.AUDIT:
            self.doubt(place, f"has action AUDIT and no rules, and so audits nothing; {add}")
        return Rule(self._ground("none", place), self._action, (), self._is_dry_run)

    def _rule(self, value: Value, number: int) -> Rule:
        fields = value.keys(("from", "to", "when"))
        sources = self._alternatives(fields.get("from"), "source", self._source)
        http: list[Value] = []
        operations = self._alternatives(fields.get("to"), "operation", lambda value: self._operation(value, http))
        when = tuple(self._conditions(fields["when"])) if "when" in fields else ()
        clauses: tuple[Clause, ...] = ()
        if len(sources) * len(operations) > MAX_CLAUSES:
            many = f"{len(sources) * len(operations):,} combinations of its from and to entries"
            value.refuse(f"stands for {many}, and at most {MAX_CLAUSES:,} are read; split it")
        elif not self._is_dropped(value, http):
            clauses = tuple(
                dict.fromkeys(source + operation + when for source, operation in product(sources, operations))
            )
        return Rule(self._ground(str(number), value), self._action, clauses, self._is_dry_run)

    def _is_dropped(self, rule: Value, http: list[Value]) -> bool:
        """What TCP cannot answer drops an ALLOW rule whole; elsewhere it is ignored, which widens the rule."""
        what = "is about HTTP, which stays encrypted here; drop it, and name hosts by connection.sni"
        if self._action is Action.ALLOW and http:
            self.doubt(rule, f"allows nothing, for {http[0]} {what}")
            return True
        for value in http:
            self.doubt(value, f"is ignored, for it {what}")
        return False

    def _alternatives(self, value: Value | None, key: str, read: Callable[[Value], Clause]) -> list[Clause]:
        """The entries of `from` or `to`, one of which must hold; () holds always."""
        if value is None:
            return [()]
        if value.node.value == []:
            value.refuse("is empty; fill it, or drop it")
        entries = [entry.keys((key,), required=(key,)) for entry in value.items()]
        return [read(fields[key]) for fields in entries if key in fields]

    def _source(self, value: Value) -> Clause:
        fields = value.keys(_SOURCE_KEYS)
        for key in _JWT_KEYS:
            if key in fields:
                fields[key].refuse(f"is about JWTs, {_INSIDE_TLS}")
        accounts = [key for key in ("serviceAccounts", "notServiceAccounts") if key in fields]
        others = [key for key in ("principals", "notPrincipals", "namespaces", "notNamespaces") if key in fields]
        if accounts and others:
            fields[accounts[0]].refuse(f"cannot stand beside {others[0]}; give it an entry of its own")
        return self._asked(value, fields, _SOURCE_FIELDS)

    def _operation(self, value: Value, http: list[Value]) -> Clause:
        fields = value.keys(_OPERATION_KEYS)
        http += [fields[key] for key in _HTTP_KEYS if key in fields and fields[key].each(parse_text)]
        return self._asked(value, fields, _OPERATION_FIELDS)

    def _asked(self, value: Value, fields: dict[str, Value], known: "tuple[_Field, ...]") -> Clause:
        """The conditions of a source or an operation. A list in it that is empty asks for nothing."""
        conditions = []
        for attribute, read, key, not_key in known:
            if key in fields or not_key in fields:
                values = self._values(fields.get(key), read)
                not_values = self._values(fields.get(not_key), read)
                if values or not_values:
                    conditions.append(Condition(attribute, values, not_values))
        if value.node.value == {} or not any(entry.node.value for entry in fields.values()):
            value.refuse("asks for nothing; fill it, or drop its entry")
        return tuple(conditions)

    def _values(self, value: Value | None, read: "_Read") -> tuple[str, ...]:
        if value is None:
            return ()
        if value.node.value == []:
            self.doubt(value, "is empty and asks for nothing; fill it, or drop it")
            return ()
        return read(value, self)

    def _conditions(self, value: Value) -> Iterator[Condition]:
        if value.node.value == []:
            self.doubt(value, "is empty and asks for nothing; fill it, or drop it")
        for entry in value.items():
            fields = entry.keys(("key", "values", "notValues"), required=("key",))
            key = fields["key"].text() if "key" in fields else ""
            if key not in _WHEN:
                if key:
                    fields["key"].refuse(_why_no_condition(key))
                continue
            attribute, read = _WHEN[key]
            values = self._values(fields.get("values"), read)
            not_values = self._values(fields.get("notValues"), read)
            if not any(fields[key].node.value for key in ("values", "notValues") if key in fields):
                entry.refuse("asks for nothing; add values or notValues")
            yield Condition(attribute, values, not_values)


_INSIDE_TLS = "which travel inside TLS and are not seen here; drop it, or enforce it where TLS ends"
_UNSUPPORTED = {
    "provider": "is for action CUSTOM, which is not supported; drop it",
    "targetRef": "attaches the policy to another resource, which is not supported; use selector.matchLabels",
    "targetRefs": "attaches the policy to other resources, which is not supported; use selector.matchLabels",
}


def _why_no_condition(key: str) -> str:
    name = show(key)
    if key.startswith("request."):
        return f"is {name}, which is about HTTP requests, {_INSIDE_TLS}"
    if key.startswith("experimental."):
        return f"is {name}, which asks filters of Envoy, and there are none here; drop it"
    if key == "destination.ip":
        return f"is {name}, which is not known before the name is resolved; use connection.sni, or allow_networks"
    return f"is {name}, which is no condition of Istio's; {nearest(key, _WHEN)}"


def _each(value: Value, doubt: Callable[[str], str], policy: AuthorizationPolicy) -> tuple[str, ...]:
    """The texts of a list, with the doubts about them noted."""
    texts = value.each(parse_text)
    if any(map(doubt, texts)):
        for entry in value.items():
            sentence = doubt(entry.text())
            if sentence:
                policy.doubt(entry, sentence)
    return texts


def _names(value: Value, policy: AuthorizationPolicy) -> tuple[str, ...]:
    """As received names are compared: in lower case and without one trailing dot."""
    texts = _each(value, _doubt_of_name, policy)
    return tuple([_canonical_name(text) for text in texts])


def _canonical_name(text: str) -> str:
    # "*." asks for names that end with a dot: it must not become a star.
    return text.lower() if text in (".", "*.") else text.lower().removesuffix(".")


_LITERAL_STAR = "a star is a pattern at one end only, and not in"


def _doubt_of_name(text: str) -> str:
    """What is doubtful about a value of connection.sni, or ""."""
    name = _canonical_name(text)
    if name == "*":
        return ""
    fixed = name[1:] if name.startswith("*") else name.removesuffix("*")
    if "*" in fixed:
        return f"never matches: {_LITERAL_STAR} {show(text)}; write *.wikipedia.org"
    if not _is_part_of_name(fixed, is_whole="*" not in name):
        return f"never matches: {show(text)} is no server name; write it as en.wikipedia.org or *.wikipedia.org"
    if text != text.lower():
        return f"is {show(text)}: Istio would never match it for its capitals, and here they do not count; write {name}"
    if name.startswith("*") and fixed[0].isalnum():
        return f"is {show(text)}, which evil{fixed} matches too; write *.{fixed}, and {fixed} beside it"
    return ""


def _is_part_of_name(text: str, *, is_whole: bool) -> bool:
    """Whether a server name can be this text, or begin or end with it."""
    if not is_whole:
        return bool(_PART_OF_NAME.fullmatch(text))
    try:
        parse_server_name(text.encode("utf-8", "replace"))
    except InvalidNameError:
        return False
    return True


# No label is empty (see names), and the rest of one may be where the star is.
_PART_OF_NAME = re.compile(r"\.?[a-z0-9_-]+(?:\.[a-z0-9_-]+)*\.?")


def _principals(value: Value, policy: AuthorizationPolicy) -> tuple[str, ...]:
    texts = _each(value, _doubt_of_principal, policy)
    expand = policy.domains.expand
    return tuple(dict.fromkeys([pattern for text in texts for pattern in expand(text)]))


def _doubt_of_principal(text: str) -> str:
    if text.startswith("spiffe://"):
        return f"never matches: Istio compares principals without their scheme; write {show(text[9:])}"
    if text == "*":
        return ""
    fixed = text[1:] if text.startswith("*") else text.removesuffix("*")
    if "*" in fixed:
        return f"never matches: {_LITERAL_STAR} {show(text)}; write cluster.local/ns/default/*"
    if not _PART_OF_PRINCIPAL.fullmatch(fixed):
        return f"never matches: {show(text)} is no principal; write it as cluster.local/ns/default/sa/sleep"
    return ""


# The characters of a SPIFFE ID (section 2 of its standard).
_PART_OF_PRINCIPAL = re.compile(r"[a-zA-Z0-9._/-]+")


def _namespaces(value: Value, policy: AuthorizationPolicy) -> tuple[str, ...]:
    return _each(value, _doubt_of_namespace, policy)


def _doubt_of_namespace(text: str) -> str:
    if _PART_OF_NAMESPACE.fullmatch(text):
        return ""
    return f"never matches: {show(text)} is no namespace; write up to 63 lower-case letters, digits and '-': default"


# A star is any run of characters, wherever it stands.
_PART_OF_NAMESPACE = re.compile(r"[a-z0-9*-]+")


def _accounts(value: Value, policy: AuthorizationPolicy) -> tuple[str, ...]:
    """`sa` or `ns/sa`, of any trust domain."""
    texts = value.each(_account)
    if len(texts) > _MAX_ACCOUNTS:
        value.refuse(f"has {len(texts)} entries, and Istio takes at most {_MAX_ACCOUNTS}; split it")
    own = policy.namespace
    pairs = [text.rpartition("/") for text in texts]
    return tuple([f"*/ns/{namespace or own}/sa/{account}" for namespace, _, account in pairs])


# CheckServiceAccount of pkg/config/security.
_MAX_ACCOUNTS = 16
_ACCOUNT = re.compile(r"(?:[^/*]+/)?[^/*]+")


def _account(value: object) -> str:
    text = parse_text(value)
    if len(text) > 320 or not _ACCOUNT.fullmatch(text):
        raise ValueError(f"{show(text)} is no service account; write sleep or default/sleep, without a star")
    return text


def _networks(value: Value, _policy: AuthorizationPolicy) -> tuple[str, ...]:
    return value.each(_network)


def _network(value: object) -> str:
    """An address, or a network whose host bits Istio does not mind."""
    text = parse_text(value)
    try:
        if not _NETWORK.fullmatch(text):
            raise ValueError
        return str(ipaddress.ip_network(text, strict=False))
    except ValueError:
        raise ValueError(f"{show(text)} is no network; write it as 10.0.0.0/8, fd00::/8 or 192.0.2.1") from None


_NETWORK = re.compile(r"[0-9a-fA-F:.]+(?:/[0-9]{1,3})?")


def _ports(value: Value, _policy: AuthorizationPolicy) -> tuple[str, ...]:
    return value.each(_port)


def _port(value: object) -> str:
    text = parse_text(value)
    if not re.fullmatch(r"[0-9]{1,5}", text) or int(text) > 65535:
        raise ValueError(f"{show(text)} is no port; write a number up to 65535, in quotes")
    return str(int(text))


_Read = Callable[[Value, AuthorizationPolicy], tuple[str, ...]]
_Field = tuple[Attribute, _Read, str, str]

_SOURCE_FIELDS: tuple[_Field, ...] = (
    (Attribute.PRINCIPAL, _principals, "principals", "notPrincipals"),
    (Attribute.NAMESPACE, _namespaces, "namespaces", "notNamespaces"),
    (Attribute.PRINCIPAL, _accounts, "serviceAccounts", "notServiceAccounts"),
    (Attribute.SOURCE_IP, _networks, "ipBlocks", "notIpBlocks"),
    (Attribute.SOURCE_IP, _networks, "remoteIpBlocks", "notRemoteIpBlocks"),
)
_OPERATION_FIELDS: tuple[_Field, ...] = ((Attribute.PORT, _ports, "ports", "notPorts"),)
_JWT_KEYS = ("requestPrincipals", "notRequestPrincipals")
_HTTP_KEYS = ("hosts", "notHosts", "methods", "notMethods", "paths", "notPaths")
_SOURCE_KEYS = (*(key for _, _, *keys in _SOURCE_FIELDS for key in keys), *_JWT_KEYS)
_OPERATION_KEYS = (*(key for _, _, *keys in _OPERATION_FIELDS for key in keys), *_HTTP_KEYS)

_WHEN: dict[str, tuple[Attribute, _Read]] = {
    "connection.sni": (Attribute.SNI, _names),
    "source.principal": (Attribute.PRINCIPAL, _principals),
    "source.namespace": (Attribute.NAMESPACE, _namespaces),
    "source.serviceAccount": (Attribute.PRINCIPAL, _accounts),
    "source.ip": (Attribute.SOURCE_IP, _networks),
    "remote.ip": (Attribute.SOURCE_IP, _networks),
    "destination.port": (Attribute.PORT, _ports),
}
