"""Our own policy documents."""

from sniproxy.config.model import Policy
from sniproxy.policy.model import Action
from tests.fuzz.policy_files import GATEWAY, check_policy


def fuzz(data: bytes) -> None:
    loaded = check_policy(data, Policy(gateway=GATEWAY))
    if loaded is None:
        return
    own = [rule for rule in loaded.rulebook.rules if not rule.ground.policy.startswith("ns[")]
    assert len({rule.ground.rule for rule in own}) == len(own)
    for rule in own:
        assert rule.ground.rule.isprintable()
        assert len(rule.clauses) == 1
        assert rule.action is Action.ALLOW or (rule.limits is None and not rule.allow_networks)
        assert rule.action in (Action.ALLOW, Action.DENY, Action.AUDIT)
