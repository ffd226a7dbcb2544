"""What a message says of a section that has kinds and got none, an unknown one, or no section at all. Torch-free."""

from collections.abc import Sequence

from pydantic_core import ErrorDetails

from pipeline.config.base import Closed, kinds_of
from pipeline.errors import nearest


def kind_problem(problem: ErrorDetails, sections: Sequence[type[Closed]], got: str) -> tuple[str, str] | None:
    """Return the field that is at fault (``kind``, or an empty string for the section) and what is wrong with it.

    None for any other problem.

    Args:
        sections: what the config may hold there.
        got: the value in words.
    """
    kinds = dict.fromkeys(str(kind) for section in sections for kind in kinds_of(section))
    allowed = ", ".join(kinds)
    match problem["type"]:
        case "union_tag_invalid":
            tag = str(problem["ctx"]["tag"])
            return "kind", f"{tag!r} is not one of its kinds{nearest(tag, kinds)}; allowed: {allowed}"
        case "union_tag_not_found":
            given = problem["input"]
            spelt = [name for name in given if str(name).startswith("kind:")] if isinstance(given, dict) else []
            hint = f"; a space must follow the colon in {spelt[0]!r}" if spelt else ""
            return "kind", f"must be given{hint}; allowed: {allowed}"
        case "tuple_type" | "list_type":
            return "", f"must be a list, such as [...] (got {got})"
        case "model_attributes_type" | "model_type" | "dict_type" if kinds:
            first = next(iter(kinds))
            return "", f"must be a section, such as {{kind: {first}, ...}} (got {got}); allowed kinds: {allowed}"
    return None
