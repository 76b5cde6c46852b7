"""What several ASGI applications and layers do with the messages of a client."""

from starlette.types import Message, Receive


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body which has been read in one message, then whatever follows."""
    remaining = [body]

    async def again() -> Message:
        if remaining:
            return {"type": "http.request", "body": remaining.pop(), "more_body": False}
        return await receive()

    return again


async def until_client_leaves(receive: Receive) -> None:
    """Return when the connection is closed."""
    while (await receive())["type"] != "http.disconnect":
        pass
