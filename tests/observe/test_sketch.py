"""The sketch: the frequent are found, a count is off by no more than it says, and nobody makes it grow."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from sniproxy.observe.sketch import KEPT, Counted, Sketch, merged


def sketch_of(*values: str) -> Sketch:
    sketch = Sketch()
    for value in values:
        sketch.add(value)
    return sketch


def test_few_values_are_counted_exactly() -> None:
    assert sketch_of("a", "b", "a").top() == [Counted("a", 2, 0), Counted("b", 1, 0)]


def test_nothing_was_counted() -> None:
    assert (Sketch().top(), merged([], 3), merged([[]], 3)) == ([], [], [])


def test_equals_stand_in_the_order_of_the_alphabet() -> None:
    assert [counted.value for counted in sketch_of("c", "a", "b").top(2)] == ["a", "b"]


def test_what_is_frequent_survives_a_flood_of_values_that_come_once() -> None:
    """Somebody asks for a hundred thousand names, one after the other."""
    sketch = Sketch()
    for number in range(100_000):
        sketch.add(f"{number}.example.org")
        if number % 20 == 0:
            sketch.add("frequent.example.org")
    (first, *_) = sketch.top()
    assert first.value == "frequent.example.org"
    assert first.times <= 5000 <= first.times + first.error


def test_a_flood_takes_no_memory() -> None:
    sketch = Sketch()
    for number in range(50_000):
        sketch.add(str(number))
        assert len(sketch._pending) <= 512
        assert len(sketch._counts) <= KEPT


@given(st.lists(st.integers(0, 400).map(str), max_size=3000))
def test_a_count_is_too_small_by_the_error_at_most_and_never_too_large(values: list[str]) -> None:
    sketch = sketch_of(*values)
    exact = Counter(values)
    for value, times, error in sketch.top():
        assert times <= exact[value] <= times + error
    assert sketch._error <= len(values) / (KEPT + 1)
    told = {counted.value for counted in sketch.top()}
    assert {value for value, times in exact.items() if times > len(values) / (KEPT + 1)} <= told


def test_those_of_all_workers_are_added() -> None:
    tops = [sketch_of("a", "a", "b").top(), sketch_of("b", "b", "c").top()]
    assert merged(tops, 2) == [Counted("b", 3, 0), Counted("a", 2, 0)]


def test_errors_are_added_too() -> None:
    assert merged([[Counted("a", 5, 2)], [Counted("a", 7, 1)]], 2) == [Counted("a", 12, 3)]
