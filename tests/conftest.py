"""Fixtures shared by all tests. Nothing here, and no test, touches the network or the user's cache."""

import json
import os

# Both before the libraries are imported. A test that needs the Hub fails at once; on a busy machine, two threads that
# wait for each other make tiny networks twenty times slower than one.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from PIL import Image

settings.register_profile(  # the machine is shared: no deadlines, and every run draws the same examples
    "zsmld", deadline=None, max_examples=40, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("zsmld")

ROOT = Path(__file__).resolve().parent.parent
WORDS = ("dog", "cat", "red car", "beach", "boat", "tree", "snow", "bird", "zebra", "lamp", "kite", "cup")
TEXT_DIM = 16


@pytest.fixture(scope="session", autouse=True)
def isolated_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Word embeddings are cached in a folder of this session, never in the user's."""
    folder = tmp_path_factory.mktemp("zsmld_cache")
    patch = pytest.MonkeyPatch()
    patch.setenv("ZSMLD_CACHE", str(folder))
    yield folder
    patch.undo()


@pytest.fixture(scope="session")
def real() -> Path:
    """Real photos, weights and vectors beside the checkout; a test that asks for them skips where they are absent."""
    folder = ROOT.parent / "shared" / "real"
    if not folder.is_dir():
        pytest.skip(f"needs the real material of {folder}")
    return folder


@pytest.fixture(scope="session")
def vectors_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A word-vector file with random vectors of `WORDS`."""
    return write_vectors(tmp_path_factory.mktemp("vectors") / "words.npz", WORDS)


def write_vectors(path: Path, words: tuple[str, ...], seed: int = 0) -> Path:
    """Random vectors (N, 16) of words, as a .npz file."""
    vectors = np.random.default_rng(seed).standard_normal((len(words), TEXT_DIM)).astype(np.float32)
    np.savez(path, words=np.array(words), embeddings=vectors)
    return path


@pytest.fixture(scope="session")
def make_vectors() -> Callable[..., Path]:
    """`write_vectors`, for tests that need a file of their own."""
    return write_vectors


@pytest.fixture(scope="session")
def make_model(vectors_path: Path) -> Callable[..., Any]:
    """Factory of tiny models with random weights: `make_model(seed=0, remember=True, **create_model's options)`.

    The encoder is timm's test_resnet at 64 px (a 2 x 2 map of 96 channels). A word model remembers the first six of
    `WORDS`, the first four of them seen, unless `remember` is False.
    """
    import torch

    from zsmld import ImageEncoder, Vocabulary, create_model

    def make(seed: int = 0, remember: bool = True, num_classes: int | None = None, **options: Any) -> Any:
        options = {"decoder_dim": 32, "num_heads": 4, "feedforward_dim": 64} | options
        text_encoder = None if num_classes else options.pop("text_encoder", f"vectors:{vectors_path}")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            encoder = ImageEncoder("timm:test_resnet", pretrained=False, image_size=64)
            model = create_model(encoder, text_encoder, num_classes=num_classes, **options).eval()
        if remember and num_classes is None:
            vocabulary = Vocabulary(WORDS[:6], seen=WORDS[:4])
            model.remember_words(vocabulary, model.encode_words(vocabulary))
        return model

    return make


@pytest.fixture(scope="module")
def model_folder(make_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved `make_model()`, for the tests of one file."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    make_model().save_pretrained(folder)
    return folder


@pytest.fixture
def images() -> list[Image.Image]:
    """Seven random pictures of different sizes."""
    rng = np.random.default_rng(0)
    sizes = [(80, 60), (64, 64), (50, 90), (70, 70), (65, 33), (120, 40), (64, 65)]
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder with `images/`, `photos.csv` (24 rows of one or two of the first six words) and `partition.json`."""
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(1)
    rows = ["image,labels"]
    for i in range(24):
        words = sorted({WORDS[i % 6], WORDS[(i * 5 + 1) % 6]})
        name = f"{i:03d}.png"
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / "images" / name)
        rows.append(f"{name},{'|'.join(words)}")
    (folder / "photos.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    partition = {"seen": list(WORDS[:4]), "unseen": list(WORDS[4:6])}
    (folder / "partition.json").write_text(json.dumps(partition), encoding="utf-8")
    return folder
