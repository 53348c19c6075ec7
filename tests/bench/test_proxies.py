"""Templates become configs."""

import pytest

from bench import processes
from bench.processes import as_unprivileged
from bench.proxies import DEFAULT_PEERS, RECIPES, render
from bench.stage import HERE

TEMPLATE = "listen @port@ proxy; #@proxy\nlisten @port@; #@plain\nname a@b.example;\n"
VALUES = dict.fromkeys(
    (
        "directory",
        "access_log",
        "port",
        "origin_port",
        "dns_port",
        "admin_port",
        "load_module",
        "log_options",
    ),
    "1",
)


@pytest.mark.parametrize(("proxy_protocol", "line"), [(True, "listen 443 proxy;"), (False, "listen 443;")])
def test_a_line_of_the_other_kind_of_listener_goes(proxy_protocol: bool, line: str) -> None:
    text = render(TEMPLATE, {"port": "443"}, proxy_protocol=proxy_protocol)
    assert text == f"{line}\nname a@b.example;\n"


@pytest.mark.parametrize("proxy_protocol", [True, False])
@pytest.mark.parametrize("name", sorted({name for recipe in RECIPES.values() for name in recipe.templates}))
def test_every_template_renders_whole(name: str, proxy_protocol: bool) -> None:
    text = render((HERE / "peers" / name).read_text(), VALUES, proxy_protocol=proxy_protocol)
    assert not any(line.endswith(("#@proxy", "#@plain")) for line in text.splitlines())


def test_the_default_peers_have_recipes() -> None:
    assert set(DEFAULT_PEERS) <= set(RECIPES)


def test_an_ordinary_user_runs_a_proxy_as_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "is_root", lambda: False)
    assert as_unprivileged(["nginx"]) == ["nginx"]


def test_root_drops_its_privileges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "is_root", lambda: True)
    command = as_unprivileged(["nginx"])
    assert command[0] == "setpriv"
    assert "--clear-groups" in command
    assert command[-1] == "nginx"
