"""The program of the engine's process: loads the model, and answers the server's process until that is gone.

    python -m vila_serve.answering.worker DESCRIPTOR

The descriptor is a socket of the server's process. The process ends with it, however that ends. Signals of the terminal
and of service managers are left to the server, which finishes what runs before it closes the socket.
"""

import gc
import os
import signal
import socket
import sys
import threading
import traceback
import warnings
from functools import partial
from typing import Any, NoReturn

for _number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # before the imports, which take seconds
    signal.signal(_number, signal.SIG_IGN)

from vila_core.errors import VilaError  # noqa: E402
from vila_serve.answering.channel import BlockingChannel  # noqa: E402
from vila_serve.answering.messages import FromEngine  # noqa: E402
from vila_serve.answering.process import Failed, Loading, Ready, Task, WarmingUp, Warned  # noqa: E402


def main(descriptor: int) -> NoReturn:
    """Run the program."""
    channel = BlockingChannel(socket.socket(fileno=descriptor))
    messages = channel.receive()
    task: Task | None = next(messages, None)
    if task is None:
        os._exit(0)
    sys.setswitchinterval(task.switch_seconds)
    is_ready = threading.Event()
    sides: list[Any] = []

    def read() -> NoReturn:
        """Pass messages on. While the model is loaded, none comes but the end of the server's process."""
        try:
            for message in messages:
                is_ready.wait()
                sides[0].handle(message)
        except BaseException:  # noqa: BLE001 - without this thread, nobody would notice the end of the server
            traceback.print_exc()
            os._exit(1)
        os._exit(0)  # nobody waits for anything that this process does

    threading.Thread(target=read, name="messages", daemon=True).start()
    try:
        side = _load(task, channel)
        sides.append(side)
        gc.collect()
        gc.freeze()  # the model's objects stay, so that the collector need not look at them again and again
        channel.send(Ready(side.facts))
    except BaseException as error:  # noqa: BLE001 - the server's process says it
        if isinstance(error, VilaError):
            error.add_note("".join(traceback.format_exception(error)))  # for --debug
        channel.send(Failed(error))
        os._exit(1)
    is_ready.set()
    side.run()
    os._exit(0)


def _load(task: Task, channel: BlockingChannel) -> Any:
    """Load the model and warm it up; what loading warns of is shown by the server's process, as its progress is."""
    from vila_core.plugins.loader import load_plugin_file
    from vila_serve.answering.engine_side import EngineSide

    def warn(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
        channel.send(Warned(str(message), category, filename, lineno))

    with warnings.catch_warnings():
        warnings.showwarning = warn
        for path in task.plugin_files:
            load_plugin_file(path)
        model = task.load(lambda done, total: channel.send(Loading(done, total)))
    if task.set_up is not None:
        task.set_up()
    if task.warm_up is not None:
        channel.send(WarmingUp())
        task.warm_up(model)
    return EngineSide(model, task.max_context, partial(_send, channel))


def _send(channel: BlockingChannel, message: FromEngine) -> None:
    try:
        channel.send(message)
    except ConnectionError:  # the server's process is gone
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
