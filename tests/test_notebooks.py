"""The notebooks as they are kept: no outputs, public names only, links that lead somewhere, rendered pages of today.

They are run by tests/acceptance/test_notebooks.py.
"""

import ast
import base64
import importlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image
from scripts import load_script

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = ROOT / "docs" / "notebooks"
LINK = re.compile(r"\]\(([^)\s]+)\)")


@pytest.fixture(scope="module")
def rendering() -> Any:
    return load_script(ROOT / "evaluation" / "render_notebooks.py")


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request: pytest.FixtureRequest) -> Any:
    found = nbformat.read(request.param, as_version=4)
    found.path = request.param
    return found


def code_of(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


def text_of(notebook: Any) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]


def test_all_six_are_there() -> None:
    names = ["01_quickstart", "02_add_classes", "03_evaluate_zsl_gzsl", "04_train_on_your_photos"]
    assert [path.stem for path in NOTEBOOKS] == [*names, "05_query_augmentation", "06_nus_wide_and_coco"]


class TestEachNotebook:
    def test_is_valid_and_without_outputs(self, notebook: Any) -> None:
        nbformat.validate({key: value for key, value in notebook.items() if key != "path"})
        assert notebook.nbformat == 4 and set(notebook.metadata) == {"kernelspec", "language_info"}
        for cell in notebook.cells:
            assert not cell.metadata and not cell.get("attachments")
            if cell.cell_type == "code":
                assert cell.outputs == [] and cell.execution_count is None

    def test_opens_with_a_title_and_says_what_it_takes(self, notebook: Any) -> None:
        first = notebook.cells[0]
        assert first.cell_type == "markdown" and re.match(r"# \S", first.source)
        assert re.search(r"takes\s+about|in about", first.source) and "network" in first.source

    def test_ends_with_what_to_read_next(self, notebook: Any) -> None:
        last = notebook.cells[-1]
        assert last.cell_type == "markdown" and "\n## What to read next\n" in f"\n{last.source}"
        assert len(LINK.findall(last.source.split("## What to read next")[1])) >= 3

    def test_links_lead_somewhere(self, notebook: Any) -> None:
        links = LINK.findall("\n".join(text_of(notebook)))
        assert links
        missing = [link for link in links if ":" not in link and not (notebook.path.parent / link).is_file()]
        assert not missing

    def test_cells_are_small_and_have_a_heading_above(self, notebook: Any) -> None:
        assert max(len(source.splitlines()) for source in code_of(notebook)) <= 35
        headings = [source for source in text_of(notebook) if re.search(r"^#+ ", source, re.MULTILINE)]
        assert len(headings) >= 6

    def test_shows_plots(self, notebook: Any) -> None:
        assert sum("plt.subplots(" in source for source in code_of(notebook)) >= 2

    def test_code_takes_public_names_only(self, notebook: Any) -> None:
        imported: list[tuple[str, str]] = []
        for source in code_of(notebook):
            for node in ast.walk(ast.parse(source)):
                assert not (isinstance(node, ast.Attribute) and node.attr.startswith("_")), ast.unparse(node)
                if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == "zsmld":
                    imported += [(str(node.module), alias.name) for alias in node.names]
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "zsmld":
                    imported.append(("zsmld", node.attr))
        assert ("zsmld", "ZeroShotClassifier") in imported
        for module, name in imported:
            assert not any(part.startswith("_") for part in (*module.split("."), name)), f"{module}.{name}"
            found = importlib.import_module(module)
            assert name in getattr(found, "__all__", dir(found)), f"{module}.{name}"

    def test_works_outside_the_checkout(self, notebook: Any) -> None:
        code = "\n".join(code_of(notebook))
        assert not re.search(r"[\"'](?:/\w|\.\./|~)|sys\.path|shared/real", code), (
            "paths come from resource_path or runs/"
        )

    def test_page_shows_the_code_of_today(self, notebook: Any) -> None:
        page = (PAGES / f"{notebook.path.stem}.md").read_text(encoding="utf-8")
        shown = [match.strip("\n") for match in re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)]
        assert shown == [source.strip("\n") for source in code_of(notebook)], "run `make notebooks`"
        prose = re.sub(r"\s+", " ", LINK.sub("]()", page))
        for source in text_of(notebook):
            for paragraph in LINK.sub("]()", source).split("\n\n"):
                assert re.sub(r"\s+", " ", paragraph) in prose, f"run `make notebooks`: {paragraph[:60]}"


# ------------------------------------------------------------------------------------------------------ rendered pages


def pages() -> Iterator[tuple[Path, str]]:
    for path in sorted(PAGES.glob("*.md")):
        yield path, path.read_text(encoding="utf-8")


def test_pages_have_their_pictures_and_no_others() -> None:
    found = list(pages())
    assert [path.stem for path, _ in found] == [path.stem for path in NOTEBOOKS]
    for path, text in found:
        named = set(re.findall(r"\]\(([^)]+\.(?:png|jpg))\)|src=\"([^\"]+)\"", text))
        named_paths = {PAGES / (a or b) for a, b in named}
        there = set((PAGES / path.stem).iterdir())
        assert len(there) >= 2 and named_paths == there
        for link in LINK.findall(text):
            assert ":" in link or (PAGES / link).is_file(), f"{path.name} links to {link}"


def test_pages_are_small_and_tell_nothing_of_the_machine() -> None:
    files = [path for path in PAGES.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_500_000
    for path, text in pages():
        for sign in ("/tmp/", "/home/", "/root/", "/work/", "Traceback", "Warning", "data:image", "<style"):
            assert sign not in text, f"{path.name} has {sign}"


def data_url(colour: str) -> str:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def test_render_writes_pictures_as_files_and_keeps_links(rendering: Any, tmp_path: Path) -> None:
    picture = f'<img src="data:image/png;base64,{data_url("red")}">'
    table = f'<div><style scoped>td {{}}</style>\n<table border="1"></table>\n\n{picture}</div>'
    bar = "application/vnd.jupyter.widget-view+json"
    outputs = [
        new_output("stream", name="stdout", text="one  \n"),
        new_output("stream", name="stdout", text="two\n"),
        new_output("display_data", {"image/png": data_url("blue"), "text/plain": "<Figure>"}),
        new_output("execute_result", {"text/html": table, "text/plain": "table"}),
        new_output("execute_result", {"text/plain": "7"}),
        new_output("display_data", {bar: {"model_id": "a"}, "text/plain": "Encoding: 100%"}),
    ]
    links = "[a](../docs/a.md) [b](../evaluation/b.csv) [c](02_c.ipynb) [d](../data/d/README.md)"
    cells = [new_markdown_cell(f"# Title\n\n{links}"), new_code_cell("1 + 1", outputs=outputs), new_code_cell("x = 1")]
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "old.png").touch()
    page = rendering.render(new_notebook(cells=cells), "page", tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# Title\n\nWritten by `make notebooks`")
    assert "[a](../a.md) [b](../../evaluation/b.csv) [c](02_c.md) [d](../../data/d/README.md)" in text
    assert "```text\none\ntwo\n```" in text and "```text\n7\n```" in text and "```python\n1 + 1\n```" in text
    assert "Encoding" not in text
    assert "<Figure>" not in text and "style" not in text and "border" not in text and "data:" not in text
    files = sorted(path.name for path in (tmp_path / "page").iterdir())
    assert [name.rsplit(".", 1)[0] for name in files] == ["cell_01_1", "cell_01_2_0"]
    assert all(f"page/{name}" in text for name in files)
    colours = [Image.open(tmp_path / "page" / name).convert("RGB").getpixel((3, 3)) for name in files]
    assert all(
        abs(a - b) < 6
        for got, want in zip(colours, [(0, 0, 255), (255, 0, 0)], strict=True)
        for a, b in zip(got, want, strict=True)
    )
