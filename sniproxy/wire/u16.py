"""The 16-bit integers of TLS and of PROXY headers, in network byte order."""


def u16(data: bytes, at: int) -> int:
    """The integer whose first byte is `data[at]`. Raises IndexError where it reaches past the end."""
    # Compiled, this is a few instructions. A struct would cost hundreds: it is a call into Python, and makes a tuple.
    return data[at] << 8 | data[at + 1]
