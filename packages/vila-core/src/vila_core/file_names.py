"""Names from users or configs that become the name of a file or folder."""

import re

from vila_core.errors import ConfigError, VilaError, shown

_MAX_BYTES = 200
"""File systems allow 255; suffixes and temporary names are longer than the name."""

_FORBIDDEN = re.compile("[/\\\\\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def require_file_name(name: str, source: str, error: type[VilaError] = ConfigError) -> str:
    """Return `name` if it can be the name of one file or folder in another, on every system.

    Args:
        name: from an option, a config or a record.
        source: names it in the error, such as "--model-name".
        error: class of the error to raise.

    Raises:
        VilaError: `error`, for an empty name, `.` or `..`, a path, a drive, control characters, or over 200 bytes.
    """
    if not name.strip() or name.strip(". ") == "" or _FORBIDDEN.search(name) or re.match(r"[A-Za-z]:|~", name):
        problem = "expected the name of one folder, without '/', '\\', '..' or control characters"
    elif len(name.encode()) > _MAX_BYTES:
        problem = f"expected at most {_MAX_BYTES} bytes"
    else:
        return name
    raise error(f"{source} is {shown(name)}; {problem}.")
