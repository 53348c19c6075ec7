"""Texts out of bytes: whatever a YAML file could hold, and one that it could not, a lone surrogate."""


def text_of(data: bytes) -> str:
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("latin-1")
