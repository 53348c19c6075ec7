"""What a figure shows, without drawing it."""

from bench.plots import Point, crowd_figure, latency_figure, ratio_figure
from bench.report import Results, as_json
from bench.sample import Sample

ABOUT = {"versions": {"nginx": "1", "sniproxy": "2"}, "scale": {"rate": 2000}}


def document(workload: str, nginx: list[Sample | None], sniproxy: list[Sample | None]) -> dict[str, object]:
    samples = {workload: {"nginx": nginx, "sniproxy": sniproxy}}
    return as_json(Results(("nginx", "sniproxy"), (workload,), samples), ABOUT)


def short(*values: float) -> list[Sample | None]:
    return [Sample({"short_cpu": value}) for value in values]


def test_ratios_are_of_each_round_with_the_least_and_the_greatest() -> None:
    figure = ratio_figure(document("short", short(100, 100, 100), short(50, 120, 80)))
    assert figure.labels == ("CPU per short connection",)
    assert figure.series == {"sniproxy": (Point(0.8, 0.5, 1.2),)}


def test_a_row_that_the_table_marks_is_marked_in_the_figure() -> None:
    figure = ratio_figure(document("short", short(100, 200), short(100, 100)))
    assert figure.labels == ("CPU per short connection (!)",)


def test_a_round_that_failed_is_left_out() -> None:
    figure = ratio_figure(document("short", [None, *short(100)], short(50, 80)))
    assert figure.series == {"sniproxy": (Point(0.8, 0.8, 0.8),)}


def test_what_is_a_ratio_already_is_in_no_figure_of_ratios() -> None:
    crowd: list[Sample | None] = [Sample({"crowd_10": 50.0, "crowd_growth": 1.1})]
    assert ratio_figure(document("crowd", crowd, crowd)).labels == ("CPU per connection, 10 at a time",)


def test_a_level_that_was_not_measured_is_a_gap() -> None:
    crowd: list[Sample | None] = [Sample({"crowd_10": 50.0, "crowd_1000": 60.0})]
    figure = crowd_figure(document("crowd", crowd, crowd))
    assert figure.labels == ("10", "100", "1,000", "8,000")
    assert figure.series["nginx"] == (Point(50, 50, 50), None, Point(60, 60, 60), None)


def test_a_run_without_a_workload_has_no_figure_of_it() -> None:
    assert latency_figure(document("short", short(100), short(100))).series == {}
