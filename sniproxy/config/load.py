"""From files to values: every problem at once, each as FILE:LINE, what is wrong, and the mend.

The YAML reader knows lines and pydantic knows shapes; `validate` joins the two, for config and policy documents
alike. Nothing is returned unless everything is right.
"""

import difflib
import glob
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sniproxy.config.model import Config, PolicyFile
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
        raise BadInputError([Problem(str(path), documents[1].line, "is a second document; a config has one")])
    root = documents[0] if documents else Node({}, 1)
    config = validate(Config, root, str(path))
    return LoadedConfig(config, str(path), _find_policies(config, root, path))


def _find_policies(config: Config, root: Node, path: Path) -> tuple[tuple[Path, PolicyFile], ...]:
    found: list[tuple[Path, PolicyFile]] = []
    problems = []
    for number, entry in enumerate(config.policy.files):
        matches = _expand(path.parent / entry.path)
        found += [(match, entry) for match in matches]
        if not matches:
            line = root.line_of(("policy", "files", number))
            problems.append(Problem(str(path), line, f"policy file {entry.path} does not exist; create it or drop it"))
    if problems:
        raise BadInputError(problems)
    return tuple(found)


def _expand(pattern: Path) -> list[Path]:
    """The files that a path or a glob names, sorted; the kubelet's `..data` links are no files of their own."""
    if not glob.has_magic(str(pattern)):
        return [pattern] if pattern.exists() else []
    return sorted(path for match in glob.glob(str(pattern)) if (path := Path(match)).is_file())


def validate(model: type[Model], node: Node, file: str) -> Model:
    """`node` as a `model`. Raises BadInputError with every problem, at its line."""
    if not isinstance(node.value, dict):
        raise BadInputError([Problem(file, node.line, f"must be a mapping of keys, not {_kind(node.plain())}")])
    try:
        return model.model_validate(node.plain())
    except ValidationError as error:
        raise BadInputError(list(_problems(error, model, node, file))) from None


def _problems(error: ValidationError, model: type[BaseModel], node: Node, file: str) -> Iterable[Problem]:
    said = set()
    for detail in error.errors(include_url=False):
        path = _path_in(node, detail["loc"])
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
    where = _dotted(path)
    kind, value, context = detail["type"], detail["input"], detail.get("ctx", {})
    match kind:
        case "extra_forbidden":
            return _unknown_key(path, _keys_at(model, path[:-1]))
        case "missing":
            sentence = f"lacks the key '{detail['loc'][-1]}'; add it"
        case "value_error":
            return f"{where}: {context['error']}" if where else str(context["error"])
        case "literal_error":
            sentence = f"must be {context['expected'].replace(chr(39), '')}, not {_show(value)}"
        case "greater_than_equal" | "less_than_equal":
            bound = f"at least {context['ge']}" if "ge" in context else f"at most {context['le']}"
            sentence = f"must be {bound}, not {_show(value)}"
        case "too_short" | "string_too_short":
            sentence = "must not be empty"
        case "string_pattern_mismatch":
            sentence = f"{_show(value)} must match {context['pattern']}"
        case _:
            expected = _EXPECTED.get(kind)
            sentence = f"must be {expected}, not {_show(value)}" if expected else f"is wrong: {detail['msg']}"
    return f"{where} {sentence}".strip()


_EXPECTED = {
    "tuple_type": "a list",
    "list_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping of keys",
    "model_type": "a mapping of keys",
    "model_attributes_type": "a mapping of keys",
    "string_type": "text",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "float_type": "a number",
}


def _unknown_key(path: tuple[int | str, ...], known: list[str]) -> str:
    key = str(path[-1]) if path else ""
    close = difflib.get_close_matches(key, known, n=1)
    mend = f"did you mean '{close[0]}'?" if close else f"the keys here are {', '.join(known)}"
    where = f" in {_dotted(path[:-1])}" if path[:-1] else ""
    return f"unknown key '{key}'{where}; {mend}"


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


def _dotted(path: tuple[int | str, ...]) -> str:
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else step
    return text


def _kind(value: object) -> str:
    names = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", type(None): "nothing"}
    return names.get(type(value), "a number")


def _show(value: object) -> str:
    if isinstance(value, (dict, list, type(None))):
        return _kind(value)
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
