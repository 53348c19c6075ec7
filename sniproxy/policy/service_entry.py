"""ServiceEntry: the hosts that a mesh knows outside of itself, and who may see them, for `registry: only`.

An entry registers its hosts at the numbers of its ports, for the namespaces that it is exported to. Where its endpoints
are, and how they are found, is not judged: the proxy dials the name that it was asked for.
"""

from sniproxy.config.fields import Value, parse_text
from sniproxy.config.units import parse_name_pattern, parse_namespace, show
from sniproxy.policy.model import Attribute, Clause, Condition

_SPEC = (
    "hosts",
    "addresses",
    "ports",
    "location",
    "resolution",
    "endpoints",
    "workloadSelector",
    "exportTo",
    "subjectAltNames",
)


def registration(spec: Value, namespace: str) -> tuple[Clause, ...]:
    """What a ServiceEntry registers: its hosts at its ports, for the namespaces that it is exported to."""
    fields = spec.keys(_SPEC, required=("hosts",))
    if "location" in fields:
        fields["location"].choice("MESH_EXTERNAL", "MESH_INTERNAL")
    if "resolution" in fields:
        fields["resolution"].choice("NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS")
    hosts = fields["hosts"].each(_host) if "hosts" in fields else ()
    ports = _entry_ports(fields["ports"]) if "ports" in fields else ()
    if not ports:
        spec.warn("has no ports, and so registers nothing; add ports")
    clause: Clause = (Condition(Attribute.SNI, hosts), Condition(Attribute.PORT, ports))
    exported = _exported(fields["exportTo"], namespace) if "exportTo" in fields else ("*",)
    if "~" in exported or not ports:
        return ()
    return (clause,) if "*" in exported else ((*clause, Condition(Attribute.NAMESPACE, exported)),)


def _host(value: object) -> str:
    text = parse_name_pattern(parse_text(value))
    if text == "*":
        raise ValueError("'*' would register every host; write en.wikipedia.org or *.wikipedia.org")
    return text


def _entry_ports(value: Value) -> tuple[str, ...]:
    seen: dict[str, Value] = {}
    for entry in value.items():
        fields = entry.keys(("number", "name", "protocol", "targetPort"), required=("number", "name"))
        number = fields["number"].whole(1, 65535) if "number" in fields else 0
        if number and seen.setdefault(str(number), entry) is not entry:
            entry.refuse(f"has the number {number} of {seen[str(number)]}; drop one")
    return tuple(seen)


def _exported(value: Value, namespace: str) -> tuple[str, ...]:
    """The namespaces that see the entry: "*" for all, "~" for none."""
    if value.node.value == []:
        value.warn("is empty, which exports to all namespaces; write ['*'], or drop it")
        return ("*",)
    names = tuple([namespace if name == "." else name for name in value.each(_visibility)])
    for name in set(names):
        if names.count(name) > 1:
            value.refuse(f"names {show(name)} twice; drop one")
        if name in ("*", "~") and len(names) > 1:
            what = "all namespaces" if name == "*" else "none"
            value.refuse(f"has '{name}', which is {what}, beside others; keep one or the other")
    return names


def _visibility(value: object) -> str:
    if value in (".", "*", "~"):
        return str(value)
    try:
        return parse_namespace(value)
    except ValueError:
        raise ValueError(f"{show(value)} is no namespace; write its name, '.', '*' or '~'") from None
