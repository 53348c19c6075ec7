"""From files to values: every problem at once, each as FILE:LINE, what is wrong, and the mend.

The YAML reader knows lines and pydantic knows shapes; `validate` joins the two, for config and policy documents
alike. Nothing is returned unless everything is right.
"""

import difflib
import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sniproxy.config.model import Config, PolicyFile
from sniproxy.config.units import show
from sniproxy.config.yaml_source import BadInputError, Node, Problem, read_documents

Model = TypeVar("Model", bound=BaseModel)


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
    config = validate(Config, root, str(path))
    return LoadedConfig(config, str(path), _find_policies(config, root, path))


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


def validate(model: type[Model], node: Node, file: str) -> Model:
    """`node` as a `model`. Raises BadInputError with every problem, at its line."""
    if not isinstance(node.value, dict):
        kind = show(node.plain())
        raise BadInputError([Problem(file, node.line, f"must hold keys with values, like `key: value`, not {kind}")])
    try:
        return model.model_validate(node.plain())
    except ValidationError as error:
        raise BadInputError(_problems(error, model, node, file)) from None


def _problems(error: ValidationError, model: type[BaseModel], node: Node, file: str) -> Iterable[Problem]:
    said = set()
    for detail in error.errors(include_url=False):
        if detail["type"] == "too_short" and detail["input"]:
            continue  # its entries are wrong, each with a problem of its own
        path = _path_in(node, (*detail["loc"], *detail.get("ctx", {}).get("at", ())))
        problem = Problem(file, node.line_of(path), _sentence(detail, path, model))
        if problem not in said:
            said.add(problem)
            yield problem


def _path_in(node: Node, loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """pydantic's location without the steps that name a branch of a union instead of a key."""
    path: list[int | str] = []
    for step in loc:
        child = node.child(step)
        if child is not None:
            node = child
            path.append(step)
    return tuple(path)


def _sentence(detail: ErrorDetails, path: tuple[int | str, ...], model: type[BaseModel]) -> str:
    where = dotted(path)
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    if value is None and kind not in ("missing", "extra_forbidden"):
        return f"{where} has no value; give it one, or drop it"
    match kind:
        case "extra_forbidden":
            return unknown_key(path, _keys_at(model, path[:-1]))
        case "missing":
            sentence = f"lacks the key '{detail['loc'][-1]}'; add it"
        case "value_error":
            return f"{where}: {context['error']}" if where else str(context["error"])
        case "literal_error":
            sentence = f"must be {context['expected'].replace(chr(39), '')}, not {show(value)}"
        case "greater_than_equal" | "less_than_equal":
            bound = f"at least {context['ge']}" if "ge" in context else f"at most {context['le']}"
            sentence = f"must be {bound}, not {show(value)}"
        case "too_short" | "string_too_short":
            sentence = "is empty; fill it, or drop it"
        case _:
            sentence = wrong_kind(_EXPECTED.get(kind, detail["msg"]), value)
    return f"{where} {sentence}".strip()


def wrong_kind(expected: str, value: object) -> str:
    """What is said of a value that is not of the kind that is `expected`."""
    mend = ""
    if expected == "a whole number" and isinstance(value, str) and value.isdecimal():
        mend = "; take the quotes off"
    elif expected == "text" and not isinstance(value, dict | list):
        mend = "; put it in quotes"
    elif expected == "a list" and not isinstance(value, dict | list):
        mend = f"; write [{show(value)}]"
    return f"must be {expected}, not {show(value)}{mend}"


_EXPECTED = {
    "tuple_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "string_type": "text",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}


def unknown_key(path: tuple[int | str, ...], known: list[str]) -> str:
    """What is said of a key that is none of the `known` ones."""
    key = str(path[-1])
    close = difflib.get_close_matches(key[:100], known, n=1)
    mend = f"did you mean '{close[0]}'?" if close else f"the keys here are {', '.join(known)}"
    where = f" in {dotted(path[:-1])}" if path[:-1] else ""
    return f"unknown key {show(key)}{where}; {mend}"


def _keys_at(model: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys that the mapping at `path` may have."""
    for step in path:
        if isinstance(step, int):
            continue
        inner = model.model_fields.get(step)
        found = _model_in(inner.annotation) if inner is not None else None
        if found is None:
            return []
        model = found
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The model that an annotation is about: itself, or inside a tuple, an Annotated or a union."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()) or ():
        found = _model_in(inner)
        if found is not None:
            return found
    return None


def dotted(path: tuple[int | str, ...]) -> str:
    """A path as problems write it: rules[0].sni."""
    text = ""
    for step in path:
        if isinstance(step, int) or not re.fullmatch(r"[\w-]{1,100}", step):
            text += f"[{show(step)}]"
        else:
            text += f".{step}" if text else step
    return text
