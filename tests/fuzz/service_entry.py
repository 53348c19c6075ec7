"""Istio's ServiceEntry documents, where only registered hosts may be reached."""

from sniproxy.config.model import Policy
from sniproxy.policy.model import Action, Attribute
from tests.fuzz.policy_files import GATEWAY, check_policy


def fuzz(data: bytes) -> None:
    loaded = check_policy(data, Policy(gateway=GATEWAY, registry="only"))
    if loaded is None:
        return
    for rule in loaded.rulebook.rules:
        if rule.action is Action.REGISTER:
            # An entry that registers anything names hosts and ports: without either it would open everything.
            for clause in rule.clauses:
                asked = {condition.attribute: condition for condition in clause}
                assert asked[Attribute.SNI].values
                assert "*" not in asked[Attribute.SNI].values
                assert asked[Attribute.PORT].values
