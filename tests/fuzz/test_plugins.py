"""Hostile plugins: whatever a hook or a registered object does, the program names it in one line or continues."""

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from tests.fuzz.bounded import assert_bounded
from tests.fuzz.test_settings import run

import vila_core as vila
from vila_core.plugins.hook_checks import HOOKS
from vila_core.plugins.loader import load_plugin_file

pytestmark = pytest.mark.slow

HEAD = """
import itertools, os, signal, sys, threading, time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
import vila_core
from vila_core import Command, Component, hookimpl
from vila_core.plugins.datasets import Sample

class SilentError(Exception):
    def __str__(self):
        raise RuntimeError("no description")

class StrangeBaseError(BaseException):
    pass

def fail(error):
    raise error

def hello():
    pass
"""
RAISES = (
    "fail(ValueError('a\\nb\\x1b[31m\\ud800' * 9999))", "fail(SilentError())", "fail(KeyboardInterrupt())",
    "sys.exit(0)",
    "sys.exit('bye')", "fail(GeneratorExit())", "fail(StopIteration(3))", "fail(StrangeBaseError('x'))",
    "fail(MemoryError())", "fail(RecursionError())", "fail(AssertionError())", "fail(KeyError('x'))",
    "exec('f = lambda: f(); f()')",
    "__import__('no_such_module')", "fail(ExceptionGroup('g', [ValueError('a')]))", "fail(OSError(28, 'No space'))",
    "fail(UnicodeDecodeError('utf-8', b'x', 0, 1, 'bad'))", "fail(SystemExit(object()))", "bytearray(10**15)",
)  # fmt: skip
RETURNS = (
    "None", "5", "'text'", "b'bytes'", "True", "object()", "{}", "{'a': 1}", "set()", "(x for x in ())",
    "itertools.count()",
    "iter(())", "[None]", "[object()]", "[5, 'x']", "[[]]", "range(10**12)", "['x'] * 20000", "print", "Sequence",
    "Endless()",
    "BadLength()", "BadItems()", "[int]", "[Lying()]", "[SimpleNamespace(name='x')]", "[SimpleNamespace()]",
)  # fmt: skip
ODD_RESULTS = """
class Endless(Sequence):
    def __len__(self): return 1
    def __getitem__(self, index): return SimpleNamespace(name=str(index))

class BadLength(Sequence):
    def __len__(self): sys.exit(3)
    def __getitem__(self, index): raise IndexError

class BadItems(list):
    def __iter__(self): raise KeyboardInterrupt
    def __len__(self): return -1

class Lying:
    @property
    def name(self): sys.exit(3)
    @property
    def __class__(self): return Command
    def __repr__(self): return "x" * 10**6 + "\\x1b[31m"
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
"""


def with_plugin(source: str, file: Path, use: Callable[[], object]) -> None:
    """Load a plugin file and use it, then forget it."""
    from vila_core.plugins import loader

    file.write_bytes((HEAD + ODD_RESULTS + source).encode(errors="surrogatepass"))
    try:
        load_plugin_file(file)
        use()
    finally:
        loader._plugin_files.clear()
        loader._load.cache_clear()


def list_all(folder: Path) -> None:
    """Everything that reads the registered names."""
    for number, arguments in enumerate((["--help"], ["plugins"], ["plugins", "--json"], ["doctor", "--json"])):
        run("vila_core.cli.main:main", arguments, folder / str(number))


def list_cases(sources: dict[str, str], root: Path) -> dict[str, Callable[[], object]]:
    cases: dict[str, Callable[[], object]] = {}
    for number, (name, source) in enumerate(sources.items()):
        (root / str(number)).mkdir()
        cases[name] = partial(
            with_plugin, source, root / str(number) / "plugin.py", partial(list_all, root / str(number))
        )
    return cases


def test_hooks_that_raise_or_return_something_else(tmp_path: Path) -> None:
    hooks = itertools.cycle(hook.name for hook in HOOKS)
    sources = {
        f"{hook}: {body[:60]}": f"@hookimpl\ndef {hook}():\n    return {body}\n"
        for body, hook in [
            *((body, next(hooks)) for body in RAISES * 2),
            *((body, hook.name) for body in RETURNS for hook in HOOKS[::3]),
        ]
    }
    assert_bounded(list_cases(sources, tmp_path))


MODULES = {
    **{f"import: {body[:60]}": body for body in RAISES},
    "hook with arguments": "@hookimpl\ndef vila_commands(a, b=3): return []",
    "hook with a default": "@hookimpl\ndef vila_commands(a=3): return []",
    "async hook": "@hookimpl\nasync def vila_commands(): return []",
    "generator hook": "@hookimpl\ndef vila_commands(): yield Command('a', 'b', print)",
    "hook is a class": "@hookimpl\nclass vila_commands: pass",
    "hook is a value": "vila_commands = hookimpl(5)",
    "hook without a mark": "def vila_commands(): return []",
    "hook wrapper": "@hookimpl(wrapper=True)\ndef vila_commands():\n    yield",
    "old hook wrapper": "@hookimpl(hookwrapper=True)\ndef vila_commands():\n    yield",
    "hook under another name": "@hookimpl(specname='vila_commands')\ndef other(): return [5]",
    "unknown hook": "@hookimpl\ndef vila_everything(): return []",
    "optional unknown hook": "@hookimpl(optionalhook=True)\ndef vila_everything(): return []",
    "first of all": "@hookimpl(tryfirst=True)\ndef vila_commands(): return [Command('doctor', 'x', print)]",
    "API of another type": "VILA_HOOK_API = object()",
    "API that does not compare": "class X:\n    def __eq__(self, o): sys.exit(3)\n    def __repr__(self): sys.exit(4)\n"
    "VILA_HOOK_API = X()",
    "module without attributes": "def __getattr__(name): raise KeyboardInterrupt",
    "module that replaces itself": "sys.modules[__name__] = Lying()",
    "module that deletes itself": "del sys.modules[__name__]",
    "module that deletes vila": "@hookimpl\ndef vila_tasks():\n    return [SimpleNamespace(name='a\\u202eb')]",
    "threads": "threading.Thread(target=fail, args=(ValueError('x'),)).start()",
    "a handler for Ctrl-C": "signal.signal(signal.SIGINT, signal.SIG_IGN)",
    "a lower recursion limit": "sys.setrecursionlimit(80)",
    "closed output": "@hookimpl\ndef vila_commands():\n    sys.stdout.close(); return []",
    "prints": "print('\\x1b[31m')",
    "syntax error": "def (:",
    "tabs": "if 1:\n\tx = 1\n        y = 2",
    "null byte": "x = '\0'",
    "surrogate": "x = '\ud800'",
    "deep": "x = " + "(" * 500 + ")" * 500,
    "deep lists": "x = " + "[" * 5000 + "]" * 5000,
    "nothing": "",
    "encoding": "# -*- coding: no-such -*-",
    "atexit": "import atexit; atexit.register(fail, ValueError('x'))",
    "warnings": "import warnings; warnings.warn('\\x1b[31mx\\n' * 99)",
}  # fmt: skip


def test_modules(tmp_path: Path) -> None:
    assert_bounded(list_cases(MODULES, tmp_path))


TEXTS = (
    "''", "' '", "'x' * 10**6", "'\\ud800'", "'\\x1b[31m'", "'a\\nb'", "'../../x'", "'--help'", "'-'", "'[red]x'",
    "'[/]'",
    "'\\u202ex'", "'a b'", "'%s'", "'{}'", "None", "5", "b'x'", "['x']", "object()", "Lying()", "str",
    "type('S', (str,), {})('x')",
    "'plugins'", "'\\0'", "'a/b'",
)  # fmt: skip


def test_commands(tmp_path: Path) -> None:
    """Names, help texts and functions of commands, listed and run."""
    head = "@hookimpl\ndef vila_commands(): return "
    sources = {
        **{f"name {text}": f"{head}[Command({text}, 'Help.', lambda: hello)]" for text in TEXTS},
        **{f"help {text}": f"{head}[Command('evil', {text}, lambda: hello)]" for text in TEXTS},
        **{
            f"load: {body[:40]}": f"{head}[Command('evil', 'x', lambda: {body})]"
            for body in (*RAISES, *RETURNS)
            if body not in ("print", "Sequence")
        },
        "command that refuses": f"def c(): fail(vila_core.VilaError('a\\nb'))\n{head}[Command('evil', 'x', lambda: c)]",
        "command without a file": f"def c(): fail(OSError(2, 'x', 'y'))\n{head}[Command('evil', 'x', lambda: c)]",
        "function with odd arguments": f"def c(a: 'Nothing', *b, **d): pass\n{head}[Command('evil', 'x', lambda: c)]",
        "function of objects": f"def c(a: object = 3): pass\n{head}[Command('evil', 'x', lambda: c)]",
    }

    def use(folder: Path) -> None:
        list_all(folder)
        for number, arguments in enumerate((["evil"], ["evil", "--help"], ["evil", "\x1b[31m"])):
            run("vila_core.cli.main:main", arguments, folder / f"run-{number}")

    assert_bounded(objects(sources, tmp_path, use))


def objects(sources: dict[str, str], root: Path, use: Callable[[Path], object]) -> dict[str, Callable[[], object]]:
    cases: dict[str, Callable[[], object]] = {}
    for number, (name, source) in enumerate(sources.items()):
        folder = root / str(number)
        folder.mkdir()
        cases[name] = partial(with_plugin, source, folder / "plugin.py", partial(use, folder))
    return cases


FORMAT = """
class Evil:
    name = 'evil'
    def detect(self, path): return False
    def read(self, path): return None
    def write(self, checkpoint, path, *, max_shard_bytes=None): return None
"""


def test_checkpoint_formats(tmp_path: Path) -> None:
    hook = "\n@hookimpl\ndef vila_checkpoint_formats(): return [Evil()]\n"
    results = (*RAISES, *RETURNS[:14])
    sources = {
        f"{method}: {body[:60]}": FORMAT.replace(old, f"{old.partition('return')[0]}return {body}") + hook
        for method, old in {
            "detect": "def detect(self, path): return False",
            "write": "def write(self, checkpoint, path, *, max_shard_bytes=None): return None",
        }.items()
        for body in results
    } | {
        f"read: {body[:60]}": FORMAT.replace("return False", "return (path / 'pipe').exists()").replace(
            "path): return None", f"path): return {body}"
        )
        + hook
        for body in results
    }

    def use(folder: Path) -> None:
        for number, arguments in enumerate(
            (["info", "."], ["convert", "vila-tiny", "out", "--format=evil"], ["infer", "--text=Hi", "-m", "folder"])
        ):
            run("vila_core.cli.main:main", arguments, folder / str(number))
        vila.load("vila-tiny", device="cpu")

    assert_bounded(objects(sources, tmp_path, use))


TEMPLATE = """
class Evil:
    name = 'evil'
    end_token = None
    def render(self, turns, special_tokens, *, generation_prompt=True, system_prompt=True):
        return BODY
@hookimpl
def vila_chat_templates(): return [Evil()]
"""


def test_chat_templates(tmp_path: Path) -> None:
    bodies = (*RAISES, *RETURNS[:14], "'x' * 10**7", "'\\ud800'", "'<image>' * 9", "'\\0'", "''", "turns[0].text * 2")
    sources = {f"render: {body[:60]}": TEMPLATE.replace("BODY", body) for body in bodies}
    sources |= {
        f"end_token {text}": TEMPLATE.replace("end_token = None", f"end_token = {text}").replace(
            "BODY", "turns[0].text"
        )
        for text in TEXTS
    }

    def use(folder: Path) -> None:
        picture = vila.Image(Path(__file__).parents[2] / "examples/media/scene.png")
        vila.load("vila-tiny", device="cpu", chat_template="evil").generate(["Hi", picture], max_new_tokens=2)

    assert_bounded(objects(sources, tmp_path, use))


TASK = """
from vila_eval import Question, Task
from vila_eval.data.sources import Table
from vila_eval.metric import MeanMetric, Score
SOURCE = Table([{'id': str(n), 'text': 'x'} for n in range(3)])
def ask(row): return Question(row['id'], ['say a'], 'a')
def score(answer, question): return 1.0
GOOD = Task('evil', SOURCE, ask, MeanMetric('evil_metric', score))
@hookimpl
def vila_tasks(): return [TASK]
"""
TASK_FIELDS = (
    "version", "tags", "max_new_tokens", "stop", "num_video_frames", "has_video", "keep_together", "submission",
    "description",
    "url", "metric", "source",
)  # fmt: skip
QUESTION_FIELDS = ("id", "prompt", "answer", "options", "groups", "cluster", "fields")


def test_tasks(tmp_path: Path) -> None:
    values = (
        "None",
        "5",
        "-1",
        "10**12",
        "'x'",
        "'\\ud800'",
        "[None]",
        "{'a': object()}",
        "float('nan')",
        "Lying()",
        "itertools.count()",
        "object()",
    )
    sources = {
        f"{name} = {value}": TASK.replace("[TASK]", f"[replace(GOOD, {name}={value})]")
        for name in TASK_FIELDS
        for value in values
    }
    sources |= {
        f"question.{name} = {value}": TASK.replace(
            "'a')\ndef score", f"'a')\ndef ask_evil(row): return replace(ask(row), {name}={value})\ndef score"
        ).replace("[TASK]", "[replace(GOOD, ask=ask_evil)]")
        for name in QUESTION_FIELDS
        for value in values
    }
    sources |= {
        f"{what}: {body[:40]}": TASK.replace("[TASK]", "[GOOD]").replace(
            old, f"{old.partition('return')[0]}return {body}"
        )
        for what, old in {
            "ask": "def ask(row): return Question(row['id'], ['say a'], 'a')",
            "score": "def score(answer, question): return 1.0",
        }.items()
        for body in (
            *RAISES, *RETURNS, "float('nan')", "float('inf')", "10**400", "1j", "Score({})", "Score({'a': 'b'})", "-1",
        )
    }  # fmt: skip

    def use(folder: Path) -> None:
        for number, arguments in enumerate(
            (["list"], ["--tasks=evil", "--device=cpu", "--limit=2"], ["--tasks=evil", "--dry-run"])
        ):
            run("vila_eval.cli.main:main", arguments, folder / str(number))

    assert_bounded(objects(sources, tmp_path, use))


DATASET = """
class Evil:
    name = 'evil'
    splits = ('train', 'test')
    def subsets(self): return ['all']
    def size(self, split, subset): return 4
    def sample(self, split, subset, index): return Sample(['say a ' * 99], 'a')
@hookimpl
def vila_datasets(): return [Evil()]
"""


def test_datasets_as_calibration(tmp_path: Path) -> None:
    sources = {
        f"{method}: {body[:60]}": DATASET.replace(old, f"{old.partition('return')[0]}return {body}")
        for method, old in {
            "subsets": "def subsets(self): return ['all']",
            "size": "def size(self, split, subset): return 4",
            "sample": "def sample(self, split, subset, index): return Sample(['say a ' * 99], 'a')",
        }.items()
        for body in (
            *RAISES[:10], *RETURNS, "-1", "10**30", "0", "Sample([], '')", "Sample([None], None)", "Sample('x', 5)",
            "Sample(['<image>'] * 99, 'x')", "Sample(['\\ud800'], 'x')", "Sample([vila_core.Image('no.png')], 'x')",
        )
    }  # fmt: skip

    def use(folder: Path) -> None:
        run(
            "vila_quant.cli.main:main",
            [
                "awq",
                "vila-tiny",
                "out",
                "--calibration=evil",
                "--sequences=1",
                "--sequence-length=64",
                "--search=nearest",
            ],
            folder / "run",
        )

    assert_bounded(objects(sources, tmp_path, use))
