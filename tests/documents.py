"""What stands in the documentation: its code blocks, its commands, its headings, tables and pictures.

A comment before a block says what a reader need not see:

- `<!-- not run: REASON -->` it is parsed, not run;
- `<!-- run with: ARGUMENTS -->` trainings in it run with these overrides as well, which make them small;
- `<!-- before: PYTHON -->` what has happened before it.
"""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTHON = ("python", "py")
LANGUAGES = (*PYTHON, "bash", "json", "yaml", "text")
_SHELL = ("zsmld", "make", "python", "pip", "torchrun", "accelerate")
_MARK = re.compile(r"<!-- (not run|run with|before): (.*?) -->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A block of code: the file it stands in, the line it begins at, and what a comment before it says."""

    path: Path
    line: int
    language: str
    code: str
    indented: bool = False
    marks: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """Shell commands, one each; none of other languages."""
        if self.language != "bash":
            return []
        joined = self.code.replace("\\\n", " ")
        return [part.strip() for line in joined.splitlines() for part in line.split(" && ") if shlex.split(part, True)]


def pages() -> list[Path]:
    """Every page in docs/."""
    return sorted((ROOT / "docs").rglob("*.md"))


def guides() -> list[Path]:
    """Pages that are written by hand: not those that notebooks were rendered to, which run as notebooks."""
    return [path for path in pages() if "notebooks" not in path.parts[len(ROOT.parts) :]]


def readmes() -> list[Path]:
    """README.md in each language."""
    return [ROOT / "README.md", ROOT / "README.zh-CN.md"]


def notes() -> list[Path]:
    """What lies beside the datasets, the protocols and the sources, for those who work on them."""
    files = ("evaluation/protocols.md", "CONTRIBUTING.md", "SECURITY.md")
    return [*sorted(ROOT.glob("data/*/README.md")), *(ROOT / name for name in files)]


def blocks_of(path: Path) -> list[Block]:
    """Fenced blocks, and blocks that are indented by four; an empty line ends these, what follows is another."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found, number = [], 0
    while number < len(lines):
        start = number
        fence = re.match(r"(`{3,}|~{3,})(.*)", lines[number])
        if fence:
            number += 1
            while lines[number].rstrip() != fence[1]:
                number += 1
            code, language = lines[start + 1 : number], fence[2].strip()
            number += 1
        elif (
            lines[number].startswith("    ") and lines[number].strip() and (start == 0 or not lines[start - 1].strip())
        ):
            while number < len(lines) and lines[number].startswith("    ") and lines[number].strip():
                number += 1
            code = [line[4:] for line in lines[start:number]]
            language = "bash" if code[0].split()[0] in _SHELL else "text"
        else:
            number += 1
            continue
        text = "\n".join(code).rstrip() + "\n"
        found.append(Block(path, start + 1, language, text, not fence, _marks_before(lines, start)))
    return found


def program_arguments(command: str) -> list[str] | None:
    """The arguments of zsmld in a shell command, however it is started; None if it starts something else."""
    filled = re.sub(r"\$\(\(.*?\)\)|\$\w+", "1", command)  # variables of the shell, for which any number does
    words = shlex.split(filled, comments=True)
    if words[0] == "zsmld":
        return words[1:]
    if (
        words[0] in ("torchrun", "accelerate", "python")
        and "zsmld" in words
        and words[words.index("zsmld") - 1] == "-m"
    ):
        return words[words.index("zsmld") + 1 :]
    return None


def outside_code(path: Path) -> list[str]:
    """Lines that are no code."""
    lines = path.read_text(encoding="utf-8").splitlines()
    taken = set()
    for block in blocks_of(path):
        size = len(block.code.splitlines()) + (0 if block.indented else 2)
        taken |= set(range(block.line - 1, block.line - 1 + size))
    return [line for number, line in enumerate(lines) if number not in taken]


def tables_of(path: Path) -> list[list[list[str]]]:
    """Tables as rows of cells, without the rule below the head."""
    tables: list[list[list[str]]] = []
    for before, line in zip(["", *(lines := outside_code(path))], lines, strict=False):
        if line.startswith("|"):
            if not before.startswith("|"):
                tables.append([])
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                tables[-1].append(cells)
    return tables


def links_of(path: Path) -> list[str]:
    """Targets of links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", "\n".join(outside_code(path)))


def _marks_before(lines: list[str], start: int) -> dict[str, str]:
    """What comments on the lines directly above say."""
    end = start
    while start > 0 and lines[start - 1].strip():
        start -= 1
    return dict(_MARK.findall("\n".join(lines[start:end])))
