"""Readings and generations without files, for tests of what is done with them."""

from sniproxy.config.model import Config
from sniproxy.config.yaml_source import Problem
from sniproxy.policy.compiled import compile_rulebook
from sniproxy.policy.model import Rulebook
from sniproxy.reload.generation import Generation, Place, Reading, Unreadable, new_policy_file, write_policy
from sniproxy.reload.reloader import Result

NOWHERE = Place((), {})


def new_policy(rulebook: Rulebook | None = None) -> int:
    """The descriptor of a compiled policy."""
    descriptor = new_policy_file()
    write_policy(descriptor, compile_rulebook(rulebook or Rulebook()))
    return descriptor


def generation(number: int = 1, config: Config | None = None) -> Generation:
    return Generation(number, config or Config(), 100, new_policy())


def reading(
    config: Config | None = None, digest: bytes = b"same", place: Place = NOWHERE, warnings: tuple[Problem, ...] = ()
) -> Reading:
    return Reading(place, config or Config(), digest, 0, warnings, ())


def result(outcome: Reading | Unreadable | Exception, *files: str) -> Result:
    return Result(outcome, new_policy() if isinstance(outcome, Reading) else -1, files, 0.0)  # type: ignore[arg-type]
