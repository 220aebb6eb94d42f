"""How a command is made: the options that every command has, and what becomes of its errors."""

from __future__ import annotations

import functools
import inspect
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias, TypeVar

import typer

from aiquery.cli.exits import Exit, exit_code, sentence
from aiquery.cli.output import Format, console_width, harmless

if TYPE_CHECKING:
    from aiquery.client import Workspace

#: What is done with a command's work: context, work, options.
_Runner: TypeAlias = Callable[[typer.Context, Callable[[], None], "Options"], None]
FunctionT = TypeVar("FunctionT", bound=Callable[..., None])

#: Below this width the help is plain text, which wraps better than boxes do.
_NARROW: Final = 70
_PANEL: Final = "Options of every command"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options that every command has; they may stand before or after its name."""

    workspace: str | None = None
    output: Format = Format.TABLE
    quiet: bool = False
    no_progress: bool = False
    verbose: bool = False

    @contextmanager
    def opened(self, *, isolated: bool = False) -> Iterator[Workspace]:
        """Open the workspace that the command works on; `isolated` runs custom models in processes of their own."""
        from aiquery.client import Workspace

        with Workspace(self.workspace, isolated=isolated) as workspace:
            yield workspace

    @property
    def path(self) -> Path | None:
        """Where the workspace is or will be; None in memory."""
        chosen = self.workspace or os.environ.get("AIQUERY_HOME", ".aiquery")
        return None if chosen == ":memory:" else Path(chosen).absolute()

    @property
    def progress(self) -> bool | None:
        """What a session's `progress` is to be: off when asked, else as the session sees fit."""
        return False if self.no_progress or self.quiet else None

    def note(self, text: str) -> None:
        """Say something beside the result, unless the command is to be quiet."""
        if not self.quiet:
            typer.echo(text, err=True)


_SHARED: Final = {
    "workspace": Annotated[
        str | None,
        typer.Option(
            "--workspace", "-w", metavar="PATH", rich_help_panel=_PANEL,
            help="The workspace's folder. Default: $AIQUERY_HOME, else ./.aiquery.",
        ),
    ],
    "output": Annotated[
        Format | None,
        typer.Option("--output", rich_help_panel=_PANEL, show_default="table", help="How results are printed."),
    ],
    "quiet": Annotated[
        bool, typer.Option("--quiet", "-q", rich_help_panel=_PANEL, help="Print results and errors only.")
    ],
    "no_progress": Annotated[
        bool, typer.Option("--no-progress", rich_help_panel=_PANEL, help="Do not show how far the work is.")
    ],
    "verbose": Annotated[
        bool, typer.Option("--verbose", rich_help_panel=_PANEL, help="Log more, and show where an error came from.")
    ],
}  # fmt: skip
_PARAMETERS: Final = tuple(
    inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=annotation,
        default=None if name in ("workspace", "output") else False,
    )
    for name, annotation in _SHARED.items()
)
_CONTEXT: Final = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)


def group(name: str, summary: str, *, parent: typer.Typer | None = None) -> typer.Typer:
    """Return a new group of commands; `parent` is the group that it belongs to."""
    made = typer.Typer(
        name=name,
        help=summary,
        no_args_is_help=True,
        add_completion=parent is None,
        rich_markup_mode="rich" if console_width() >= _NARROW else None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    if parent is not None:
        parent.add_typer(made)
    return made


def command(app: typer.Typer, name: str, **settings: Any) -> Callable[[FunctionT], FunctionT]:
    """Make a command of a function whose first parameter is the `Options` of every command."""

    def decorate(function: FunctionT) -> FunctionT:
        app.command(name, help=_help(function), **settings)(_with_options(function, run=_run))
        return function

    return decorate


def default(app: typer.Typer) -> Callable[[FunctionT], FunctionT]:
    """Let a group do what a function does when no command of it is named."""

    def decorate(function: FunctionT) -> FunctionT:
        def chosen(context: typer.Context, work: Callable[..., None], options: Options) -> None:
            if context.invoked_subcommand is None:
                _run(context, work, options)

        app.info.no_args_is_help = False
        app.callback(invoke_without_command=True, help=_help(function))(_with_options(function, run=chosen))
        return function

    return decorate


def before_all(app: typer.Typer) -> Callable[[FunctionT], FunctionT]:
    """Let the group at the top take the options of every command before the command's name."""

    def decorate(function: FunctionT) -> FunctionT:
        app.callback()(_with_options(function, run=lambda _, work, __: work()))
        return function

    return decorate


def _with_options(function: Callable[..., None], run: _Runner) -> Callable[..., None]:
    own = [each for each in inspect.signature(function, eval_str=True).parameters.values() if each.name != "options"]

    @functools.wraps(function)
    def called(context: typer.Context, **values: Any) -> None:
        given = {name: value for name in _SHARED if (value := values.pop(name)) not in (None, False)}
        context.obj = options = replace(context.obj or Options(), **given)
        run(context, functools.partial(function, options, **values), options)

    keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in own]
    called.__signature__ = inspect.Signature([_CONTEXT, *keywords, *_PARAMETERS])  # type: ignore[attr-defined]
    return called


def _help(function: Callable[..., None]) -> str:
    """Return a function's docstring as a command's help, where lines of examples stay as they are."""
    return inspect.cleandoc(function.__doc__ or "").replace("\nExamples:\n", "\n\b\nExamples:\n")


def _run(_: typer.Context, work: Callable[[], None], options: Options) -> None:
    """Do a command's work, and turn what it raises into words and an exit code."""
    _log(options)
    try:
        work()
        sys.stdout.flush()
    except (typer.Exit, typer.BadParameter):
        raise
    except BrokenPipeError:
        _forget_output()
        raise typer.Exit(Exit.PIPE_CLOSED) from None
    except (KeyboardInterrupt, typer.Abort):
        typer.echo("Interrupted.", err=True)
        raise typer.Exit(Exit.INTERRUPTED) from None
    except Exception as error:  # noqa: BLE001 - the end of the line for every error
        if options.verbose:
            traceback.print_exc()
        typer.echo(f"Error: {harmless(sentence(error))}", err=True)
        _flush()
        raise typer.Exit(exit_code(error)) from None


def _log(options: Options) -> None:
    if options.verbose:
        logging.basicConfig(format="%(name)s: %(message)s", stream=sys.stderr)
        logging.getLogger("aiquery").setLevel(logging.DEBUG)
    elif options.quiet:
        logging.getLogger("aiquery").setLevel(logging.ERROR)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError:
        _forget_output()


def _forget_output() -> None:
    """Send what is still to be written nowhere: Python would complain of it as it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
