"""The documentation, without building it: every page is in the nav, links resolve, blocks parse, tables are current."""

import argparse
import ast
import json
import posixpath
import re
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from documents import (
    PYTHON,
    ROOT,
    Block,
    blocks_of,
    guides,
    links_of,
    notes,
    outside_code,
    pages,
    program_arguments,
    readmes,
    tables_of,
)
from scripts import load_script

from zsmld.cli.arguments import build_parser
from zsmld.recipe import Recipe, recipe_names
from zsmld.report.published import read_published

BLOCKS = [block for path in (*readmes(), *guides(), *notes()) for block in blocks_of(path)]


def hook(name: str) -> ModuleType:
    """A file of docs/hooks, or docs/images, as mkdocs loads it."""
    return load_script(ROOT / "docs" / name, f"docs_{Path(name).stem}")


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    return hook("hooks/reference.py")


@pytest.fixture(scope="module")
def figures() -> ModuleType:
    return hook("hooks/figures.py")


@pytest.fixture(scope="module")
def nav(reference: ModuleType) -> list[str]:
    """Every path of the nav, names with a `*` as what they stand for."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    repository = hook("hooks/repository.py")
    entries = repository._expanded(reference._with_modules(yaml.safe_load(text)["nav"]))
    return list(repository._named(entries))


# ----------------------------------------------------------------------------------------------------- pages and links


def test_every_page_is_in_the_nav_once(nav: list[str]) -> None:
    there = {path.relative_to(ROOT / "docs").as_posix() for path in pages()}
    assert len(there) >= 25
    assert there <= set(nav), f"not in nav of mkdocs.yml: {sorted(there - set(nav))}"
    assert len(set(nav)) == len(nav)
    reports = {path.relative_to(ROOT).as_posix() for path in (ROOT / "evaluation" / "reports").glob("*.md")}
    assert len(reports) >= 12 and reports <= set(nav)


def test_everything_in_the_nav_is_there(nav: list[str]) -> None:
    missing = [path for path in nav if not path.startswith("reference/modules/")]
    missing = [path for path in missing if not (ROOT / "docs" / path).is_file() and not (ROOT / path).is_file()]
    assert not missing


@pytest.mark.parametrize("path", [*readmes(), *pages(), *notes()], ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_resolve(path: Path, nav: list[str]) -> None:
    for link in links_of(path):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        file = (path.parent / target).resolve() if target else path
        page = posixpath.relpath(file, ROOT / "docs")
        assert file.exists() or page in nav, f"{path.name} links to {link}"
        if anchor and file.suffix == ".md" and file.exists():
            titles = [
                re.sub(r"[^\w -]", "", line.lstrip("#").strip().lower())
                for line in outside_code(file)
                if line[:1] == "#"
            ]
            assert anchor in [title.replace(" ", "-") for title in titles], f"{path.name} links to {link}"


# ---------------------------------------------------------------------------------------------------------- code blocks


def test_blocks_are_found() -> None:
    languages = [block.language for block in BLOCKS]
    assert languages.count("bash") >= 30 and sum(language in PYTHON for language in languages) >= 20


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_block_is_what_it_says(block: Block) -> None:
    """Python compiles, JSON and YAML can be read, commands are those of the parser, other languages say why not run."""
    assert not block.indented or block.path in readmes(), "write ```bash, ```python, … so that its language is known"
    assert set(block.marks) <= {"not run", "run with", "before"} and all(block.marks.values())
    if block.language in PYTHON:
        compile(block.marks.get("before", "").strip() + "\n" + block.code, str(block), "exec")
    elif block.language == "bash":
        assert block.commands
        for command in block.commands:
            check_command(command)
    elif block.language == "json":
        json.loads(block.code)
    elif block.language == "yaml":
        content = yaml.safe_load(block.code)
        if {"image_encoder", "trainer", "decoder"} & set(content):  # a part of a recipe: its keys and values are right
            Recipe.from_dict({"dataset": {"name": "scenes"}, "image_encoder": {"spec": "timm:resnet50"}} | content)
    else:
        assert block.language == "text" or "not run" in block.marks, (
            f"{block.language} must be marked <!-- not run: … -->"
        )


def check_command(command: str) -> None:
    arguments = program_arguments(command)
    words = command.split()
    if arguments is not None:
        options = parsed(arguments)
        if getattr(options, "verb", None) == "train" and options.recipe in recipe_names():
            Recipe.load(options.recipe, options.overrides)
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(words[1:2]) <= set(targets), f"no target of the Makefile: {command}"
    elif words[0] == "python" and words[1].startswith(("evaluation/", "docs/")):
        script = (ROOT / words[1]).read_text(encoding="utf-8")
        assert all(f'"{word}"' in script for word in words[2:] if word.startswith("--")), command
    elif words[:2] == ["python", "exported/score.py"]:  # `zsmld export` writes it
        assert "score.py" in (ROOT / "zsmld" / "export" / "__init__.py").read_text(encoding="utf-8")
    elif words[:2] == ["pip", "install"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        named = re.findall(r"\[([\w,]+)\]", command)
        assert {extra for group in named for extra in group.split(",")} <= set(extras), command
    elif words[:2] == ["pre-commit", "install"]:
        assert (ROOT / ".pre-commit-config.yaml").is_file()
    else:
        pytest.fail(f"not known here, so nobody checks it: {command}")


def parsed(arguments: list[str]) -> argparse.Namespace:
    """What the parser of zsmld makes of arguments; it leaves the program where they are wrong."""
    options, rest = build_parser().parse_known_args(arguments)
    assert all(hasattr(options, "overrides") and "=" in word and not word.startswith("-") for word in rest), rest
    if rest:
        options.overrides += rest
    return options


def test_a_wrong_command_is_found() -> None:
    for command in ("zsmld predict --modle m photos/", "zsmld trian custom", "zsmld recipes x=1"):
        with pytest.raises((SystemExit, AssertionError)):
            check_command(command)
    with pytest.raises(ValueError, match=r"did you mean"):
        check_command("zsmld train custom trainer.epoch=3")
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check_command("python evaluation/scenes_zsl.py --modle m")


def test_options_in_the_text_exist() -> None:
    """`trainer.lr` names a key, `trainer.lr=1e-4 prior=null` changes that a recipe takes: wherever a guide says so."""
    names = ("custom", "nus_wide_zsl", "coco_supervised_resnet50")
    written = [yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text(encoding="utf-8")) for name in names]
    known = [yaml.safe_load(Recipe.load(name).to_yaml()) for name in names]
    sections = {section for content in known for section in content}
    keys, values = set(), set()
    for path in guides():
        for code in re.findall(r"`([^`\n]+)`", "\n".join(outside_code(path))):
            named = re.fullmatch(r"(\w+)\.(\w+)", code)
            if named and named[1] in sections - {"dataset", "features", "prior"}:
                keys.add((path.name, named[1], named[2]))
            are_changes = all("=" in change and re.split(r"[.=]", change)[0] in sections for change in code.split())
            if are_changes and not re.search(r"…|\"|FILE|FOLDER|=\[?\w+,", code):
                values.add(code)
    assert len(keys) >= 20 and len(values) >= 20
    for name, section, key in sorted(keys):
        assert any(key in (content.get(section) or {}) for content in known), f"{name}: {section}.{key}"
    wrong = [code for code in sorted(values) if not any(accepts(content, code.split()) for content in written)]
    assert not wrong


def accepts(content: dict[str, Any], changes: list[str]) -> bool:
    try:
        Recipe.from_dict(content, changes)
    except ValueError:
        return False
    return True


# ------------------------------------------------------------------------------------------------------ generated pages


def test_command_line_page_has_every_option(reference: ModuleType) -> None:
    page = reference.verbs()
    verbs: Any = next(a for a in build_parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert len(verbs.choices) >= 8
    for name, verb in verbs.choices.items():
        section = page.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for action in verb._actions:
            wanted = action.option_strings or [action.metavar or action.dest]
            assert action.dest == "help" or all(f"`{word}" in section for word in wanted), f"{name} {wanted}"
        assert "%(" not in section and "```bash" in section and (verb.description or "")[1:] in section


def test_examples_of_the_command_line_parse(reference: ModuleType) -> None:
    commands = re.findall(r"^(?:zsmld|torchrun) .*", reference.verbs(), re.MULTILINE)
    assert len(commands) >= 15
    for command in commands:
        check_command(command)


def test_every_module_has_its_page(reference: ModuleType) -> None:
    names = reference.module_names()
    assert {"predictor", "evaluator", "trainer", "metrics", "decoder", "interop"} <= set(names) and len(names) >= 20
    for name in names:
        assert f"::: zsmld.{name}\n" in reference.module_page(name)
    for name, parts in reference.PARTS.items():
        for part in parts:
            folder = ROOT / "zsmld" / name
            assert (folder / f"{part}.py").is_file() or (folder / part).is_dir(), f"{name}.{part}"


def test_parts_that_guides_import_have_a_section(reference: ModuleType) -> None:
    """A guide shows `from zsmld.a.b import c`: the reference must have c, on the page of zsmld.a."""
    imported = set()
    for block in BLOCKS:
        if block.language in PYTHON and block.path.is_relative_to(ROOT / "docs"):
            for node in ast.walk(ast.parse(block.code)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zsmld."):
                    imported.add(node.module)
    assert len(imported) >= 8
    modules = {f"zsmld.{name}" for name in reference.module_names()}
    parts = {f"zsmld.{name}.{part}" for name, parts in reference.PARTS.items() for part in parts}
    assert imported <= modules | parts


def test_published_figures_and_recipes(figures: ModuleType) -> None:
    """Each figure of ML-Decoder has its recipe (but Open Images), others have none, and none is called reproduced."""
    for figure in read_published():
        recipe = figures.recipe_of(figure)
        ours = figure.method.startswith("ML-Decoder") and figure.dataset != "open_images"
        assert (recipe is not None) == ours, figure.method
        assert recipe is None or not figures.reproduced(recipe)
    table = figures.published_table()
    assert all(figure.printed in table and figure.method in table for figure in read_published())
    rows = [line.split(" | ") for line in table.splitlines()[2:]]
    assert all(len(row) == 6 and re.match(r"(yes|no: .+)$", row[4]) for row in rows)
    assert all(f"### {name}\n" in figures.recipe_table() for name in recipe_names())


def test_every_report_names_the_command_that_wrote_it(figures: ModuleType) -> None:
    reports = sorted((ROOT / "evaluation" / "reports").glob("*.md"))
    assert len(reports) >= 12
    for path in reports:
        check_command(figures.report_command(path))
        assert path.name in figures.report_table()


def test_pictures_are_what_their_script_draws(tmp_path: Path) -> None:
    draw = hook("images/draw.py")
    draw.FOLDER = tmp_path
    draw.main()
    drawn = sorted(tmp_path.glob("*.svg"))
    assert len(drawn) == 2
    for path in drawn:
        there = (ROOT / "docs" / "images" / path.name).read_text(encoding="utf-8")
        texts = [re.findall(r"<text[^>]*>([^<]*)</text>", svg) for svg in (path.read_text(encoding="utf-8"), there)]
        assert len(texts[0]) >= 8 and texts[0] == texts[1], f"run python docs/images/draw.py: {path.name}"


# ------------------------------------------------------------------------------------------------------- README, twice


def test_readme_in_both_languages() -> None:
    """The same headings, code, tables, pictures and links; only the language differs."""
    english, chinese = readmes()
    assert chinese.name in links_of(english) and english.name in links_of(chinese)
    levels = [
        [len(line) - len(line.lstrip("#")) for line in outside_code(path) if line.startswith("#")] for path in readmes()
    ]
    assert levels[0] == levels[1] and len(levels[0]) >= 9
    codes = [[without_comments(block.code) for block in blocks_of(path)] for path in readmes()]
    assert codes[0] == codes[1] and len(codes[0]) >= 8
    tables = [tables_of(path) for path in readmes()]
    assert [[len(table), len(table[0])] for table in tables[0]] == [[len(table), len(table[0])] for table in tables[1]]
    for ours, theirs in zip(*tables, strict=True):
        for row, other in zip(ours, theirs, strict=True):
            assert [numbers(cell) for cell in row] == [numbers(cell) for cell in other], row
    own = {chinese.name, english.name}
    links = [sorted(set(links_of(path)) - own) for path in readmes()]
    assert links[0] == links[1]
    assert sorted(set(numbers(" ".join(outside_code(english))))) == sorted(
        set(numbers(" ".join(outside_code(chinese))))
    )


def test_readme_in_chinese_is_chinese() -> None:
    text = "\n".join(outside_code(readmes()[1]))
    assert len(re.findall(r"[\u4e00-\u9fff]", text)) > 1500
    assert not re.findall(r"[\u4e00-\u9fff],|[\u4e00-\u9fff]\. ", text), "full-width punctuation after Chinese"


def numbers(text: str) -> list[str]:
    """Figures of a text, without separators of thousands."""
    return [
        found.replace(",", "") for found in re.findall(r"\d[\d,]*(?:\.\d+)?", re.sub(r"\]\([^)]*\)|`[^`]*`", "", text))
    ]


def without_comments(code: str) -> str:
    """Code as it runs: comments may be translated."""
    return "\n".join(re.sub(r"\s*#.*|\s+$", "", line) for line in code.splitlines())
