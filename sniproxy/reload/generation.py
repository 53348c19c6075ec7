"""A generation: config and policy as the files had them at one time, and how it is read from them.

The compiled policy is bytes in a file of memory that all processes map, sealed so that nobody can change it. All else
is a few small values, which are pickled from process to process of this program.

Reading takes seconds and much memory for a large policy. It is done in a process of its own (see `reader`), and knows
nothing of it.
"""

import fcntl
import hashlib
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from sniproxy.config.load import load_config
from sniproxy.config.model import Config, Listener
from sniproxy.config.units import Address
from sniproxy.config.yaml_source import BadInputError, Problem, read_documents
from sniproxy.policy.compiled import BadRulebookError, compile_rulebook
from sniproxy.policy.documents import LoadedPolicy, load_policy
from sniproxy.policy.engine import Engine
from sniproxy.policy.model import Rule
from sniproxy.reload.places import Look, look

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True)
class Source:
    """Where generations come from: a config file or the built-in config, and what the command line adds to it."""

    config: Path | None = None
    listen: Address | None = None  # instead of the config's listeners
    workers: int | None = None
    rules: tuple[Rule, ...] = ()  # before those of all files


@dataclass(frozen=True, slots=True)
class Loaded:
    """A config and its policy."""

    config: Config
    policy: LoadedPolicy
    files: tuple[Path, ...]  # of the policy


@dataclass(frozen=True, slots=True)
class Place:
    """Where a generation was read from: the config file, the paths and globs of its policies, and what they were.

    `seen` is from before the reading began: what is otherwise afterwards may not have been read.
    """

    paths: tuple[str, ...]
    seen: Look


@dataclass(frozen=True, slots=True)
class Reading:
    """What the files say. `digest` stands for the compiled policy, which goes its own way."""

    place: Place
    config: Config
    digest: bytes
    rules: int
    warnings: tuple[Problem, ...]
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Why the files cannot be used."""

    place: Place
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Generation:
    """What is in force, in the hands of one process. `policy` is the descriptor of the compiled policy."""

    number: int
    config: Config
    connection_limit: int
    policy: int

    def compiled(self) -> memoryview:
        """The compiled policy, mapped. It stays so for as long as anybody holds a part of it."""
        size = os.fstat(self.policy).st_size
        # Private, because older kernels take a shared mapping for one that could be written to, and refuse it.
        return memoryview(mmap.mmap(self.policy, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ))


def load(source: Source) -> Loaded:
    """Config and policy from the files. Raises BadInputError with every problem found."""
    loaded = load_config(source.config)
    config = loaded.config
    if source.listen is not None:
        config = replace(config, listeners=(Listener(address=source.listen),))
    if source.workers is not None:
        config = replace(config, workers=source.workers)
    policy = load_policy(config.policy, loaded.policy_files, source.rules, port=config.upstream.port)
    return Loaded(config, policy, tuple(path for path, _ in loaded.policy_files))


def read(source: Source) -> tuple[Reading | Unreadable, bytes]:
    """What the files say, and the compiled policy, which is empty where they cannot be used."""
    place = _place_of(source)
    try:
        loaded = load(source)
    except BadInputError as error:
        return Unreadable(place, tuple(error.problems)), b""
    policy = loaded.policy
    try:
        compiled = compile_rulebook(policy.rulebook)
        Engine(compiled)  # what no worker could adopt must not get there
    except BadRulebookError as error:
        return Unreadable(place, (Problem(str(source.config), 1, str(error)),)), b""
    digest, rules = hashlib.sha256(compiled).digest(), len(policy.rulebook.rules)
    return Reading(place, loaded.config, digest, rules, policy.warnings, policy.ignored), compiled


def _place_of(source: Source) -> Place:
    """A config with a fault still says which files to watch for its mend."""
    if source.config is None:
        return Place((), {})
    config = str(source.config)
    # Before it is read: if it changes now, its policies may be others.
    seen = look([config])
    policies = [str(source.config.parent / name) for name in _named_files(source.config)]
    return Place((config, *policies), look(policies) | seen)


def _named_files(config: Path) -> Iterator[str]:
    try:
        documents = read_documents(config)
    except BadInputError:
        return
    files = documents[0].child("policy") if documents else None
    files = files.child("files") if files is not None else None
    for entry in files.value if files is not None and isinstance(files.value, list) else ():
        path = entry.child("path") or entry
        if isinstance(path.value, str) and path.value:
            yield path.value


def new_policy_file() -> int:
    """The descriptor of an empty file of memory."""
    return os.memfd_create("sniproxy-policy", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def write_policy(descriptor: int, compiled: bytes) -> None:
    """Fill a file of memory, and seal it."""
    view = memoryview(compiled)
    while view:
        view = view[os.write(descriptor, view) :]
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
