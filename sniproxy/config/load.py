"""From files to values: every problem at once, each as FILE:LINE, what is wrong, and the mend.

What a config may say is in `model`; here is where it is read from, and where its policies are. Nothing is returned
unless everything is right.
"""

import glob
from dataclasses import dataclass, field
from pathlib import Path

from sniproxy.config.fields import Notes, Value
from sniproxy.config.model import Config, PolicyFile
from sniproxy.config.units import show
from sniproxy.config.yaml_source import BadInputError, Node, Problem, read_documents


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """A valid config, the file it came from, and the policy files that its globs name today."""

    config: Config
    file: str
    policy_files: tuple[tuple[Path, PolicyFile], ...] = field(default=())


def load_config(path: Path | None) -> LoadedConfig:
    """The config in `path`, or the built-in one. Raises BadInputError with every problem found."""
    if path is None:
        return LoadedConfig(Config(), "the built-in config")
    documents = read_documents(path)
    if len(documents) > 1:
        raise BadInputError([Problem(str(path), documents[1].line, "begins a second document; a config is one")])
    root = documents[0] if documents else Node({}, 1)
    config = read_config(root, str(path))
    return LoadedConfig(config, str(path), _find_policies(config, root, path))


def read_config(root: Node, file: str) -> Config:
    """The config that a document describes. Raises BadInputError with every problem, at its line."""
    notes = Notes()
    document = Value.of_document(root, file, notes)
    if not isinstance(root.value, dict):
        document.refuse(f"must hold keys with values, like `key: value`, not {show(root.value)}")
    config = Config.read(document) if not notes.problems else None
    if config is None:
        raise BadInputError(notes.problems)
    return config


def _find_policies(config: Config, root: Node, path: Path) -> tuple[tuple[Path, PolicyFile], ...]:
    # A file may be named for several namespaces, as one is applied with several `kubectl -n`.
    found: dict[tuple[Path, str | None], tuple[int, PolicyFile]] = {}
    problems = []
    for number, entry in enumerate(config.policy.files):
        line = root.line_of(("policy", "files", number))
        pattern = path.parent / entry.path
        try:
            matches = _expand(pattern)
        except FileNotFoundError as error:
            problems.append(Problem(str(path), line, str(error)))
            continue
        for match in matches:
            first, other = found.setdefault((match, entry.namespace), (line, entry))
            if other is not entry:
                message = f"policy file {match} is named here again, first on line {first}; keep one"
                problems.append(Problem(str(path), line, message))
    if problems:
        raise BadInputError(problems)
    return tuple((match, entry) for (match, _), (_, entry) in found.items())


def _expand(pattern: Path) -> list[Path]:
    """The files that a path or a glob names, sorted; the kubelet's `..data` links are no files of their own.

    Raises FileNotFoundError, with the mend, where there is none.
    """
    if not glob.has_magic(str(pattern)):
        if pattern.is_dir():
            raise FileNotFoundError(f"policy file {pattern} is a folder; write {pattern / '*.yaml'}")
        if not pattern.exists():
            raise FileNotFoundError(f"policy file {pattern} does not exist; create it, or drop the entry")
        return [pattern]
    matches = sorted(path for match in glob.glob(str(pattern)) if (path := Path(match)).is_file())
    if not matches:
        raise FileNotFoundError(f"no policy file matches {pattern}; create one, or drop the entry")
    return matches
