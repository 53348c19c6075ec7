"""Istio's AuthorizationPolicy documents."""

from dataclasses import replace

from sniproxy.config.model import Policy
from sniproxy.policy.authorization_policy import MAX_CLAUSES
from tests.fuzz.policy_files import GATEWAY, check_policy

_POLICY = Policy(gateway=replace(GATEWAY, trust_domain="td1", trust_domain_aliases=("old-td", "cluster.local")))


def fuzz(data: bytes) -> None:
    loaded = check_policy(data, _POLICY)
    if loaded is not None:
        assert all(len(rule.clauses) <= MAX_CLAUSES for rule in loaded.rulebook.rules)
