"""The server for `serving.py`, with an engine process that measures its bare engine before it serves the same model.

It prints a line of JSON for each measurement and one when it serves.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial

from serving_engine import Measurement, load_and_measure, say

from vila_serve import server
from vila_serve.answering.process import EngineProcess, Task
from vila_serve.api.app import create_app
from vila_serve.settings import ServeSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-path")
    parser.add_argument("--shapes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clients", type=int, nargs="+", default=[1])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=0)
    parser.add_argument("--step-ms", type=float)
    options = parser.parse_args()
    settings = ServeSettings(
        port=0,
        page=False,
        log_level="warning",
        model_path=options.model_path,
        model_name="served",
        device=options.device,
    )
    measurement = Measurement(
        settings,
        options.shapes,
        options.device,
        tuple(options.clients),
        options.seconds,
        options.tokens,
        options.pictures,
        options.step_ms,
    )
    with EngineProcess(Task(partial(load_and_measure, measurement))) as process:
        answering = process.wait_until_ready()
        bound = server.bind(settings)
        say("serving", port=bound.getsockname()[1], pids=[os.getpid(), process.pid])
        server.serve(create_app(answering, settings), settings, bound, answering)


if __name__ == "__main__":
    main()
    sys.exit(0)
