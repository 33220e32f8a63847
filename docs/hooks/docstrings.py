"""griffe extension: docstrings as zsmld writes them, for a reader that expects Markdown.

A section `Example:` is what griffe calls `Examples:`. Paragraphs that are set in columns stay in columns.
"""

import re
import textwrap
from typing import Any

import griffe

_COLUMNS = re.compile(r"^\w\S* {2,}\S", re.MULTILINE)


class Docstrings(griffe.Extension):
    """Changes the text of each docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every module, class, function and attribute."""
        if obj.docstring:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            if obj.is_module:
                parts = text.split("\n\n")
                text = "\n\n".join(textwrap.indent(part, "    ") if _COLUMNS.search(part) else part for part in parts)
            obj.docstring.value = text
