"""jinja2's filters and tests, each checked and counted before its work is done. Torch-free."""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import TemplateRuntimeError, pass_context
from jinja2.runtime import Context

from pipeline.models.rendering.meter import CHARACTER, CONTAINERS, ITEM, Meter, require_length
from pipeline.models.rendering.sizes import check_percent, check_work, pieces, replaced, width

METER = "meter!"  # no Python name, so that no template can spell it
_LAZY = frozenset(("map", "reject", "rejectattr", "select", "selectattr"))
_LISTS_ALONE = frozenset(("batch", "count", "first", "last", "length", "list", "random", "reverse", "slice"))
# These look at no more than the surface of their arguments. Others compare, hash or write out all that is in them.
_SURFACE = _LAZY | _LISTS_ALONE | {"attr", "d", "default", "items"}
_TYPES = frozenset(("boolean", "callable", "float", "integer", "iterable", "mapping", "number", "sequence", "string"))
_SURFACE_TESTS = _TYPES | {"defined", "divisibleby", "escaped", "even", "false", "none", "odd", "sameas", "true"}
_LISTING = frozenset(["groupby", "join", "max", "min", "sort", "sum", "unique"])
# Their result is found in their arguments, not made.
_FINDING = frozenset(["attr", "d", "default", "first", "items", "last", "max", "min", "random"])
# Written in Python, some of them of quadratic time.
_SLOW = frozenset(["pprint", "striptags", "title", "urlencode", "urlize", "wordcount", "wordwrap", "xmlattr"])
_LONGEST_SLOW = 1 << 16
_LONGEST_CUT = 1 << 10  # characters of what a slow filter puts between, and digits to round to
_LISTS: tuple[type[Collection[Any]], ...] = (str, range, *CONTAINERS)


def limited_filters(filters: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Return ``filters`` with limits."""
    return {name: _limited(name, filter_, name in _SURFACE) for name, filter_ in filters.items()}


def limited_tests(tests: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``tests`` with limits."""
    return {
        name: test if name in _SURFACE_TESTS | {"undefined"} else _limited("", test, False)
        for name, test in tests.items()
    }


def _limited(name: str, filter_: Callable[..., Any], surface: bool) -> Callable[..., Any]:
    takes = getattr(filter_, "jinja_pass_arg", None)  # set by jinja2's decorators
    kind = None if takes is None else takes.name

    def limited(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        meter: Meter = context.parent[METER]
        meter.step()
        value = _taken(meter, name, value)
        if not surface:
            _check(meter, name, value, args, kwargs)
        elif name in ("batch", "slice"):
            require_length(ITEM * max(map(width, (*args, *kwargs.values())), default=0))
        passed = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        lead = () if kind is None else (passed[kind],)
        found = filter_(*lead, value, *args, **kwargs)
        return found if found is value or name in _FINDING else meter.make(found)

    return pass_context(functools.update_wrapper(limited, filter_, updated=()))


def _taken(meter: Meter, name: str, value: Any) -> Any:
    """Return a filter's value, with steps for what it iterates over."""
    if name in _LISTING:
        return meter.listed(value)
    if isinstance(value, Iterator) or (name in _LAZY and isinstance(value, _LISTS)):
        return meter.counted(value)
    if name in _SURFACE and isinstance(value, _LISTS):
        meter.step(len(value))
        if isinstance(value, str) and name in ("batch", "list", "slice"):
            require_length(ITEM * len(value))
            meter.make(None, CHARACTER * len(value))
    return value


def _check(meter: Meter, name: str, value: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    given = [*args, *kwargs.values()]
    weights = sum(map(meter.weight, given))
    first = given[0] if given else None
    match name:
        case "center":
            return require_length(width(80 if first is None else first))
        case "format":
            meter.weight(value)
            return check_percent(meter, str(value), kwargs or tuple(args))
        case "tojson":
            parts = [part for item in given for part in (item if isinstance(item, list | tuple) else [item])]
            meter.weight(value, indent=sum(map(width, parts)))
            return None
        case "round":
            if any(isinstance(item, int) and abs(item) > _LONGEST_CUT for item in given):
                raise TemplateRuntimeError(f"rounds to more than {_LONGEST_CUT} digits")
            return None
    weight = meter.weight(value)
    match name:
        case "indent" if isinstance(value, str):
            require_length(weight + (1 + pieces(value, "splitlines")) * width(4 if first is None else first))
        case "join":
            count = len(value) if isinstance(value, _LISTS) else 0
            require_length(weight + count * weights)
        case "replace" if len(given) > 1:
            old, new, *rest = [*args, *(kwargs[key] for key in ("old", "new", "count") if key in kwargs)]
            require_length(replaced(str(value), str(old), str(new), *rest))
        case "sum" if any(isinstance(item, list | tuple) for item in given):
            meter.make(None, len(value) * weight)  # each addition copies what is there
        case "trim":
            check_work(weight, first)
        case _ if name in _SLOW and (weight > _LONGEST_SLOW or weights > _LONGEST_CUT):
            raise TemplateRuntimeError(f"{name} takes {_LONGEST_SLOW} characters, {_LONGEST_CUT} of options at most")
    return None
