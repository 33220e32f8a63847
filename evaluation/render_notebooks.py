"""Runs the notebooks, and writes what they show as pages of the documentation.

    python evaluation/render_notebooks.py                     # all of them: `make notebooks`
    python evaluation/render_notebooks.py 01_quickstart

Writes docs/notebooks/NAME.md, and its pictures into docs/notebooks/NAME/. Cost: a few minutes on two cores; no network.
The notebooks themselves are not changed: they are kept without outputs.
"""

import argparse
import base64
import io
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
_NOT_RUN = "<!-- not run: it stands in a notebook, which is run as a whole -->"
_DATA_URL = re.compile(r"data:image/(?:png|jpeg);base64,([A-Za-z0-9+/=]+)")


def execute(path: Path, seconds: int = 900) -> nbformat.NotebookNode:
    """The notebook with its outputs, run in a new folder, with the ways to the network closed.

    Args:
        path: of the notebook; the file is not changed.
        seconds: that one cell may take.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("ZSMLD_")},
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9"),
        "HF_HUB_OFFLINE": "1",
    }
    with tempfile.TemporaryDirectory() as folder:
        # A cache of its own, so that every run does all of its work.
        environment["ZSMLD_CACHE"] = str(Path(folder) / "cache")
        client = NotebookClient(notebook, timeout=seconds, resources={"metadata": {"path": folder}})
        client.execute(env=environment)
    return notebook


def render(notebook: nbformat.NotebookNode, name: str, output: Path) -> Path:
    """Write one page, with the pictures beside it.

    Args:
        notebook: executed.
        name: of the page and of the folder of its pictures.
        output: folder of the pages; what an earlier run wrote is replaced.

    Returns:
        The path of the page.
    """
    pictures = output / name
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    parts = []
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source.replace(".ipynb)", ".md)"))
            continue
        parts.append(f"{_NOT_RUN}\n```python\n{cell.source}\n```")
        outputs = _joined(cell.outputs)
        shown = (_output(one, pictures, f"cell_{number:02d}_{i}") for i, one in enumerate(outputs))
        parts += [text for text in shown if text]
    # On a page that stands one folder deeper, links to docs/ and to the rest of the repository are other ones.
    text = "\n\n".join(parts).replace("](../docs/", "](../").replace("](../data/", "](../../data/")
    text = text.replace("](../evaluation/", "](../../evaluation/")
    note = f"Written by `make notebooks`, which runs [{name}.ipynb](../../notebooks/{name}.ipynb)."
    title, _, rest = text.partition("\n")
    page = output / f"{name}.md"
    page.write_text(f"{title}\n\n{note}\n{rest}\n", encoding="utf-8")
    return page


def _joined(outputs: list[Any]) -> list[Any]:
    """Printed texts that follow each other as one: how they are divided depends on the moment."""
    joined: list[Any] = []
    for output in outputs:
        if joined and output.output_type == "stream" == joined[-1].output_type and output.name == joined[-1].name:
            joined[-1] = nbformat.from_dict({**joined[-1], "text": joined[-1].text + output.text})
        else:
            joined.append(output)
    return joined


def _output(output: Any, pictures: Path, stem: str) -> str:
    """One output as Markdown: pictures become files, HTML stays HTML, all else is text."""
    if output.output_type == "stream":
        return _text_block(output.text)
    data = output.get("data", {})
    if "application/vnd.jupyter.widget-view+json" in data:
        return ""  # a progress bar, which means nothing when it is over
    if "text/html" in data:
        found = iter(range(1000))

        def file(match: re.Match[str]) -> str:
            return _save(base64.b64decode(match[1]), pictures, f"{stem}_{next(found)}")

        html = re.sub(r"<style.*?</style>", "", data["text/html"], flags=re.DOTALL)  # that of pandas tables
        html = html.replace(' border="1"', "")
        return re.sub(r"\n\s*", "\n", _DATA_URL.sub(file, html)).strip()
    if "image/png" in data:
        return f"![What the cell shows]({_save(base64.b64decode(data['image/png']), pictures, stem)})"
    return _text_block(data.get("text/plain", ""))


def _text_block(text: str) -> str:
    text = "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
    return f"```text\n{text}\n```" if text else ""


def _save(content: bytes, pictures: Path, stem: str) -> str:
    """Save a picture, a plot as PNG of few colours and a photo as JPEG; its path from the page."""
    image, buffer = Image.open(io.BytesIO(content)).convert("RGB"), io.BytesIO()
    is_photo = image.getcolors(4096) is None
    if is_photo:
        image.save(buffer, "JPEG", quality=85, optimize=True)
    else:
        image.quantize(128, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    path = pictures / f"{stem}.{'jpg' if is_photo else 'png'}"
    path.write_bytes(buffer.getvalue())
    return f"{pictures.name}/{path.name}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="of notebooks, default all")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "notebooks")
    options = parser.parse_args()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        if not options.names or path.stem in options.names:
            print(render(execute(path), path.stem, options.output), flush=True)


if __name__ == "__main__":
    main()
