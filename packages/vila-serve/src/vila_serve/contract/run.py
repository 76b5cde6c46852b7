"""Runs the checks of the contract."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx2

from vila_core.errors import ConfigError, VilaError, printable
from vila_serve.contract.checks import CHECKS
from vila_serve.contract.client import Client, ContractError


class ServerUnreachableError(VilaError):
    """There is no server at the address, or it does not let the client in."""


@dataclass(frozen=True)
class Outcome:
    """The result of one check; `problem` is empty if the server keeps this point of the contract."""

    name: str
    description: str
    problem: str


def run_contract(
    base_url: str, *, model: str | None = None, api_key: str | None = None, timeout: float = 120.0
) -> Iterator[Outcome]:
    """Check a server, and yield the outcome of each check as it ends.

    Args:
        base_url: address of the API, such as http://localhost:8000/v1.
        model: name of the model; None for the first that the server lists.
        api_key: key of the server.
        timeout: seconds for each response.

    Raises:
        ServerUnreachableError: there is no server, or the key is wrong.
        ConfigError: `base_url` is not an address.
    """
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    if not base_url.startswith(("http://", "https://")):
        raise ConfigError(f"--base-url is {base_url!r}; expected an address such as http://localhost:8000/v1.")
    with httpx2.Client(base_url=base_url.rstrip("/"), headers=headers, timeout=timeout) as http:
        client = Client(http, model or _first_model(http))
        for check in CHECKS:
            description = (check.__doc__ or "").partition("\n")[0].rstrip(".")
            yield Outcome(check.__name__, description, _problem_of(check, client))


def _first_model(http: httpx2.Client) -> str:
    """Return the first model that a server lists."""
    try:
        response = http.get("/models")
        if response.status_code in (401, 403):
            raise ServerUnreachableError("The server does not let this client in. Give its key with --api-key.")
        return response.json()["data"][0]["id"]
    except httpx2.TransportError as error:
        reason = printable(str(error)) or type(error).__name__
        raise ServerUnreachableError(f"There is no server at {http.base_url}: {reason}.") from None
    except (ValueError, KeyError, IndexError, TypeError):
        raise ServerUnreachableError(
            f"The server at {http.base_url} lists no model at /models. Is the address complete (often it ends in /v1)? "
            "Or name a model with --model."
        ) from None


def _problem_of(check: Callable[[Client], None], client: Client) -> str:
    """Run a check; return what is wrong."""
    try:
        check(client)
    except ContractError as error:
        return printable(str(error))
    except httpx2.TransportError as error:
        return f"the connection failed: {printable(str(error)) or type(error).__name__}"
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        return f"the response has another form ({type(error).__name__}: {printable(str(error))[:100]})"
    return ""
