"""Word vectors of every usual form: the same vectors, means of parts, and the missing listed."""

import json
import pickle

import numpy as np
import pytest
import torch

from zsmld import TextEncoder
from zsmld.interop import import_word_vectors
from zsmld.text.word_vectors import orient_vectors

CLASSES = ("dog", "red", "car", "polar_bear")
ARRAY = np.random.default_rng(0).standard_normal((4, 7)).astype(np.float32)  # (N,T)


def write(folder, form):
    """The same vectors in one of the forms; returns the path and whether the words are not in it."""
    path = folder / f"wordvec_array.{form.split('-')[0]}"
    if form == "npz":
        np.savez(path, classes=np.array(CLASSES), wordvec_array=ARRAY.T[None])
    elif form == "npz-ours":
        np.savez(path, words=np.array(CLASSES), embeddings=ARRAY)
    elif form == "npy":
        np.save(path, ARRAY.T)
    elif form == "npy-rows":
        np.save(path, ARRAY)
    elif form in ("pt", "pth"):
        torch.save(torch.from_numpy(ARRAY.T[None].copy()), path)
    elif form == "pt-dict":
        torch.save({"classes": list(CLASSES), "wordvec_array": torch.from_numpy(ARRAY.T[None].copy())}, path)
    elif form == "pickle":
        path.write_bytes(pickle.dumps(ARRAY.T))
    else:
        lines = [f"{word} {' '.join(f'{x:.9g}' for x in row)}" for word, row in zip(CLASSES, ARRAY, strict=True)]
        header = ["4 7"] if form == "vec" else []
        path.write_text("\n".join(header + lines) + "\n")
    return path, form in ("npy", "npy-rows", "pt", "pth", "pickle")


@pytest.mark.parametrize("form", ["npz", "npz-ours", "npy", "npy-rows", "pt", "pth", "pt-dict", "pickle", "txt", "vec"])
def test_every_form_gives_the_same_vectors(form, tmp_path):
    path, alone = write(tmp_path, form)
    words = ["red car", "zebra", "Dog", "polar bear", "blue car"]
    report = import_word_vectors(path, tmp_path / "out.npz", words, CLASSES if alone else None)
    assert report.words == ("red car", "Dog", "polar bear")
    np.testing.assert_allclose(report.embeddings, [ARRAY[1:3].mean(0), ARRAY[0], ARRAY[3]], rtol=1e-6)
    assert report.averaged == ("red car",) and report.missing == ("zebra", "blue car")
    assert "2 without a vector, left out: zebra, blue car" in str(report)
    encoded = TextEncoder(f"vectors:{tmp_path / 'out.npz'}").encode(["polar bear", "red car"])
    np.testing.assert_allclose(encoded, report.embeddings[[2, 0]])
    assert import_word_vectors(path, classes=CLASSES if alone else None).words == CLASSES


@pytest.mark.parametrize("name", ["classes.txt", "classes.json", "classes.pickle"])
def test_classes_beside_an_array(name, tmp_path):
    path, _ = write(tmp_path, "npy")
    with pytest.raises(ValueError, match=r"classes must name the words of the array .*, got none"):
        import_word_vectors(path)
    content = {
        "classes.txt": "\n".join(CLASSES).encode(),
        "classes.json": json.dumps(dict(enumerate(CLASSES))).encode(),
        "classes.pickle": pickle.dumps(list(CLASSES)),
    }[name]
    (tmp_path / name).write_bytes(content)
    assert import_word_vectors(path).words == CLASSES
    assert import_word_vectors(path, classes=tmp_path / name).words == CLASSES


def test_wrong_arrays(tmp_path):
    path, _ = write(tmp_path, "npy")
    with pytest.raises(ValueError, match=r"must be \(T, 3\) or \(1, T, 3\) to fit its 3 words, got \(7, 4\)"):
        import_word_vectors(path, classes=CLASSES[:3])
    with pytest.raises(ValueError, match=r"must not be square, where no one can tell"):
        orient_vectors(np.zeros((4, 4)), 4, "x.npy")
    assert orient_vectors(np.arange(16.0).reshape(1, 4, 4), 4, "x.npy")[0].tolist() == [0, 4, 8, 12]
    with pytest.raises(ValueError, match="must hold finite numbers"):
        orient_vectors(np.full((7, 4), np.nan), 4, "x.npy")
    with pytest.raises(ValueError, match=r"words must have a vector in wordvec_array\.npy, got none for all 1"):
        import_word_vectors(path, words=["zebra"], classes=CLASSES)
    with pytest.raises(FileNotFoundError, match="word_vectors must be an existing file"):
        import_word_vectors(tmp_path / "none.npy")
    (tmp_path / "dict.pickle").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(ValueError, match="must hold one array of word vectors, got dict"):
        import_word_vectors(tmp_path / "dict.pickle", classes=CLASSES)
    torch.save({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "two.pt")
    with pytest.raises(ValueError, match="must hold one tensor of word vectors, got none or several"):
        import_word_vectors(tmp_path / "two.pt", classes=CLASSES)
    (tmp_path / "words.json").write_text("{}")
    with pytest.raises(ValueError, match="must hold a list of words"):
        import_word_vectors(path, classes=tmp_path / "words.json")


def test_an_array_alone_is_no_text_encoder(tmp_path):
    path, _ = write(tmp_path, "pt")
    with pytest.raises(ValueError, match="must hold the words of its vectors too, an array alone has none"):
        TextEncoder(f"vectors:{path}").encode(["dog"])


def test_real_word_vectors(real, tmp_path):
    path = real / "vectors" / "coco80_w2v_300d.npz"
    report = import_word_vectors(path, tmp_path / "out.npz", words=["traffic light", "dog", "unicorn"])
    assert report.words == ("traffic light", "dog") and report.missing == ("unicorn",)
    assert report.embeddings.shape == (2, 300)


def test_a_byte_order_mark_is_no_part_of_the_first_word(tmp_path):
    path, _ = write(tmp_path, "txt")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert import_word_vectors(path).words == CLASSES


def test_words_may_be_given_for_a_npz_without_any(tmp_path):
    path = tmp_path / "array.npz"
    np.savez(path, wordvec_array=ARRAY.T[None])
    np.testing.assert_array_equal(import_word_vectors(path, classes=CLASSES).embeddings, ARRAY)
    np.savez(path, words=np.array(CLASSES), wordvec_array=ARRAY.T[None])
    assert import_word_vectors(path).words == CLASSES


def test_a_tensor_that_was_trained(tmp_path):
    torch.save(torch.nn.Parameter(torch.from_numpy(ARRAY.T.copy())), tmp_path / "v.pt")
    np.testing.assert_array_equal(import_word_vectors(tmp_path / "v.pt", classes=CLASSES).embeddings, ARRAY)


def test_objects_and_damage_are_refused_without_the_advice_to_unpickle(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "b.npz", words=np.array(CLASSES, object), embeddings=ARRAY)
    (tmp_path / "c.npz").write_bytes(b"PK junk")
    for name in ("a.npy", "b.npz", "c.npz"):
        with pytest.raises(ValueError, match=r"save it (again|as np\.array)") as told:
            import_word_vectors(tmp_path / name, classes=CLASSES)
        assert "allow_pickle" not in str(told.value) and str(tmp_path / name) in str(told.value)
    (tmp_path / "GoogleNews.bin").write_bytes(b"4 7\ndog \x00\x01")
    with pytest.raises(ValueError, match="must be word vectors as text, got a packed or binary file"):
        import_word_vectors(tmp_path / "GoogleNews.bin")


def test_the_output_is_one_that_the_text_encoder_reads(tmp_path):
    path, _ = write(tmp_path, "txt")
    with pytest.raises(ValueError, match=r"output must end in \.npz, by which the text encoder knows its form"):
        import_word_vectors(path, tmp_path / "out.vec")
    import_word_vectors(path, tmp_path / "new" / "out.npz")
    assert (tmp_path / "new" / "out.npz").is_file()


def test_lengths_are_those_of_the_whole_file(tmp_path):
    path, _ = write(tmp_path, "npz-ours")
    lengths = np.linalg.norm(ARRAY, axis=1)
    assert import_word_vectors(path, words=["dog"]).lengths == pytest.approx((lengths.min(), lengths.max()))
