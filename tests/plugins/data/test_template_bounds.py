"""Templates that would work without end, or fill the memory, are refused in a line; honest ones are as they were.

On 0.1 each of these took minutes, all memory, or ended with a traceback. Their limit of time is a second of the
processor; the tests of it have a twentieth.
"""

from __future__ import annotations

import re
import resource
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from fitune import DataError
from fitune_plugins.data import chat, template_work
from fitune_plugins.data.chat_template import Endless, Refused, Template, named, names
from support.template_kinds import KINDS
from support.templates import FAMILIES, context, conversation, tokenizer

ASKED = [{"role": "user", "content": "hello"}]
TALK = [*ASKED, {"role": "assistant", "content": "one"}, *ASKED, {"role": "assistant", "content": "two"}]


def made(source: str) -> Template:
    return Template(source=source, place="the template", tokens={"eos_token": "</s>"}, special=re.compile("(?!)"))


def grown(step: str, first: str = "'a'", shown: str = "{{ ns.x }}") -> str:
    """A template that makes a value of itself many times."""
    return (
        f"{{% macro twice(x) %}}{{{{ x }}}}{{{{ x }}}}{{% endmacro %}}{{% set ns = namespace(x={first}) %}}"
        f"{{% for i in range(100) %}}{step}{{% endfor %}}{shown}"
    )


TOO_LONG = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "loops that leave out": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}{% endfor %}",
    "a macro of two": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(99) }}",
    "filters": "{% for a in range(9999) %}{{ range(99999) | map('string') | select | list | length }}{% endfor %}",
    "marks": "{% for a in range(99999) %}{% generation %}{{ a }}{% endgeneration %}{% endfor %}" * 9,
    "comparisons": "{% set a = 'x' * 999999 %}{% set b = 'x' * 999999 %}"
    "{% for i in range(99999) %}{% for j in range(99999) %}{% if a == b %}{% endif %}{% endfor %}{% endfor %}",
    "reversed texts": "{% set a = 'x' * 999999 %}{% for i in range(99999) %}{% set b = a[::-1] %}{% endfor %}",
    "parted texts": "{% for i in range(99999) %}{% set b = ('a ' * 99999).split() %}{% endfor %}",
}
TOO_LARGE = {
    "a text times a number": "{{ 'a' * 10**9 }}",
    "a number times a text": "{{ (10**12) * messages[0].content }}",
    "a list times a number": "{{ ([1] * 10**10) | length }}",
    "powers": "{{ 9 ** 999999999 }}",
    "squares": grown("{% set ns.x = ns.x * ns.x %}", "3"),
    "a text and itself": grown("{% set ns.x = ns.x + ns.x %}"),
    "a text with itself": grown("{% set ns.x = ns.x ~ ns.x %}"),
    "a block of two": grown("{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}"),
    "a macro's text": grown("{% set ns.x = twice(ns.x) %}"),
    "a list and itself": grown("{% set ns.x = ns.x + ns.x %}", "[1]"),
    "a list in itself": grown("{% set ns.x = [ns.x, ns.x] %}", "1"),
    "a pair of itself": grown("{% set ns.x = (ns.x, ns.x) %}", "1", "{{ {ns.x: 1} | length }}"),
    "a mapping of itself": grown("{% set ns.x = {'a': ns.x, 'b': ns.x} %}", "1", "{{ ns.x | tojson }}"),
    "a mapping that is called": grown("{% set ns.x = dict(a=ns.x, b=ns.x) %}", "1"),
    "a list that is filtered": grown("{% set ns.x = [ns.x, ns.x] | list %}", "1"),
    "escaped texts": "{% autoescape true %}" + grown("{% set ns.x = ns.x ~ ns.x %}", "'<'") + "{% endautoescape %}",
    "joined": "{{ range(99999) | join('a' * 999999) }}",
    "joined by a method": "{{ ('a' * 999999).join(range(99999) | map('string')) }}",
    "replaced": "{{ ('a' * 999999).replace('a', 'b' * 999999) }}",
    "replaced by a filter": "{{ ('a' * 999999) | replace('', 'b' * 999999) }}",
    "wide": "{{ 'a'.center(10**9) }}",
    "wide by a filter": "{{ 'a' | center(10**9) }}",
    "wide by name": "{{ ('a' | attr('ljust'))(width=10**9) }}",
    "many wide": "{{ range(99999) | map('string') | map('center', 999999) | list | length }}",
    "written often": "{% for a in range(99999) %}{{ messages[0].content * 99999 }}{% endfor %}",
    "a wide format": "{{ '%999999999d' % 1 }}",
    "a wide format by a method": "{{ '{:>999999999}'.format(1) }}",
    "a format of a computed width": "{{ '%*d' % (10**9, 1) }}",
    "a format of a format": "{{ '{:{w}}'.format_map({'w': 10**9}) }}",
    "many formats": "{{ ('%(a)s' * 99999) % {'a': 'x' * 99999} }}",
    "indented": "{{ ('a\n' * 99999) | indent(99999) }}",
    "indented JSON": "{{ range(99999) | list | tojson(indent=99999) }}",
    "separated JSON": "{{ range(99999) | list | tojson(separators=('x' * 99999, '')) }}",
    "a batch": "{{ [1] | batch(10**9, 'x') | list | length }}",
    "slices": "{{ [1] | slice(10**9) | list | length }}",
    "sums of lists": "{{ ([[1] * 99] * 99999) | sum(start=[]) | length }}",
    "invented text": "{{ lipsum(n=10**7) }}",
    "bytes": "{{ (1).to_bytes(2 * 10**9, 'big') | length }}",
    "tabs": "{{ ('\t' * 99999).expandtabs(999999) }}",
    "translated": "{{ ('a' * 999999).translate({97: 'b' * 999999}) }}",
    "comments taken out": "{{ ('<!---->' * 999999) | striptags }}",
}
TOO_DEEP = {
    "a loop in itself": "{% for a in range(99999) recursive %}{{ loop(range(99999)) }}{% endfor %}",
    "a macro in itself": "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "two macros": "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{% endmacro %}{{ a() }}",
    "a block in itself": "{% block a %}{{ self.a() }}{% endblock %}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "conditions": "{% if 1 %}" * 500 + "{% endif %}" * 500,
    "filter after filter": "{{ 'a'" + "|upper" * 5000 + " }}",
}


@pytest.mark.parametrize("source", TOO_LONG.values(), ids=TOO_LONG)
def test_a_template_that_works_without_end_is_refused(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_work, "SECONDS", 0.05)
    for render in (made(source).render, made(source).render_marked):
        with pytest.raises(Endless, match=r"it computes for more than 0 s|it fills \d+ MiB of memory"):
            render(ASKED)


@pytest.mark.parametrize("source", TOO_LARGE.values(), ids=TOO_LARGE)
def test_a_template_that_makes_much_of_little_is_refused(source: str) -> None:
    """Before it is made: the memory stays small."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        Endless, match=r"it (makes more|computes (for|with)|asks for more|formats a text|gives more|fills)"
    ):
        made(source).render(ASKED)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000  # KiB


@pytest.mark.parametrize("source", TOO_DEEP.values(), ids=TOO_DEEP)
def test_a_template_that_is_nested_without_end_is_refused(source: str) -> None:
    with pytest.raises(Endless, match="it calls itself without end, or is nested too deeply"):
        made(source).render(ASKED)


def test_blocks_that_python_does_not_nest_are_refused() -> None:
    with pytest.raises(Refused, match="too many statically nested blocks"):
        made("{% for a in [1] %}" * 30 + "{% endfor %}" * 30).render(ASKED)


@pytest.mark.parametrize(
    "source", ["{{ 'long' | truncate(1) }}", "{{ 1 / 0 }}", "{{ 'a' % 1 }}", "{% include 'x' %}", "{{ x.y }}"]
)
def test_whatever_an_expression_raises_is_a_refusal(source: str) -> None:
    """An assertion of Jinja's own ended a run with a traceback."""
    with pytest.raises(Refused, match=r"\w"):
        made(source).render(ASKED)


def test_a_long_source_is_refused() -> None:
    with pytest.raises(Endless, match="longer than 200,000 characters"):
        made("{{ 1 }}" * 100_000).render(ASKED)


def test_namespaces_are_not_written_out() -> None:
    """They may hold themselves."""
    assert made(grown("{% set ns.x = namespace(a=ns.x, b=ns.x) %}")).render(ASKED) == "<Namespace>"


@pytest.mark.parametrize("source", {kind.template for kind in KINDS} | set(map(named, names())))
def test_honest_templates_write_what_they_did(source: str) -> None:
    """As transformers alone renders them; with marks too."""
    template = made(source)
    told: dict[str, Any] = {"conversations": [TALK], "chat_template": source, **template.tokens}
    render: Any = render_jinja_template
    for prompt in (False, True):
        try:
            expected = render(add_generation_prompt=prompt, **told)[0][0]
        except Exception:
            with pytest.raises(Refused):
                template.render(TALK, prompt=prompt)
        else:
            assert template.render(TALK, prompt=prompt) == expected
    if template.marked:
        texts, marks = render(return_assistant_tokens_mask=True, **told)
        assert template.render_marked(TALK) == (texts[0], [tuple(span) for span in marks[0]])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'a' * 3 ~ [1, 'b'] ~ (1,) ~ {'c': 2} }}", "aaa[1, 'b'](1,){'c': 2}"),
        ("{% for a, b in [(1, 2), (3, x)] if a != b %}{{ loop.index }}/{{ loop.length }}{{ b }} {% endfor %}",
         "1/22 2/2 "),
        ("{% for a in [1, [2, [3]]] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}", "123"),
        ("{% for a in range(5) %}{% if a == 1 %}{% continue %}{% endif %}"
         "{% if a == 3 %}{% break %}{% endif %}{{ a }}{% endfor %}", "02"),
        ("{% set a, b = 1, 2 %}{{ [a, b] | sum }} {{ [[a], [b]] | sum(start=[]) }}", "3 [1, 2]"),
        ("{{ 'at 20231201 %s: %5.2f%%' % ('x', 2) }}", "at 20231201 x:  2.00%"),
        ("{{ '{0:>3}|{0}'.format(1700000000) }} {{ '%d' | format(1700000000) }}", "1700000000|1700000000 1700000000"),
        ("{{ {'t': 1700000000000} | tojson(indent=2) }}", '{\n  "t": 1700000000000\n}'),
        ("{{ 1700000000000 | string }} {{ 'a b'.split(' ', 10 ** 9) }}", "1700000000000 ['a', 'b']"),
        ("{{ ['b', 'a'] | sort | join(', ') }} {{ '-'.join(['x', 'y']) }} {{ 'a.b'.split('.')[-1] }}", "a, b x-y b"),
        ("{{ 'a\nb' | indent(2) }} {{ 'aa' | replace('a', 'b', 1) }}", "a\n  b ba"),
        ("{{ 'x'.ljust(3) ~ '|' }} {{ 2 ** 10 }}", "x  | 1024"),
    ],
)  # fmt: skip
def test_what_templates_compute_is_as_jinja_has_it(source: str, text: str) -> None:
    assert made(source).render(ASKED) == text


def test_a_large_row_may_take_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits grow with the row."""
    for limit in ("LARGEST", "LOOK", "MEMORY"):
        monkeypatch.setattr(template_work, limit, 1000)
    monkeypatch.setattr(template_work, "SECONDS", 0.0)
    source = "{% for m in messages %}{{ '<' + m.content + '>' }}{% endfor %}"
    long = [{"role": "user", "content": "hello there " * 1000}] * 20
    assert len(made(source).render(long)) == 20 * 12_002
    with pytest.raises(Endless, match="it makes more than 2,120 characters or values of it"):
        made("{{ messages[0].content * 1000 }}").render(ASKED)


def test_a_text_that_grows_message_by_message_is_honest() -> None:
    """Though each step copies all of it: what is gone again fills no memory."""
    grows = "{% set ns.x = ns.x + '<' + m.role + '>' + m.content %}"
    source = f"{{% set ns = namespace(x='') %}}{{% for m in messages %}}{grows}{{% endfor %}}{{{{ ns.x }}}}"
    talk = [{"role": "user", "content": f"text {number} " * 3} for number in range(2000)]
    assert made(source).render(talk) == "".join(f"<user>{turn['content']}" for turn in talk)


def test_a_model_whose_template_works_without_end_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever rows come: in one rendering, and in a line."""
    monkeypatch.setattr(template_work, "SECONDS", 0.05)
    model = tokenizer(FAMILIES[0])
    model.chat_template = TOO_LONG["loops"]
    (stage,) = chat.ft_data_stages()
    with pytest.raises(DataError, match=r"^the chat template is refused: it computes for .*[^.]$"):
        list(stage.make(chat.ChatOptions(), context(model, []))(iter([conversation("a", "b")])))
