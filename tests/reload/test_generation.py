"""Reading a generation from files: what it is made of, and what is told of files that cannot be used."""

import os
from pathlib import Path

import pytest

from sniproxy.config.model import Listener
from sniproxy.config.units import TcpAddress
from sniproxy.identity.spiffe import UNKNOWN
from sniproxy.names import ServerName
from sniproxy.policy.engine import Engine
from sniproxy.policy.model import Allowed, Denied, Request
from sniproxy.reload.generation import (
    Generation,
    Reading,
    Source,
    Unreadable,
    load,
    new_policy_file,
    read,
    write_policy,
)

CONFIG = "policy: {files: [policy.yaml, 'd/*.yaml', {path: istio.yaml, namespace: other}]}\nworkers: 2\n"
RULES = "rules:\n  - {name: all, action: allow, sni: [en.wikipedia.org]}\n"
ISTIO = "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: a}}\n"


@pytest.fixture
def source(tmp_path: Path) -> Source:
    (tmp_path / "d").mkdir()
    for name, text in {
        "config.yaml": CONFIG,
        "policy.yaml": RULES,
        "d/a.yaml": "rules: []\n",
        "istio.yaml": ISTIO,
    }.items():
        (tmp_path / name).write_text(text)
    return Source(tmp_path / "config.yaml")


def home(source: Source) -> Path:
    assert source.config is not None
    return source.config.parent


def good(source: Source) -> tuple[Reading, bytes]:
    reading, compiled = read(source)
    assert isinstance(reading, Reading), reading
    return reading, compiled


def bad(source: Source) -> Unreadable:
    reading, compiled = read(source)
    assert isinstance(reading, Unreadable)
    assert compiled == b""
    return reading


def test_a_reading_is_config_policy_and_what_there_is_to_say_of_them(source: Source) -> None:
    reading, compiled = good(source)
    assert (reading.config.workers, reading.rules, reading.warnings) == (2, 1, ())
    assert reading.ignored == ("1 VirtualService (networking.istio.io/v1)",)
    request = Request(ServerName("en.wikipedia.org"), UNKNOWN, "")
    assert isinstance(Engine(compiled).decide(request), Allowed)
    assert isinstance(Engine(compiled).decide(request._replace(server_name=ServerName("x.org"))), Denied)


def test_it_tells_what_to_watch_and_what_that_was(source: Source) -> None:
    """The config, and every path and glob of a policy, as the config writes them."""
    folder = str(home(source))
    place = good(source)[0].place
    assert [path.removeprefix(folder) for path in place.paths] == [
        "/config.yaml",
        "/policy.yaml",
        "/d/*.yaml",
        "/istio.yaml",
    ]
    assert {path.removeprefix(folder) for path, signature in place.seen.items() if signature} == {
        "/config.yaml",
        "/policy.yaml",
        "/d/a.yaml",
        "/istio.yaml",
    }


def test_the_same_files_give_the_same_digest_and_others_another(source: Source) -> None:
    first, _ = good(source)
    assert good(source)[0] == first
    (home(source) / "d/a.yaml").write_text("rules: [{name: more, action: deny, sni: [a.org]}]\n")
    assert good(source)[0].digest != first.digest


def test_the_command_line_has_its_say_each_time(source: Source) -> None:
    listen = TcpAddress("127.0.0.1", 9443)
    rules = load(source).policy.rulebook.rules
    loaded = load(Source(source.config, listen, 7, rules[:0]))
    assert (loaded.config.listeners, loaded.config.workers) == ((Listener(address=listen),), 7)


def test_without_a_config_there_is_nothing_to_watch() -> None:
    reading, _ = good(Source())
    assert (reading.place.paths, reading.rules) == ((), 0)


FAULTS = {
    "a policy that is wrong": ("policy.yaml", "rules: 7\n", "policy.yaml:1"),
    "a policy that is gone": ("policy.yaml", None, "config.yaml:1"),
    "a glob that finds nothing": ("d/a.yaml", None, "config.yaml:1"),
    "a config that is wrong": ("config.yaml", CONFIG + "upstreem: {}\n", "config.yaml:3"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_fault_has_its_line_and_all_is_watched_for_the_mend(source: Source, case: str) -> None:
    """Also what is not there."""
    name, text, where = FAULTS[case]
    path = home(source) / name
    path.unlink() if text is None else path.write_text(text)
    reading = bad(source)
    assert [f"{Path(problem.file).name}:{problem.line}" for problem in reading.problems] == [where]
    assert len(reading.place.paths) == 4


NAMELESS = {
    "a config that is gone": None,
    "a config that is no YAML": "policy: {files: [",
    "a config that is empty of sense": "policy: {files: {a: b}}\nworkers: 0\n",
    "a config whose policy is none": "policy: 7\n",
    "a config that is a list": "- policy\n",
    "entries that are no paths": "policy: {files: [7, {namespace: a}, [b]]}\n",
}


@pytest.mark.parametrize("case", NAMELESS)
def test_where_no_policy_can_be_made_out_the_config_is_watched(source: Source, case: str) -> None:
    path, text = home(source) / "config.yaml", NAMELESS[case]
    path.unlink() if text is None else path.write_text(text)
    assert bad(source).place.paths == (str(path),)


def test_what_else_a_config_says_wrong_does_not_hide_its_policies(source: Source) -> None:
    """Of several faults, one mend may come before the other."""
    (home(source) / "config.yaml").write_text("policy: {files: [a.yaml, 7, {path: b.yaml}]}\nworkers: 0\n")
    assert [Path(path).name for path in bad(source).place.paths] == ["config.yaml", "a.yaml", "b.yaml"]


def test_a_policy_is_shared_and_cannot_be_changed() -> None:
    """Who has the descriptor can map it, and not write."""
    descriptor = new_policy_file()
    write_policy(descriptor, b"compiled")
    generation = Generation(1, load(Source()).config, 1, descriptor)
    view = generation.compiled()
    with pytest.raises(PermissionError):
        os.pwrite(descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        os.truncate(descriptor, 0)
    os.close(descriptor)
    assert (view.readonly, bytes(view)) == (True, b"compiled")
