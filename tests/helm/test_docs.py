"""docs/from-nginx.md keeps its word: its values and its listing are what the chart has, and what it names is there."""

import re

import yaml

from tests.support.helm import GATEWAY, ROOT, accepted, render_one, values_of

DOCUMENT = ROOT / "docs" / "from-nginx.md"
TEXT = DOCUMENT.read_text()


def test_its_values_are_those_of_the_file() -> None:
    (shown,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)
    assert yaml.safe_load(shown) == values_of("wikipedia-open")


def test_its_listing_is_what_kubectl_would_say() -> None:
    """Every object, in the order of the rendering, with the release named as there."""
    rendered = accepted(render_one(values_of("wikipedia-open"), name=GATEWAY))
    created = [f'{one["kind"].lower()} "{one["metadata"]["name"]}" created' for one in rendered.documents]
    assert re.findall(r"^\w+ \".*\" created$", TEXT, re.MULTILINE) == created


def test_everything_that_it_links_to_is_there() -> None:
    links = re.findall(r"\]\((\.\./[^)]+)\)", TEXT)
    assert links
    assert [link for link in links if not (DOCUMENT.parent / link).exists()] == []
