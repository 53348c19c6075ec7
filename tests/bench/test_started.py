"""A proxy is measured only if it answers, refuses and logs, in every setting that a workload asks for."""

import contextlib
import shutil
from collections.abc import Iterator

import pytest

from bench.measure import settle
from bench.processes import Cores
from bench.proxies import RECIPES, Proxy, Setting, started
from bench.stage import DENIED_NAME, SHORT_NAMES, Load, MissingToolError, Sizes, Stage, staged
from bench.workloads import busiest_share

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("taskset") is None, reason="taskset is not installed (util-linux)"),
]

ALLOWED = Load(SHORT_NAMES, count=200, concurrency=8)
REFUSED = Load((DENIED_NAME,), count=50, expect=0, concurrency=8, refused=True)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with contextlib.ExitStack() as stack:
        try:
            running = stack.enter_context(staged(Cores.of_this_machine(), Sizes(1, 1, 1), proxy_protocol=True))
        except MissingToolError as error:
            pytest.skip(str(error))
        yield running


@contextlib.contextmanager
def proxy_of(peer: str, stage: Stage, setting: Setting) -> Iterator[Proxy]:
    recipe = RECIPES[peer]
    program = recipe.find()
    if program is None:
        pytest.skip(f"{peer} is not installed: {recipe.obtain}")
    with started(recipe, program, stage, setting) as proxy:
        yield proxy


def test_what_envoy_serves_and_refuses_stands_in_its_log(stage: Stage) -> None:
    """`started` counts the lines at its end."""
    with proxy_of("envoy", stage, Setting()) as proxy:
        before = proxy.served
        assert proxy.load(ALLOWED).problems(ALLOWED) == []
        assert proxy.load(REFUSED).problems(REFUSED) == []
        assert proxy.served - before == ALLOWED.count + REFUSED.count


def test_what_two_workers_share_and_refuse_stands_in_their_log(stage: Stage) -> None:
    with proxy_of("sniproxy-pure", stage, Setting(workers=2, everywhere=True)) as proxy:
        assert proxy.load(ALLOWED).problems(ALLOWED) == []
        assert proxy.load(REFUSED).problems(REFUSED) == []
        settle(proxy.pid)
        assert 0.5 <= busiest_share(proxy.log, workers=2) < 0.9


def test_sniproxy_writes_no_line_where_a_workload_wants_no_log(stage: Stage) -> None:
    with proxy_of("sniproxy-pure", stage, Setting(log=False)) as proxy:
        assert proxy.load(ALLOWED).problems(ALLOWED) == []
        settle(proxy.pid)
        assert proxy.log.read_bytes() == b""
