"""Follow a package's README as a new user: run its install command, then the first example not marked "not run".

    python -m tests.docs.first_steps packages/vila-eval/README.md

Runs in the environment whose `python` comes first on the PATH. The example runs in an empty folder with the bundled
media; the output of a `console` block must be the one shown.
"""

import doctest
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.programs import run_program

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^(<!-- not run: [^\n]*\n)?```(bash|console|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^\$ (.*(?:\\\n.*)*)\n?((?:(?!\$ ).*\n?)*)", re.MULTILINE)


def main(readme: Path) -> None:
    blocks = BLOCK.findall(readme.read_text(encoding="utf-8"))
    installs = [number for number, (_, _, text) in enumerate(blocks) if "pip install" in text]
    if not installs:
        sys.exit(f"{readme} has no install command.")
    first = installs[0]
    execute(blocks[first][2], ROOT)
    examples = [(kind, text) for mark, kind, text in blocks[first + 1 :] if not mark]
    if not examples:
        sys.exit(f"{readme} has no example after its install command that runs.")
    kind, text = examples[0]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "examples", Path(folder) / "examples")
        if kind == "python":
            (Path(folder) / "example.py").write_text(text, encoding="utf-8")
            execute("python example.py", Path(folder))
        elif kind == "bash":
            execute(text, Path(folder))
        else:
            for command, shown in COMMAND.findall(text):
                require_output(command, shown, execute(command, Path(folder)))


def execute(command: str, folder: Path) -> str:
    """Run a shell command in `folder`, print its output and return it. Ends the program if the command fails."""
    print(f"$ {command.rstrip()}", flush=True)
    done = run_program(["bash", "-euo", "pipefail", "-c", command], cwd=folder, stderr=subprocess.STDOUT)
    print(done.stdout, flush=True)
    if done.returncode:
        sys.exit(f"Exit code {done.returncode}: {command}")
    return done.stdout


def require_output(command: str, shown: str, printed: str) -> None:
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    if shown.strip() and not doctest.OutputChecker().check_output(shown, printed, options):
        sys.exit(f"{command}\n\nThe README shows:\n{shown}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
