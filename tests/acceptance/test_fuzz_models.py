"""Word vectors, recipes, models, trainings, caches, exports and weights of others: damaged or made to do harm."""

import copy
import io
import json
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from fuzzing import fuzz, json_bytes, mutated_bytes, mutated_json, mutated_text, mutated_value
from safetensors.torch import save
from timm.optim import list_optimizers

from zsmld import TextEncoder, ZeroShotClassifier
from zsmld.calibration import Calibration
from zsmld.export import export_model, load_exported
from zsmld.features.shards import ShardFolder
from zsmld.interop import import_word_vectors, load_weights
from zsmld.interop.checkpoint_files import read_checkpoint
from zsmld.predictor.stored import StoredPrediction
from zsmld.recipe import Recipe
from zsmld.trainer.checkpoint import load_state, saved_state

list_optimizers()  # loads much, and that once
WORDS = ("dog", "cat", "red car", "beach")
Exports = dict[str, dict[str, bytes]]


def mutated_arrays(rng: random.Random, arrays: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays with another shape, type, name or value; object arrays, which NumPy pickles, among them."""
    found = {name: np.asarray(array) for name, array in arrays.items()}
    for _ in range(rng.randint(1, 2)):
        name = rng.choice(sorted(found))
        array = found[name]
        kind = rng.randrange(9)
        if kind == 0 and len(found) > 1:
            del found[name]
        elif kind == 1:
            found[rng.choice(["words", "classes", "embeddings", "ids", "x", "scores", "logits"])] = array
        elif kind == 2:
            found[name] = array[: len(array) // 2] if array.ndim else array[None]
        elif kind == 3:
            found[name] = array.reshape(-1) if rng.random() < 0.5 else array[None]
        elif kind == 4:
            found[name] = array.astype(object)
        elif kind == 5 and array.dtype.kind in "fiub":
            found[name] = array.astype(rng.choice(["c16", "i8", "u1", "f2", "?", "U8", "S4", "M8[s]"]))
        elif kind == 6 and array.dtype.kind in "fiub" and array.size:
            other = array.astype(np.float64)
            other.flat[rng.randrange(array.size)] = rng.choice([np.nan, np.inf, -1, 1e300, 99])
            with np.errstate(all="ignore"):
                found[name] = other.astype(array.dtype if rng.random() < 0.5 else np.float64)
        elif kind == 7:
            found[name] = np.zeros(rng.choice([(0,), (0, 3), (2, 2, 2), ()]), array.dtype)
        else:
            found[name] = np.array(mutated_value(rng, "x"), dtype=object)
    return found


def npz(arrays: dict[str, np.ndarray], compressed: bool = False) -> bytes:
    file, arrays = io.BytesIO(), {name.replace("/", "_") or "x": array for name, array in arrays.items()}
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return file.getvalue()


def lying_npy(rng: random.Random, content: bytes) -> bytes:
    """An array file whose header speaks of another array."""
    shapes = ["(10**9, 10**9)", f"({10**15},)", "(-1,)", "(2,)", "()", "('a',)", "(True,)", f"({2**63},)"]
    types = ["'<f4'", "'|O'", "'<U99999999'", "'<f16'", "[('a', '<f4')]", "'|V0'", "7", "'" + "(" * 50 + "'"]
    order = rng.choice(["False", "0", "x"])
    header = f"{{'descr': {rng.choice(types)}, 'fortran_order': {order}, 'shape': {rng.choice(shapes)}, }}"
    header = header.ljust(118) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode() + content[128:]


def changed_zip(rng: random.Random, content: bytes, change: Callable[[random.Random, bytes], bytes]) -> bytes:
    """One member of an archive changed, and its checksum right: what the checksum does not notice."""
    source, target = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    chosen = rng.choice(source.namelist())
    with zipfile.ZipFile(target, "w") as written:
        for name in source.namelist():
            written.writestr(name, change(rng, source.read(name)) if name == chosen else source.read(name))
    return target.getvalue()


def torch_bytes(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def mutated_torch(rng: random.Random, content: Any) -> bytes:
    """A torch file of something else, or with another pickle in it, or with its bytes changed."""
    kind = rng.randrange(4)
    if kind == 0:
        return mutated_bytes(rng, torch_bytes(content))
    if kind == 1:
        return changed_zip(rng, torch_bytes(content), mutated_bytes)
    if kind == 2:
        return pickle.dumps(mutated_tree(rng, content), protocol=rng.choice([2, 4]))
    return torch_bytes(mutated_tree(rng, content))


def mutated_tree(rng: random.Random, content: Any) -> Any:
    """Nested containers of tensors with one to three places changed."""
    found = copy.deepcopy(content)
    for _ in range(rng.randint(1, 3)):
        inner: Any = found
        while isinstance(inner, (dict, list)) and inner:
            key = rng.choice(list(inner)) if isinstance(inner, dict) else rng.randrange(len(inner))
            if isinstance(inner[key], (dict, list)) and inner[key] and rng.random() < 0.7:
                inner = inner[key]
                continue
            kind = rng.randrange(4)
            if kind == 0:
                del inner[key]
            elif kind == 1:
                inner[key] = mutated_value(rng)
            elif isinstance(inner[key], torch.Tensor):
                inner[key] = mutated_tensor(rng, inner[key])
            elif isinstance(inner, dict):
                inner[rng.choice(["x", 3, None, "state_dict", "model"])] = inner.pop(key)
            break
    return found


def mutated_tensor(rng: random.Random, tensor: torch.Tensor) -> torch.Tensor:
    if tensor.layout != torch.strided or tensor.numel() > 10**9:  # changed already, into what takes no more
        return torch.zeros(0)
    kinds: list[Callable[[], torch.Tensor]] = [
        lambda: tensor[None],
        lambda: tensor.flatten()[:1],
        lambda: tensor.to(rng.choice([torch.int64, torch.float16, torch.bool, torch.complex64, torch.bfloat16])),
        lambda: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor * 0 - 1,
        lambda: torch.zeros(0),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.zeros(1).expand(10**6, 10**6),  # a terabyte, and four bytes in the file
        lambda: torch.nn.Parameter(tensor.float()),
    ]
    return rng.choice(kinds)()


# ------------------------------------------------------------------------------------------------------- word vectors

VECTORS = np.arange(12, dtype=np.float32).reshape(4, 3) + 1


def test_word_vectors() -> None:
    text = b"4 3\ndog 1 2 3\ncat 4 5 6\nred_car 7 8 9\nbeach 1 0 1\n"
    arrays = {"words": np.array(WORDS), "embeddings": VECTORS}
    whole = {"classes": list(WORDS), "wordvec_array": torch.tensor(VECTORS.T)[None]}

    def change(rng: random.Random, folder: Path) -> None:
        kind = rng.randrange(6)
        if kind <= 1:
            (folder / "v.txt").write_bytes(mutated_text(rng, text, b" "))
        elif kind == 2:
            (folder / "v.npz").write_bytes(npz(mutated_arrays(rng, arrays), rng.random() < 0.5))
        elif kind == 3:
            content = npz(arrays)
            if rng.random() < 0.6:
                content = changed_zip(rng, content, lying_npy if rng.random() < 0.5 else mutated_bytes)
            else:
                content = mutated_bytes(rng, content)
            (folder / "v.npz").write_bytes(content)
        else:
            (folder / "v.pt").write_bytes(mutated_torch(rng, whole))

    def call(folder: Path) -> None:
        path = next(folder.iterdir())
        encoder = TextEncoder(f"vectors:{path}", cache_dir=folder / "cache")
        encoder.encode_words(["dog", "red car"])

    fuzz(change, call, ["v.txt", "v.npz", "v.pt", "words", "text_encoder"], examples=300)


def test_word_vectors_that_are_imported() -> None:
    def change(rng: random.Random, folder: Path) -> None:
        array, classes = pickle.dumps(VECTORS.T, protocol=rng.choice([2, 4])), pickle.dumps(list(WORDS))
        if rng.random() < 0.5:
            array = mutated_bytes(rng, array) if rng.random() < 0.6 else pickle.dumps(mutated_value(rng, VECTORS))
        else:
            classes = mutated_bytes(rng, classes) if rng.random() < 0.6 else pickle.dumps(mutated_value(rng, "dog"))
        name = rng.choice(["v.pkl", "v.npy"])
        if name == "v.npy":
            file = io.BytesIO()
            np.save(file, VECTORS.T)
            array = rng.choice([lying_npy, mutated_bytes])(rng, file.getvalue())
        (folder / name).write_bytes(array)
        if rng.random() < 0.3:
            (folder / "classes.json").write_bytes(json_bytes(rng, {"0": "dog", "1": "cat", "2": "x", "3": "y"}))
        else:
            (folder / "classes.pickle").write_bytes(classes)

    def call(folder: Path) -> None:
        path = next(path for path in folder.iterdir() if path.stem == "v")
        import_word_vectors(path, folder / "out.npz")

    fuzz(change, call, ["v.pkl", "v.npy", "classes", "words"], examples=200)


# ------------------------------------------------------------------------------------------------------------- recipes

RECIPE: dict[str, Any] = {
    "dataset": {"name": "scenes", "num_images": 8},
    "image_encoder": {"spec": "timm:test_resnet", "pretrained": False, "image_size": 64},
    "text_encoder": "minilm",
    "decoder": {"decoder_dim": 32, "num_heads": 4, "output": "cosine"},
    "augmentation": {"noise": 0.1, "word_dropout": 0.2},
    "image_augmentation": {"cutout": 0.5},
    "trainer": {"epochs": 2, "lr": 2e-4, "batch_size": 4, "freeze_image_encoder": True},
    "protocol": {"name": "gzsl"},
}


def test_a_recipe() -> None:
    def change(rng: random.Random, folder: Path) -> None:
        if rng.random() < 0.7:
            content = yaml.safe_dump(json.loads(json.dumps(mutated_json(rng, RECIPE)))).encode("utf-8", "replace")
        else:
            content = mutated_text(rng, yaml.safe_dump(RECIPE).encode(), b":")
        (folder / "recipe.yaml").write_bytes(content)

    def call(folder: Path) -> None:
        recipe = Recipe.load(folder / "recipe.yaml", ["trainer.epochs=1"])
        assert Recipe.from_dict(yaml.safe_load(recipe.to_yaml())).effective() == recipe.effective()

    fuzz(change, call, ["recipe"], examples=250)


# -------------------------------------------------------------------------------------------------------------- models


@pytest.fixture(scope="module")
def model_files(make_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A word model with everything that a checkpoint can hold."""
    folder = tmp_path_factory.mktemp("model")
    model = make_model(output="sum")
    model.heldout_words = ("dog",)
    model.recipe = RECIPE
    model.training_record = {"epoch": 3, "external_knowledge": []}
    model.calibration = Calibration(
        standardization="both",
        trained_words=("dog", "cat"),
        reference_words=("dog", "beach"),
        thresholds={"dog": 0.5},
        word_statistics={"dog": (0.1, 1.0)},
    ).to_dict()
    model.prediction = {
        "words": ["cat", "dog"],
        "synonyms": {"cat": ["red car"]},
        "thresholds": {"words": {"dog": 0.4}, "default": 0.5},
    }
    model.save_pretrained(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def lying_safetensors(rng: random.Random, content: bytes) -> bytes:
    """Weights whose header speaks of other weights: offsets, shapes, types and its own length."""
    length = int.from_bytes(content[:8], "little")
    if rng.random() < 0.2:
        return rng.choice([0, 1, length + 1, 10**9, 2**63, 2**64 - 1]).to_bytes(8, "little") + content[8:]
    header = json.loads(content[8 : 8 + length])
    name = rng.choice([name for name in header if name != "__metadata__"])
    entry = header[name]
    kind = rng.randrange(6)
    if kind == 0:
        entry["shape"] = rng.choice([[-1], [10**12], [2**63, 2], [], [0], [1.5], ["a"], [10**6] * 5])
    elif kind == 1:
        entry["dtype"] = rng.choice(["I64", "F16", "BF16", "BOOL", "F8_E4M3", "U8", "X", 7, None, "F64"])
    elif kind == 2:
        entry["data_offsets"] = rng.choice([[0, 4], [0, 10**15], [4, 0], [-4, 0], [0], ["a", "b"], [2**63, 2**64]])
    elif kind == 3:
        header[rng.choice(["x", "", "word_embeddings", "../x"])] = header.pop(name)
    elif kind == 4:
        header = mutated_json(rng, header)
    else:
        del header[name]
    text = json.dumps(header).encode("utf-8", "replace")
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def score(model: ZeroShotClassifier) -> None:
    """What a user does next."""
    assert not (model.calibration is not None and Calibration.of(model) is None)
    StoredPrediction.of(model)
    if model.vocabulary is not None:
        model.vocabulary.digest()
    repr(model), model._repr_html_()
    with torch.no_grad():
        model(torch.zeros(1, 3, *[model.image_encoder.transform.image_size] * 2), model.word_embeddings)


def test_a_configuration(model_files: dict[str, bytes]) -> None:
    config = json.loads(model_files["config.json"])

    def change(rng: random.Random, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(model_files["model.safetensors"])
        content = copy.deepcopy(config)
        part = rng.choice([None, *config])
        if part is None or not isinstance(config[part], dict):
            (folder / "config.json").write_bytes(json_bytes(rng, content))
        else:  # so that each part has its share
            content[part] = mutated_json(rng, content[part])
            (folder / "config.json").write_bytes(json.dumps(content).encode())

    def call(folder: Path) -> None:
        score(ZeroShotClassifier.from_pretrained(folder))

    fuzz(change, call, ["checkpoint", "model", "calibration", "prediction"], examples=300, min_refused=0.3)


def test_weights(model_files: dict[str, bytes]) -> None:
    def change(rng: random.Random, folder: Path) -> None:
        weights = model_files["model.safetensors"]
        weights = lying_safetensors(rng, weights) if rng.random() < 0.7 else mutated_bytes(rng, weights)
        (folder / "model.safetensors").write_bytes(weights)
        (folder / "config.json").write_bytes(model_files["config.json"])

    def call(folder: Path) -> None:
        score(ZeroShotClassifier.from_pretrained(folder))

    fuzz(change, call, ["checkpoint"], examples=200, min_refused=0.3)


@pytest.fixture(scope="module")
def exported_files(
    make_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, bytes]]:
    """Of a model with words as an input, and of one with a frozen vocabulary."""
    found = {}
    for name, words in (("opened", None), ("frozen", ["dog", "cat", "beach"])):
        folder = tmp_path_factory.mktemp("exports") / name
        export_model(make_model(output="sum"), folder, words=words)
        found[name] = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found


@pytest.mark.parametrize("form", ["opened", "frozen"])
def test_an_exported_folder(form: str, exported_files: Exports) -> None:
    files = exported_files[form]
    read = [name for name in files if name in ("export.json", "words.json", "word_embeddings.npy", "model.onnx")]

    def change(rng: random.Random, folder: Path) -> None:
        name = rng.choices(read, [6 if n == "export.json" else 1 for n in read])[0]
        content = files[name]
        if name.endswith(".json"):
            content = json_bytes(rng, json.loads(content))
        else:
            content = (lying_npy if name.endswith(".npy") and rng.random() < 0.5 else mutated_bytes)(rng, content)
        for other in read:
            (folder / other).write_bytes(content if other == name else files[other])

    def call(folder: Path) -> None:
        model = load_exported(folder, "cpu")
        score(model)

    fuzz(change, call, ["exported", "model", "folder", "calibration", "prediction"], examples=100)


def test_shards_of_features() -> None:
    tensors = {"hashes": torch.arange(64, dtype=torch.uint8).view(2, 32), "spatial_embeddings": torch.rand(2, 4, 3)}
    good = save(tensors)

    def change(rng: random.Random, folder: Path) -> None:
        kind = rng.randrange(3)
        if kind == 0:
            content = mutated_bytes(rng, good)
        elif kind == 1:
            content = lying_safetensors(rng, good)
        else:
            others = [torch.rand(2, 4, 4), torch.rand(1, 4, 3), torch.rand(2, 4, 3).half(), torch.zeros(())]
            others += [torch.zeros(2, 31, dtype=torch.uint8), torch.zeros(0, 32, dtype=torch.uint8)]
            content = save({**tensors, rng.choice(list(tensors)): rng.choice(others)})
        (folder / "00000000000000000001-a.safetensors").write_bytes(content)
        (folder / "00000000000000000002-b.safetensors").write_bytes(good)

    def call(folder: Path) -> None:
        shards = ShardFolder(folder, (4, 3), torch.float32)
        hashes = [bytes(row) for row in tensors["hashes"].numpy()]
        assert all(h in shards for h in hashes), "the whole shard must be found beside the damaged one"
        assert shards.embeddings(hashes).float().shape == (2, 4, 3)

    fuzz(change, call, ["shard"], examples=200, min_refused=0)


# ----------------------------------------------------------------------------------------------------------- trainings


def test_the_state_of_a_training() -> None:
    state = {
        "format": 1,
        "settings": json.dumps({"lr": 0.1}),
        "finished": False,
        "progress": {"step": 3, "history": [{"epoch": 1.0}], "best_weights": {"a": torch.zeros(2)}},
        "weights": {"network": {"a": torch.zeros(2)}, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}},
        "scheduler": {"last_epoch": 3},
        "scaler": None,
        "random": [{"cpu": torch.zeros(10, dtype=torch.uint8)}],
    }

    def change(rng: random.Random, folder: Path) -> None:
        (folder / "checkpoint.pt").write_bytes(mutated_torch(rng, state))

    def call(folder: Path) -> None:
        load_state(folder / "checkpoint.pt")
        for resume in (True, False):
            try:
                saved_state(folder / "checkpoint.pt", {"lr": 0.1}, resume)
            except FileExistsError as error:
                assert "must not hold an unfinished training" in str(error)

    fuzz(change, call, ["checkpoint"], examples=200)


@pytest.fixture(scope="module")
def training(
    make_model: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Callable[..., Any], Path]:
    """A training that stopped half-way: how to make it, and its folder."""
    from zsmld import Trainer
    from zsmld.datasets import Scenes

    dataset = Scenes("train", num_images=16)

    def make(output: Path, epochs: int = 3) -> Any:
        model = make_model(remember=False, text_encoder="minilm")
        options = {"batch_size": 8, "freeze_image_encoder": True, "ema_decay": 0.9, "device": "cpu"}
        return Trainer(model, dataset, output=output, epochs=epochs, **options)

    folder = tmp_path_factory.mktemp("training")
    trainer = make(folder)
    trainer.checkpoint_every = 1

    class Enough(Exception):
        pass

    import zsmld.trainer as module

    write, counted = module.save_state, []

    def stop(path: Path, state: dict[str, Any]) -> None:
        write(path, state)
        counted.append(path)
        if len(counted) == 2:
            raise Enough

    patch = pytest.MonkeyPatch()
    patch.setattr(module, "save_state", stop)
    with pytest.raises(Enough):
        trainer.fit()
    patch.undo()
    return make, folder


def test_a_training_goes_on_from_a_damaged_checkpoint_or_says_why_not(
    training: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zsmld.trainer.options.git_revision", lambda: None)  # it asks git, which is no reader's doing
    make, source = training
    content = torch.load(source / "checkpoint.pt", weights_only=True)

    def change(rng: random.Random, folder: Path) -> None:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        found = copy.deepcopy(content)
        part = rng.choice(["progress", "weights", "scheduler", "random", "settings", "finished"])
        found[part] = mutated_tree(rng, found[part]) if rng.random() < 0.8 else mutated_value(rng, None)
        (folder / "checkpoint.pt").write_bytes(torch_bytes(found))

    def call(folder: Path) -> None:
        trainer = make(folder)
        trainer.checkpoint_every = 1
        trainer.fit(resume=True)

    fuzz(change, call, ["checkpoint"], examples=25)


# --------------------------------------------------------------------------------------------------- weights of others


def test_weights_of_others() -> None:
    tensors = {"fc.weight": torch.rand(3, 4), "fc.bias": torch.rand(3), "n": torch.tensor(2)}
    whole = {"epoch": 3, "arch": "resnet18", "state_dict": tensors, "state_dict_ema": tensors, "args": {"lr": 0.1}}
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()} | {"StructuredToParameterName@@": {"a": "b"}}

    def change(rng: random.Random, folder: Path) -> None:
        kind = rng.randrange(4)
        if kind <= 1:
            (folder / "w.pth").write_bytes(mutated_torch(rng, whole))
        elif kind == 2:
            content = save(tensors)
            content = lying_safetensors(rng, content) if rng.random() < 0.7 else mutated_bytes(rng, content)
            (folder / "w.safetensors").write_bytes(content)
        elif rng.random() < 0.5:
            (folder / "w.pdparams").write_bytes(mutated_bytes(rng, pickle.dumps(arrays, protocol=rng.choice([2, 4]))))
        else:
            changed = mutated_arrays(rng, {name: array for name, array in arrays.items() if name in tensors})
            (folder / "w.pdparams").write_bytes(pickle.dumps({**changed, "x": mutated_value(rng, "a")}))

    names = ["checkpoint", "w.pth", "w.safetensors", "w.pdparams"]
    fuzz(change, lambda folder: read_checkpoint(next(folder.iterdir())), names, examples=400)


@pytest.fixture(scope="module")
def timm_checkpoint() -> dict[str, Any]:
    import timm
    from timm.layers.ml_decoder import add_ml_decoder_head

    torch.manual_seed(0)
    network = add_ml_decoder_head(timm.create_model("test_resnet", num_classes=4))
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    return {"arch": "test_resnet", "state_dict": state, "args": {"num_classes": 4, "img_size": 64}}


def test_a_head_of_others_is_taken_whole_or_refused(timm_checkpoint: dict[str, Any]) -> None:
    small = timm_checkpoint["state_dict"]

    def change(rng: random.Random, folder: Path) -> None:
        found = {**timm_checkpoint, "state_dict": dict(small)}
        kind = rng.randrange(3)
        if kind == 0:
            found[rng.choice(["arch", "args"])] = mutated_value(rng, "resnet18")
        elif kind == 1:
            found["args"] = mutated_json(rng, found["args"])
        else:
            heads = [name for name in small if "head" in name or "fc" in name]
            name = rng.choice(heads or list(small))
            kind = rng.randrange(3)
            tensor = found["state_dict"].pop(name)
            if kind == 0:
                found["state_dict"][name] = mutated_tensor(rng, tensor)
            elif kind == 1:
                found["state_dict"][rng.choice(["x", "head.x", "head.decoder.layers.0.x", f"{name}.x"])] = tensor
        (folder / "w.pth").write_bytes(torch_bytes(found))

    names = ["checkpoint", "image_encoder", "head", "words", "classes", "w.pth", "image_size", "num_heads"]
    fuzz(change, lambda folder: load_weights(folder / "w.pth"), names, examples=60)
