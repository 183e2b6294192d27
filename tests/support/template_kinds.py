"""Kinds of chat templates that are met in public, in texts of our own, and what the model has to write by each.

Each kind has what the forms of conversations in `TALKS` come to: the texts that are trained on, or words of the error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fitune import Conversation
from support.templates import FAMILIES, Family, conversation

TOWN = {"type": "string", "description": "The town"}
SCHEMA = {"type": "object", "properties": {"city": TOWN, "days": {"type": "integer"}}, "required": ["city"]}
ABOUT = {"name": "weather", "description": "Tells the weather of a town", "parameters": SCHEMA}
WEATHER = {"type": "function", "function": ABOUT}


def call(**arguments: Any) -> dict[str, Any]:
    """A call of the tool."""
    return {"type": "function", "function": {"name": "weather", "arguments": arguments}}


def answer(content: str, *calls: dict[str, Any], thought: str = "") -> dict[str, Any]:
    """A turn of the assistant."""
    turn: dict[str, Any] = {"role": "assistant", "content": content}
    turn |= {"tool_calls": list(calls)} if calls else {}
    return turn | ({"reasoning_content": thought} if thought else {})


def said(content: str) -> dict[str, Any]:
    """What the tool says."""
    return {"role": "tool", "name": "weather", "content": content}


ROME, OSLO = call(city="Rome", days=3), call(city="Oslo", days=5)
TALKS: dict[str, Conversation] = {
    "plain": conversation("a?", "one", "b?", "two"),
    "system": conversation({"role": "system", "content": "Be brief."}, "a?", "one"),
    "thought": conversation("a?", answer("one", thought="so"), "b?", answer("two", thought="hm")),
    "inline": conversation("a?", "<think>\nso\n</think>\n\none", "b?", "<think>\nhm\n</think>\n\ntwo"),
    "call": conversation("Rome?", answer("", ROME), said("sun"), answer("Sunny."), tools=[WEATHER]),
    "calls": conversation("Both?", answer("", ROME, OSLO), said("sun"), said("ice"), answer("Mixed."), tools=[WEATHER]),
    "text beside a call": conversation(
        "Rome?", answer("I look.", ROME), said("sun"), answer("Sunny."), tools=[WEATHER]
    ),
    "call at the end": conversation("Rome?", answer("", ROME), tools=[WEATHER]),
}
"""Forms of conversations."""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of template."""

    name: str
    """What it is like."""
    template: str
    trained: dict[str, list[str]]
    """What is trained on, by the form of the conversation."""
    refused: dict[str, str] = field(default_factory=dict)
    """Words of the error, by the form."""
    counted: dict[str, str] = field(default_factory=dict)
    """Words of what is told, by the form."""
    family: Family = FAMILIES[0]
    options: dict[str, Any] = field(default_factory=dict)
    """Of the stage `chat`."""


PROMPT = "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
TOOLS = "{%- if tools -%}{{- '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' -}}{%- endif -%}"
LAST = (
    "{%- set ns = namespace(at=0) -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.at = loop.index0 -%}{%- endif -%}{%- endfor -%}"
)
SPLIT = (
    "{%- set thought, content = m.reasoning_content or '', m.content -%}"
    "{%- if '</think>' in content -%}"
    "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') -%}"
    "{%- set content = content.split('</think>')[-1].lstrip('\\n') -%}{%- endif -%}"
)
JSON_CALLS = "{%- for c in m.tool_calls or [] -%}{{- '<call>' + (c.function | tojson) + '</call>' -}}{%- endfor -%}"
JSON_ROME = '<call>{"name": "weather", "arguments": {"city": "Rome", "days": 3}}</call>'
JSON_OSLO = '<call>{"name": "weather", "arguments": {"city": "Oslo", "days": 5}}</call>'
NO_TOOLS = dict.fromkeys(list(TALKS)[4:], 'leaves out its call of the tool "weather"')
END = "<|im_end|>"
THOUGHTS = "thoughts that the template leaves out of all turns but the last"
PLAIN = {"plain": ["one" + END, "two" + END], "system": ["one" + END]}
WHOLE = ["<think>\nso\n</think>\n\none" + END, "<think>\nhm\n</think>\n\ntwo" + END]

NOTHING_BUT_CONTENT = Kind(
    name="contents alone (SmolLM2)",
    template="{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}" + PROMPT,
    trained=PLAIN | {"inline": WHOLE},
    refused=NO_TOOLS | {"thought": "message 2 (assistant): the chat template leaves out its thought"},
)  # fmt: skip
NO_DESCRIPTIONS = Kind(
    name="calls, and no tools (DeepSeek V3)",
    template="{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' + m.content -}}" + JSON_CALLS
    + "{{- '<|im_end|>\\n' -}}{%- endfor -%}" + PROMPT,
    trained=PLAIN,
    refused=dict.fromkeys(list(TALKS)[4:], 'the chat template leaves out its tools: "weather"'),
)  # fmt: skip
FIRST_CALL = Kind(
    name="the first call of a turn alone (gpt-oss)",
    template=TOOLS + "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' + m.content -}}"
    "{%- if m.tool_calls -%}{{- '<call>' + (m.tool_calls[0].function | tojson) + '</call>' -}}{%- endif -%}"
    "{{- '<|im_end|>\\n' -}}{%- endfor -%}" + PROMPT,
    trained={
        "call": [JSON_ROME + END, "Sunny." + END],
        "text beside a call": ["I look." + JSON_ROME + END, "Sunny." + END],
    },
    refused={"calls": 'message 2 (assistant): the chat template leaves out its call of the tool "weather"'},
)  # fmt: skip
CALL_OR_TEXT = Kind(
    name="a call or a text (Llama 3.1)",
    template="{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' -}}"
    "{%- if loop.first and tools -%}{{- (tools | tojson) + '\\n' -}}{%- endif -%}"
    "{%- if m.tool_calls -%}" + JSON_CALLS + "{%- else -%}{{- m.content | trim -}}{%- endif -%}"
    "{{- '<|im_end|>' -}}{%- endfor -%}" + PROMPT,
    trained=PLAIN | {"calls": [JSON_ROME + JSON_OSLO + END, "Mixed." + END], "call at the end": [JSON_ROME + END]},
    refused={"text beside a call": "message 2 (assistant): the chat template leaves out its content"},
)  # fmt: skip
LAST_THOUGHTS = Kind(
    name="thoughts behind the last question alone (Qwen 3)",
    template=TOOLS + LAST + "{%- for m in messages -%}" + SPLIT + "{{- '<|im_start|>' + m.role + '\\n' -}}"
    "{%- if m.role == 'assistant' and loop.index0 > ns.at and (loop.last or thought) -%}"
    "{{- '<think>\\n' + thought + '\\n</think>\\n\\n' -}}{%- endif -%}{{- content -}}" + JSON_CALLS
    + "{{- '<|im_end|>\\n' -}}{%- endfor -%}" + PROMPT,
    trained={
        "plain": ["one" + END, "<think>\n\n</think>\n\ntwo" + END],
        "thought": ["one" + END, WHOLE[1]],
        "inline": ["one" + END, WHOLE[1]],
        "call": [JSON_ROME + END, "<think>\n\n</think>\n\nSunny." + END],
        "call at the end": ["<think>\n\n</think>\n\n" + JSON_ROME + END],
    },
    counted={"thought": THOUGHTS, "inline": THOUGHTS},
)  # fmt: skip
OPEN_THOUGHT = Kind(
    name="a prompt that opens a thought, which history drops (Qwen 3.5)",
    template=LAST_THOUGHTS.template.replace("(loop.last or thought)", "true").removesuffix(PROMPT)
    + "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n<think>\\n' -}}{%- endif -%}",
    trained={
        "plain": ["one" + END, "\n</think>\n\ntwo" + END],
        "thought": ["one" + END, "hm\n</think>\n\ntwo" + END],
        "inline": ["one" + END, "hm\n</think>\n\ntwo" + END],
        "call": ["\n</think>\n\n" + JSON_ROME + END, "\n</think>\n\nSunny." + END],
    },
    counted={"thought": THOUGHTS, "inline": THOUGHTS},
)
EMPTY_THOUGHT = Kind(
    name="a prompt that opens a thought, which history empties (Nemotron)",
    template=OPEN_THOUGHT.template.replace(
        "{%- endif -%}{{- content -}}",
        "{%- elif m.role == 'assistant' -%}{{- '<think></think>' -}}{%- endif -%}{{- content -}}",
    ),
    trained={
        "plain": ["<think></think>one" + END, "\n</think>\n\ntwo" + END],
        "thought": ["<think></think>one" + END, "hm\n</think>\n\ntwo" + END],
    },
    counted={"thought": THOUGHTS},
)
NO_THOUGHTS = Kind(
    name="a variable that closes the thought (Qwen 3.5, enable_thinking = false)",
    template=OPEN_THOUGHT.template.replace(
        "{{- '<|im_start|>assistant\\n<think>\\n' -}}",
        "{{- '<|im_start|>assistant\\n<think>\\n' + ('\\n</think>\\n\\n' if enable_thinking is false else '') -}}",
    ),
    options={"variables": {"enable_thinking": False}},
    trained={"plain": ["one" + END, "two" + END], "call": [JSON_ROME + END, "Sunny." + END]},
)
CHANNELS = Kind(
    name="channels, and ends of three kinds (gpt-oss)",
    template="{%- if tools -%}{{- '<|im_start|>tools ' + (tools | tojson) + '<|end|>' -}}{%- endif -%}"
    "{%- for m in messages -%}{{- '<|im_start|>' + m.role -}}"
    "{%- if m.reasoning_content and loop.last -%}"
    "{{- ' analysis:' + m.reasoning_content + '<|end|><|im_start|>assistant' -}}{%- endif -%}"
    "{%- if m.tool_calls -%}{{- ' ' + m.tool_calls[0].function.name + ':' -}}"
    "{{- m.tool_calls[0].function.arguments | tojson -}}{{- '<|call|>' -}}"
    "{%- else -%}{{- ' final:' + m.content + ('<|return|>' if loop.last and m.role == 'assistant' "
    "and not add_generation_prompt else '<|end|>') -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant' -}}{%- endif -%}",
    family=Family(name="channels", kind="gpt2", bos=None, eos="<|return|>", user=("", ""), header="", mark="",
                  others=("<|im_start|>", "<|end|>", "<|call|>")),
    trained={
        "plain": [" final:one<|end|>", " final:two<|return|>"],
        "thought": [" final:one<|end|>", " analysis:hm<|end|><|im_start|>assistant final:two<|return|>"],
        "call": [' weather:{"city": "Rome", "days": 3}<|call|>', " final:Sunny.<|return|>"],
        "call at the end": [' weather:{"city": "Rome", "days": 3}<|call|>'],
    },
    counted={"thought": THOUGHTS},
    refused={"calls": "leaves out its call of the tool", "text beside a call": "leaves out its content"},
)  # fmt: skip
HEADERS_END = Kind(
    name="the next header ends an answer (GLM)",
    template="{%- if tools -%}{{- '<|system|>' + (tools | tojson) -}}{%- endif -%}"
    "{%- for m in messages -%}{{- '<|' + m.role + '|>' + m.content -}}" + JSON_CALLS + "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}",
    family=Family(name="headers", kind="gpt2", bos=None, eos="<|endoftext|>", user=("", ""), header="", mark="",
                  others=("<|user|>", "<|assistant|>", "<|tool|>", "<|system|>")),
    trained={},
    refused=dict.fromkeys(("plain", "system", "call", "calls"), "writes nothing that ends the answer in message"),
)  # fmt: skip
HEADERS_NAMED = Kind(
    name="the next header ends an answer, and is named (GLM, end = ...)",
    template=HEADERS_END.template,
    family=HEADERS_END.family,
    options={"end": ("<|user|>", "<|tool|>")},
    trained={
        "plain": ["one<|user|>", "two<|user|>"],
        "call": [JSON_ROME + "<|tool|>", "Sunny.<|user|>"],
        "call at the end": [JSON_ROME + "<|user|>"],
    },
)
TWO_TOKENS = Kind(
    name="an end of two tokens",
    template=TOOLS + "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' + m.content -}}" + JSON_CALLS
    + "{{- '<|eom|><|im_end|>\\n' -}}{%- endfor -%}" + PROMPT,
    family=Family(name="two", kind="gpt2", bos=None, eos="<|im_end|>", user=("", ""), header="", mark="",
                  others=("<|im_start|>", "<|eom|>")),
    trained={
        "plain": ["one<|eom|><|im_end|>", "two<|eom|><|im_end|>"],
        "call": [JSON_ROME + "<|eom|><|im_end|>", "Sunny.<|eom|><|im_end|>"],
    },
)  # fmt: skip
CLOSED = Kind(
    name="the last answer has a further end",
    template=NOTHING_BUT_CONTENT.template.replace("+ '<|im_end|>\\n'", "+ '<|im_end|>' + ('<|endoftext|>' if loop.last "
                                                  "and not add_generation_prompt else '')"),
    family=FAMILIES[6],
    trained={"plain": ["one<|im_end|>", "two<|im_end|><|endoftext|>"]},
)  # fmt: skip
JOINED_ARGUMENTS = Kind(
    name="arguments that are joined as text (DeepSeek R1)",
    template=TOOLS + "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' + m.content -}}"
    "{%- for c in m.tool_calls or [] -%}{{- c.function.name + '\\n' + c.function.arguments + '\\n' -}}{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}{%- endfor -%}" + PROMPT,
    trained={
        "call": ['weather\n{"city": "Rome", "days": 3}\n<|im_end|>', "Sunny.<|im_end|>"],
        "call at the end": ['weather\n{"city": "Rome", "days": 3}\n<|im_end|>'],
    },
)
PRINTED_ARGUMENTS = Kind(
    name="arguments that are printed",
    template=JOINED_ARGUMENTS.template.replace("+ c.function.arguments +", "~ c.function.arguments ~"),
    trained=JOINED_ARGUMENTS.trained,
)
XML_ARGUMENTS = Kind(
    name="arguments as XML (Qwen 3 Coder)",
    template=TOOLS + "{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' + m.content -}}"
    "{%- for c in m.tool_calls or [] -%}{{- '<' + c.function.name + '>' -}}"
    "{%- for k, v in c.function.arguments.items() -%}{{- '<' + k + '>' + v | string + '</' + k + '>' -}}"
    "{%- endfor -%}{%- endfor -%}{{- '<|im_end|>\\n' -}}{%- endfor -%}" + PROMPT,
    trained={"calls": ["<weather><city>Rome</city><days>3</days><weather><city>Oslo</city><days>5</days>" + END,
                       "Mixed." + END]},
)  # fmt: skip
NO_ARGUMENTS = Kind(
    name="calls without their arguments",
    template=XML_ARGUMENTS.template.replace("{{- '<' + k + '>' + v | string + '</' + k + '>' -}}", ""),
    trained={},
    refused={"call": 'leaves out arguments of its call of the tool "weather"'},
)
NO_NUMBERS = Kind(
    name="calls without arguments that are no texts",
    template=XML_ARGUMENTS.template.replace("{{- '<' + k", "{%- if v is string -%}{{- '<' + k")
    .replace("+ k + '>' -}}{%- endfor", "+ k + '>' -}}{%- endif -%}{%- endfor"),
    trained={},
    refused={"call": 'leaves out arguments of its call of the tool "weather"'},
)  # fmt: skip
NO_PROMPT = Kind(
    name="no generation prompt, tools before the last question (Mistral)",
    template="{%- for m in messages -%}{%- if m.role == 'user' -%}"
    "{%- if tools and loop.last -%}{{- '[TOOLS]' + (tools | tojson) -}}{%- endif -%}"
    "{{- '[INST]' + m.content + '[/INST]' -}}"
    "{%- elif m.role == 'tool' -%}{{- '[RESULT]' + m.content + '[/RESULT]' -}}"
    "{%- elif m.tool_calls -%}"
    "{{- '[CALLS]' + (m.tool_calls | map(attribute='function') | list | tojson) + eos_token -}}"
    "{%- else -%}{{- ' ' + m.content + eos_token -}}{%- endif -%}{%- endfor -%}",
    family=FAMILIES[3],
    trained={"plain": [" one</s>", " two</s>"]},
    refused={"call": 'leaves out its tools: "weather"'},
)
CONTENT_PARTS = Kind(
    name="contents as lists of parts (Idefics 3)",
    template="{%- for m in messages -%}{{- '<|im_start|>' + m.role + '\\n' -}}"
    "{%- for part in m.content -%}{%- if part.type == 'text' -%}{{- part.text -}}{%- endif -%}{%- endfor -%}"
    "{{- '<|im_end|>\\n' -}}{%- endfor -%}" + PROMPT,
    trained=PLAIN,
    refused=NO_TOOLS,
)

KINDS = (
    NOTHING_BUT_CONTENT, NO_DESCRIPTIONS, FIRST_CALL, CALL_OR_TEXT, LAST_THOUGHTS, OPEN_THOUGHT, EMPTY_THOUGHT,
    NO_THOUGHTS, CHANNELS, HEADERS_END, HEADERS_NAMED, TWO_TOKENS, CLOSED, JOINED_ARGUMENTS, PRINTED_ARGUMENTS,
    XML_ARGUMENTS, NO_ARGUMENTS, NO_NUMBERS, NO_PROMPT, CONTENT_PARTS,
)  # fmt: skip
