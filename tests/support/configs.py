"""Configs without a file: what a mapping means, by the reader that files go through."""

import json
from collections.abc import Mapping

from sniproxy.config.load import read_config
from sniproxy.config.model import Config
from sniproxy.config.yaml_source import parse_documents


def config_of(mapping: Mapping[str, object]) -> Config:
    """The config that a file with this mapping has. Raises BadInputError."""
    (root,) = parse_documents(json.dumps(mapping).encode(), "config")  # JSON is YAML
    return read_config(root, "config")
