"""The documentation is built as it is published, loads nothing from elsewhere, and every block of code in it runs."""

import contextlib
import functools
import http.server
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from documents import PYTHON, ROOT, Block, blocks_of, guides, program_arguments, readmes

import zsmld
from zsmld.cli import main
from zsmld.resources import resource_path

# --------------------------------------------------------------------------------------------------------- the website


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors and with every way to the network closed."""
    folder = tmp_path_factory.mktemp("site")
    closed = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, **closed, "HF_HUB_OFFLINE": "1", "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stderr
    return folder


def test_nothing_is_loaded_from_other_hosts(site: Path) -> None:
    pages, styles = sorted(site.rglob("*.html")), sorted(site.rglob("*.css"))
    assert len(pages) >= 60 and styles
    loads = re.compile(
        r"<(?:script|img|iframe|source|video|embed)\b[^>]*\bsrc=[\"']?(?:https?:)?//[^\"' >]+|<link\b[^>]*>"
    )
    for path in pages:
        for tag in loads.findall(path.read_text(encoding="utf-8")):
            outside = (
                tag if not tag.startswith("<link") else "".join(re.findall(r"href=[\"']?(?:https?:)?//[^\"' >]+", tag))
            )
            assert not outside, f"{path.relative_to(site)}: {tag}"
    for path in styles:
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"(?:url\(|@import\s+)[\"']?(?:https?:)?//[^)\"']+", text), path.relative_to(site)


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    """mkdocs checks the Markdown; this checks what became of it, generated pages and anchors included."""
    ids: dict[Path, set[str]] = {}
    for path in site.rglob("*.html"):
        ids[path.resolve()] = set(re.findall(r"\bid=\"?([^\s\">]+)", path.read_text(encoding="utf-8")))
    wrong = []
    for path in ids:
        if path.name == "404.html":  # its links start at the root of the host
            continue
        for href in set(re.findall(r"<a\b[^>]*\bhref=\"?([^\s\">]+)", path.read_text(encoding="utf-8"))):
            target, _, anchor = href.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            file = (path.parent / target).resolve() if target else path
            file = file / "index.html" if file.is_dir() else file
            if not file.is_file() or (anchor and file in ids and anchor not in ids[file] and anchor != "__skip"):
                wrong.append(f"{path.relative_to(site)} -> {href}")
    assert not wrong


def test_reference_has_every_public_name_and_all_that_modules_export(site: Path) -> None:
    lines = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode().splitlines()
    names = {line.split(" ", 1)[0] for line in lines}
    wanted = {f"zsmld.{module}.{name}" for name, module in zsmld._PUBLIC.items()}
    for block in (block for path in guides() for block in blocks_of(path) if block.language in PYTHON):
        for module, imported in re.findall(r"^from (zsmld\.[\w.]+) import ([\w, ]+)$", block.code, re.MULTILINE):
            wanted |= {f"{module}.{name.strip()}" for name in imported.split(",")}
    assert len(wanted) >= 25 and wanted <= names, sorted(wanted - names)


def test_the_site_in_a_browser(site: Path) -> None:
    """Chromium asks no other host, logs no error, shows the figures and finds words."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("needs chromium and chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    shown = "return [...document.images].every(image => image.complete && image.naturalWidth > 0)"
    found = "return [...document.querySelectorAll('.md-search-result__item')].map(item => item.innerText).join()"
    handler = functools.partial(QuietHandler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        home = f"http://127.0.0.1:{server.server_address[1]}/"
        chrome = webdriver.Chrome(options=options, service=Service(driver))
        try:
            for page in ("concepts/two_lines.html", "concepts/protocols.html", "reproduce/index.html"):
                chrome.get(home + page)
                WebDriverWait(chrome, 30).until(lambda window: window.execute_script(shown))
            chrome.get(home + "index.html?q=thresholds")
            WebDriverWait(chrome, 60).until(lambda window: "threshold" in window.execute_script(found))
            asked = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
            urls = [e["params"]["request"]["url"] for e in asked if e["method"] == "Network.requestWillBeSent"]
            assert len(urls) >= 8
            assert not [url for url in urls if not url.startswith((home, "data:", "blob:"))]
            assert not [entry["message"] for entry in chrome.get_log("browser") if "favicon" not in entry["message"]]
        finally:
            chrome.quit()
            server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *values: Any) -> None:
        """Nothing: pytest shows what fails."""


# --------------------------------------------------------------------------------------------------- the blocks of code

# README has no comments that say what can run; of its commands these can, where the files below are.
OF_README = (
    'zsmld predict new_photos/ --model runs/custom/model --words "dog,beach,red car" --output tags.jsonl',
    "zsmld calibrate runs/custom/model",
    "zsmld predict photos/ --model runs/custom/model --threshold calibrated",
)


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What readers are told to have: photos, a table of words, a partition, a model, tar shards, a list of words."""
    folder = tmp_path_factory.mktemp("reader") / "things"
    scenes = zsmld.build_dataset("scenes", split="train", num_images=60)
    rows = ["image,labels"]
    for number in range(len(scenes)):
        for place in ("images", "photos", "new_photos")[: 3 if number < 4 else 1]:
            (folder / place).mkdir(parents=True, exist_ok=True)
            scenes[number]["image"].save(folder / place / f"{number:03d}.png")
        there = [word for word, target in zip(scenes.vocabulary, scenes[number]["targets"], strict=True) if target == 1]
        rows.append(f"{number:03d}.png,{'|'.join(sorted({part for word in there for part in word.split()}))}")
    (folder / "photos.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    words = sorted({word for row in rows[1:] for word in row.split(",")[1].split("|")})
    partition = {"seen": words[:-4], "unseen": words[-4:]}
    (folder / "partition.json").write_text(json.dumps(partition), encoding="utf-8")
    shutil.copytree(resource_path("data", "scenes", "model"), folder / "runs" / "custom" / "model")
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards" / "000.tar", "w") as archive:
        for path in sorted((folder / "photos").iterdir()):
            archive.add(path, path.name)
    (folder / "words.txt").write_text("red star\nblue ring\n", encoding="utf-8")
    model = zsmld.ZeroShotClassifier.from_pretrained(folder / "runs" / "custom" / "model")
    test = zsmld.build_dataset("scenes", split="test", num_images=40)
    for run, templates in (("a", test.vocabulary.templates), ("b", ["{}"])):
        test.vocabulary = zsmld.Vocabulary(test.vocabulary.words, test.vocabulary.seen, templates=templates)
        zsmld.Evaluator("scenes_gzsl", device="cpu").evaluate(model, test).save(folder / "runs" / run / "report")
    with contextlib.chdir(folder):
        for number in "12":
            shard = f"--output machine{number}/tags.jsonl --shard {number}/2"
            run_command(f"zsmld predict photos/ --model runs/custom/model {shard}")
    return folder


@pytest.fixture
def reader(things: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of a reader, who has everything and stands in it."""
    folder = tmp_path / "reader"
    shutil.copytree(things, folder)
    monkeypatch.chdir(folder)
    yield folder


@pytest.mark.parametrize("path", guides(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_python_of_a_guide_runs(path: Path, reader: Path) -> None:
    """Block after block in one session, as a reader would who types them."""
    session: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(path):
        if block.language in PYTHON and "not run" not in block.marks:
            source = block.marks.get("before", "") + "\n" * block.line + block.code
            exec(compile(source, str(block), "exec"), session)


SHELL = [
    block for path in guides() for block in blocks_of(path) if block.language == "bash" and "not run" not in block.marks
]


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_of_a_guide_run(block: Block, reader: Path) -> None:
    """One command after the other; those of a block share a folder."""
    for command in block.commands:
        run_command(command, block.marks.get("run with", ""))


def test_commands_of_readme_run(reader: Path) -> None:
    written = [command for path in readmes() for block in blocks_of(path) for command in block.commands]
    for command in OF_README:
        assert sum(found.split("#")[0].strip() == command for found in written) == 2, (
            f"both READMEs must have: {command}"
        )
        run_command(command)


def test_enough_runs() -> None:
    """Comments that keep blocks from running have not become the rule."""
    blocks = [block for path in guides() for block in blocks_of(path)]
    python = ["not run" in block.marks for block in blocks if block.language in PYTHON]
    shell = ["not run" in block.marks for block in blocks if block.language == "bash"]
    assert len(python) >= 15 and sum(python) <= 0.2 * len(python)
    assert len(shell) >= 30 and sum(shell) <= 0.4 * len(shell)
    assert all(len(block.marks["not run"]) >= 10 for block in blocks if "not run" in block.marks)


def run_command(command: str, small: str = "") -> None:
    if "$" in command:  # what the shell of a cluster's job makes of it
        job = {**os.environ, "SLURM_PROCID": "1", "SLURM_NTASKS": "4"}
        shell = ["bash", "-euc", f"printf '%s\\0' {command}"]
        words = subprocess.run(shell, env=job, capture_output=True, text=True, check=True, timeout=60).stdout
        command = shlex.join(words.split("\0")[:-1])
    arguments = program_arguments(command)
    assert arguments is not None, f"only zsmld runs here; mark what does not: {command}"
    if arguments[0] == "train":
        arguments += small.split()
    if command.startswith("torchrun "):
        run_in_two_processes(arguments)
        return
    try:
        status = main(arguments)
    except SystemExit as left:  # the parser leaves the program
        pytest.fail(f"{command}: left with {left.code}")
    assert status == 0, command


def run_in_two_processes(arguments: list[str]) -> None:
    """What torchrun starts on eight GPUs, as two processes on the CPU."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "zsmld"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(launch + arguments, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
