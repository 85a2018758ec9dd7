"""`api`: the platform's calls, each one printing the JSON of the vendor's document."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from downloader.cli import options
from downloader.cli.running import run, told
from downloader.errors import InvalidArgument

if TYPE_CHECKING:
    from downloader.api import AsyncPrivateAPI, Model

__all__ = ["app"]

app = typer.Typer(
    help="Call the platform and print its answer as JSON.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

UserId = Annotated[str, typer.Argument(metavar="USER_ID", help="A user's id.")]


@app.command("task-result", short_help="Show a task's status and result.")
def task_result(
    task_id: Annotated[str, typer.Argument(metavar="TASK_ID", help="A task's id.")],
    *,
    endpoint: options.Endpoint = None,
    verbose: options.Verbose = False,
) -> None:
    """Show a task's status and, once it is SUCCESS, the links to its files (they are secret)."""
    _call(lambda api: api.task_result(task_id), endpoint, verbose=verbose)


@app.command("survey-projects", short_help="Show what is known of projects.")
def survey_projects(
    project_ids: Annotated[
        list[str], typer.Argument(metavar="PROJECT_ID", help="One id or several.")
    ],
    *,
    endpoint: options.Endpoint = None,
    verbose: options.Verbose = False,
) -> None:
    """Show what is known of projects."""
    _call(lambda api: api.survey_projects(",".join(project_ids)), endpoint, verbose=verbose)


@app.command("survey-target", short_help="Show the users that conditions find.")
def survey_target(
    *,
    all_of: Annotated[
        str | None,
        typer.Option("--and", metavar="JSON", help="Conditions that must all hold: a JSON list."),
    ] = None,
    any_of: Annotated[
        str | None,
        typer.Option("--or", metavar="JSON", help="Conditions of which one must hold."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Users on a page.")] = None,
    page: Annotated[int | None, typer.Option(help="Which page, from 1.")] = None,
    endpoint: options.Endpoint = None,
    verbose: options.Verbose = False,
) -> None:
    """Show the users that conditions find.

    A condition: {"data_element_identifier_de": "...", "operator": "=", "concept_code": "..."}
    """
    with told():
        must, may = _conditions("--and", all_of), _conditions("--or", any_of)
    _call(lambda api: api.survey_target(must, may, limit, page), endpoint, verbose=verbose)


@app.command("question-size", short_help="Count a user's questions.")
def question_size(
    user_id: UserId, *, endpoint: options.Endpoint = None, verbose: options.Verbose = False
) -> None:
    """Show how many questions a user has answered."""
    _call(lambda api: api.question_size(user_id), endpoint, verbose=verbose)


@app.command("wechat-profile", short_help="Show a user's WeChat profile.")
def wechat_profile(
    user_id: UserId, *, endpoint: options.Endpoint = None, verbose: options.Verbose = False
) -> None:
    """Show a user's WeChat ids and nickname."""
    _call(lambda api: api.wechat_profile(user_id), endpoint, verbose=verbose)


@app.command("sign-url", short_help="Make a signed link to an object.")
def sign_url(
    object_name: Annotated[
        str, typer.Argument(metavar="OBJECT_NAME", help="An object's key, without first slash.")
    ],
    *,
    region: Annotated[
        str | None, typer.Option(metavar="domestic|international", help="Where its bucket is.")
    ] = None,
    expiration_time: Annotated[
        int | None, typer.Option(metavar="SECONDS", help="How long the link is good. [600]")
    ] = None,
    endpoint: options.Endpoint = None,
    verbose: options.Verbose = False,
) -> None:
    """Make a signed link to an object; whoever has the link has the object."""
    _call(lambda api: api.sign_url(object_name, region, expiration_time), endpoint, verbose=verbose)


def _call(
    ask: Callable[[AsyncPrivateAPI], Awaitable[Model]], endpoint: str | None, *, verbose: bool
) -> None:
    with told():
        from downloader.app import open_api
        from downloader.config import load_settings
        from downloader.logs import set_up_logging

        set_up_logging(verbose=verbose)
        settings = load_settings(options.given(endpoint=endpoint))

        async def asked() -> Model:
            async with open_api(settings) as api:
                return await ask(api)

        typer.echo(run(asked()).dumps(indent=4))


def _conditions(flag: str, text: str | None) -> list[dict[str, object]] | None:
    """Read a list of conditions; the client looks at them closely before anything is sent."""
    import json

    if text is None:
        return None
    try:
        conditions: list[dict[str, object]] = json.loads(text)
    except ValueError as error:
        expected = "expected a list of conditions"
        raise InvalidArgument(f"{flag} is no JSON ({error}); {expected}") from None
    return conditions
