"""The command line: what its user types after `ebdiff`; each command is a call of the package's own functions."""

import errno
import re
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Annotated, Any

import typer

from ebdiff_orchestrator.cli.doctor import doctor
from ebdiff_orchestrator.cli.evaluate import evaluate
from ebdiff_orchestrator.cli.launch import extend, launch, resume
from ebdiff_orchestrator.cli.plan import plan, presets
from ebdiff_orchestrator.cli.reports import compare, estimate, report, status, tickets
from ebdiff_orchestrator.cli.sample import sample
from ebdiff_orchestrator.cli.share import export, push
from ebdiff_orchestrator.cli.study import study
from schemas.errors import RunFailed, RunStopped, UserError, disk_problem, problem, shown, without_secrets
from schemas.process import wait_passively

EXIT_FAILED, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130

_REPHRASED = {
    r"^Value error, ": "",
    r"^'[^']*' is not one of": "one of",
    r"^Input should be (greater|less)": r"a number \1",
    r"^Input should be ": "",
    r"^a valid integer.*": "a whole number",
    r"^a valid number.*": "a number",
}

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train a diffusion model as a few small timestep experts, side by side, and get one diffusers pipeline. "
    "Try: ebdiff launch digits. Exit codes: 0 done, 1 the run failed, 2 bad input, 130 interrupted.",
)


def print_version(wanted: bool) -> None:
    """Print the package's version and exit, if wanted."""
    if wanted:
        from importlib import metadata

        print(metadata.version("ebdiff-orchestrator"))
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    _version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""
    _debug.append(debug)


for command in (
    launch,
    resume,
    extend,
    study,
    status,
    plan,
    presets,
    tickets,
    compare,
    report,
    estimate,
    sample,
    evaluate,
    export,
    push,
    doctor,
):
    app.command()(command)


def main() -> None:
    """Run the command line; exit 0 done, 1 failed run, 2 bad input, 130 interrupted (SIGTERM too)."""
    signal.signal(signal.SIGTERM, _interrupt)
    wait_passively()
    code = _guarded()
    embedded = sys.modules.get("ebdiff_orchestrator.cluster.embedded")  # there if a command may have started a Ray
    if embedded is not None:
        embedded.end_if_starting(code)
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """As Ctrl-C. Where Ray has begun to start, its own handler was here first, and would abort this process in 3 s."""
    signal.alarm(0)
    signal.default_int_handler(number, frame)


_debug: list[bool] = []


def _guarded() -> int:
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        return _fail(error, EXIT_BAD_INPUT)
    except RunFailed as error:
        return _fail(error, EXIT_FAILED)
    except RunStopped as error:
        return _fail(error, EXIT_INTERRUPTED)
    except typer.Abort:
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            expected = "a name of at most 255 bytes"
            return _fail(
                UserError(problem("path", shown(error.filename), expected, "Give a shorter one.")), EXIT_BAD_INPUT
            )
        told = disk_problem(error)
        return _fail(RunFailed(f"{told} Then the same command goes on.") if told else error, EXIT_FAILED, not told)
    except Exception as error:  # noqa: BLE001 - the last place
        if _was_interrupted(error):
            return _say_interrupted()
        wrong = _usage_problem(error, sys.argv)
        if wrong is None:
            return _fail(error, EXIT_FAILED, unexpected=True)
        print(without_secrets(wrong), file=sys.stderr)
        return EXIT_BAD_INPUT
    if code == EXIT_INTERRUPTED:  # typer's word for a Ctrl-C outside the job loop
        return _say_interrupted()
    return code if isinstance(code, int) else 0


def _say_interrupted() -> int:
    print("ebdiff: interrupted; the same command starts again, from what is saved if anything is.", file=sys.stderr)
    return EXIT_INTERRUPTED


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether it comes of a Ctrl-C: one in the middle of an import becomes the import's error."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    return error is not None


def _fail(error: Exception, code: int, unexpected: bool = False) -> int:
    if any(_debug):
        traceback.print_exception(error)
    else:
        kind = f"{type(error).__name__}: " if unexpected else ""
        hint = " (--debug before the command shows where)" if unexpected else ""
        print(without_secrets(f"ebdiff: {kind}{error}{hint}"), file=sys.stderr)
    return code


def _usage_problem(error: Any, typed: Sequence[str]) -> str | None:
    """What is wrong with a command line, what was expected and what to do; None if `error` is of another kind.

    `typed`: the command line. The parser's errors are told by what they have in common, since typer brings a parser of
    its own or uses click's.
    """
    if not hasattr(error, "format_message"):
        return None
    text = str(error.format_message())
    if type(error).__name__ == "NoArgsIsHelpError":
        return text
    context = getattr(error, "ctx", None)
    see = f"See `{context.command_path if context else 'ebdiff'} --help`."
    options = list(getattr(getattr(error, "param", None), "opts", ()))
    value = _given(options, typed)
    if value is not None:
        return "ebdiff: " + problem(options[-1], value, _expectation(str(error.message)), see)
    usage = context.get_usage().removeprefix("Usage: ") if context else "ebdiff COMMAND"
    usage = re.sub(r"[{}\n]+ *", "", usage).replace("......", "...")  # typer's braces around an argument
    text = " ".join(text.split()).rstrip(".")
    return f"ebdiff: {text}{'' if text.endswith('?') else '.'} Expected: `{usage}`. {see}"


def _given(options: Sequence[str], typed: Sequence[str]) -> str | None:
    """The value that was typed last for an option of these names."""
    found = None
    for index, word in enumerate(typed):
        name, equals, value = word.partition("=")
        if name in options and (equals or index + 1 < len(typed)):
            found = value if equals else typed[index + 1]
    return found


def _expectation(message: str) -> str:
    """The parser's words for what a value should have been, in the words of plans."""
    for words, instead in _REPHRASED.items():
        message = re.sub(words, instead, message)
    return message.rstrip(".")
