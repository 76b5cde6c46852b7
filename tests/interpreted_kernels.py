"""Runs code whose Triton kernels the CPU interprets.

Triton decides that where a kernel is defined, so the code needs a process of its own with `TRITON_INTERPRET=1`. It is
forked from one that has imported torch and Triton, which takes seconds.
"""

import atexit
import json
import os
import subprocess
import sys
from functools import cache

import pytest

SERVER = """
import json, os, sys, tempfile, traceback
from functools import cache
import torch
from triton.runtime import interpreter
import vila_core.ops.reference

# Triton replaces the functions of its language anew for every launch and for every call of a function on the device,
# which takes most of the time. Once per function is enough where they stay replaced, as they do in a child below.
interpreter._patch_lang = cache(interpreter._patch_lang)
interpreter._LangPatchScope.restore = lambda scope: None

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # what the code prints
for line in sys.stdin:
    with tempfile.TemporaryFile("w+") as report:
        child = os.fork()
        if child == 0:
            os.dup2(report.fileno(), 2)
            code = 1
            try:
                exec(compile(json.loads(line), "<interpreted>", "exec"), {"__name__": "__main__"})
                code = 0
            except BaseException:
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        report.seek(0)
        print(json.dumps([code, report.read()]), file=answers, flush=True)
"""


def run_interpreted(code: str) -> None:
    """Run `code` in a new process with Triton's interpreter; the test fails with what it writes to stderr."""
    pytest.importorskip("triton")
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(code) + "\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, "the process that the code is forked from has ended"
    exit_code, report = json.loads(answer)
    assert exit_code == 0, f"exit code {exit_code}: {report[-2500:]}"


@cache
def _server() -> "subprocess.Popen[str]":
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    atexit.register(server.kill)
    return server
