"""What every target promises, for inputs that are nearly right: made from its seeds, the same ones in every run.

`make fuzz` goes further, with coverage for a guide and as much time as it is given.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, Target

EXAMPLES = 1000  # of the quickest target


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_promise_holds_for_what_is_nearly_right(target: Target) -> None:
    seeds = st.sampled_from(sorted(target.seeds().values(), key=len))

    # Shrinking would not make a change smaller, which is drawn as one number.
    @settings(deadline=None, derandomize=True, database=None, max_examples=max(60, EXAMPLES // target.slowness))
    @given(seed=seeds, number=st.integers(0, 2**32))
    def changed(seed: bytes, number: int) -> None:
        target.fuzz(target.mutate(seed, random.Random(number)))

    changed()


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_promise_holds_for_any_bytes(target: Target) -> None:
    @settings(deadline=None, derandomize=True, database=None, max_examples=100)
    @given(data=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
    def anything(data: bytes) -> None:
        target.fuzz(data)

    anything()
