"""The arguments of `gpuworkbench sample`, beside those of every command on a run. Nothing heavy: `--help` is quick."""

from __future__ import annotations

import argparse

from gpuworkbench.commands.argument_types import natural, positive, temperature


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to continue, how far, and how tokens are drawn."""
    parser.add_argument("--prompt", default=None, metavar="TEXT", help="what to continue (default: the run's)")
    parser.add_argument(
        "--chat", default=None, metavar="TEXT", help="ask it as a user would, in a conversation as data.source has them"
    )
    parser.add_argument("--system", default=None, metavar="TEXT", help="with --chat: what the system says first")
    parser.add_argument("--tokens", type=positive, default=200, metavar="N", help="tokens to write at most (200)")
    parser.add_argument("--ignore-eot", action="store_true", help="go on after the end of text that the model writes")
    parser.add_argument(
        "--temperature", type=temperature, default=0.8, metavar="T", help="0 is greedy; higher is wilder (0.8)"
    )
    parser.add_argument("--top-k", type=natural, default=50, metavar="K", help="from the K likeliest; 0: all (50)")
    parser.add_argument("--seed", type=natural, default=1337, metavar="S", help="seed of the sampler (1337)")
    parser.add_argument("--checkpoint", type=natural, default=None, metavar="STEP", help="which (default: the newest)")
