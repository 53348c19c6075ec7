"""`python -m sniproxy`, and the `sniproxy` command."""

import sys

from sniproxy.cli import run_command


def main() -> None:
    sys.exit(run_command(sys.argv[1:]))


if __name__ == "__main__":
    main()
