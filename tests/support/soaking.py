"""What the long tests share: how long they take, their seed, and their words to who waits for them."""

import os
import random


def soak_seconds(default: float) -> float:
    """How long a soak takes: SOAK_SECONDS, or what it takes by itself."""
    return float(os.environ.get("SOAK_SECONDS", default))


def soak_seed() -> str:
    """SOAK_SEED, to play a failure again, or a new one, which is told."""
    seed = os.environ.get("SOAK_SEED") or f"{random.SystemRandom().randrange(2**32):08x}"
    tell(f"SOAK_SEED={seed}")
    return seed


def tell(text: str) -> None:
    """To standard output: pytest shows it of a failure, and with -s at once."""
    print(text, flush=True)  # noqa: T201 - figures are half of what a soak is for
