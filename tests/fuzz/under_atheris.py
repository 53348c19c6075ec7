"""One target under atheris: `python -m tests.fuzz.under_atheris TARGET [libFuzzer's options and corpora]`."""

import random
import sys

import atheris

# What is imported here counts for coverage. PyYAML does its work in C, unseen.
with atheris.instrument_imports(include=["sniproxy"]):
    from tests.fuzz.targets import TARGETS


def main(arguments: list[str]) -> None:
    program, name, *options = arguments
    (target,) = (target for target in TARGETS if target.name == name)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        """As the target does it, and as libFuzzer does, in turn."""
        changed = target.mutate(data, random.Random(seed)) if seed % 2 else b""
        if 0 < len(changed) <= max_size:
            return changed
        mutated: bytes = atheris.Mutate(data, max_size)
        return mutated

    atheris.Setup([program, *options], target.fuzz, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
