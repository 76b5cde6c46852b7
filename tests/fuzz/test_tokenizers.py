"""Hostile tokenizer files and chat templates: an answer or a one-line `VilaError`, within time and memory."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fuzz.bounded import assert_bounded

import vila_core as vila
from vila_core.chat import JinjaTemplate, Turn
from vila_core.checkpoint.embedded import embedded_model

pytestmark = pytest.mark.slow

TINY = Path(embedded_model())
BROKEN_RULE: dict[str, Any] = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 1000}


def replacements(content: str, times: int) -> dict[str, Any]:
    rule = {"type": "Replace", "pattern": {"String": "e"}, "content": content}
    return {"type": "Sequence", "normalizers": [rule] * times}


def split(expression: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": False}


def template_processing(token: str, token_id: int) -> dict[str, Any]:
    single = [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": single,
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }


def added(content: object, token_id: object, **more: object) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": content, "special": True, **flags, **more}


def deep(levels: int) -> dict[str, Any]:
    rule: dict[str, Any] = {"type": "NFC"}
    for _ in range(levels):
        rule = {"type": "Sequence", "normalizers": [rule]}
    return rule


EDITS: dict[str, dict[str, Any]] = {
    "no model": {"model": None},
    "empty vocabulary": {"model": {"type": "BPE", "vocab": {}, "merges": []}},
    "one token": {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}},
    "unknown model": {"model": {"type": "Evil"}},
    "replacement grows": {"normalizer": replacements("ee", 40)},
    "billion laughs": {"normalizer": replacements("e" * 10, 12)},
    "long replacement": {"normalizer": replacements("e" * 10**6, 1)},
    "long prefix": {"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}},
    "thousand rules": {"normalizer": replacements("e", 5000)},
    "deep rules": {"normalizer": deep(300)},
    "empty pattern": {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "xx"}},
    "everything removed": {"normalizer": {"type": "Replace", "pattern": {"Regex": r"[\s\S]"}, "content": ""}},
    "unknown normalizer": {"normalizer": {"type": "Evil"}},
    "normalizer is a number": {"normalizer": 5},
    "catastrophic split": {"pre_tokenizer": split(r"(a+)+$")},
    "catastrophic spaces": {"pre_tokenizer": split(r"( *)*x")},
    "broken expression": {"pre_tokenizer": split("(")},
    "nested repeats": {"pre_tokenizer": split("((a{1,100}){1,100}){1,100}")},
    "no decoder": {"decoder": None},
    "unknown decoder": {"decoder": {"type": "Evil"}},
    "unknown processor": {"post_processor": {"type": "Evil"}},
    "processor beyond the embedding": {"post_processor": template_processing("<s>", 10**6)},
    "processor beyond 32 bits": {"post_processor": template_processing("<s>", 2**40)},
    "processor without tokens": {"post_processor": {"type": "TemplateProcessing"}},
    "truncation": {"truncation": {"direction": "Right", "max_length": 0, "strategy": "LongestFirst", "stride": 0}},
    "padding": {
        "padding": {
            "strategy": {"Fixed": 10**9},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "x",
        }
    },
    "version": {"version": "9.9"},
    "surrogate key": {"\ud800": 1},
}
ADDED: dict[str, list[dict[str, object]]] = {
    "beyond the embedding": [added("<far>", 10**6)],
    "beyond 32 bits": [added("<far>", 2**40)],
    "negative id": [added("<neg>", -1)],
    "id is a text": [added("<text>", "5")],
    "no text": [added("", 1030)],
    "text is null": [added(None, 1030)],
    "hundred thousand": [added(f"<x{number}>", 2000 + number) for number in range(100_000)],
    "one letter": [added("e", 1030)],
    "space": [added(" ", 1030, lstrip=True, rstrip=True)],
    "twice": [added("<twice>", 1030), added("<twice>", 1031)],
    "same id": [added("<one>", 1030), added("<two>", 1030)],
    "media token with another id": [added("<image>", 5)],
    "null character": [added("\0", 1030)],
    "long": [added("x" * 10**6, 1030)],
}
CONFIGS: dict[str, dict[str, Any]] = {
    "class": {"tokenizer_class": "Evil"},
    "class is a number": {"tokenizer_class": 5},
    "remote code": {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}},
    "eos is not a token": {"eos_token": "<never seen>"},
    "eos is a number": {"eos_token": 5},
    "eos is a list": {"eos_token": ["a"]},
    "eos with a surrogate": {"eos_token": "\ud800"},
    "length": {"model_max_length": -1},
    "length is a text": {"model_max_length": "many"},
    "huge length": {"model_max_length": 10**400},
    "template is a number": {"chat_template": 5},
    "template is a dict": {"chat_template": {"default": 5}},
    "templates": {"chat_template": [{"name": "default", "template": "{{ 1 / 0 }}"}]},
    "templates without names": {"chat_template": [{"template": "x"}, 5]},
    "template divides by zero": {"chat_template": "{{ 1 / 0 }}"},
    "template loops": {"chat_template": "{% for i in range(10**9) %}x{% endfor %}"},
    "template is not Jinja": {"chat_template": "{% for"},
    "template with null": {"chat_template": "\0\ud800{{ messages }}"},
    "extra special tokens": {"extra_special_tokens": {"messages": "<s>", "tools": "x"}},
    "extra special tokens list": {"additional_special_tokens": [f"<x{i}>" for i in range(50_000)]},
    "decoder": {"added_tokens_decoder": {str(10**12): {"content": "<far>"}}},
    "decoder key": {"added_tokens_decoder": {"x": {"content": "<far>"}}},
    "prefix space": {"add_prefix_space": "yes"},
}
FILES: dict[str, tuple[str, bytes]] = {
    "empty tokenizer.json": ("tokenizer.json", b""),
    "null tokenizer.json": ("tokenizer.json", b"null"),
    "list tokenizer.json": ("tokenizer.json", b"[]"),
    "deep tokenizer.json": ("tokenizer.json", b"[" * 10**5),
    "binary tokenizer.json": ("tokenizer.json", bytes(range(256)) * 10),
    "lfs pointer": ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
    "binary config": ("tokenizer_config.json", b"\xff\xfe\x00"),
    "template file divides": ("chat_template.jinja", b"{{ 1 / 0 }}"),
    "template file is binary": ("chat_template.jinja", b"\xff\xfe\xff"),
    "template file is long": ("chat_template.jinja", b"x" * 10**6),
    "template json": ("chat_template.json", b'{"chat_template": 5}'),
    "special tokens map": ("special_tokens_map.json", b'{"eos_token": {"content": 5}}'),
    "added tokens": ("added_tokens.json", b'{"<far>": 1000000000}'),
}


def write(folder: Path, kind: str, name: str, edit: object) -> Path:
    target = folder / f"{kind}-{name}".replace(" ", "_")
    shutil.copytree(TINY, target)
    llm = target / "llm"
    path = llm / ("tokenizer_config.json" if kind == "config" else "tokenizer.json")
    content = json.loads(path.read_text())
    if kind == "file":
        file_name, data = edit  # pyright: ignore[reportGeneralTypeIssues, reportUnknownVariableType]
        (llm / file_name).write_bytes(data)  # pyright: ignore[reportUnknownArgumentType]
        return target
    if kind == "added":
        content["added_tokens"] = copy.deepcopy(content["added_tokens"]) + edit
    else:
        content |= edit
    path.write_text(json.dumps(content))
    return target


def answers(folder: Path) -> Callable[[], object]:
    return lambda: vila.load(folder).generate("What is this? eee aaaa", max_new_tokens=3)


def test_tokenizer_files(tmp_path: Path) -> None:
    kinds: dict[str, dict[str, Any]] = {"json": EDITS, "added": ADDED, "config": CONFIGS, "file": FILES}
    cases = {
        f"{kind}: {name}": answers(write(tmp_path, kind, name, edit))
        for kind, edits in kinds.items()
        for name, edit in edits.items()
    }
    assert_bounded(cases)


def test_an_empty_sentencepiece_model_is_refused(tmp_path: Path) -> None:
    cases: dict[str, Callable[[], object]] = {}
    for name, data in {"empty": b"", "zeros": bytes(1000), "text": b"hello" * 100}.items():
        folder = tmp_path / name
        shutil.copytree(TINY, folder)
        (folder / "llm" / "tokenizer.json").unlink()
        (folder / "llm" / "tokenizer.model").write_bytes(data)
        for tokenizer_class in ("LlamaTokenizer", "Qwen2Tokenizer", "PreTrainedTokenizerFast"):
            other = tmp_path / f"{name}-{tokenizer_class}"
            shutil.copytree(folder, other)
            config = json.loads((other / "llm" / "tokenizer_config.json").read_text())
            (other / "llm" / "tokenizer_config.json").write_text(
                json.dumps(config | {"tokenizer_class": tokenizer_class})
            )
            cases[other.name] = must_be_refused(other)
    assert_bounded(cases)


def must_be_refused(folder: Path) -> Callable[[], object]:
    def case() -> None:
        answer = vila.load(folder).generate("What is this?", max_new_tokens=3)
        raise AssertionError(f"answered {answer!r}")

    return case


TURNS = [Turn("user", "Hello"), Turn("assistant", "Hi"), Turn("user", "a" * 1000)]
NS = "{% set ns = namespace(a=['x'], b=('y',), n=3) %}"
TEMPLATES = {
    "static text in a loop": "{% for i in range(99999) %}" + "A" * 90_000 + "{% endfor %}",
    "loops": "{% for i in range(999) %}" * 5 + "x" + "{% endfor %}" * 5,
    "loop with a filter": "{% for i in range(99999) %}{% for j in range(99999) if false %}{% endfor %}{% endfor %}",
    "loop of captures": "{% set x %}aaaaaaaa{% endset %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60 + "{{ x }}",
    "recursive loop": "{% for i in range(9) recursive %}{{ loop(range(99999)) if loop.depth < 9 }}{% endfor %}",
    "macro tree": "{% macro m(n) %}{{ m(n - 1) ~ m(n - 1) if n }}{% endmacro %}{{ m(64) }}",
    "macro varargs": "{% macro m() %}{{ m(varargs, varargs) }}{% endmacro %}{{ m(1) }}",
    "macro kwargs": "{% macro m() %}{{ m(a=kwargs, b=kwargs) }}{% endmacro %}{{ m(a=1) }}",
    "caller": "{% macro m() %}{{ caller() }}{% endmacro %}{% call m() %}{% call m() %}x{% endcall %}{% endcall %}",
    "block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "tuples": NS + "{% for i in range(99) %}{% set ns.b = (ns.b, ns.b) %}{% endfor %}{{ {ns.b: 1} }}",
    "dicts": NS + "{% for i in range(99) %}{% set ns.a = dict(a=ns.a, b=ns.a) %}{% endfor %}{{ ns.a }}",
    "namespaces": NS + "{% set ns.a = ns %}{{ ns }}{{ ns | string }}{{ ns ~ ns }}",
    "self equality": NS + "{% set ns.a = [ns] %}{{ [ns.a] == [[ns]] }}",
    "equality": NS
    + "{% for i in range(99) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a in [ns.a] or ns.a < ns.a }}",
    "slices": "{% set s = 'a' * 900000 %}{% for i in range(99999) %}{% set t = s[1:] %}{% endfor %}",
    "contains": "{% set s = 'a' * 900000 %}{% for i in range(99999) %}{{ (s ~ 'b') in s }}{% endfor %}",
    "squares": NS + "{% for i in range(99) %}{% set ns.n = ns.n * ns.n %}{% endfor %}{{ ns.n }}",
    "powers": "{{ 9 ** (9 ** 9) }}{{ 2 ** 2 ** 2 ** 2 ** 2 }}",
    "negative repeats": "{% for i in range(9) %}{{ 'a' * -10 ** 12 }}{% endfor %}{{ [1] * 10 ** 12 }}",
    "float repeats": "{{ 'a' * 1e12 }}",
    "widths": "{{ '%s%-99999999999s' % (1, 2) }}",
    "star width": "{{ '%*s' % (10 ** 10, 1) }}",
    "nested width": "{{ '{0:{1}}'.format('a', 10 ** 10) }}",
    "format attribute": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "format map": "{{ '{a:>9999999999}'.format_map({'a': 1}) }}",
    "format filter": "{{ '%99999999999d' | format(3) }}",
    "precision": "{{ '%.9999999999f' % 1.5 }}{{ '{:.9999999999f}'.format(1.5) }}",
    "mapped format": "{{ ['format'] | map('center', 10 ** 10) | list }}",
    "ljust": "{{ 'a'.ljust(10 ** 10) }}",
    "zfill": "{{ 'a'.zfill(10 ** 10) }}",
    "tabs": "{{ ('\t' * 9999).expandtabs(10 ** 9) }}",
    "join": "{{ range(99999) | join('x' * 99999) }}",
    "method join": "{{ ('x' * 99999).join('y' * 99999) }}",
    "replace nothing": "{{ ('x' * 99999).replace('', 'y' * 99999) }}",
    "translate": "{{ 'a'.translate({97: 'x' * 99999}) }}",
    "encode": "{{ 'a'.encode('utf-7').hex() }}",
    "bytes": "{{ (1).to_bytes(10 ** 10, 'big') }}",
    "batch": "{{ [1] | batch(10 ** 10, 'x') | list }}",
    "slice filter": "{{ [1] | slice(10 ** 10) | list }}",
    "round": "{{ 1.5 | round(10 ** 8, 'ceil') }}",
    "indent": "{{ ('\n' * 99999) | indent(9999) }}",
    "tojson indent": "{{ [[[1]]] | tojson(indent=10 ** 10) }}",
    "sum of lists": "{{ [[1]] * 9999 | sum(start=[]) }}",
    "groups": "{{ range(99999) | groupby('x') | list }}",
    "time": "{{ strftime_now('%99999999999d') }}",
    "lipsum": "{{ lipsum(10 ** 9) }}",
    "import": "{% import 'os' as os %}",
    "dunder": "{{ ''.__class__.__base__.__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__ }}{{ range.__init__.__globals__ }}",
    "mutation": "{{ messages.append(1) }}{{ messages.clear() }}",
    "undefined call": "{{ nothing() }}",
    "raise": "{{ raise_exception('\x1b[31m\n\ud800' * 9999) }}",
    "raise an object": "{{ raise_exception(messages) }}",
    "deep expression": "{{ " + "(" * 9999 + ")" * 9999 + " }}",
    "deep negation": "{{ " + "not " * 30_000 + "1 }}",
    "deep unary": "{{ " + "-" * 30_000 + "1 }}",
    "deep filters": "{{ 1 " + "| string " * 20_000 + "}}",
    "deep attributes": "{{ messages" + ".a" * 50_000 + " }}",
    "deep ifs": "{% if 1 %}" * 2_000 + "{% endif %}" * 2_000,
    "many branches": "{% if 0 %}" + "{% elif 0 %}x" * 9_000 + "{% endif %}",
    "many outputs": "{{ x }}" * 25_000,
    "quotes": "{{ " + "'" * 99_999 + " }}",
    "comments": "{#" * 50_000,
    "blanks": "{%- if 1 -%}" + " " * 150_000 + "{%- endif -%}",
    "line breaks": "\n" * 150_000 + "{%",
    "open": "{{" * 50_000,
    "number": "{{ " + "9" * 99_999 + " }}",
    "set messages": "{% set messages = range %}{{ messages[0] }}",
    "binary": "".join(map(chr, range(0x300))) + "\ud800",
    "autoescape": "{% autoescape 'a' | center(10 ** 10) %}{% endautoescape %}",
    "cycler": "{% set c = cycler(*range(99999)) %}{% for i in range(999999) %}{{ c.next() }}{% endfor %}",
}


def render(source: str) -> Callable[[], object]:
    return lambda: JinjaTemplate("auto", source).render(TURNS, {"bos_token": "<s>"})


def test_chat_templates() -> None:
    assert_bounded({name: render(source) for name, source in TEMPLATES.items()}, seconds=20, megabytes=512)
