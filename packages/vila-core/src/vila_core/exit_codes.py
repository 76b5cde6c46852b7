"""Exit codes of child processes, in words."""

import signal


def describe_exit(code: int) -> str:
    """Return how a process with this exit code ended, such as "was killed by SIGKILL".

    Args:
        code: as in `subprocess` and `multiprocessing`: negative for the signal that killed the process.
    """
    if code >= 0:
        return f"ended with exit code {code}"
    names = {number.value: number.name for number in signal.Signals}
    return f"was killed by {names.get(-code, f'signal {-code}')}"
