"""YAML as configs have it: plain values alone, without aliases, tags and keys given twice. Torch-free."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from pydantic import JsonValue

from pipeline.config.files.shipped import shipped_or_own, suggestion
from pipeline.errors import UserError

Tree = dict[str, JsonValue]


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML without aliases and tags that refuses a key given twice (plain SafeLoader silently keeps the last).

    An alias can refer to a node that contains it, and a few nested aliases can expand to a tree of any size. No
    setting needs a tag for its type.
    """

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        used = "aliases" if isinstance(event, yaml.AliasEvent) else "tags" if getattr(event, "tag", None) else None
        if used is not None:
            raise yaml.composer.ComposerError(None, None, f"{used} are not used in configs", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, Hashable) else str(key))
        return super().construct_mapping(node, deep)


def read_yaml(file: Path) -> Tree:
    """The mapping in ``file``, or in the shipped config of this name; an empty file is an empty mapping.

    Raises ``UserError``.
    """
    try:
        text = shipped_or_own(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"{file}: cannot read the config ({reason}){suggestion(file)}") from None
    try:
        tree = parse_yaml(text)
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f", line {error.problem_mark.line + 1}"
        raise UserError(f"{file}{line}: not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: not valid YAML: {str(error).splitlines()[0]}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        raise UserError(f"{file}: a config is a mapping of names to values at the top level")
    return tree


def parse_yaml(text: str) -> Any:
    """Parse ``text`` as YAML. Raises ``yaml.YAMLError``."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except (ValueError, LookupError, ArithmeticError) as error:
        # Such as a date of month 13.
        raise yaml.YAMLError(f"a value that looks like a number or a date but is not one ({error})") from None
