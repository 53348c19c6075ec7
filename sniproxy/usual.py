"""The members of `outcome` that nearly every connection asks for.

An enum looks its members up in a function in Python, which adds up. These are constants, and where this module is
compiled, the C compiler's: `outcome` itself cannot be, for mypyc knows no enum whose members have attributes.
"""

from typing import Final

from sniproxy.outcome import Event, Reason

OPEN: Final = Event.OPEN
CLOSE: Final = Event.CLOSE
DENY: Final = Event.DENY

DONE: Final = Reason.DONE
INTERNAL: Final = Reason.INTERNAL
CLIENT_RESET: Final = Reason.CLIENT_RESET
UPSTREAM_RESET: Final = Reason.UPSTREAM_RESET
SNI_CHANGED: Final = Reason.SNI_CHANGED
