"""The command line: run, check, explain, top and demo.

Exit codes: 0 done, 1 the input was wrong, 2 usage; and of `explain` 3, denied. What is wrong with the input goes to
standard error, a line a problem, each as FILE:LINE: what, and the mend.
"""

import argparse
import contextlib
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from sniproxy import __version__
from sniproxy.config.load import load_config
from sniproxy.config.units import parse_address, parse_name, parse_name_pattern
from sniproxy.config.yaml_source import BadInputError, printable
from sniproxy.identity.spiffe import UNKNOWN
from sniproxy.net.listener import CannotOpenError
from sniproxy.observe.log import configure
from sniproxy.policy.model import Action, Attribute, Condition, Ground, Request, Rule
from sniproxy.queries import Policy, explain_file, explain_one, parse_identity, parse_source_ip
from sniproxy.reload.generation import Source, load
from sniproxy.supervisor import Supervisor

DONE, BAD_INPUT = 0, 1

T = TypeVar("T")


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
    run.add_argument(
        "--listen", type=_typed(parse_address), metavar="ADDR", help="listen here instead of where the config says"
    )
    run.add_argument(
        "--allow", type=_typed(_pattern), action="append", default=[], metavar="HOST", help="add an allow rule"
    )
    run.add_argument(
        "--deny", type=_typed(_pattern), action="append", default=[], metavar="HOST", help="add a deny rule"
    )
    run.add_argument("--workers", type=_positive, metavar="N", help="worker processes; by default one a CPU")
    run.set_defaults(command=_run)

    check = commands.add_parser("check", help="validate a config and its policies")
    check.add_argument("--config", type=Path, metavar="FILE")
    check.add_argument("--strict", action="store_true", help="let warnings fail, too")
    check.set_defaults(command=_check)

    _add_explain(commands.add_parser("explain", help="say what the policy decides, by which rule, and what came near"))

    top = commands.add_parser("top", help="what a running proxy does, live: the admin page in a terminal")
    asked = top.add_mutually_exclusive_group()
    asked.add_argument("--config", type=Path, metavar="FILE", help="of the proxy; its admin.address is asked")
    asked.add_argument(
        "--admin", type=_typed(parse_address), metavar="ADDR", help="or this one: 127.0.0.1:9402, or unix:/path"
    )
    top.add_argument("--once", action="store_true", help="one look, also where standard output is no terminal")
    top.set_defaults(command=_top)

    demo = commands.add_parser("demo", help="who may reach which Wikipedia, played on this machine with no network")
    demo.set_defaults(command=_demo)
    return parser


def _add_explain(explain: argparse.ArgumentParser) -> None:
    explain.add_argument("--config", type=Path, metavar="FILE")
    asked = explain.add_mutually_exclusive_group(required=True)
    asked.add_argument("--sni", type=_typed(parse_name), metavar="HOST", help="the name that is asked for")
    asked.add_argument(
        "--file", type=Path, metavar="QUERIES", help="a YAML list of {sni, principal, source_ip, expect}"
    )
    explain.add_argument("--principal", type=_typed(parse_identity), metavar="P", default=UNKNOWN, help="who asks")
    explain.add_argument("--source-ip", type=_typed(parse_source_ip), metavar="IP", default="", help="and from where")
    explain.add_argument("--outer-sni", metavar="HOST", default="", help="the name that the tunnel was for")
    explain.add_argument("--ech", action="store_true", help="the hello is encrypted, or offers to be")
    explain.add_argument("--json", action="store_true")
    explain.set_defaults(command=_explain)


def _typed(parse: Callable[[object], T]) -> Callable[[str], T]:
    """A parser of ours, which says what is wrong and how to mend it, as one of argparse's."""

    def parse_argument(text: str) -> T:
        try:
            return parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse_argument


def _pattern(text: object) -> str:
    """A pattern as it was written: that is how its rule is called."""
    parse_name_pattern(str(text))
    return str(text)


def _positive(text: str) -> int:
    if not re.fullmatch("[0-9]{1,3}", text) or not 1 <= int(text) <= 256:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of workers from 1 to 256")
    return int(text)


def _run(options: argparse.Namespace) -> int:
    configure()
    rules = [_rule(Action.DENY, "--deny", text) for text in dict.fromkeys(options.deny)]
    rules += [_rule(Action.ALLOW, "--allow", text) for text in dict.fromkeys(options.allow)]
    Supervisor(Source(options.config, options.listen, options.workers, tuple(rules))).run()
    return DONE


def _check(options: argparse.Namespace) -> int:
    policy = load(Source(options.config)).policy
    for warning in policy.warnings:
        print(f"{printable(warning.file)}:{warning.line}: warning: {printable(warning.message)}", file=sys.stderr)
    if policy.warnings and options.strict:
        return BAD_INPUT
    book = policy.rulebook
    ignored = f"; ignored: {', '.join(policy.ignored)}" if policy.ignored else ""
    name = options.config or "the built-in config"
    print(f"{name}: good; {len(book.rules)} rules, default {book.default.value}{ignored}")
    return DONE


def _explain(options: argparse.Namespace) -> int:
    policy = Policy(options.config)
    if options.file is not None:
        answer = explain_file(policy, options.file, as_json=options.json)
    else:
        request = Request(options.sni, options.principal, options.source_ip, options.ech, options.outer_sni)
        answer = explain_one(policy, request, as_json=options.json)
    print(answer.text)
    return answer.code


def _top(options: argparse.Namespace) -> int:
    # Loaded only here: no worker asks anybody over HTTP.
    from sniproxy.top import NoAnswerError, keyboard, show_live, show_once  # noqa: PLC0415

    address = options.admin or load_config(options.config).config.admin.address
    if address is None:
        print("sniproxy: admin.address is null: there is nothing to ask", file=sys.stderr)
        return BAD_INPUT
    try:
        if options.once or not (sys.stdin.isatty() and sys.stdout.isatty()):
            show_once(address, sys.stdout)
        else:
            with contextlib.suppress(KeyboardInterrupt), keyboard() as is_over:
                show_live(address, sys.stdout, is_over)
    except NoAnswerError as error:
        print(f"sniproxy: {error}", file=sys.stderr)
        return BAD_INPUT
    return DONE


def _demo(_options: argparse.Namespace) -> int:
    # Loaded only here: it brings TLS origins and a certificate authority.
    from sniproxy.demo import run_demo  # noqa: PLC0415

    code: int = run_demo()
    return code


def _rule(action: Action, option: str, text: str) -> Rule:
    clause = (Condition(Attribute.SNI, (parse_name_pattern(text),)),)
    return Rule(Ground("command-line", f"{option} {text}", "command line", 0), action, (clause,))
