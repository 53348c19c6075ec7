"""The answer of the readers in this package to bytes that are right so far, and not yet enough."""

from enum import Enum
from typing import Final


class NeedMore(Enum):
    """A type of one value, so that `is NEED_MORE` narrows a reader's result for mypy."""

    NEED_MORE = "more bytes are needed"


NEED_MORE: Final = NeedMore.NEED_MORE
