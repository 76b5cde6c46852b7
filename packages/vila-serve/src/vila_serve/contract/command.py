"""`vila-serve contract`: check that a server keeps the contract of OpenAI's API."""

import json
from dataclasses import asdict
from typing import Annotated

import typer


def check_contract(
    base_url: Annotated[
        str, typer.Option("--base-url", metavar="URL", help="Address of the API, such as http://localhost:8000/v1.")
    ],
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Name of the model (the first that is listed).")
    ] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", metavar="KEY", envvar="OPENAI_API_KEY", help="Key of the server.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="For each response.", min=1)] = 120.0,
    as_json: Annotated[bool, typer.Option("--json", metavar="", help="Print a JSON object.")] = False,
) -> None:
    """Check any running server: what clients of OpenAI's API send, and what they expect to get.

    The exit code is 1 if the server fails a check.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from vila_serve.contract.run import run_contract

    outcomes = list(run_contract(base_url, model=model, api_key=api_key, timeout=timeout))
    failed = [outcome for outcome in outcomes if outcome.problem]
    if as_json:
        typer.echo(json.dumps({"passed": not failed, "checks": [asdict(one) for one in outcomes]}, indent=2))
    else:
        table = Table("check", "result", box=None)
        for outcome in outcomes:
            result = Text(outcome.problem, "red") if outcome.problem else Text("ok", "green")
            table.add_row(Text(outcome.description), result)
        Console().print(table)
        typer.echo(f"{len(outcomes) - len(failed)} of {len(outcomes)} checks passed.")
    if failed:
        raise typer.Exit(1)
