"""Messages between the front and a replica: plain data, which Ray can pickle."""

from dataclasses import dataclass

Headers = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True)
class HttpRequest:
    """A request that has been read completely.

    Attributes:
        method: such as POST.
        path: decoded, without the query.
        query: the query string as sent.
        headers: names in lower case.
        body: all of it.
        client: address and port of the client.
        affinity: requests with the same key go to the same replica while it has room.
    """

    method: str
    path: str
    query: bytes
    headers: Headers
    body: bytes
    client: tuple[str, int] | None
    affinity: str


@dataclass(frozen=True)
class ResponseStart:
    """Status and headers of the answer; the parts of the body follow as bytes."""

    status: int
    headers: Headers
