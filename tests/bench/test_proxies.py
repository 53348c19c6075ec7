"""Templates become configs."""

from pathlib import Path

import pytest

from bench import processes
from bench.processes import as_unprivileged
from bench.proxies import DEFAULT_PEERS, RECIPES, ProxyError, check_log, render
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
        "events",
        "workers",
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


@pytest.mark.parametrize(("lines", "wanted"), [(3, 3), (4, 3), (0, 0)])
def test_a_log_with_enough_lines_is_right(tmp_path: Path, lines: int, wanted: int) -> None:
    log = tmp_path / "access.log"
    log.write_text("of something else\n" + "{}\n" * lines)
    check_log("nginx", log, wanted)


@pytest.mark.parametrize(("lines", "wanted"), [(2, 3), (1, 0)], ids=["too few", "none was wanted"])
def test_a_log_with_other_lines_is_an_error(tmp_path: Path, lines: int, wanted: int) -> None:
    log = tmp_path / "access.log"
    log.write_text("{}\n" * lines)
    with pytest.raises(ProxyError, match=f"nginx logged {lines} lines for {wanted} connections"):
        check_log("nginx", log, wanted)


def test_a_log_that_was_never_written_has_no_lines(tmp_path: Path) -> None:
    with pytest.raises(ProxyError, match="logged 0 lines for 1 connections"):
        check_log("nginx", tmp_path / "access.log", 1)


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
