"""The `gpuworkbench` command line: what can be said, and which function answers.

Nothing heavy is imported before a command is known, so that `--help` and errors are quick. Every error is one line
on stderr and an exit code of `errors.ExitCode`.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, NoReturn, TextIO

from gpuworkbench import __version__, registry
from gpuworkbench.commands import bench, data_arguments, plan_arguments, sample_arguments
from gpuworkbench.commands.argument_types import natural as _natural
from gpuworkbench.commands.argument_types import positive as _positive
from gpuworkbench.errors import ExitCode, UsageError, WorkbenchError

TRAIN = "gpuworkbench.commands.train:run"
RUN_HELP = "a run: its id, a unique beginning of the id, or a path"
EXAMPLES = """\
examples:
  gpuworkbench                                       the app: pick a preset, launch, watch, resume
  gpuworkbench --headless --preset quickstart        train a small model here and now
  gpuworkbench plan --preset rtx5080_1b              what it takes, and whether it fits
  gpuworkbench --headless --resume RUN               go on with a run
  gpuworkbench sample RUN --prompt "The "            let its model write

exit codes: 0 done, 1 failed, 2 usage or config, 3 run is locked, 4 does not fit, 75 stopped and resumable
"""


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are UsageErrors: one line, no usage block."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError, with the nearest name where a command is unknown."""
        unknown = re.search(r"invalid choice: (?P<word>.+) \(choose from", message)
        if unknown and not message.startswith("argument -"):  # a flag's choices are named in argparse's own words
            close = registry.nearest(unknown["word"].strip("'\""), DATA_COMMANDS if "ACTION" in message else COMMANDS)
            hint = f"did you mean {close!r}?" if close else f"`{self.prog} --help` lists them"
            raise UsageError(f"there is no command {unknown['word'][:80]}", hint)
        if message.endswith("expected one argument"):
            raise UsageError(message, "a value that begins with a dash is written --flag=-value")
        raise UsageError(message, f"`{self.prog} --help` shows what can be said")


def _add_common(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    # SUPPRESS keeps a flag given before the command from being reset by the command's own default.
    parser.add_argument(
        "--runs-dir", metavar="DIR", default=argparse.SUPPRESS, help="where runs live (default: ./runs in a checkout)"
    )
    _add_json(parser)


def _add_json(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--json", action="store_true", default=argparse.SUPPRESS, help="machine-readable output on stdout"
    )


def _add_training_flags(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("what to train")
    what.add_argument("--preset", metavar="NAME", help="a preset's name, or the path of a .toml file")
    what.add_argument("--resume", metavar="RUN", help=f"go on with {RUN_HELP}")
    what.add_argument("--fork", action="store_true", help="with --resume: train on as a new run, which may differ")
    what.add_argument(
        "--apply-fix", action="store_true", help="with --resume: make the change that would have fitted in memory"
    )
    what.add_argument("--cpu-twin", action="store_true", help="train the preset's small stand-in on the CPU")
    what.add_argument("--steps", type=_positive, metavar="N", help="total optimizer steps of the run")
    what.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="sets", help="override a key (repeatable)"
    )
    how = parser.add_argument_group("how to run it")
    how.add_argument("--headless", action="store_true", help="without the app: progress as lines")
    how.add_argument("--detach", action="store_true", help="start it and return; `attach` comes back to it")
    how.add_argument("--queue", action="store_true", help="start once the runs before it have left its card (or CPU)")
    how.add_argument(
        "--force",
        action="store_true",
        help="train although the card is smaller than asked for or in use, or memory is predicted to be short",
    )
    how.add_argument(
        "--largest-micro-batch",
        action="store_true",
        help="the largest micro-batch that fits, searched for once per device; the tokens of a step are kept",
    )
    how.add_argument("--run-id", metavar="NAME", help="name of the new run's directory")
    _add_common(how)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    _add_common(parser)


def _add_sample(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    sample_arguments.add_arguments(parser)


def _add_plan(parser: argparse.ArgumentParser) -> None:
    plan_arguments.add_arguments(parser)
    _add_common(parser)


def _add_data(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="commands", metavar="ACTION", required=True, parser_class=OneLineParser)
    for name, (help_text, handler, add_arguments) in DATA_COMMANDS.items():
        action = actions.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        action.set_defaults(handler=handler, command=f"data {name}")
        add_arguments(action)


def _add_data_prepare(parser: argparse.ArgumentParser) -> None:
    data_arguments.add_prepare(parser)
    _add_json(parser)


def _add_data_inspect(parser: argparse.ArgumentParser) -> None:
    data_arguments.add_inspect(parser)
    _add_common(parser)


def _size(text: str) -> int:
    from gpuworkbench.units import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    parser.add_argument("--to", required=True, metavar="DIR", help="the folder to write, for transformers to load")
    parser.add_argument("--checkpoint", type=_natural, default=None, metavar="STEP", help="which (default: the newest)")
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="type of the weights (fp32)")
    parser.add_argument(
        "--max-shard-size", type=_size, default="5GB", metavar="SIZE", help="largest weights file (5GB)"
    )
    parser.add_argument("--force", action="store_true", dest="is_replacing", help="replace the export that is in DIR")


def _axis(text: str) -> str:
    if text not in ("step", "tokens", "time"):
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is none of step, tokens, time")
    return text


def _loss(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text[:80]!r} is not a loss; give a number above 0")
    return value


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", help=f"two to eight runs, each {RUN_HELP[6:]}")
    parser.add_argument("--by", type=_axis, default="step", metavar="AXIS", help="step, tokens or time (step)")
    parser.add_argument(
        "--target-loss", type=_loss, default=None, metavar="X", help="time to this loss (default: one all reached)"
    )
    _add_common(parser)


class Command(NamedTuple):
    """What a command does, "module:function(arguments) -> exit code", and its own arguments."""

    help: str
    handler: str
    add_arguments: Callable[[argparse.ArgumentParser], None]


COMMANDS: dict[str, Command] = {
    "presets": Command("list the presets", "gpuworkbench.commands.presets:run", _add_common),
    "plan": Command("predict what a run takes, and whether it fits", "gpuworkbench.commands.plan:run", _add_plan),
    "runs": Command("list the runs with their status", "gpuworkbench.commands.runs:run", _add_common),
    "attach": Command("watch a run; Ctrl-C leaves it training", "gpuworkbench.commands.attach:run", _add_run),
    "pause": Command("pause a run between two steps", "gpuworkbench.commands.control:run", _add_run),
    "continue": Command("let a paused run go on", "gpuworkbench.commands.control:run", _add_run),
    "checkpoint": Command("save a run's state now", "gpuworkbench.commands.control:run", _add_run),
    "stop": Command("save a run's state and stop it", "gpuworkbench.commands.control:run", _add_run),
    "sample": Command("let a run's model write text", "gpuworkbench.commands.sample:run", _add_sample),
    "compare": Command("put runs side by side", "gpuworkbench.commands.compare:run", _add_compare),
    "data": Command("prepare text, look at what a model reads", "gpuworkbench.commands.data:prepare", _add_data),
    "export": Command("write a run's model as a Hugging Face folder", "gpuworkbench.commands.export:run", _add_export),
    "bench": Command("measure on this machine", "gpuworkbench.commands.bench:run", bench.add_arguments),
    "doctor": Command("check this machine and say what to do", "gpuworkbench.commands.doctor:run", _add_common),
}


DATA_COMMANDS: dict[str, Command] = {
    "prepare": Command(
        "clean, split and encode a source, so that a run finds it at once",
        "gpuworkbench.commands.data:prepare",
        _add_data_prepare,
    ),
    "inspect": Command(
        "counts, dropped documents, samples cut into tokens, shards",
        "gpuworkbench.commands.inspect:inspect",
        _add_data_inspect,
    ),
}


def build_parser() -> OneLineParser:
    """The whole command line."""
    parser = OneLineParser(
        prog="gpuworkbench",
        description="Train language models on one consumer card: plan, launch, watch, resume.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"gpuworkbench {__version__}")
    parser.set_defaults(handler=TRAIN, command=None)
    _add_training_flags(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=OneLineParser)
    for name, (help_text, handler, add_arguments) in COMMANDS.items():
        command = commands.add_parser(name, help=help_text, description=help_text, allow_abbrev=False)
        command.set_defaults(handler=handler, command=name)
        add_arguments(command)
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line as a namespace. Raises UsageError; SystemExit after --help and --version."""
    parser = build_parser()
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        raise _unknown_argument(unknown[0], arguments.command)
    if arguments.command is not None:
        for flag, value in _training_flags(parser, arguments):
            if value:
                raise UsageError(f"{flag} is not for `{arguments.command}`", "it belongs to --preset or --resume")
    arguments.json = getattr(arguments, "json", False)
    arguments.runs_dir = getattr(arguments, "runs_dir", None)
    return arguments


def _training_flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> Iterable[tuple[str, object]]:
    """Each flag of `_add_training_flags` with the value it was given, None or False where it was not."""
    only = argparse.ArgumentParser(add_help=False)
    _add_training_flags(only)
    for name, default in vars(only.parse_args([])).items():
        value = getattr(arguments, name, default)
        flag = "--set" if name == "sets" else f"--{name.replace('_', '-')}"
        yield flag, value if value != default else None


def _unknown_argument(word: str, command: str | None) -> UsageError:
    """What to say about an argument nobody takes: the nearest flag there, or that it belongs elsewhere."""
    name = word.partition("=")[0]
    shown = repr(name[:80])
    if not name.startswith("-"):
        return UsageError(f"{word[:80]!r} is one word too many", "put text that has spaces in quotes")
    mine, training = _flags(_adder(command)), _flags(None)
    if command is not None and name in training:
        return UsageError(f"{name} is not for `{command}`", "it belongs to --preset or --resume")
    where, program = ("", "gpuworkbench") if command is None else (f" of `{command}`", f"gpuworkbench {command}")
    close = registry.nearest(name, mine)
    hint = f"did you mean {close!r}?" if close else f"`{program} --help` lists them"
    return UsageError(f"there is no flag {shown}{where}", hint)


def _adder(command: str | None) -> Callable[[argparse.ArgumentParser], None] | None:
    """What adds a command's arguments, None for training's."""
    if command is None:
        return None
    name, _, action = command.partition(" ")
    return DATA_COMMANDS[action].add_arguments if action else COMMANDS[name].add_arguments


def _flags(add_arguments: Callable[[argparse.ArgumentParser], None] | None) -> list[str]:
    """The flags of a command, or those of training."""
    parser = argparse.ArgumentParser(usage="")
    (add_arguments or _add_training_flags)(parser)
    return list(dict.fromkeys(re.findall(r"(?<![\w-])--[a-z][a-z-]*", parser.format_help())))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    _prepare_streams()
    try:
        code = _answer(argv)
        sys.stdout.flush()
        return code
    except WorkbenchError as error:
        return _fail(error.line(), int(error.exit_code))
    except BrokenPipeError:
        # The reader of our stdout went away (`| head`).
        _give_up(sys.stdout)
        return int(ExitCode.OK)
    except OSError as error:
        _give_up(sys.stdout)
        place = f": {error.filename}" if error.filename is not None else ""
        return _fail(WorkbenchError(f"{error.strerror or error}{place}").line(), int(ExitCode.FAILED))
    except KeyboardInterrupt:
        return int(ExitCode.SIGINT)


def _answer(argv: Sequence[str] | None) -> int:
    try:
        arguments = parse(argv)
    except SystemExit as end:  # --help and --version have answered
        return int(end.code or 0)
    from gpuworkbench.gpu.host import require_supported_platform

    require_supported_platform()
    code: int = registry.load(arguments.handler)(arguments)
    return code


def _fail(line: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"gpuworkbench: {line}", file=sys.stderr, flush=True)
    return code


def _prepare_streams() -> None:
    """Make printing safe: a closed stream goes nowhere, and what an encoding lacks is escaped."""
    sys.stdin, sys.stdout, sys.stderr = (
        open(os.devnull, mode) if stream is None else stream  # noqa: SIM115
        for stream, mode in ((sys.stdin, "r"), (sys.stdout, "w"), (sys.stderr, "w"))
    )
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _give_up(stream: TextIO) -> None:
    """Point a stream that takes nothing more at /dev/null, or the interpreter's own flush complains at exit."""
    with contextlib.suppress(OSError, ValueError):
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, stream.fileno())
        os.close(null)
