"""Handling of ASGI messages that several applications and middlewares share."""

from starlette.types import Message, Receive


def replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first gives `body`, which was already read, and then continues with `receive`."""
    remaining = [body]

    async def again() -> Message:
        if remaining:
            return {"type": "http.request", "body": remaining.pop(), "more_body": False}
        return await receive()

    return again


async def until_client_leaves(receive: Receive) -> None:
    """Wait until the client closes the connection. Other messages are discarded."""
    while (await receive())["type"] != "http.disconnect":
        pass
