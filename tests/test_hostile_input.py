"""Files made to do harm, and words that others stumble over: refused in a sentence, or taken as what they are."""

import csv
import io
import json
import os
import pickle
import sys
import zipfile
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from zsmld import Predictor, TextEncoder, Vocabulary, ZeroShotClassifier
from zsmld.cli import main
from zsmld.datasets.nus_wide.official import _pickled_names
from zsmld.datasets.open_images import _pickled_mids
from zsmld.evaluator import read_matrix
from zsmld.interop.checkpoint_files import read_arrays, read_checkpoint
from zsmld.interop.vector_arrays import read_classes
from zsmld.predictor.prediction import Prediction
from zsmld.predictor.records import table_of, write_records
from zsmld.reading import digest_of, read_torch
from zsmld.recipe import Recipe
from zsmld.report.scores_file import ScoresFile, read_scores, write_scores
from zsmld.trainer.checkpoint import load_state

# ------------------------------------------------------------------------------------------------------------- pickles

MARK = "ran.txt"  # in the working folder


class Calls:
    """A pickle that calls something when it is read."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


def evils() -> dict[str, Any]:
    touch = f"open({MARK!r}, 'w').close()"
    call = Calls(eval, touch)
    return {
        "os.system": Calls(os.system, f"touch {MARK}"),
        "eval": call,
        "exec": Calls(exec, touch),
        "getattr": Calls(getattr, "a", "upper"),
        "an array of objects": np.array([call], dtype=object),
        "deep inside": {"state_dict": [{"a": (1, [call])}]},
        "beside a tensor": {"state_dict": {"a": torch.zeros(1)}, "args": call},
        "as a key": {frozenset([1]): call},
    }


def as_npz(content: Any) -> bytes:
    file = io.BytesIO()
    objects = np.empty(1, dtype=object)
    objects[0] = content
    np.savez(file, words=objects, embeddings=objects, scores=objects)
    return file.getvalue()


def as_npy(content: Any) -> bytes:
    file = io.BytesIO()
    objects = np.empty(1, dtype=object)
    objects[0] = content
    np.save(file, objects)
    return file.getvalue()


def as_torch(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def vectors(path: Path) -> None:
    TextEncoder(f"vectors:{path}").encode_words(["dog"])


# Everything that reads a file which could hold a pickle: its name, how one gets in, and what reads it.
DOORS: dict[str, tuple[str, Callable[[Any], bytes], Callable[[Path], Any]]] = {
    "scores.npy": ("s.npy", as_npy, read_matrix),
    "scores.npz": ("s.npz", as_npz, read_matrix),
    "scores.pt": ("s.pt", as_torch, read_matrix),
    "scores.pth": ("s.pth", pickle.dumps, read_matrix),
    "vectors.npz": ("v.npz", as_npz, vectors),
    "vectors.pt": ("v.pt", as_torch, vectors),
    "a pickle as vectors.npz": ("v.npz", pickle.dumps, vectors),
    "weights.pth": ("w.pth", as_torch, read_checkpoint),
    "weights.pt of old": ("w.pt", pickle.dumps, read_checkpoint),
    "weights.pdparams": ("w.pdparams", pickle.dumps, read_checkpoint),
    "a pickle as weights.safetensors": ("w.safetensors", pickle.dumps, read_checkpoint),
    "arrays.pkl": ("a.pkl", pickle.dumps, read_arrays),
    "classes.pickle": ("c.pickle", pickle.dumps, read_classes),
    "checkpoint.pt": ("checkpoint.pt", as_torch, load_state),
    "a report's scores": ("s.npz", as_npz, lambda path: read_scores(path, digest_of(path))),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("evil", evils())
def test_no_pickle_runs(door: str, evil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    name, write, read = DOORS[door]
    (tmp_path / name).write_bytes(write(evils()[evil]))
    with pytest.raises(ValueError, match=r"must") as caught:
        read(tmp_path / name)
    assert name in str(caught.value) and not (tmp_path / MARK).exists()


@pytest.mark.parametrize("evil", evils())
def test_no_pickle_of_a_download_runs(evil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    problems: list[str] = []
    (tmp_path / "img_names.pkl").write_bytes(pickle.dumps(evils()[evil]))
    assert _pickled_names(tmp_path / "img_names.pkl", problems) == []
    assert len(problems) == 1 and "img_names.pkl must be a pickle of" in problems[0]
    assert _pickled_mids(pickle.dumps(evils()[evil])) == []
    assert not (tmp_path / MARK).exists()


def test_the_pickles_would_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above say nothing."""
    monkeypatch.chdir(tmp_path)
    for evil in ("os.system", "eval", "exec", "an array of objects", "deep inside"):
        pickle.loads(pickle.dumps(evils()[evil]))
        (tmp_path / MARK).unlink()


# ------------------------------------------------------------------------------------- small files of enormous content


def test_a_tensor_that_is_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    huge = torch.zeros(1).expand(10**6, 10**6)
    for name, content in {
        "s.pt": {"scores": huge},
        "v.pt": {"classes": ["dog"], "a": huge},
        "w.pth": {"a": huge},
    }.items():
        torch.save(content, tmp_path / name)
    for name, read in {"s.pt": read_matrix, "v.pt": vectors, "w.pth": read_checkpoint}.items():
        with pytest.raises(ValueError, match=r"tensor \(1000000, 1000000\) of 4 stored bytes"):
            read(tmp_path / name)
    torch.save([torch.zeros(6).view(2, 3).T, torch.zeros(8)[2:4]], tmp_path / "good.pt")  # parts of what is stored
    assert [tuple(tensor.shape) for tensor in read_torch(tmp_path / "good.pt")] == [(3, 2), (2,)]


def claims() -> dict[str, tuple[str, Any, str]]:
    """What pickles of arrays can claim in a few bytes: the reader, the content and the reason of the refusal."""
    shape, dtype = (2 * 10**9,), np.dtype("u1")
    rebuild = np.empty(0).__reduce__()[0]

    def filled(shape: Any, dtype: np.dtype, data: Any) -> Any:
        return Calls(rebuild, np.ndarray, (0,), b"b", state=(1, shape, dtype, False, data))

    quantized = torch.quantize_per_tensor(torch.zeros(1), 1.0, 0, torch.qint8).expand(20_000, 20_000)
    size, data = "it makes an array of a size without its data", "it has an array .* stored parts"
    return {
        "a size": ("w.pdparams", {"w": Calls(np.ndarray, shape, "u1")}, size),
        "a size, of objects": ("w.pdparams", {"w": Calls(np.ndarray, shape, "O")}, size),
        "strides of 0": ("w.pdparams", {"w": Calls(np.ndarray, (40_000, 50_000), "u1", b"abcd", 0, (0, 0))}, size),
        "too little data": ("w.pdparams", {"w": filled(shape, dtype, b"abcd")}, data),
        "numbers without bytes": ("w.pdparams", {"w": filled(shape, np.dtype("V0"), b"")}, data),
        "too few objects": ("w.pdparams", {"w": filled((9,), np.dtype("O"), ["a"])}, data),
        "negative sizes": ("w.pdparams", {"w": filled((-2, -2), dtype, b"abcd")}, data),
        "a long number": ("w.pdparams", {"w": Calls(SCALAR, np.dtype("V2000000000"), b"")}, "not as long as its data"),
        "a number alone": ("w.pdparams", {"w": Calls(SCALAR, np.dtype("V2000000000"))}, "cannot read it"),
        "in a torch file": ("w.pth", {"a": torch.zeros(2), "args": Calls(np.ndarray, shape, "u1")}, size),
        "data in a torch file": ("w.pth", {"a": torch.zeros(2), "args": filled(shape, dtype, b"abcd")}, data),
        "quantized": ("w.pth", {"a": quantized}, r"tensor \(20000, 20000\) of 1 stored bytes"),
        "in the settings": ("w.pth", {"args": Namespace(a=torch.zeros(1).expand(9, 9))}, "tensor .* of 4 stored bytes"),
    }


SCALAR = np.float64(0).__reduce__()[0]


@pytest.mark.filterwarnings("ignore:.*quantize")
@pytest.mark.parametrize("claim", claims())
def test_an_array_that_is_larger_than_its_pickle_is_refused(claim: str, tmp_path: Path) -> None:
    name, content, reason = claims()[claim]
    (tmp_path / name).write_bytes(as_torch(content) if name == "w.pth" else pickle.dumps(content))
    with a_gibibyte_more(), pytest.raises(ValueError, match=reason):
        read_checkpoint(tmp_path / name)


def test_a_pickle_that_numbers_its_parts_in_billions_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pdparams").write_bytes(b"\x80\x02}r\xff\xff\xff\x3f.")
    with a_gibibyte_more(), pytest.raises(ValueError, match="it numbers 1073741823 parts in 9 bytes"):
        read_arrays(tmp_path / "w.pdparams")


@pytest.mark.parametrize("name", ["w.pdparams", "w.pth"])
def test_mappings_in_mappings_are_looked_into_once(name: str, tmp_path: Path) -> None:
    deep: dict[str, Any] = {}
    for _ in range(60):
        deep = dict.fromkeys(("model", "state_dict", "net", "ema"), deep)
    endless: dict[str, Any] = {}
    endless["model"] = endless
    for content, reason in ((deep, "must hold weights"), (endless, "must hold weights")):
        (tmp_path / name).write_bytes(as_torch(content) if name == "w.pth" else pickle.dumps(content))
        with pytest.raises(ValueError, match=reason):
            read_checkpoint(tmp_path / name)
    shared = {"w": np.ones((1000, 1000), np.float32)}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps({str(n): shared["w"] for n in range(1000)}))
    with a_gibibyte_more():
        assert len(read_checkpoint(tmp_path / "w.pdparams").tensors) == 1000


def test_scores_whose_columns_lie_are_refused_and_not_written_to(tmp_path: Path) -> None:
    """SciPy makes such a matrix dense by writing beyond its memory, which ends the process or worse."""
    scores, targets = np.zeros((3, 2), np.float32), np.array([[1, 0], [0, 1], [1, 1]], np.int8)
    content = ScoresFile(scores, targets, ["a", "b", "c"], Vocabulary(["dog", "cat"]), "scores")
    write_scores(tmp_path / "s.npz", content)
    with np.load(tmp_path / "s.npz") as loaded:
        arrays = {name: loaded[name] for name in loaded.files}
    for name, value in (("target_columns", 10**8), ("target_columns", -(10**8)), ("target_starts", 10**9)):
        np.savez(tmp_path / "s.npz", **{**arrays, name: np.full_like(arrays[name], value)})
        with pytest.raises(ValueError, match="it cannot be read as such"):
            read_scores(tmp_path / "s.npz", digest_of(tmp_path / "s.npz"))


# --------------------------------------------------------------------------------------------------------- safetensors


def safetensors(header: Any, data: bytes = b"\0" * 16, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


LIES = {
    "offsets beyond the file": safetensors({"a": entry([1000], 0, 4000)}),
    "overlapping": safetensors({"a": entry([4], 0, 16), "b": entry([4], 0, 16)}),
    "a hole": safetensors({"a": entry([1], 12, 16)}),
    "backwards": safetensors({"a": entry([4], 16, 0)}),
    "a header longer than the file": safetensors({"a": entry([4], 0, 16)}, length=2**63),
    "an enormous header": safetensors({"a": entry([4], 0, 16)}, length=10**9),
    "no header": b"\0" * 8,
    "another type": safetensors({"a": entry([4], 0, 16, "F64")}),
    "an unknown type": safetensors({"a": entry([4], 0, 16, "OBJECT")}),
    "a negative shape": safetensors({"a": entry([-4], 0, 16)}),
    "a shape beyond numbers": safetensors({"a": entry([2**40, 2**40], 0, 16)}),
    "more data than said": safetensors({"a": entry([2], 0, 8)}),
    "deep": safetensors(b"[" * 100_000),
    "no JSON": safetensors(b"{" + b"\xff" * 100),
}


@pytest.mark.parametrize("lie", LIES)
def test_weights_whose_header_lies_are_refused(lie: str, model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(LIES[lie])
    (tmp_path / "config.json").write_bytes((model_folder / "config.json").read_bytes())
    with pytest.raises(ValueError, match=r"checkpoint .* must be readable, it is damaged"):
        ZeroShotClassifier.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"model.safetensors must be a safetensors file"):
        read_checkpoint(tmp_path / "model.safetensors")


# ------------------------------------------------------------------------------------------------------ configurations


@pytest.fixture
def changed(model_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a model with another configuration: `changed(decoder={"decoder_dim": 3})`."""

    def make(**parts: Any) -> Path:
        config = json.loads((model_folder / "config.json").read_text())
        for name, part in parts.items():
            merged = isinstance(part, dict) and isinstance(config.get(name), dict)
            config[name] = {**config[name], **part} if merged else part
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "model.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes())
        return tmp_path

    return make


PRIOR, WIDTHS = {"training_free": True}, {"encoder_dim": 96, "text_dim": 16}
HUGE: list[dict[str, Any]] = [
    {"decoder": {"decoder_dim": 2**20, "num_heads": 1}},
    {"decoder": {"feedforward_dim": 2**20}},
    *(
        {"decoder": {name: 10**9}}
        for name in ("decoder_dim", "feedforward_dim", "text_dim", "num_layers", "encoder_dim")
    ),
    {"decoder": {"feedforward_dim": 10**30}},
    {"decoder": {"text_dim": None, "num_classes": 10**9}},
    {"decoder": {"text_dim": 2**20}},
    {"decoder": {"num_layers": 1000}},
    {"decoder": {"encoder_dim": 2**20}},
    {"decoder": {"text_dim": None, "num_classes": 10**8}},
    {"decoder": {"word_reach": 1.0, "num_seen_words": 10**8, "prior": {**PRIOR, **WIDTHS, "num_classes": 3}}},
    {"decoder": {"prior": {**PRIOR, **WIDTHS, "num_classes": 10**9}}},
    {"decoder": {"prior": {**PRIOR, "encoder_dim": 10**9, "text_dim": 10**9}}},
    {"image_encoder": {"image_size": 10**9}},
    {"image_encoder": {"image_size": 4096, "spec": "timm:vit_tiny_patch16_224", "model_kwargs": {"patch_size": 1}}},
    {"image_encoder": {"spec": "timm:vit_tiny_patch16_224", "model_kwargs": {"embed_dim": 10**8, "num_heads": 1}}},
    {"image_encoder": {"spec": "timm:vit_tiny_patch16_224", "model_kwargs": {"depth": 10**9}}},
    {"image_encoder": {"spec": "timm:resnet18", "model_kwargs": {"layers": [2, 2, 2, 10**7]}}},
    {"image_encoder": {"spec": "timm:convnext_xxlarge", "stage": 0}},
]


@contextmanager
def a_gibibyte_more() -> Iterator[None]:
    """Memory that this process may take beside what it has: what is beyond it fails, peaks of earlier tests or not."""
    if sys.platform != "linux":
        pytest.skip("the memory of a process is limited on Linux alone")
    import resource

    limits = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**30, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def test_memory_is_limited() -> None:
    with a_gibibyte_more(), pytest.raises(RuntimeError, match="allocate memory"):
        torch.empty(2**31, dtype=torch.uint8)
    torch.empty(2**31, dtype=torch.uint8)


@pytest.mark.parametrize("parts", HUGE, ids=str)
def test_a_network_beyond_reason_is_refused_before_its_memory_is_taken(
    parts: dict[str, Any], changed: Callable[..., Path]
) -> None:
    folder = changed(**parts)
    reason = "a network far larger than the weights|numbers of no network|at most 4096|not those of its image encoder"
    reason += "|must be a whole number from [01] to|of other shape|to fit ImageEncoder"
    with a_gibibyte_more(), pytest.raises(ValueError, match=rf"checkpoint .* must .*({reason})"):
        ZeroShotClassifier.from_pretrained(folder)


FOREIGN: list[dict[str, Any]] = [
    {"image_encoder": {"spec": "timm:/etc"}},
    {"image_encoder": {"spec": "timm:../other"}},
    {"image_encoder": {"spec": "timm:local-dir:/etc"}},
    {"image_encoder": {"spec": "timm:LOCAL-DIR:/etc"}},
    {"image_encoder": {"spec": "open_clip:local-dir:/etc"}},
    {"image_encoder": {"spec": "open_clip:/etc/passwd"}},
    {"image_encoder": {"spec": "torch.hub:x"}},
    {"image_encoder": {"spec": "os:system"}},
    {"image_encoder": {"checkpoint_path": "/etc/passwd"}},
    {"image_encoder": {"pretrained": True}},
    {"image_encoder": {"model_kwargs": {"pretrained_cfg": {"file": "/etc/passwd"}}}},
    {"image_encoder": {"model_kwargs": {"pretrained_cfg_overlay": {"custom_load": True}}}},
    {"image_encoder": {"model_kwargs": {"a": {"checkpoint_path": "/etc/passwd"}}}},
    {"image_encoder": {"model_kwargs": {"act_layer": "os.system"}}},
    {"image_encoder": {"class": "os.system"}},
    {"decoder": {"_target_": "os.system"}},
    {"decoder": {"prior": {"text_dim": 16, "encoder_dim": 96}}},
    {"decoder": {"dropout": float("nan")}},
    {"decoder": {"output": "__import__('os').system('id')"}},
    {"vocabulary": {"templates": ["{0.__class__}"]}},
    {"vocabulary": {"templates": ["{}{}"]}},
    {"vocabulary": {"words": ["dog"] * 6}},
    {"vocabulary": 7},
    {"calibration": [1]},
]


@pytest.mark.parametrize("parts", FOREIGN, ids=str)
def test_a_configuration_names_no_class_and_no_file(parts: dict[str, Any], changed: Callable[..., Path]) -> None:
    folder = changed(**parts)
    with pytest.raises(ValueError, match=r"checkpoint .* must"):
        ZeroShotClassifier.from_pretrained(folder)


def test_lists_in_lists_without_end_are_refused(model_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes())
    (tmp_path / "config.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(ValueError, match=r"checkpoint .* must be readable"):
        ZeroShotClassifier.from_pretrained(tmp_path)


# ---------------------------------------------------------------------------------------------------------------- YAML

BOMB = "a: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"b{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)
YAMLS = {
    "an object": "dataset: !!python/object/apply:os.system ['touch ran.txt']\nimage_encoder: {spec: x}\n",
    "a name": "dataset: {name: !!python/name:os.system ''}\nimage_encoder: {spec: x}\n",
    "a module": "dataset: {name: !!python/module:os ''}\nimage_encoder: {spec: x}\n",
    "a tag": "dataset: !evil {name: scenes}\nimage_encoder: {spec: x}\n",
    "a bomb": BOMB + "dataset: *a9\nimage_encoder: {spec: x}\n",
    "a bomb in a value": BOMB + "dataset: {name: scenes, seed: *a9}\nimage_encoder: {spec: x}\n",
    "itself": "dataset: &d {name: scenes, seed: *d}\nimage_encoder: {spec: x}\n",
    "lists without end": "[" * 1_500,
    "no date": "dataset: {name: 2001-45-45}\nimage_encoder: {spec: x}\n",
    "a long number": f"dataset: {{name: scenes, seed: {'9' * 5000}}}\nimage_encoder: {{spec: x}}\n",
    "a NUL": "dataset: {name: \0}\n",
}


@pytest.mark.parametrize("kind", YAMLS)
def test_a_recipe_is_plain_values(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(YAMLS[kind])
    with pytest.raises(ValueError, match=r"recipe .*r\.yaml must be YAML, it cannot be read") as caught:
        Recipe.load(tmp_path / "r.yaml")
    assert len(str(caught.value)) < 2000 and not (tmp_path / MARK).exists()


def test_an_override_is_plain_values_too() -> None:
    for text in ("2001-45-45", "!!python/name:os.system ''", "9" * 5000):
        with pytest.raises(ValueError, match="recipe must be valid, got:"):
            Recipe.load("scenes_zsl", [f"trainer.epochs={text}"])
    some = yaml.safe_load("a: &a [1, 2]\nb: *a\n")  # anchors as such are nobody's harm
    assert some["b"] == [1, 2]


# --------------------------------------------------------------------------------------------------------------- words

ODD = ["🦓", "👩‍👩‍👧", "زرافة", "\u202eevil", "a/b", "..", "../../etc", "C:\\x", "=1+1", "+cmd", "-x", "@SUM(A1)"]
ODD += ["<b>x</b>", '"quoted"', "a,b", "%s{}", "$(id)", "'; DROP TABLE", "x" * 10_000, "naïve", "NUL", "#"]


def test_words_are_what_they_are(
    tmp_path: Path, make_model: Callable[..., Any], make_vectors: Callable[..., Path]
) -> None:
    """Through a checkpoint, a predictor, records and the matrix of scores, and back."""
    from PIL import Image

    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    vectors = make_vectors(tmp_path / "odd.npz", tuple(ODD))
    model = make_model(text_encoder=f"vectors:{vectors}", remember=False)
    model.remember_words(Vocabulary(ODD, templates=["{}"]), model.encode_words(Vocabulary(ODD, templates=["{}"])))
    model.save_pretrained(tmp_path / "model")
    assert ZeroShotClassifier.from_pretrained(tmp_path / "model").vocabulary.words == tuple(ODD)
    prediction = next(iter(Predictor(model).predict(tmp_path / "a.png", top_k=None)))
    assert sorted(prediction.words) == sorted(ODD)
    assert "<b>x" not in prediction._repr_html_() and "<b>x" not in model.vocabulary._repr_html_()
    for suffix in (".jsonl", ".csv", ".parquet"):
        out = tmp_path / "out" / f"tags{suffix}"
        scores = tmp_path / "out" / f"scores{'.npy' if suffix == '.jsonl' else '.parquet'}"
        command = ["predict", str(tmp_path / "a.png"), "--model", str(tmp_path / "model"), "--output", str(out)]
        command += ["--scores-output", str(scores), "--overwrite", "--contact-sheet", str(tmp_path / "out/sheet.html")]
        assert main([*command, "--device", "cpu", "--top-k", str(len(ODD))]) == 0
    record = json.loads((tmp_path / "out/tags.jsonl").read_text("utf-8"))
    assert record["words"] == list(prediction.words)
    (row,) = list(csv.DictReader(io.StringIO((tmp_path / "out/tags.csv").read_text("utf-8"))))
    assert row["words"].split("|") == record["words"]
    assert (tmp_path / "out/scores.words.txt").read_text("utf-8").splitlines() == ODD
    assert set(read_matrix(tmp_path / "out/scores.parquet").words or ()) == set(ODD)
    assert "<b>x" not in (tmp_path / "out/sheet.html").read_text("utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "model", "odd.npz", "out"]


@pytest.mark.parametrize("word", ["two\nlines", "a\rb", "a\u2028b", "a\x85b", "nul\0", "half \ud83e", "\udc00"])
def test_words_that_no_file_can_hold_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match=r"words must be of one line, without NUL and without halves of characters"):
        Vocabulary(["dog", word])


@pytest.mark.parametrize("word, other", [("é", "e\u0301"), ("\u795e", "\ufa19")])
def test_two_spellings_of_a_word_are_one_word(word: str, other: str) -> None:
    with pytest.raises(ValueError) as caught:
        Vocabulary(["dog", word, other])
    assert str(caught.value) == (
        f"words must be distinct, got {word!r} twice, once as {word!a} and once as {other!a}, which are one text to "
        f"Unicode (NFC); remove one"
    )
    assert Vocabulary([other]).words == (other,)


def test_csv_holds_the_words_and_paths_themselves(tmp_path: Path) -> None:
    """No apostrophe before =, as spreadsheets would have it: who reads the file as data gets what was there."""
    write_records(
        tmp_path / "t.csv", ".csv", [table_of([Prediction("=cmd.jpg", ("=1+1", '"a",b'), (0.5, 0.25), (0, 1))])]
    )
    (row,) = list(csv.DictReader(io.StringIO((tmp_path / "t.csv").read_text("utf-8"))))
    assert (row["path"], row["words"]) == ("=cmd.jpg", '=1+1|"a",b')


def test_an_archive_says_no_more_than_it_holds(tmp_path: Path) -> None:
    """An .npz whose member says to be a petabyte."""
    header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000), }".ljust(118) + "\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()
    for name in ("s.npz", "v.npz"):
        with zipfile.ZipFile(tmp_path / name, "w") as written:
            written.writestr("scores.npy" if name == "s.npz" else "embeddings.npy", member)
            if name == "v.npz":
                file = io.BytesIO()
                np.save(file, np.array(["dog"]))
                written.writestr("words.npy", file.getvalue())
    with pytest.raises(ValueError, match=r"s\.npz must be a readable"):
        read_matrix(tmp_path / "s.npz")
    with pytest.raises(ValueError, match=r"v\.npz must be numbers .* it has an array .* in 0 stored bytes"):
        vectors(tmp_path / "v.npz")
