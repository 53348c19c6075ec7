"""The command line: run, check and demo.

Exit codes: 0 done, 1 the input was wrong, 2 usage. What is wrong with the input goes to standard error, a line a
problem, each as FILE:LINE: what, and the mend.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sniproxy import __version__
from sniproxy.config.load import load_config
from sniproxy.config.model import Config, Listener
from sniproxy.config.units import Address, parse_address
from sniproxy.config.yaml_source import BadInputError
from sniproxy.net.listener import CannotOpenError
from sniproxy.observe.log import configure
from sniproxy.policy.documents import load_rulebook
from sniproxy.policy.engine import Rulebook
from sniproxy.policy.match import parse_name_pattern
from sniproxy.policy.model import Action, Ground, Rule
from sniproxy.supervisor import Supervisor

DONE, BAD_INPUT = 0, 1


@dataclass(frozen=True, slots=True)
class Loaded:
    """A config and its rules, ready to run."""

    config: Config
    rulebook: Rulebook


def run_command(arguments: Sequence[str]) -> int:
    """Do what the command line says; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except BadInputError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return BAD_INPUT
    except CannotOpenError as error:
        print(f"sniproxy: {error}", file=sys.stderr)
        return BAD_INPUT
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sniproxy", description="An SNI forward proxy for TLS egress.")
    parser.add_argument("--version", action="version", version=f"sniproxy {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="serve until SIGTERM or ^C")
    run.add_argument(
        "--config", type=Path, metavar="FILE", help="without one: 127.0.0.1:8443, refusing all but --allow"
    )
    run.add_argument("--listen", type=_address, metavar="ADDR", help="listen here instead of where the config says")
    run.add_argument("--allow", type=_pattern, action="append", default=[], metavar="HOST", help="add an allow rule")
    run.add_argument("--deny", type=_pattern, action="append", default=[], metavar="HOST", help="add a deny rule")
    run.add_argument("--workers", type=_positive, metavar="N", help="worker processes; by default one a CPU")
    run.set_defaults(command=_run)

    check = commands.add_parser("check", help="validate a config and its policies")
    check.add_argument("--config", type=Path, metavar="FILE")
    check.add_argument("--strict", action="store_true", help="let warnings fail, too")
    check.set_defaults(command=_check)

    demo = commands.add_parser("demo", help="who may reach which Wikipedia, played on this machine with no network")
    demo.set_defaults(command=_demo)
    return parser


def _address(text: str) -> Address:
    try:
        return parse_address(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _pattern(text: str) -> str:
    try:
        parse_name_pattern(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def _positive(text: str) -> int:
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of workers from 1 to 256")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    configure()
    loaded = _load(options.config, options.allow, options.deny)
    config = loaded.config
    if options.listen is not None:
        config = config.model_copy(update={"listeners": (Listener(address=options.listen),)})
    if options.workers is not None:
        config = config.model_copy(update={"workers": options.workers})
    Supervisor(config, loaded.rulebook).run()
    return DONE


def _check(options: argparse.Namespace) -> int:
    loaded = _load(options.config)
    rules = len(loaded.rulebook.rules)
    print(f"{options.config or 'the built-in config'}: good; {rules} rules, default {loaded.rulebook.default.value}")
    return DONE


def _demo(_options: argparse.Namespace) -> int:
    # Loaded only here: it brings TLS origins and a certificate authority.
    from sniproxy.demo import run_demo  # noqa: PLC0415

    code: int = run_demo()
    return code


def _load(path: Path | None, allow: Sequence[str] = (), deny: Sequence[str] = ()) -> Loaded:
    """The config and its rules, with those of the command line first. Raises BadInputError."""
    loaded = load_config(path)
    extra = [_rule(Action.DENY, "--deny", text) for text in dict.fromkeys(deny)]
    extra += [_rule(Action.ALLOW, "--allow", text) for text in dict.fromkeys(allow)]
    rulebook = load_rulebook(loaded.config.policy, [path for path, _ in loaded.policy_files], extra)
    return Loaded(loaded.config, rulebook)


def _rule(action: Action, option: str, text: str) -> Rule:
    pattern = parse_name_pattern(text)
    return Rule(Ground("command-line", f"{option} {text}", "command line", 0), action, names=(pattern,))
