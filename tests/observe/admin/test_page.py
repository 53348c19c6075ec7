"""The page as it is sent. What it shows is tried in a real browser, in tests/e2e/test_page.py."""

import base64
import hashlib
import re

import pytest

from sniproxy.observe.admin.page import Page

HTML = Page().html.decode()
POLICY = Page().headers["Content-Security-Policy"]


@pytest.mark.parametrize("kind", ["script", "style"])
def test_nothing_runs_but_what_the_file_has(kind: str) -> None:
    (text,) = re.findall(f"<{kind}>(.*?)</{kind}>", HTML, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    assert f"{kind}-src 'sha256-{digest}';" in POLICY
    assert "unsafe" not in POLICY
    assert POLICY.startswith("default-src 'none'; ")


def test_it_brings_nothing_from_elsewhere() -> None:
    assert re.findall(r"""https?://|//cdn|\bsrc\s*=|<link|@import|url\(""", HTML) == []


def test_no_text_is_ever_taken_for_html() -> None:
    ways = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|setAttribute\(.on|\son\w+="
    assert re.findall(ways, HTML) == []


def test_it_can_be_read_aloud() -> None:
    """It has a language, a title, and a label for each field."""
    assert '<html lang="en">' in HTML
    assert "<title>" in HTML
    fields = re.findall(r"<input[^>]*\bid=\"(\w+)\"", HTML)
    assert fields
    assert [field for field in fields if f'<label for="{field}">' not in HTML] == []
