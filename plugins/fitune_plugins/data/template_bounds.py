"""Chat templates whose work is bounded: turns of loops and calls are counted, and what would be large is foreseen.

The environment is the one that transformers compiles templates in, Jinja's sandbox, with every way in it to much work
led through a `Work`:

- loops, by a call that begins each turn, and by one before the condition of a loop;
- calls of macros, functions, methods and filters, and what filters give item by item;
- texts that are joined by `~`, in blocks and macros, and at the end;
- lists, tuples and mappings, which could hold one another many times over;
- operators and methods that make much of little, by the size of what they are about to make.

What a method or a filter makes of large values is known for those that templates use. All others take small ones only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, wraps
from hashlib import sha256
from typing import Any

from jinja2 import Environment, Template, nodes, pass_eval_context
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, markup_join
from jinja2.sandbox import ImmutableSandboxedEnvironment

from fitune_plugins.data.template_turns import Led
from fitune_plugins.data.template_work import BITS, LARGEST, Size, TooMuch, Work

SMALL = 10_000
"""Weight of all that a method or filter takes of which nothing is known."""
LONGEST = 200_000
"""Characters of a template, which take a second or two to compile; those of models have up to 30,000."""
WIDEST = 1_000_000
"""Characters to fill a text up to, and other numbers that say how much is to be made."""
METHODS = frozenset(
    re.findall(
        r"\w+",
        "strip lstrip rstrip split rsplit splitlines startswith endswith upper lower title capitalize "
        "casefold swapcase find rfind index rindex count partition rpartition removeprefix removesuffix "
        "encode decode isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable "
        "isspace istitle isupper",
    )
)
"""Of texts, whose work and result are no larger than the text."""
FILTERS = frozenset(
    re.findall(
        r"\w+",
        "trim upper lower capitalize list map select reject selectattr rejectattr length count first last "
        "string default d items dictsort sort unique reverse safe attr int float abs min max groupby escape e "
        "random truncate",
    )
)
"""Whose work and result are no larger than what they take, or which count each item of it."""
FILLING = frozenset({"center", "ljust", "rjust", "zfill", "batch", "slice", "round"})
"""Methods and filters that are told by a number how much to make."""
COMPUTED = re.compile(r"\{[^{}]*(\{|\d{7})|([%)][-+ #0]*|\.)(\*|\d{7})")
"""In a format: a width that is computed, or a large one."""


class Bounded(ImmutableSandboxedEnvironment):
    """An environment in which the work of each rendering is bounded."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, model: Environment) -> None:
        """With the settings, tags, filters and functions of another one."""
        tags = [type(extension) for extension in model.extensions.values()]
        super().__init__(trim_blocks=model.trim_blocks, lstrip_blocks=model.lstrip_blocks, extensions=tags)
        self.work = Work()
        self.globals.update(model.globals)
        self.globals["namespace"] = _unwritten(model.globals["namespace"])
        self.filters = {name: self._filter(name, function) for name, function in model.filters.items()}
        self.concat = self._joined  # type: ignore[method-assign]

    # ---------------------------------------------------------------------------------- what compiled templates call

    def _generate(self, source: nodes.Template, *names: Any, **how: Any) -> str:
        """Python's text of a template, after it was led through `work`."""
        return super()._generate(Led().visit(source), *names, **how)

    def call(*given: Any, **named: Any) -> Any:  # the template's own names must not meet ours
        """Call something."""
        self, context, function, *values = given
        work: Work = self.work
        work.turn()
        if not self.is_safe_callable(function):
            raise SecurityError(f"{function!r} is not safely callable")
        target = getattr(function, "__wrapped__", function)
        owner = getattr(target, "__self__", None)
        if isinstance(owner, str | bytes | int | float):
            name = target.__name__
            if name not in METHODS:
                values = self._foresee(name, METHODS, owner, values, named)
        elif target is self.globals.get("lipsum"):
            self._must_be_small("lipsum", [*values, *named.values()])
        return work.made(context.call(function, *values, **named))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute with an operator."""
        work = self.work
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return work.made(left + right)
        work.turn()
        for number in (left, right):
            if isinstance(number, int):
                work.made(number)
        size = self._foresee_operator(operator, left, right)
        made = super().call_binop(context, operator, left, right)
        if size is not None and isinstance(made, list | tuple):
            work.keep(made, size)
        return work.made(made)

    @property
    def turned(self) -> bool:
        """One more turn of a loop: True."""
        self.work.turn()
        return True

    def built(self, value: Any) -> Any:
        """A list, tuple or mapping that the template has written, which `call` weighs."""
        return value

    @pass_eval_context
    def concatenated(self, context: nodes.EvalContext, *values: Any) -> str:
        """Texts that are joined by `~`."""
        self.work.allow(sum(self.work.size(value).weight for value in values))
        return markup_join(values) if context.autoescape else "".join(map(str, values))

    def _joined(self, pieces: Iterable[str]) -> str:
        """The text of a macro, a block or a whole."""
        kept = list(pieces)
        self.work.allow(sum(map(len, kept)))
        return self.work.made("".join(kept))

    def rendered(self, render: Callable[[Context], Iterator[str]]) -> Callable[[Context], Iterator[str]]:
        """The function that renders a template, with its own `Work`."""

        def bounded(context: Context) -> Iterator[str]:
            work = self.work = Work([value for name, value in context.parent.items() if name not in self.globals])
            written = 0
            for piece in render(context):
                written += len(piece)
                if written > LARGEST:
                    work.allow(written)
                yield piece

        return bounded

    # ----------------------------------------------------------------------------------------------- what is foreseen

    def _filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter whose work is counted."""
        first = 0 if getattr(function, "jinja_pass_arg", None) is None else 1

        @wraps(function)
        def bounded(*given: Any, **named: Any) -> Any:
            self.work.turn()
            if name not in FILTERS:
                before, value, values = given[:first], given[first], given[first + 1 :]
                if name == "join" and not isinstance(value, str | list | tuple):
                    value = list(value)
                self._foresee(name, FILTERS, value, list(values), named)
                given = (*before, value, *values)
            made = function(*given, **named)
            return self._counted(made) if isinstance(made, Iterator) else self.work.made(made)

        return bounded

    def _counted(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.work.turn()
            yield item

    def _foresee(
        self, name: str, free: frozenset[str], value: Any, values: list[Any], named: Mapping[str, Any]
    ) -> list[Any]:
        """Raises `TooMuch` where a method or filter of this name would make too much; gives the values to call it with.

        One of a joining method that gives its items one by one is read for that.
        """
        work = self.work
        told = [*values, *(value for key, value in named.items() if key not in ("_loop_vars", "_block_vars"))]
        if name in FILLING:
            self._must_be_narrow(name, told)
        elif name == "replace" and len(told) > 1:
            text, old, new = (one if isinstance(one, str | bytes) else str(one) for one in (value, *told[:2]))
            work.allow(len(text) + text.count(old) * len(new))  # type: ignore[arg-type]
        elif name == "join":
            if free is METHODS and values and not isinstance(values[0], str | list | tuple):
                values = [list(values[0]), *values[1:]]
            between, items = (value, values[:1]) if free is METHODS else (told[:1], value)
            size = work.size(items)
            work.allow(size.weight + work.size(between).characters * size.items)
        elif name in ("format", "format_map"):
            self._foresee_format(value, told)
        elif name == "indent":
            widths = [one if isinstance(one, int) else work.size(one).characters for one in told]
            work.allow(len(str(value)) + (str(value).count("\n") + 1) * max([4, *widths]))
        elif name == "tojson":
            size, widths = work.size(value), [abs(one) if isinstance(one, int) else len(str(one)) for one in told]
            work.allow(size.weight + size.items * (size.depth + 1) * max([0, *widths]))
        elif name == "sum":
            size = work.size(value)
            work.allow(size.items * (size.items if any(isinstance(one, list | tuple) for one in told) else 1))
        else:
            self._must_be_small(name, [value, *told])
        return values

    def _foresee_operator(self, operator: str, left: Any, right: Any) -> Size | None:
        """The size of what repeats or joins lists. Raises `TooMuch` where an operator would make too much."""
        work, size = self.work, None
        if operator == "*":
            for one, times in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(one, Sequence):
                    characters, items, depth = work.size(one)
                    size = Size(characters * max(times, 0), items * max(times, 0) + 1, depth)
                    work.allow(size.weight)
        elif operator == "+" and isinstance(left, Sequence) and isinstance(right, Sequence):
            one, other = work.size(left), work.size(right)
            size = Size(one.characters + other.characters, one.items + other.items, max(one.depth, other.depth))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() * right > BITS:
                raise TooMuch(f"it computes with an integer of more than {BITS:,} bits")
        elif operator == "%" and isinstance(left, str | bytes):
            self._foresee_format(left, [right])
        return size

    def _foresee_format(self, form: Any, values: Sequence[Any]) -> None:
        """A text is formatted with values. Raises `TooMuch`."""
        text = form.decode("latin-1") if isinstance(form, bytes) else str(form)
        if COMPUTED.search(text):
            raise TooMuch("it formats a text to a width that is large or computed")
        places = text.count("%") + text.count("{")
        largest = max((self.work.size(value).weight for value in values), default=0)
        self.work.allow(len(text) + places * largest)

    def _must_be_narrow(self, name: str, values: Iterable[Any]) -> None:
        if any(isinstance(value, int) and value > WIDEST for value in values):
            raise TooMuch(f'it asks for more than {WIDEST:,} of "{name}"')

    def _must_be_small(self, name: str, values: Iterable[Any]) -> None:
        weights = (abs(one) if isinstance(one, int) else self.work.size(one).weight for one in values)
        if sum(weights) > SMALL:
            raise TooMuch(f'it gives more than {SMALL:,} characters, or such a number, to "{name}"')


def _unwritten(namespace: Any) -> Any:
    """A template's namespaces, which are not written out: they may hold one another, and themselves."""

    class Namespace(namespace):  # type: ignore[misc]
        def __repr__(self) -> str:
            return "<Namespace>"

    return Namespace


@lru_cache
def _named(source: str) -> str:
    """A comment that no other template has, which says that what it stands for may have generation marks."""
    return f"{{# {{% generation %}} {sha256(source.encode('utf-8', 'surrogatepass')).hexdigest()} #}}"


def within_bounds(source: str) -> str:
    """Compile a template for transformers' `render_jinja_template`; gives the text that stands for it there.

    transformers compiles what it is given, and Jinja computes what is constant in a source while it compiles it. So it
    is given a comment, whose compiled template is kept by its text and then made to be the bounded one of the source.

    Raises `TooMuch` for one that is too long, and what Jinja raises for a source that is no template; once it is
    rendered, `TooMuch` for others.
    """
    from transformers.utils import chat_template_utils

    if len(source) > LONGEST:
        raise TooMuch(f"it is longer than {LONGEST:,} characters")
    name = _named(source)
    template: Template = chat_template_utils._compile_jinja_template(name)
    if not isinstance(template.environment, Bounded):
        environment = Bounded(template.environment)
        made = environment.from_string(source)
        template.environment, template.globals, template.blocks = environment, made.globals, made.blocks
        template.root_render_func = environment.rendered(made.root_render_func)
    return name
