"""Docstrings are written for the terminal too: take the marks out that only Sphinx would read."""

import re

_ROLE = re.compile(r":(?:class|func|meth|attr|mod|exc|data):<code>~?")
_LITERAL_BLOCK = re.compile(r"<p>::</p>|(?<=:):(?=</p>)")


def on_page_content(html: str, **_: object) -> str:
    """Called by mkdocs with each page: a role before a code span, the ``::`` before a block."""
    return _LITERAL_BLOCK.sub("", _ROLE.sub("<code>", html))
