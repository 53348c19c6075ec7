"""The page, in a real browser: what it shows of a running proxy, that no name can break it, and that all can use it."""

import json
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

import pytest

from sniproxy.wire.proxy_protocol import SocketAddress, Tlv, encode_proxy_header
from tests.e2e.conftest import ALL_BUT_ENGLISH, allowing
from tests.support.browser import Tab, needs_chromium, new_tab
from tests.support.clients import PRINCIPAL, ask, connected, fetch, hello_for, proxy_header, sleep_principal
from tests.support.origins import Authority, read_to_end
from tests.support.proxy import ProxyProcess, running_proxy, wait_until

pytestmark = needs_chromium

DE, EN = "de.wikipedia.org", "en.wikipedia.org"
US = sleep_principal("sleep-us")
SCRIPT = "<script>document.title='owned'</script>"
IMAGE = "<img src=x onerror=\"document.title='owned'\">"


def hostile_header() -> bytes:
    """A PROXY header whose principal is no SPIFFE ID, but a script."""
    tlv = Tlv(PRINCIPAL, f"spiffe://{SCRIPT}".encode())
    return encode_proxy_header(SocketAddress("10.1.2.3", 40000), SocketAddress("10.0.0.1", 443), [tlv])


def counted(proxy: ProxyProcess) -> tuple[int, ...]:
    """How many connections were opened, refused and failed, as far as the page could know."""
    latest = json.loads(proxy.get("/connections"))["latest"]
    return tuple(len(latest[kind]) for kind in ("opened", "refused", "failed"))


@pytest.fixture(scope="module")
def proxy(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, wikipedias: dict[str, list[str]]
) -> Iterator[ProxyProcess]:
    config = {
        "listeners": [{"address": "127.0.0.1:0", "proxy_protocol": "required", "trusted_peers": ["127.0.0.0/8"]}],
        "upstream": {"hosts": {**wikipedias, "nobody.wikipedia.org": ["127.0.0.1:1"]}},
    }
    with running_proxy(tmp_path_factory.mktemp("page"), config, ALL_BUT_ENGLISH) as proxy:
        fetch(proxy.address, DE, authority.client_context(), proxy_header(US))
        ask(proxy.address, proxy_header(US), hello_for(EN))
        ask(proxy.address, proxy_header(US), hello_for("nobody.wikipedia.org"))
        for hostile in (SCRIPT, IMAGE):
            ask(proxy.address, proxy_header(US), hello_for(hostile))
        with connected(proxy.address) as sock:
            sock.sendall(hostile_header() + hello_for(DE))
            read_to_end(sock)
        wait_until(lambda: counted(proxy) == (1, 4, 1), "word of all of them")
        yield proxy


@pytest.fixture
async def tab(proxy: ProxyProcess, tmp_path: Path) -> AsyncIterator[Tab]:
    """The page, once it shows the refusals. At its end: nothing was forbidden, thrown or run that should not be."""
    async with new_tab(tmp_path) as tab:
        await tab.open(f"http://{proxy.admin[0]}/")
        await tab.wait_for("document.querySelectorAll('#refused tbody tr').length >= 4")
        yield tab
        assert await tab.value_of("document.title") == "sniproxy"
        assert tab.complaints == []


def rows(of: str) -> str:
    """JavaScript for the cells of a table, row by row."""
    return f"[...document.querySelectorAll('#{of} tbody tr')].map(row => [...row.cells].map(cell => cell.textContent))"


def facts(of: str) -> str:
    """JavaScript for a list of facts, by their names."""
    return (
        f"Object.fromEntries([...document.querySelectorAll('#{of} div')]"
        ".map(fact => [fact.children[0].textContent, fact.children[1].textContent]))"
    )


async def test_what_it_shows(tab: Tab, proxy: ProxyProcess) -> None:
    """Refusals with their rule and where it is written, counts, the most frequent, and the policy in force."""
    refused = {row[1]: row[2:] for row in await tab.value_of(rows("refused"))}
    policy = proxy.log_path.parent / "policy.yaml"
    principal, source, reason, rule, where, _ = refused[EN]
    assert (principal, source, reason, rule) == (US, "10.1.2.3", "rule", "no-english of policy.yaml")
    assert where.startswith(f"{policy}:")
    now: Mapping[str, str] = await tab.value_of(facts("now"))
    assert {name: now[name] for name in ("active now", "opened", "refused", "failed")} == {
        "active now": "0",
        "opened": "1",
        "refused": "4",
        "failed": "1",
    }
    assert await tab.value_of(rows("opened-names")) == [[DE, "1"]]
    assert await tab.value_of(rows("opened-principals")) == [[US, "1"]]
    assert [EN, "1"] in await tab.value_of(rows("refused-names"))
    told = await tab.value_of(facts("policy"))
    assert (told["generation"], told["rules"], told["last reload"]) == ("1", "2", "good")
    assert (await tab.value_of(rows("failed")))[0][4] == "connect_refused"
    assert await tab.value_of("document.getElementById('state').textContent") == "live"


async def test_hostile_names_are_shown_as_they_are_and_do_nothing(tab: Tab) -> None:
    """A script as SNI, as principal (which is none, and stands in the detail), and an image as SNI."""
    cells = [cell for row in await tab.value_of(rows("refused")) for cell in row]
    assert {SCRIPT, IMAGE} <= set(cells)
    assert any("<script>" in cell for cell in cells if cell != SCRIPT)
    assert await tab.value_of("document.scripts.length") == 1
    assert await tab.value_of("document.images.length") == 0


async def test_a_script_that_got_in_would_not_run(tab: Tab) -> None:
    """The policy of the page forbids it: neither a new script, nor an event handler, nor HTML from a string."""
    attempt = f"""(() => {{
        const script = document.createElement('script');
        try {{ script.textContent = "document.title = 'owned'"; document.body.append(script); }} catch {{ }}
        try {{ document.body.insertAdjacentHTML('beforeend', {json.dumps(IMAGE)}); }} catch {{ }}
        script.remove();
        return document.title;
    }})()"""
    assert await tab.value_of(attempt) == "sniproxy"
    assert tab.complaints
    tab.complaints.clear()


async def test_it_is_live(tab: Tab, proxy: ProxyProcess) -> None:
    """What happens is shown without a reload, and not while it is paused."""
    ask(proxy.address, proxy_header(US), hello_for("elsewhere.example.org"))
    await tab.wait_for(f"{rows('refused')}.some(row => row[1] === 'elsewhere.example.org')")
    await tab.value_of("document.getElementById('pause').click()")
    assert await tab.value_of("document.getElementById('state').textContent") == "paused"


async def test_the_form_explains_by_keyboard_alone(tab: Tab) -> None:
    """Tab to the first link, on to the form, and Enter."""
    for _ in range(20):
        await tab.press("Tab")
        if await tab.value_of("document.activeElement.id") == "sni":
            break
    await tab.type(EN)
    await tab.press("Tab")
    await tab.type(US)
    await tab.press("Enter", "\r")
    await tab.wait_for("document.getElementById('verdict').textContent")
    told = await tab.value_of("document.getElementById('verdict').textContent")
    assert told.startswith("deny (rule)by no-english of policy.yaml, ")


async def test_a_wrong_question_is_answered_with_its_mend(tab: Tab) -> None:
    await tab.value_of(
        "document.getElementById('sni').value = '127.1'; document.getElementById('explain').requestSubmit()"
    )
    await tab.wait_for("document.getElementById('verdict').textContent")
    assert "is an IP address" in await tab.value_of("document.getElementById('verdict').textContent")
    (complaint,) = tab.complaints  # the browser's own, about the status
    assert "400" in complaint
    tab.complaints.clear()


@pytest.mark.parametrize("scheme", ["dark", "light"])
@pytest.mark.parametrize("width", [360, 1280])
async def test_it_fits_a_phone_and_a_desk_in_dark_and_light(width: int, scheme: str, tab: Tab, tmp_path: Path) -> None:
    """Nothing reaches past the edge, and text stands out from what is behind it."""
    await tab.resize(width, 900)
    await tab.prefer(scheme)
    await tab.screenshot(Path(os.environ.get("SCREENSHOTS", tmp_path)) / f"page-{scheme}-{width}.png")
    assert await tab.value_of("document.documentElement.scrollWidth") <= width
    color, back = [
        sum(map(int, text[4:-1].split(",")))
        for text in await tab.value_of("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    ]
    assert (color > back) is (scheme == "dark")
    assert abs(color - back) > 450


async def test_it_says_so_when_the_proxy_is_gone(tmp_path: Path) -> None:
    """What is shown is old then."""
    async with new_tab(tmp_path) as tab:
        with running_proxy(tmp_path, None, allowing(DE)) as proxy:
            await tab.open(f"http://{proxy.admin[0]}/")
            await tab.wait_for("document.getElementById('state').textContent === 'live'")
        await tab.wait_for("document.getElementById('state').textContent.startsWith('no answer')")
