"""The page: one file of HTML, with its script and its style inside, that runs nothing but those two.

The Content-Security-Policy names them by their hashes, so that no script runs that a client, a policy or an extension
of the page's own text might bring, and the page can talk to nobody but the address that it came from.
"""

import base64
import hashlib
import re
from importlib.resources import files

_INLINE = re.compile(rb"<(script|style)>(.*?)</\1>", re.DOTALL)


class Page:
    content_type = "text/html; charset=utf-8"

    def __init__(self) -> None:
        self.html = files(__package__).joinpath("page.html").read_bytes()
        hashes = {kind.decode(): _hash_of(text) for kind, text in _INLINE.findall(self.html)}
        policy = (
            f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
        )
        self.headers = {"Content-Security-Policy": policy}


def _hash_of(text: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"
