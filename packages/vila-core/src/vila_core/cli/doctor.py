"""`vila doctor`: check versions and GPU; report what is missing and the command that fixes it."""

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Literal

import typer

from vila_core.cli.options import AsJson
from vila_core.errors import install_command, printable
from vila_core.plugins.loader import load_plugins

if TYPE_CHECKING:
    from packaging.requirements import Requirement

Status = Literal["ok", "note", "warning", "missing"]
SIBLINGS = ("vila-train", "vila-quant", "vila-serve", "vila-eval")
PYTHON = (3, 11)
MAIN_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "pillow", "av", "xgrammar")
"""Checked if `vila-core` is not installed, so that its required versions are unknown."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. `fix` is the command that fixes it; only the status `missing` gives exit code 1."""

    group: str
    name: str
    status: Status
    detail: str
    fix: str | None = None


def check_machine(
    as_json: AsJson = False,
) -> None:
    """Check this machine: versions, GPU, what is missing, and the command that fixes it.

    Exit code 0: everything required is installed. 1: something is missing.
    """
    findings = list(examine())
    healthy = all(finding.status != "missing" for finding in findings)
    if as_json:
        typer.echo(json.dumps({"healthy": healthy, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        _print_report(findings, healthy)
    raise typer.Exit(0 if healthy else 1)


def examine() -> Iterator[Finding]:
    """Yield all findings about this machine. Imports torch to query the GPU."""
    yield from _examine_python()
    yield from _examine_distributions()
    yield from _examine_requirements()
    yield from _examine_triton()
    yield from _examine_gpu()
    yield from _examine_model()
    yield from _examine_kernels()
    yield from _examine_plugins()


def _examine_python() -> Iterator[Finding]:
    found = platform.python_version()
    if sys.version_info < PYTHON:
        yield Finding("system", "python", "missing", f"{found}; 3.11 or later is needed", "uv python install 3.12")
    else:
        yield Finding("system", "python", "ok", f"{found} ({sys.executable})")
    yield Finding("system", "platform", "ok", platform.platform())


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _examine_distributions() -> Iterator[Finding]:
    core = _version("vila-core")
    if core is None:
        yield Finding(
            "VILA Kit",
            "vila-core",
            "warning",
            "runs from its source folder, so its requirements cannot be checked",
            "pip install -e packages/vila-core",
        )
    else:
        yield Finding("VILA Kit", "vila-core", "ok", core)
    for name in SIBLINGS:
        found = _version(name)
        if found is None:
            yield Finding("VILA Kit", name, "note", "not installed (optional)", install_command(name))
        elif core is not None and found != core:
            yield Finding(
                "VILA Kit",
                name,
                "warning",
                f"{found}, but vila-core is {core}; install the same version",
                f"python -m pip install -e packages/{name} (in a clone of the repository)",
            )
        else:
            yield Finding("VILA Kit", name, "ok", found)


def _examine_requirements() -> Iterator[Finding]:
    """Compare the installed packages with the requirements of the installed distributions, numba's for example."""
    from packaging.requirements import Requirement

    if _version("vila-core") is None:
        for name in MAIN_PACKAGES:
            found = _version(name)
            yield Finding(
                "packages",
                name,
                "ok" if found else "missing",
                found or "not installed",
                None if found else f"pip install {name}",
            )
        return
    seen = {"vila-core", *SIBLINGS}
    for distribution in (name for name in ("vila-core", *SIBLINGS) if _version(name) is not None):
        extras = metadata.metadata(distribution).get_all("Provides-Extra") or []
        extras.sort(key=lambda extra: extra == "all")  # the specific one is the better advice
        for line in metadata.requires(distribution) or ():
            requirement = Requirement(line)
            marker = requirement.marker
            is_required = marker is None or marker.evaluate({"extra": ""})
            needing = (one for one in extras if marker is not None and marker.evaluate({"extra": one}))
            extra = None if is_required else next(needing, None)
            if requirement.name not in seen and (is_required or extra is not None):  # else for another platform
                seen.add(requirement.name)
                yield _examine_requirement(requirement, None if extra is None else f"{distribution}[{extra}]")


def _examine_requirement(requirement: "Requirement", extra: str | None) -> Finding:
    """Check one requirement. `extra` is what needs it, such as "vila-quant[cpu]"; None if it is always needed."""
    name, needed, found = requirement.name, str(requirement.specifier), _version(requirement.name)
    if found is not None and requirement.specifier.contains(found, prereleases=True):
        return Finding("packages", name, "ok", found)
    if found is None and extra is not None:
        return Finding("packages", name, "note", f"not installed (optional: {extra})", install_command(extra))
    detail = f"{found or 'not installed'}; {needed or 'any version'} is needed"
    return Finding("packages", name, "missing", detail, f'pip install "{name}{needed}"')


def _examine_triton() -> Iterator[Finding]:
    triton = _version("triton")
    yield Finding(
        "packages",
        "triton",
        "ok" if triton else "note",
        triton or "not installed (only needed for NVIDIA GPUs; included with torch's Linux wheels)",
    )


def _examine_gpu() -> Iterator[Finding]:
    driver = _nvidia_driver()
    try:
        import torch
    except (ImportError, OSError) as error:  # a wheel for another platform or a broken CUDA library
        yield Finding("GPU", "torch", "missing", f"cannot be imported: {error}", "pip install --force-reinstall torch")
        return
    built_for = torch.version.cuda
    if torch.cuda.is_available():
        versions = f"driver {driver or 'unknown'}, torch built for CUDA {built_for}"
        for index in range(torch.cuda.device_count()):
            yield from _examine_device(index, versions)
    elif driver is None:
        yield Finding("GPU", "cuda", "note", "no NVIDIA GPU found; everything runs on the CPU, large models slowly")
    elif built_for is None:
        detail = f"driver {driver} is installed, but torch {torch.__version__} is built for the CPU"
        yield Finding("GPU", "cuda", "warning", detail, "pip install --force-reinstall torch")
    else:
        detail = f"driver {driver} is too old or not usable for torch {torch.__version__}, built for CUDA {built_for}"
        fix = "update the NVIDIA driver, or install a torch wheel built for an older CUDA"
        yield Finding("GPU", "cuda", "warning", detail, fix)


def _examine_device(index: int, versions: str) -> Iterator[Finding]:
    import torch

    name = f"cuda:{index}"
    properties = torch.cuda.get_device_properties(index)
    capability = f"{properties.major}.{properties.minor}"
    detail = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, compute capability {capability}"
    yield Finding("GPU", name, "ok", f"{detail}; {versions}")
    if properties.major < 8:
        yield Finding("GPU", name, "note", "bfloat16 is slow before compute capability 8.0; use --dtype float16")


def _nvidia_driver() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        command = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.split()
    return lines[0] if done.returncode == 0 and lines else None


def _examine_model() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from vila_core.checkpoint.embedded import EMBEDDED_MODELS, embedded_model
    from vila_core.checkpoint.opening import open_checkpoint
    from vila_core.errors import VilaError

    for name in EMBEDDED_MODELS:
        try:
            open_checkpoint(embedded_model(name))
            yield Finding("models", name, "ok", "the embedded model is installed")
        except VilaError as error:
            yield Finding(
                "models",
                name,
                "missing",
                f"the embedded model is damaged: {error}",
                "pip install --force-reinstall --no-deps vila-core",
            )
    yield Finding("models", "hub cache", "ok", HF_HUB_CACHE)


def _examine_kernels() -> Iterator[Finding]:
    names = ", ".join(kernel.name for kernel in load_plugins().kernels)
    if names:
        advice = "`vila-quant kernels MODEL` shows which one runs each layer here and why, and why others do not"
        yield Finding("kernels", "quantized layers", "ok", f"{names}; {advice}")


def _examine_plugins() -> Iterator[Finding]:
    for info in load_plugins().infos[1:]:
        name = f"{info.owner.plugin} ({info.owner.distribution} {info.owner.version})"
        if info.error is None:
            yield Finding("plugins", name, "ok", ", ".join(info.provides) or "registers nothing")
        else:
            yield Finding(
                "plugins",
                name,
                "warning",
                f"failed to load: {info.error}",
                f"pip install --upgrade {info.owner.distribution}",
            )


_STYLES: dict[Status, tuple[str, str]] = {
    "ok": ("✓", "green"),
    "note": ("·", "dim"),
    "warning": ("!", "yellow"),
    "missing": ("✗", "bold red"),
}


def _print_report(findings: list[Finding], healthy: bool) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    for group in dict.fromkeys(finding.group for finding in findings):
        table = Table(
            box=None, show_header=False, pad_edge=False, title=group, title_justify="left", title_style="bold"
        )
        for finding in (finding for finding in findings if finding.group == group):
            sign, style = _STYLES[finding.status]
            detail = escape(printable(finding.detail))
            if finding.fix and finding.status != "note":
                detail += f"\n[bold]→ {escape(finding.fix)}[/bold]"
            table.add_row(f"[{style}]{sign}[/{style}]", escape(finding.name), detail)
        console.print(table)
        console.print()
    console.print(
        "[green]Everything required is installed.[/green]"
        if healthy
        else "[bold red]Something is missing; the arrows show how to fix it.[/bold red]"
    )
