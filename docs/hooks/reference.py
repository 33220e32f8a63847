"""mkdocs hook: the reference, made from the code when the site is built, so that it cannot be out of date.

`reference/index.md` gets the public names, `reference/command_line.md` every verb of the parser that `zsmld` itself
uses, and `reference/modules/` is a page for each module of the package with what it exports.
"""

import argparse
import ast
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

import zsmld
from zsmld.cli.arguments import build_parser

PACKAGE = Path(__file__).resolve().parents[2] / "zsmld"

# Parts of a module that people use under their own name, as guides show: each has a section on the module's page.
PARTS = {
    "datasets": ("captions", "named_words"),
    "decoder": ("inference",),
    "predictor": ("pictures", "collection", "pipeline"),
}
_NO_PAGE = {"__init__", "__main__", "cli"}  # the command line has a page of its own


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of the modules where nav says `reference/modules/*`."""
    config.nav = _with_modules(config.nav)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each module."""
    for name in module_names():
        files.append(File.generated(config, f"reference/modules/{name}.md", content=module_page(name)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Comments in the two pages become what they stand for."""
    for comment, made in (("public names", public_names), ("verbs", verbs)):
        if f"<!-- table: {comment} -->" in markdown:
            markdown = markdown.replace(f"<!-- table: {comment} -->", made())
    return markdown


def module_names() -> list[str]:
    """Top modules of the package, sorted."""
    names = {path.stem if path.suffix == ".py" else path.name for path in PACKAGE.iterdir() if _is_module(path)}
    return sorted(name for name in names - _NO_PAGE if not name.startswith("_"))


def public_names() -> str:
    """The names that `import zsmld` gives."""
    lines = ["| name | is in | |", "|---|---|---|"]
    for name in zsmld.__all__:
        module = zsmld._PUBLIC[name]
        summary = (getattr(zsmld, name).__doc__ or "").strip().splitlines()[0].replace("|", "\\|")
        lines.append(f"| [`{name}`][zsmld.{module}.{name}] | `zsmld.{module}` | {summary} |")
    return "\n".join(lines)


def module_page(name: str) -> str:
    """A module: what it exports, and its parts with a name of their own."""
    lines = [f"# zsmld.{name}", "", f"::: zsmld.{name}"]
    exported = exports(PACKAGE / name / "__init__.py") if (PACKAGE / name).is_dir() else None
    lines += ["    options:", "      show_root_heading: false", "      show_root_toc_entry: false"]
    if exported is not None:  # they live in files of the package, and are rendered where they are used from
        lines += ["      members:"] + [f"        - {member}" for member in exported]
    for part in PARTS.get(name, ()):
        lines += ["", f"## zsmld.{name}.{part}", "", f"::: zsmld.{name}.{part}"]
        lines += ["    options:", "      show_root_heading: false", "      show_root_toc_entry: false"]
        lines += ["      heading_level: 3"]
    return "\n".join(lines) + "\n"


def exports(path: Path) -> list[str]:
    """What `__all__` of a file holds."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    raise ValueError(f"{path} must have __all__, it has none; list there what the package exports")


def verbs() -> str:
    """Every verb with its arguments and examples."""
    parser = build_parser()
    choices = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction)).choices
    lines = ["| verb | what it does |", "|---|---|"]
    lines += [f"| [`{name}`](#{name}) | {verb.description} |" for name, verb in choices.items()]
    lines.append("")
    for name, verb in choices.items():
        lines += [f"## {name}", "", f"{_sentence(verb.description or '')}", "", *_examples(verb.epilog or "")]
        lines += ["| argument | |", "|---|---|"]
        lines += [f"| {_names(a)} | {_help(a, verb)} |" for a in verb._actions if a.dest != "help"]
        lines.append("")
    return "\n".join(lines)


def _examples(epilog: str) -> list[str]:
    """The lines of an epilog that are commands, as code; the others, as text."""
    lines = [line for line in epilog.splitlines() if line not in ("example:", "examples:")]
    commands = [line.strip() for line in lines if line.startswith("  ")]
    text = [line for line in lines if not line.startswith("  ")]
    return ["```bash", *commands, "```", "", *text, ""]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith("?") else ".")


def _names(action: argparse.Action) -> str:
    value = action.metavar or action.dest.upper()
    value = "{" + ",".join(map(str, action.choices)) + "}" if action.choices else str(value)
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    takes = "" if action.nargs == 0 else f" {value}"
    return ", ".join(f"`{option}{takes}`" for option in action.option_strings)


def _help(action: argparse.Action, verb: argparse.ArgumentParser) -> str:
    text = (action.help or "") % {**vars(action), "prog": verb.prog}
    return text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;").replace("{}", "`{}`")


def _is_module(path: Path) -> bool:
    return path.suffix == ".py" or (path / "__init__.py").is_file()


def _with_modules(entry: Any) -> Any:
    if isinstance(entry, list):
        return [_with_modules(item) for item in entry]
    if isinstance(entry, dict):
        return {title: _with_modules(value) for title, value in entry.items()}
    return (
        [{f"zsmld.{n}": f"reference/modules/{n}.md"} for n in module_names()]
        if entry == "reference/modules/*"
        else entry
    )
