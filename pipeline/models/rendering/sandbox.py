"""jinja2's sandbox with limits on time and sizes, for templates that are foreign code. Torch-free.

jinja2's own sandbox keeps a template from files and from Python's insides, not from loops without end or from texts
that fill the memory. These limits hold in any thread:

- Loops, calls, filters, operators and comparisons count what they read, and look at the thread's own CPU time before
  they go on. What runs at that moment is finished first: it reads at most ``LARGEST_TEXT`` characters.
- A text or list is measured before it is made, and all that one rendering makes is added up. Memory may be a few times
  the characters counted: four bytes a character, and what an escape or Python's objects add.

Compiling is limited by the length of the source, which the caller checks.
"""

from collections.abc import Callable, Iterable, Iterator
from types import BuiltinMethodType, FunctionType, MethodType
from typing import Any

from jinja2 import Template, nodes, pass_context
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from pipeline.models.rendering.filters import METER, limited_filters, limited_tests
from pipeline.models.rendering.meter import Meter, require_bits, require_length
from pipeline.models.rendering.sizes import check_method, check_percent, check_product, check_sum, format_method, width

# Not Python names, so that no template can spell them.
_COUNTED, _JOINED, _MADE, _WEIGHED = "counted!", "joined!", "made!", "weighed!"


def render_limited(template: Template, values: dict[str, Any]) -> str:
    """Render a template of ``LimitedSandbox``. Raises whatever the template raises, of any type."""
    return template.render({**values, METER: Meter()})


class LimitedSandbox(ImmutableSandboxedEnvironment):
    """jinja2's sandbox with limits on time and sizes."""

    intercepted_binops = frozenset(("+", "-", "*", "/", "//", "**", "%"))

    def __init__(self, **options: Any) -> None:
        """``options``: those of jinja2's ``Environment``, without ``finalize``."""
        super().__init__(**options, finalize=_shown)
        self.filters = limited_filters(self.filters)
        self.filters |= {_COUNTED: _counted, _JOINED: _joined, _MADE: _made, _WEIGHED: _weighed}
        self.tests = limited_tests(self.tests)
        self.globals["namespace"] = _OpaqueNamespace
        del self.globals["lipsum"]  # writes as many paragraphs as it is asked for

    @staticmethod
    def concat(parts: Iterable[str]) -> str:
        """Join the parts of a whole rendering."""
        kept, length = [], 0
        for part in parts:
            length += len(part)
            require_length(length)
            kept.append(part)
        return "".join(kept)

    def plain_tree(self, source: str) -> nodes.Template:
        """Parse ``source`` as jinja2 does, to look at. Raises ``TemplateSyntaxError``."""
        return super()._parse(source, None, None)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Metered().visit(super()._parse(source, name, filename))
        return tree

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - as in jinja2
        """Call a function, method or macro of the template's."""
        meter: Meter = __context.parent[METER]
        meter.step()
        owner = __obj.__self__ if isinstance(__obj, BuiltinMethodType | MethodType) else None
        if isinstance(__obj, LoopContext):
            args = tuple(map(meter.counted, args))
        elif isinstance(__obj, BuiltinMethodType | MethodType | FunctionType | type):
            args = tuple(map(meter.listed, args))
            for value in (*args, *kwargs.values()):
                meter.weight(value)
            if isinstance(owner, str | bytes):
                meter.step(len(owner))
                check_method(meter, owner, __obj.__name__, args, kwargs)
            elif isinstance(owner, int) or owner is int:  # to_bytes takes a length
                require_length(max(map(width, (*args, *kwargs.values())), default=0))
        found = super().call(__context, __obj, *args, **kwargs)
        if found is owner or (isinstance(owner, dict | list | tuple) and not isinstance(found, type(owner))):
            return found
        # What a method of a text returns is all new.
        return meter.make(found, meter.weight(found) if isinstance(owner, str | bytes) else None)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return the safe form of ``str.format`` and ``str.format_map``; None if ``value`` is something else."""
        if super().wrap_str_format(value) is None:
            return None
        return format_method(self, value.__self__, named=value.__name__ == "format_map")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute ``left operator right`` unless the result would be too large."""
        meter: Meter = context.parent[METER]
        if operator == "+" and type(left) is str and type(right) is str:
            return meter.joined(left, right)
        meter.step()
        match operator:
            case "*":
                check_product(left, right)
            case "**" if isinstance(left, int) and isinstance(right, int) and right > 0:
                require_bits(left.bit_length() * right)
            case "+":
                check_sum(left, right)
            case "%" if isinstance(left, str | bytes):
                check_percent(meter, left, right)
        return meter.make(super().call_binop(context, operator, left, right))


class _OpaqueNamespace(Namespace):
    """A namespace that does not write out what it holds, which may change after it was measured."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Metered(NodeTransformer):
    """Lets loops, ``~``, literals, slices, blocks, keys and comparisons count what they read and make."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - named by jinja2
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _COUNTED)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 - named by jinja2
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), _JOINED)

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802 - named by jinja2
        self.generic_visit(node)
        return _filtered(node, _MADE)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802 - named by jinja2
        self.generic_visit(node)
        return _filtered(node, _MADE) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802 - named by jinja2
        self.generic_visit(node)
        for pair in node.items:
            pair.key = _read(pair.key)
        return _filtered(node, _MADE)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802 - named by jinja2
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _filtered(node, _MADE)
        node.arg = _read(node.arg)
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802 - named by jinja2
        sides: list[nodes.Compare | nodes.Operand] = [node, *node.ops]
        for compared in sides:
            if not _is_constant(compared.expr):
                compared.expr = _filtered(self.visit(compared.expr), _WEIGHED)
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:  # noqa: N802 - named by jinja2
        self.generic_visit(node)
        node.filter = nodes.Filter(node.filter, _MADE, [], [], None, None, lineno=node.lineno)
        return node


def _filtered(node: nodes.Node, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


def _is_constant(node: nodes.Expr) -> bool:
    parts = node.items if isinstance(node, nodes.List | nodes.Tuple) else [node]
    return all(isinstance(part, nodes.Const) for part in parts)


def _read(node: nodes.Expr) -> nodes.Expr:
    return node if isinstance(node, nodes.Const) else _filtered(node, _WEIGHED)


@pass_context
def _counted(context: Context, items: Iterable[object]) -> Iterator[object]:
    meter: Meter = context.parent[METER]
    return meter.counted(items)


@pass_context
def _joined(context: Context, parts: list[object]) -> object:
    meter: Meter = context.parent[METER]
    meter.weight(parts)
    return meter.make(LimitedSandbox.concat(map(str, parts)))


@pass_context
def _made(context: Context, value: object) -> object:
    meter: Meter = context.parent[METER]
    return meter.make(value)


@pass_context
def _weighed(context: Context, value: object) -> object:
    meter: Meter = context.parent[METER]
    meter.weight(value)
    return value


@pass_context
def _shown(context: Context, value: object) -> object:
    meter: Meter = context.parent[METER]
    if type(value) is str:
        return meter.shown(value)
    return meter.make(value, meter.weight(value))
