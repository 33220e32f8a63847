"""Text that is nobody's markup: words and names of other people in Markdown and HTML."""

import re
from typing import Any

from zsmld.display import escaped


def inline(value: Any) -> str:
    """One line of text, in Markdown and in HTML.

    What could be markup becomes a character reference, which neither takes for markup.

    Example:
        >>> inline("<b>red*\\nsnake_case")
        '&lt;b&gt;red&#42; snake_case'
    """
    line = escaped(" ".join(str(value).split()))
    line = re.sub(r"[\\`*\[\]|~$#@]", lambda match: f"&#{ord(match[0])};", re.sub(r"&#x27;", "&apos;", line))
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", "&#95;", line)  # inside a word it is no markup
    return re.sub(r"(?i)(http|ftp)(s?):(?=//)|\bwww\.", lambda match: match[0][:-1] + f"&#{ord(match[0][-1])};", line)


def inline_code(value: Any) -> str:
    """The same as code.

    Example:
        >>> inline_code("a`b")
        '<code>a&#96;b</code>'
    """
    return f"<code>{inline(value)}</code>"


def fenced(content: str, language: str) -> str:
    """A fenced block, with a fence that its content does not have.

    Example:
        >>> print(fenced("print(1)", "python"))
        ```python
        print(1)
        ```
    """
    longest = max((len(run) for run in re.findall(r"`+", content)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{content}\n{fence}"
