"""Every committed input, what was found by fuzzing among them, keeps what its target promises."""

import pytest

from tests.fuzz.targets import CORPUS, TARGETS, Target

CASES = [(target, name, data) for target in TARGETS for name, data in target.seeds().items()]


@pytest.mark.parametrize(
    ("target", "data"),
    [(target, data) for target, _, data in CASES],
    ids=[f"{target.name}-{name}" for target, name, _ in CASES],
)
def test_a_promise_holds_for_a_committed_input(target: Target, data: bytes) -> None:
    """`fuzz` raises where it does not; and what was remembered of the first time changes nothing."""
    target.fuzz(data)
    target.fuzz(data)


def test_every_target_has_seeds_and_no_seeds_are_without_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir() if path.is_dir()} == {target.name for target in TARGETS}
