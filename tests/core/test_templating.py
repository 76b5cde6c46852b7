"""Chat templates of checkpoints: rendered as transformers does, and within limits."""

import time

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from vila_core.chat import JinjaTemplate, Turn
from vila_core.errors import CheckpointError, PromptError

CONVERSATION = [
    Turn("system", "Be brief. <b>&amp;</b>"),
    Turn("user", "<image>\nWhat is this?"),
    Turn("assistant", "<think>hm</think>\n\nA cat."),
    Turn("user", "  Grüße! 日本語 🙂  "),
]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '<|im_start|>system\\n"
    "You are a helpful assistant.<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + "
    "message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}\n{%- if add_generation_prompt %}\n"
    "    {{- '<|im_start|>assistant\\n' }}\n{%- endif %}"
)
QWEN3_LIKE = """{%- if tools %}
    {{- '<|im_start|>system\\n' + tools | tojson }}
{%- else %}
    {%- if messages[0].role == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not(message.content.startswith('<tool_response>')
        and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{% set content = message.content %}{%- else %}{% set content = '' %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>' }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}"""
MISTRAL_LIKE = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("conversation roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" ~ tools ~ "]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- else %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- endif %}
{%- endfor %}"""
GEMMA_LIKE = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}{%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception("alternate!") }}{%- endif -%}
    {%- if (message['role'] == 'assistant') -%}{%- set role = "model" -%}{%- else -%}
    {%- set role = message['role'] -%}{%- endif -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}{{ item['text'] | trim }}{%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}"""
ODDS_AND_ENDS = """
{% macro render(message, mark='*') %}[{{ mark }}{{ message.content | trim | upper }}]{{ varargs }}{% endmacro %}
{% set table = {'a': 1, 'b': [1, 2.5, none, true]} %}
{% for key, value in table.items() %}{{ key }}={{ value }};{% endfor %}
{% for message in messages if message.role != 'system' %}{{ loop.index }}/{{ loop.length }}{{ render(message, '-') }}
{%- if loop.last %}!{% else %}{{ loop.cycle('x', 'y') }}{% continue %}{% endif %}{% endfor %}
{{ messages | map(attribute='content') | join(' | ') }} {{ messages | map(attribute='role') | unique | sort | list }}
{{ '%s-%03d' % ('a', 7) }} {{ '%s' | format('b') }} {{ '{:>5}|{}'.format('c', 1) }} {{ 'a,b'.split(',') | last }}
{% set block %}captured {{ 1 + 2 * 3 }}{% endset %}{{ block | replace('captured', 'kept') | indent(2, true) }}
{{ messages | tojson(indent=2) }} {{ [1, 2, 3] | sum }} {{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 8 }}
{{ 'ab' * 3 }} {{ -5 | abs }}
{% macro wrap() %}<{{ caller('c') }}>{% endmacro %}{% call(text) wrap() %}{{ text }}{% endcall %}
{% for n in range(3) %}{{ n ~ ':' ~ loop.previtem }}{% endfor %}
{% filter upper %}shout{% endfilter %}
{% with x = 3 %}{{ x }}{% endwith %}{{ missing }}{{ missing is defined }}{{ none }}
{% for item in [1, [2, [3]]] recursive %}{{ loop(item) if item is iterable else item }}{% endfor %}
{{ 'x' in 'xyz' and 1 < 2 <= 2 }} {{ {'k': 'v'}['k'] }} {{ (1, 2)[0] }}
{{ messages[-1]['content'][2:5] }} {{ 'é' | e }}
{% block tail %}tail {{ messages | length }}{% endblock %}{% generation %}marked{% endgeneration %}
"""


@pytest.mark.parametrize("source", [CHATML, QWEN3_LIKE, MISTRAL_LIKE, GEMMA_LIKE, ODDS_AND_ENDS], ids=range(5))
@pytest.mark.parametrize("num_turns", [2, 4])
def test_templates_render_as_in_transformers(source: str, num_turns: int) -> None:
    turns = CONVERSATION[:num_turns]
    chat = [{"role": turn.role, "content": turn.text} for turn in turns]
    (expected,), _ = render_jinja_template([chat], chat_template=source, add_generation_prompt=True, **SPECIAL)
    assert JinjaTemplate("test", source).render(turns, SPECIAL) == expected


def test_a_long_conversation_is_within_the_limits() -> None:
    turns = [Turn(("user", "assistant")[index % 2], "word " * 2000) for index in range(399)]
    for source in (CHATML, QWEN3_LIKE, MISTRAL_LIKE):
        assert JinjaTemplate("test", source).render(turns, SPECIAL).count("word") == 399 * 2000


REFUSED = {
    "range": ("{% for i in range(10**9) %}a{% endfor %}", "a value of more than"),
    "nested loops": (
        "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
        "steps",
    ),
    "billion laughs": ("{% set a = 'lol' %}" + "{% set a = a ~ a ~ a ~ a %}" * 20 + "{{ a }}", "a value of more than"),
    "billion laughs in lists": (
        "{% set ns = namespace(a=[1]) %}{% for i in range(99) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a }}",
        "steps|a value of",
    ),
    "text in a loop": ("{% for i in range(99999) %}" + "text " * 100 + "{% endfor %}", "its text has more than"),
    "repeated text": ("{{ 'a' * 10**10 }}", "a value of more than"),
    "power": ("{{ 9 ** (9 ** 9) }}", "numbers that are too large"),
    "center": ("{{ 'a' | center(10**10) }}", "'center' is given the number"),
    "percent": ("{{ '%10000000000d' % 1 }}", "a value of more than"),
    "format": ("{{ '{:{w}}'.format(1, w=10**10) }}", "a width that is not written out"),
    "join": ("{{ ('a' * 99999).join(['b'] * 99999) }}", "a value of more than"),
    "replace": ("{{ ('a' * 99999) | replace('a', 'b' * 99999) }}", "a value of more than"),
    "recursion": ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recurses too deeply"),
    "two calls per call": (
        "{% macro m(n) %}{{ m(n - 1) ~ m(n - 1) if n }}{% endmacro %}{{ m(90) }}",
        "steps",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_templates_without_end_are_refused(kind: str) -> None:
    source, message = REFUSED[kind]
    started = time.monotonic()
    with pytest.raises(PromptError, match=rf"^Chat template 'auto' is refused: .*({message})"):
        JinjaTemplate("auto", source).render(CONVERSATION, SPECIAL)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 1 / 0 }}", "fails on this conversation: ZeroDivisionError: division by zero"),
        ("{{ missing.attribute }}", "fails on this conversation: 'missing' is undefined"),
        ("{{ ''.__class__.__mro__ }}", "fails on this conversation: .*unsafe"),
        ("{{ (1).to_bytes(10**10, 'big') }}", "fails on this conversation: it calls .*'to_bytes'"),
        ("{{ raise_exception('roles\n\x1b[31m') }}", r"rejects this conversation: roles \\x1b\[31m\.$"),
    ],
)
def test_templates_that_fail(source: str, message: str) -> None:
    with pytest.raises(PromptError, match=rf"^Chat template 'auto' {message}"):
        JinjaTemplate("auto", source).render(CONVERSATION, SPECIAL)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for %}", "is not valid Jinja"),
        ("{% include 'other' %}", "is not valid Jinja: a chat template cannot use 'include'"),
        ("{{ 'a' | lipsum }}", "is not valid Jinja: No filter named"),
        ("{{ " + "[" * 5000 + "]" * 5000 + " }}", "nests too deeply"),
        ("{% for i in [1] %}" * 30 + "{% endfor %}" * 30, "too many statically nested blocks"),
        ("a" * 300_000, "has 300,000 characters"),
    ],
    ids=["syntax", "include", "filter", "deep list", "deep loops", "long"],
)
def test_templates_that_cannot_be_compiled(source: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^Chat template 'auto' .*{message}"):
        JinjaTemplate("auto", source).render(CONVERSATION, SPECIAL)
