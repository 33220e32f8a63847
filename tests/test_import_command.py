"""`zsmld import-weights`: a checkpoint becomes a model that predicts, vectors become a text encoder, refusals teach."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.layers.ml_decoder import add_ml_decoder_head

from zsmld import ZeroShotClassifier
from zsmld.cli import main
from zsmld.model import model_card

WORDS = ("dog", "cat", "red car", "beach", "boat", "tree")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As timm's train.py stores it."""
    folder = tmp_path_factory.mktemp("theirs")
    torch.manual_seed(0)
    network = add_ml_decoder_head(timm.create_model("resnet18", num_classes=len(WORDS)))
    torch.save({"arch": "resnet18", "state_dict": network.state_dict()}, folder / "best.pth.tar")
    (folder / "words.txt").write_text("\n".join(WORDS) + "\n")
    return folder / "best.pth.tar"


def test_a_checkpoint_is_imported_and_predicts(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = ["import-weights", str(checkpoint), "--words", str(checkpoint.parent / "words.txt"), "--image-size", "64"]
    assert main([*command, "--output", "model"]) == 0
    said = capsys.readouterr().out
    assert "timm head in class mode on timm:resnet18" in said and "139 tensors taken, 0 left out" in said
    assert len(Path("model/import.txt").read_text().splitlines()) > 139
    model = ZeroShotClassifier.from_pretrained("model")
    assert model.vocabulary.words == WORDS
    origin = {"file": "best.pth.tar", "code": "timm", "weights": "not marked as averaged"}
    assert model.training_record == {"imported": origin}
    assert "<code>best.pth.tar</code>, weights not marked as averaged" in str(model_card(model))

    Image.new("RGB", (80, 60), "red").save("red.png")
    assert main(["predict", "red.png", "--model", "model", "--device", "cpu", "--output", "tags.jsonl"]) == 0
    assert '"red car"' in Path("tags.jsonl").read_text()

    before = Path("model/config.json").read_bytes()
    capsys.readouterr()
    assert main([*command, "--output", "model"]) == 2
    assert "--output model must not exist yet, it does; name another or add --overwrite" in capsys.readouterr().err
    assert main([*command, "--mean", "0", "0", "0", "--output", "model", "--overwrite", "--verbose"]) == 0
    assert "decoder.layers.0.linear1.weight" in capsys.readouterr().out
    assert Path("model/config.json").read_bytes() != before


def test_what_does_not_fit_writes_nothing(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("five.txt").write_text("\n".join(WORDS[:5]))
    assert main(["import-weights", str(checkpoint), "--words", "five.txt", "--output", "model"]) == 2
    assert "words" in (said := capsys.readouterr().err) and "5" in said
    assert main(["import-weights", "gone.pth", "--output", "model"]) == 2
    assert "gone.pth" in capsys.readouterr().err
    assert main(["import-weights", str(checkpoint), "--classes", "five.txt", "--output", "model"]) == 2
    assert "--classes is for an array of word vectors" in capsys.readouterr().err
    assert main(["import-weights", str(checkpoint), "--model-kwargs", "layers=3", "--output", "model"]) == 2
    assert "--model-kwargs must be a JSON object" in capsys.readouterr().err
    assert (
        main(["import-weights", str(checkpoint), "--model-kwargs", '{"layers": [1, 1, 1, 1]}', "--output", "model"])
        == 2
    )
    assert "layer1.1" in capsys.readouterr().err  # so the arguments arrive
    assert not Path("model").exists()


def test_word_vectors_become_a_text_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("vectors.npy", np.eye(3, 4, dtype=np.float32).T[None])  # (1,T,N), as the official code ships it
    Path("classes.txt").write_text("red\ncar\ndog\n")
    Path("words.txt").write_text("red car\nzebra\ndog\n")
    command = ["import-weights", "vectors.npy", "--classes", "classes.txt", "--words", "words.txt"]
    assert main([*command, "--output", "mine.npz"]) == 0
    said = capsys.readouterr().out
    assert "1 by the mean of their parts: red car" in said and "left out: zebra" in said
    assert "it is the text encoder vectors:mine.npz" in said
    with np.load("mine.npz") as stored:
        assert stored["words"].tolist() == ["red car", "dog"]
        np.testing.assert_array_equal(stored["embeddings"], [[0.5, 0.5, 0, 0], [0, 0, 1, 0]])
    assert main([*command, "--output", "mine.npz"]) == 2
    assert "mine.npz must not exist yet" in capsys.readouterr().err
    assert main([*command, "--ignore", "aux.*", "--output", "other.npz"]) == 2
    assert "--ignore is for a checkpoint" in capsys.readouterr().err
    assert main([*command, "--image-size", "64", "--output", "other.npz"]) == 2
    assert "--image-size is for a checkpoint" in capsys.readouterr().err
