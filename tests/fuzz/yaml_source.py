"""The YAML reader, beside PyYAML's own reading of what it accepts."""

import yaml

from sniproxy.config.yaml_source import (
    MAX_DEPTH,
    MAX_VALUES,
    BadInputError,
    Node,
    Plain,
    parse_documents,
    resolve_scalar,
)
from tests.fuzz.files import check_error, line_count

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_NULL = "tag:yaml.org,2002:null"
_WRITTEN_OUT = 10_000  # values: what aliases stand for can be millions


def fuzz(data: bytes) -> None:
    try:
        documents = parse_documents(data, "file.yaml")
    except BadInputError as error:
        check_error(error, data)
        return
    for document in documents:
        assert document.value is not None
        assert document.size <= MAX_VALUES
        assert document.height <= MAX_DEPTH + 1
        assert 1 <= document.line <= line_count(data)
    if sum(document.size for document in documents) < _WRITTEN_OUT:
        for document in documents:
            assert document.size == _count(document)
        _check_agreement(data.decode(), [document.plain() for document in documents])


def _count(node: Node) -> int:
    """Keys are values too."""
    if isinstance(node.value, dict):
        return 1 + sum(1 + _count(child) for child in node.value.values())
    if isinstance(node.value, list):
        return 1 + sum(map(_count, node.value))
    return 1


def _check_agreement(text: str, ours: list[Plain]) -> None:
    """PyYAML composes the same documents, once those that say nothing are left out."""
    try:
        theirs = [root for root in yaml.compose_all(text, Loader=_LOADER) if root is not None]
    except yaml.composer.ComposerError as error:
        assert "duplicate anchor" in str(error)  # a name may be given anew (YAML 1.2.2 section 7.1), but not to PyYAML
        return
    told = [root for root in theirs if not _says_nothing(root)]
    assert len(told) == len(ours)
    for root, plain in zip(told, ours, strict=True):
        _check_same(root, plain)


def _says_nothing(root: yaml.Node) -> bool:
    return isinstance(root, yaml.ScalarNode) and root.tag == _NULL


def _check_same(node: yaml.Node, plain: Plain) -> None:
    if isinstance(node, yaml.MappingNode):
        assert isinstance(plain, dict)
        assert [key.value for key, _ in node.value] == list(plain)
        for key, value in node.value:
            _check_same(value, plain[key.value])
    elif isinstance(node, yaml.SequenceNode):
        assert isinstance(plain, list)
        assert len(node.value) == len(plain)
        for entry, value in zip(node.value, plain, strict=True):
            _check_same(entry, value)
    else:
        assert plain == (node.value if isinstance(plain, str) else resolve_scalar(node.value))
