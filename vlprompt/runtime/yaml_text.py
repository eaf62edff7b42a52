"""Read YAML without surprises: numbers, true, false and null are typed, every other plain word is a string.

YAML 1.1 also takes yes, no, on and off for booleans, 010 for an octal, 1:30 for a number of base 60 and 2020-01-01 for
a date; here, as in YAML 1.2, these are strings (and 010 is ten). A key that stands twice in a mapping is an error.
"""

import re
from collections.abc import Collection
from typing import Any

import yaml

PLAIN_TYPES = {  # tag -> the plain words that have it, and their first characters
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    "merge": (r"<<", ["<"]),
}
TAG_PREFIX, STRING_TAG = "tag:yaml.org,2002:", "tag:yaml.org,2002:str"
CANONICAL_INTEGER = re.compile(r"0|[1-9][0-9]*")  # which str() writes as it was written
TYPED_TAGS = {f"{TAG_PREFIX}{name}" for name in ("null", "bool", "int", "float")}


_FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # many times as fast, where libyaml is installed


class _Loader(_FastLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        return int(node.value)

    def construct_number(self, node: yaml.ScalarNode) -> float:
        text = node.value.lower()
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))


for _name, (_pattern, _characters) in PLAIN_TYPES.items():
    _Loader.add_implicit_resolver(f"{TAG_PREFIX}{_name}", re.compile(rf"^(?:{_pattern})$"), _characters)
_Loader.add_constructor(f"{TAG_PREFIX}int", _Loader.construct_decimal)
_Loader.add_constructor(f"{TAG_PREFIX}float", _Loader.construct_number)
_Loader.add_constructor(f"{TAG_PREFIX}merge", _Loader.construct_yaml_str)


def load_yaml(text: str, typed_keys: Collection[str] | None = None) -> Any:
    """Load one YAML document.

    Args:
        text: the document; JSON is YAML.
        typed_keys: None for typed values everywhere. Else all keys of mappings, and what stands in lists and mappings,
            are names: strings as they are written, but for the values below these keys of the document.

    Raises:
        yaml.YAMLError: for a text that is no YAML, a key that stands twice and a value that holds itself.
    """
    loader: Any = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return None
        _require_unique_keys(root, set(), set())
        if typed_keys is not None and isinstance(root, yaml.MappingNode):
            for key, value in root.value:
                _set_string(key)
                if not isinstance(value, yaml.ScalarNode):
                    _set_names(value, is_typed=key.value in typed_keys)
        return loader.construct_document(root)
    finally:
        loader.dispose()


def _set_names(node: yaml.Node, is_typed: bool) -> None:
    """Make the words below a node strings; of typed values only the keys that would be written otherwise."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not (is_typed and CANONICAL_INTEGER.fullmatch(str(key.value))):
                _set_names(key, is_typed=False)
            _set_names(value, is_typed)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _set_names(value, is_typed)
    elif not is_typed:
        _set_string(node)


def _set_string(node: yaml.Node) -> None:
    if node.tag in TYPED_TAGS:
        node.tag = STRING_TAG


def _require_unique_keys(node: yaml.Node, seen: set[int], parents: set[int]) -> None:
    """Raise a YAMLError for a key that stands twice in a mapping, and for a value that holds itself by an alias.

    Args:
        node: the root, or a node below it.
        seen: ids of the nodes above and before, which aliases name again.
        parents: ids of the nodes above.
    """
    if id(node) in parents:
        raise yaml.MarkedYAMLError(problem="the value holds itself", problem_mark=node.start_mark)
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    parents.add(id(node))
    if isinstance(node, yaml.MappingNode):
        keys = set[tuple[str, str]]()
        for key, _ in node.value:
            if (key.tag, str(key.value)) in keys:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark)
            keys.add((key.tag, str(key.value)))
    for child in node.value:
        for part in child if isinstance(child, tuple) else (child,):
            _require_unique_keys(part, seen, parents)
    parents.discard(id(node))
