"""mkdocs hook: pages of the repository that stand outside docs/, links to them, and nav entries with a `*`.

GitHub and the site show the same Markdown. A link such as `../evaluation/protocols.md` is right on GitHub; on the site
`docs/` is the root and `evaluation/` stands inside it, so that links are rewritten by what they point to.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
_FENCE = re.compile(r"^(```|~~~)", re.MULTILINE)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Nav entries with a `*` become the files that they stand for; one that stands for none is left as it is."""
    config.nav = _expanded(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files outside docs/ that nav or pages name, and those that these name."""
    waiting = [path for path in _named(config.nav) if not (ROOT / "docs" / path).exists()]
    waiting += [link for file in files.documentation_pages() for link in _links(_repository_path(file.src_uri))]
    while waiting:
        path = waiting.pop()
        if path.startswith("docs/") or files.get_file_from_path(path) or not (ROOT / path).is_file():
            continue
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            waiting += _links(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links of the repository become links of the site."""
    here = page.file.src_uri

    def rewritten(match: re.Match[str]) -> str:
        target = _target(_repository_path(here), match[2])
        if target is None:
            return match[0]
        to = posixpath.relpath(target.removeprefix("docs/"), posixpath.dirname(here) or ".")
        return f"{match[1]}{to}{match[3]}"

    return _outside_code(markdown, lambda text: _LINK.sub(rewritten, text))


def _expanded(entry: Any) -> Any:
    if isinstance(entry, list):
        return [_expanded(item) for item in entry]
    if isinstance(entry, dict):
        return {title: _expanded(value) for title, value in entry.items()}
    if "*" not in entry:
        return entry
    folder = ROOT / "docs" if (ROOT / "docs" / entry.split("/")[0]).is_dir() else ROOT
    found = sorted(
        path.relative_to(folder).as_posix() for path in folder.glob(entry) if path.suffix in (".md", ".html")
    )
    return found or entry


def _named(entry: Any) -> list[str]:
    """Paths in a nav."""
    if isinstance(entry, str):
        return [entry]
    values = entry.values() if isinstance(entry, dict) else entry
    return [path for value in values for path in _named(value)]


def _repository_path(src_uri: str) -> str:
    """Where a file of the site stands in the repository."""
    return f"docs/{src_uri}" if (ROOT / "docs" / src_uri).exists() else src_uri


def _links(path: str) -> list[str]:
    """Files of the repository that a page links to."""
    if not (ROOT / path).is_file():
        return []
    found: list[str] = []
    _outside_code(
        (ROOT / path).read_text(encoding="utf-8"),
        lambda text: _LINK.sub(lambda match: found.append(_target(path, match[2]) or "") or "", text),
    )
    return [target for target in found if target]


def _target(page: str, link: str) -> str | None:
    """The file of the repository that a link means; None for links to elsewhere and for pages that are generated."""
    if re.match(r"[a-z]+:|/", link):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(page), link))
    return target if (ROOT / target).is_file() else None


def _outside_code(text: str, change: Any) -> str:
    """`change` applied to what stands outside fenced code."""
    parts = _FENCE.split(text)  # text, fence, code, fence, text, ...
    parts[::4] = [change(part) for part in parts[::4]]
    return "".join(parts)
