"""The `gpuworkbench` command line: what can be said, and which function answers.

Nothing heavy is imported before a command is known, so that `--help` and errors are quick. Every error is one line
on stderr and an exit code of `errors.ExitCode`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from gpuworkbench import __version__, registry
from gpuworkbench.errors import ExitCode, UsageError, WorkbenchError

# name -> (what it does, "module:function(arguments) -> exit code")
COMMANDS: dict[str, tuple[str, str]] = {
    "presets": ("list the presets", "gpuworkbench.commands.presets:run"),
    "runs": ("list the runs with their status", "gpuworkbench.commands.runs:run"),
    "attach": ("watch a run; Ctrl-C leaves it training", "gpuworkbench.commands.attach:run"),
    "pause": ("pause a run between two steps", "gpuworkbench.commands.control:run"),
    "continue": ("let a paused run go on", "gpuworkbench.commands.control:run"),
    "checkpoint": ("save a run's state now", "gpuworkbench.commands.control:run"),
    "stop": ("save a run's state and stop it", "gpuworkbench.commands.control:run"),
    "sample": ("let a run's model write text", "gpuworkbench.commands.sample:run"),
    "doctor": ("check this machine and say what to do", "gpuworkbench.commands.doctor:run"),
}
RUN_HELP = "a run: its id, a unique beginning of the id, or a path"
EXAMPLES = """\
examples:
  gpuworkbench --headless --preset quickstart        train a small model here and now
  gpuworkbench --headless --resume RUN               go on with a run
  gpuworkbench sample RUN --prompt "The "            let its model write

exit codes: 0 done, 1 failed, 2 usage or config, 3 run is locked, 4 does not fit, 75 stopped and resumable
"""


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UsageErrors: one line, no usage block."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, with the nearest name where a word is unknown."""
        raise UsageError(message, _suggest(message) or f"`{self.prog} --help` shows what can be said")


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = OneLineParser(
        prog="gpuworkbench",
        description="Train language models on one consumer card: plan, launch, watch, resume.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gpuworkbench {__version__}")
    parser.set_defaults(handler="gpuworkbench.commands.train:run", command=None)
    _add_training_flags(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=OneLineParser)
    for name, (help_text, handler) in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        command.set_defaults(handler=handler, command=name)
        _ADD_ARGUMENTS[name](command)
    return parser


def _add_training_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to train")
    what.add_argument("--preset", metavar="NAME", help="a preset's name, or the path of a .toml file")
    what.add_argument("--resume", metavar="RUN", help=f"go on with {RUN_HELP}")
    what.add_argument("--fork", action="store_true", help="with --resume: train on as a new run, which may differ")
    what.add_argument("--cpu-twin", action="store_true", help="train the preset's small stand-in on the CPU")
    what.add_argument("--steps", type=_positive, metavar="N", help="total optimizer steps of the run")
    what.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="override a key (repeatable)"
    )
    how = parser.add_argument_group("how to run it")
    how.add_argument("--headless", action="store_true", help="without the app: progress as lines")
    how.add_argument("--detach", action="store_true", help="start it and return; `attach` comes back to it")
    how.add_argument("--run-id", metavar="NAME", help="name of the new run's directory")
    _add_common(how)


def _add_common(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    # SUPPRESS keeps a flag given before the command from being reset by the command's own default.
    parser.add_argument(
        "--runs-dir", metavar="DIR", default=argparse.SUPPRESS, help="where runs live (default: ./runs in a checkout)"
    )
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="machine-readable output on stdout"
    )


def _add_nothing(parser: argparse.ArgumentParser) -> None:
    _add_common(parser)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    _add_common(parser)


def _add_sample(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--prompt", default=None, metavar="TEXT", help="what to continue (default: the run's)")
    parser.add_argument("--tokens", type=_positive, default=200, metavar="N", help="tokens to write (200)")
    parser.add_argument(
        "--temperature", type=_temperature, default=0.8, metavar="T", help="0 is greedy; higher is wilder (0.8)"
    )
    parser.add_argument("--top-k", type=_natural, default=50, metavar="K", help="from the K likeliest; 0: all (50)")
    parser.add_argument("--seed", type=_natural, default=1337, metavar="S", help="seed of the sampler (1337)")
    parser.add_argument("--checkpoint", type=_natural, default=None, metavar="STEP", help="which (default: the newest)")


_ADD_ARGUMENTS = {
    "presets": _add_nothing,
    "runs": _add_nothing,
    "attach": _add_run,
    "pause": _add_run,
    "continue": _add_run,
    "checkpoint": _add_run,
    "stop": _add_run,
    "sample": _add_sample,
    "doctor": _add_nothing,
}


def _natural(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _positive(text: str) -> int:
    value = _natural(text)
    if value < 1:
        raise argparse.ArgumentTypeError("give a whole number from 1 on")
    return value


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError("give a number from 0 to 100")
    return value


def _suggest(message: str) -> str | None:
    """A nearest name for the word argparse did not know."""
    if "invalid choice: " in message:
        word = message.split("invalid choice: ")[1].split(" ", maxsplit=1)[0].strip("'\"")
        close = registry.nearest(word, COMMANDS)
    elif "unrecognized arguments: " in message:
        word = message.split("unrecognized arguments: ")[1].split(" ", maxsplit=1)[0].partition("=")[0]
        flags = ["--preset", "--resume", "--fork", "--cpu-twin", "--steps", "--set", "--headless", "--detach"]
        close = registry.nearest(word, [*flags, "--run-id", "--runs-dir", "--json", "--prompt", "--tokens", "--top-k"])
    else:
        return None
    return f"did you mean {close!r}?" if close else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    try:
        arguments = build_parser().parse_args(argv)
        arguments.json = getattr(arguments, "json", False)
        arguments.runs_dir = getattr(arguments, "runs_dir", None)
        from gpuworkbench.gpu.host import require_supported_platform

        require_supported_platform()
        code: int = registry.load(arguments.handler)(arguments)
        sys.stdout.flush()
        return code
    except WorkbenchError as error:
        print(f"gpuworkbench: {error.line()}", file=sys.stderr)
        return int(error.exit_code)
    except BrokenPipeError:
        # The reader of our stdout went away (`| head`). Keep the interpreter's own flush from complaining too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return int(ExitCode.OK)
    except KeyboardInterrupt:
        return int(ExitCode.SIGINT)
