"""Predictions made elsewhere: read from every format, aligned by name, refused where an order would be guessed."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zsmld import Evaluator, Vocabulary
from zsmld.cli import main
from zsmld.evaluator import Matrix, evaluate_scores, read_matrix
from zsmld.evaluator.predictions import align
from zsmld.protocols import Protocol

IDS, WORDS = ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.jpg"), ("dog", "cat", "zebra", "lamp")
PARTITION = {"seen": ["dog", "cat"], "unseen": ["zebra", "lamp"]}
VALUES = np.random.default_rng(0).random((5, 4)).astype(np.float32)
TARGETS = np.array([[1, 0, 0, 1], [0, 1, 1, 0], [1, 0, 1, 0], [0, 0, 0, 1], [1, 1, -1, 0]], np.int8)


def frame(values, ids=IDS, words=WORDS) -> pd.DataFrame:
    return pd.DataFrame(values, columns=list(words)).assign(image_id=list(ids))


WRITERS = {
    "s.npz": lambda path, v, ids, words: np.savez(path, scores=v, ids=np.array(ids), words=np.array(words)),
    "s.pt": lambda path, v, ids, words: torch.save(
        {"logits": torch.tensor(v), "ids": list(ids), "words": list(words)}, path
    ),
    "s.parquet": lambda path, v, ids, words: frame(v, ids, words).to_parquet(path),
    "s.csv": lambda path, v, ids, words: frame(v, ids, words).to_csv(path, index=False),
    "s.tsv": lambda path, v, ids, words: frame(v, ids, words).to_csv(path, index=False, sep="\t"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_with_names(tmp_path, name):
    WRITERS[name](tmp_path / name, VALUES, IDS, WORDS)
    matrix = read_matrix(tmp_path / name)
    assert (matrix.ids, matrix.words, matrix.source) == (IDS, WORDS, name)
    np.testing.assert_array_equal(matrix.values.astype(np.float32), VALUES)


def test_formats_without_names(tmp_path):
    np.save(tmp_path / "s.npy", VALUES)
    np.savez(tmp_path / "s.npz", values=VALUES)
    torch.save(torch.tensor(VALUES), tmp_path / "s.pt")
    for name in ("s.npy", "s.npz", "s.pt"):
        matrix = read_matrix(tmp_path / name)
        assert matrix.ids is None and matrix.words is None
        np.testing.assert_array_equal(matrix.values, VALUES)
    torch.save(torch.tensor(VALUES).bfloat16(), tmp_path / "half.pt")
    assert read_matrix(tmp_path / "half.pt").values.dtype == np.float32


@given(images=st.permutations(range(5)), words=st.permutations(range(4)))
def test_alignment_undoes_any_order(images, words):
    shuffled = Matrix(VALUES[images][:, words], tuple(IDS[i] for i in images), tuple(WORDS[j] for j in words))
    scores, targets = align(shuffled, Matrix(TARGETS, IDS, WORDS))
    assert (scores.ids, scores.words) == (IDS, WORDS) and targets.values is TARGETS
    np.testing.assert_array_equal(scores.values, VALUES)


@pytest.mark.parametrize(
    "scores, targets, message",
    [
        (
            (IDS, None),
            (None, None),
            r"must both have image ids, or neither: S has them, T has none; an order that is g",
        ),
        ((None, None), (None, WORDS), r"must both have words, or neither: T has them, S has none"),
        (
            (IDS[:4] + ("x.jpg",), None),
            (IDS, None),
            r"same image ids, got 1 only in T \['e.jpg'\] and 1 only in S \['x",
        ),
        ((None, WORDS[:3] + ("lamppost",)), (None, WORDS), r"same words, got 1 only in T \['lamp'\] and 1 only in S"),
    ],
)
def test_an_order_is_never_guessed(scores, targets, message):
    with pytest.raises(ValueError, match=message):
        align(Matrix(VALUES, *scores, source="S"), Matrix(TARGETS, *targets, source="T"))


def test_shapes_and_names_must_fit():
    with pytest.raises(ValueError, match=r"same images and words, got S \(5, 4\) and T \(4, 4\)"):
        align(Matrix(VALUES, source="S"), Matrix(TARGETS[:4], source="T"))
    with pytest.raises(ValueError, match=r"S must be \(M, N\), .* got \(4,\); reshape"):
        Matrix(VALUES[0], source="S")
    with pytest.raises(ValueError, match=r"S must have one of its words for each of 4 columns, got 3"):
        Matrix(VALUES, None, WORDS[:3], "S")
    with pytest.raises(ValueError, match=r"S must name its image ids once each, got \['a.jpg'\] more than once"):
        Matrix(VALUES, ("a.jpg", "a.jpg", "c", "d", "e"), None, "S")


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda p: p / "none.npy", FileNotFoundError, r"none.npy must be an existing file, not found"),
        (lambda p: write(p / "s.xlsx", ""), ValueError, r"s.xlsx must end in one of .npy, .npz, .pt, .*, .csv, .tsv"),
        (lambda p: write(p / "s.npy", "nothing"), ValueError, r"s.npy|allow_pickle"),
        (lambda p: write(p / "s.csv", "dog,cat\n1,2\n"), ValueError, r"one column of image ids named id, .* got \[\]"),
        (lambda p: write(p / "s.csv", "id,dog,dog\na,1,2\n"), ValueError, r"each column once, got \['dog'\] more than"),
        (
            lambda p: write(p / "s.csv", "id,dog\na,wau\n"),
            ValueError,
            r"must have numbers .* other values in \['dog'\]",
        ),
    ],
)
def test_files_that_are_no_matrix_are_refused(tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        read_matrix(make(tmp_path))


def test_an_npz_of_two_arrays_is_refused(tmp_path):
    np.savez(tmp_path / "s.npz", scores=VALUES, logits=VALUES)
    with pytest.raises(ValueError, match=r"must hold one array named scores, .* got \['logits', 'scores'\]"):
        read_matrix(tmp_path / "s.npz")
    np.savez(tmp_path / "o.npz", scores=np.array([["a"]]))
    with pytest.raises(ValueError, match=r"o.npz must hold numbers, got <U1"):
        read_matrix(tmp_path / "o.npz")


# ------------------------------------------------------------------------------------------------------ evaluation


def test_figures_are_those_of_the_arrays():
    vocabulary = Vocabulary(WORDS, seen=PARTITION["seen"])
    order = [3, 1, 0, 2, 4]
    report = Evaluator("gzsl").evaluate_predictions(
        Matrix(VALUES[order][:, ::-1], tuple(IDS[i] for i in order), WORDS[::-1], "mine.npz"),
        Matrix(TARGETS, IDS, WORDS, "truth.npz"),
        "scores",
        vocabulary,
    )
    expected = evaluate_scores(VALUES, TARGETS, vocabulary, Protocol.named("gzsl"), "scores")
    assert json.dumps(report.protocols) == json.dumps(expected)
    assert report.ids == list(IDS) and report.kind == "scores"
    assert report.dataset["aligned_by"] == {"images": "id", "words": "word"}
    assert report.external_knowledge == ["not stated"]


@pytest.mark.parametrize("columns, words", [(17, "unseen"), (65, "all")])
def test_a_bare_array_is_read_in_the_order_of_the_protocols_word_list(columns, words):
    rng = np.random.default_rng(1)
    scores, targets = rng.random((30, columns)), (rng.random((30, columns)) < 0.3).astype(int)
    report = Evaluator("coco_zsl_48_17").evaluate_predictions(Matrix(scores), Matrix(targets), "scores")
    figures = report.protocols["zsl"]
    assert list(figures["words"])[:3] == ["airplane", "bus", "cat"] and figures["num_words"] == 17
    assert figures["words"]["airplane"]["num_positives"] == targets[:, 0 if words == "unseen" else 48].sum()
    assert report.dataset["aligned_by"] == {
        "images": "position",
        "words": "position",
        "order_of_words": "airplane first, scissors last" if words == "unseen" else "person first, scissors last",
    }
    with pytest.raises(ValueError, match=r"must have a column for each of the 65 words of protocol coco_gzsl_48_17"):
        Evaluator("coco_gzsl_48_17").evaluate_predictions(Matrix(scores[:, :17]), Matrix(targets[:, :17]), "scores")


@pytest.mark.parametrize(
    "protocol, scores, targets, kind, message",
    [
        ("gzsl", VALUES, TARGETS, "logits", r"partition must be given for protocol gzsl"),
        ("supervised", VALUES * 9, TARGETS, "scores", r"scores .*\[0, ?1\]"),
        ("supervised", VALUES, TARGETS + 1, "scores", r"targets must be 1, 0 or -1, T has \[2\]"),
        ("supervised", VALUES, TARGETS, "probabilities", r"kind must be .*'probabilities'"),
        ("supervised", np.where(VALUES > 0.9, np.nan, VALUES), TARGETS, "logits", r"NaN"),
        (
            "coco_supervised",
            VALUES,
            TARGETS,
            "logits",
            r"must have words of protocol coco_supervised, got 2 others such",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(protocol, scores, targets, kind, message):
    words = ("dog", "cat", "zebr", "lamp")
    with pytest.raises(ValueError, match=message):
        Evaluator(protocol).evaluate_predictions(
            Matrix(scores, IDS, words, "S"), Matrix(targets, IDS, words, "T"), kind
        )


@pytest.mark.parametrize("kind", ["scores", "logits"])
def test_double_precision_is_kept(tmp_path, kind):
    """Scores of confident logits differ in fp64 alone: in fp32 they would tie."""
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    logits = rng.normal(30, 3, (400, 3))
    values = 1 / (1 + np.exp(-logits)) if kind == "scores" else 1e9 + logits
    targets = (rng.random((400, 3)) < 0.1).astype(np.int64)
    assert len(np.unique(values.astype(np.float32))) < 50 < len(np.unique(values))
    np.save(tmp_path / "s.npy", values)
    np.save(tmp_path / "t.npy", targets)
    scores, truth = read_matrix(tmp_path / "s.npy"), read_matrix(tmp_path / "t.npy")
    report = Evaluator("supervised").evaluate_predictions(scores, truth, kind, Vocabulary(["a", "b", "c"]))
    words = report.protocols["supervised"]["words"].values()
    expected = [average_precision_score(targets[:, j], values[:, j]) for j in range(3)]
    assert [word["average_precision"] for word in words] == pytest.approx(expected, abs=1e-12)
    assert report.scores.dtype == np.float64
    assert report.model["sha256"] == scores.sha256 and len(scores.sha256) == 64
    assert report.dataset["targets_sha256"] == truth.sha256


def test_numbers_of_another_byte_order_keep_their_precision():
    values = np.array([[1e9 + 0.5], [1e9]])
    for dtype in (">f8", np.longdouble):
        scores, _ = align(Matrix(values.astype(dtype)), Matrix(np.array([[1], [0]], np.int8)))
        assert scores.values.dtype == np.float64 and (scores.values == values).all()


def test_whole_numbers_and_half_precision_keep_their_order():
    order = np.array([[2**24 + 1], [2**24]])
    truth = Matrix(np.array([[1], [0]]), words=("a",))
    for values in (order, order.astype(np.int32), np.array([[0.5], [0.25]], np.float16)):
        report = Evaluator("supervised").evaluate_predictions(Matrix(values, words=("a",)), truth, "logits")
        assert report.protocols["supervised"]["mean_average_precision"] == 1.0
    with pytest.raises(ValueError, match=r"scores must be at most 2\*\*53 where they are whole numbers"):
        align(Matrix(order * 2**35, words=("a",)), truth.as_targets())


def test_ids_of_a_text_file_are_texts(tmp_path):
    write(tmp_path / "s.csv", "id,dog\n000139,0.5\n139,0.25\nNA,0.75\n")
    assert read_matrix(tmp_path / "s.csv").ids == ("000139", "139", "NA")
    write(tmp_path / "q.csv", 'id,"dog, big","cat, big"\n1,0.5,0.25\n')
    assert read_matrix(tmp_path / "q.csv").words == ("dog, big", "cat, big")


def test_ids_may_be_numbers_bytes_or_tensors(tmp_path):
    torch.save({"scores": torch.tensor(VALUES), "ids": torch.arange(5)}, tmp_path / "s.pt")
    assert read_matrix(tmp_path / "s.pt").ids == ("0", "1", "2", "3", "4")
    np.savez(tmp_path / "s.npz", scores=VALUES, ids=np.array([name.encode() for name in IDS]))
    assert read_matrix(tmp_path / "s.npz").ids == IDS
    torch.save({"scores": torch.tensor(VALUES), "ids": 5}, tmp_path / "one.pt")
    with pytest.raises(ValueError, match=r"one.pt must hold ids as a list of texts or whole numbers, .* got 5"):
        read_matrix(tmp_path / "one.pt")


@pytest.mark.parametrize("name", WRITERS)
def test_a_damaged_file_is_named(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path, VALUES, IDS, WORDS)
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], content[:3], b""):
        path.write_bytes(damaged)
        try:
            found = read_matrix(path)
        except ValueError as error:
            assert name in str(error)
        else:  # half a text file is a shorter text file
            assert name.endswith(("csv", "tsv")) and len(found.values) <= 5


def test_python_objects_are_refused_with_what_to_do(tmp_path):
    torch.save(VALUES, tmp_path / "s.pt")
    with pytest.raises(
        ValueError, match=r"(?s)s.pt must be a .pt file with a tensor, .* NumPy arrays; save torch.from"
    ):
        read_matrix(tmp_path / "s.pt")
    np.save(tmp_path / "s.npy", np.array([[None]]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"s.npy must hold numbers, .* it holds Python objects; save array.astype"):
        read_matrix(tmp_path / "s.npy")
    frame(VALUES).astype({"dog": "Float64"}).replace(VALUES[0, 0], pd.NA).to_parquet(tmp_path / "n.parquet")
    with pytest.raises(ValueError, match=r"n.parquet must have a value in each cell, got empty ones in \['dog'\]"):
        read_matrix(tmp_path / "n.parquet")


def test_alignment_copies_the_scores_once():
    import tracemalloc

    values = np.random.default_rng(0).random((20_000, 100)).astype(np.float32)
    ids, words = tuple(map(str, range(20_000))), tuple(f"w{j}" for j in range(100))
    targets = Matrix(np.zeros((20_000, 100), np.int8), ids, words)
    tracemalloc.start()
    scores, _ = align(Matrix(values[::-1, ::-1], ids[::-1], words[::-1]), targets)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(scores.values, values)
    assert peak < 1.8 * values.nbytes  # the copy, the names and one chunk


# ------------------------------------------------------------------------------------------------- command line


@pytest.fixture
def files(tmp_path):
    WRITERS["s.csv"](tmp_path / "s.csv", VALUES, IDS, WORDS)
    np.savez(tmp_path / "t.npz", targets=TARGETS[::-1], ids=np.array(IDS[::-1]), words=np.array(WORDS))
    (tmp_path / "p.json").write_text(json.dumps(PARTITION), encoding="utf-8")
    return tmp_path


def test_the_command_line_evaluates_files(files, capsys):
    arguments = ["--scores", files / "s.csv", "--targets", files / "t.npz", "--partition", files / "p.json"]
    arguments += ["--protocol", "gzsl", "--output", files / "out" / "report.json"]
    assert main(["evaluate", *map(str, arguments)]) == 0
    written = json.loads((files / "out" / "report.json").read_text(encoding="utf-8"))
    vocabulary = Vocabulary(WORDS, seen=PARTITION["seen"])
    expected = evaluate_scores(VALUES, TARGETS, vocabulary, Protocol.named("gzsl"), "scores")
    assert written["protocols"] == json.loads(json.dumps(expected))
    assert "GZSL" in capsys.readouterr().out and (files / "out" / "report.html").is_file()


def test_policies_are_overridden_on_the_command_line(files, capsys):
    arguments = ["protocol.keep_unlabelled=false", "protocol.top_k=[1]", "--logits", files / "s.csv", "--targets"]
    arguments += [files / "t.npz", "--partition", files / "p.json", "--protocol", "zsl", "--output", files / "r.json"]
    assert main(["evaluate", *map(str, arguments)]) == 0
    figures = json.loads((files / "r.json").read_text(encoding="utf-8"))["protocols"]["zsl"]
    assert figures["policies"]["keep_unlabelled"] is False and figures["policies"]["top_k"] == [1]
    assert figures["num_images"] == 4  # the fifth has neither a known zebra nor a lamp


def test_the_targets_may_be_a_prepared_index(files, capsys):
    from pathlib import Path

    from scipy.sparse import csr_matrix

    from zsmld.datasets import Index

    present = np.where(TARGETS == -1, 0, TARGETS)
    index = Index("mini", Path(files), WORDS, {"2_2": PARTITION}, IDS, IDS, np.array(["test"] * 5), csr_matrix(present))
    index.save(files / "prepared")
    frame(VALUES[:, 2:], IDS, WORDS[2:]).to_parquet(files / "z.parquet")  # unseen words alone
    for source in ("s.csv", "z.parquet"):
        arguments = ["--logits", files / source, "--targets", files / "prepared", "--protocol", "zsl"]
        assert main(["evaluate", *map(str, arguments), "--output", str(files / "r.json")]) == 0
        figures = json.loads((files / "r.json").read_text(encoding="utf-8"))["protocols"]["zsl"]
        labels = Vocabulary(WORDS[2:], seen=[])
        expected = evaluate_scores(VALUES[:, 2:], present[:, 2:], labels, Protocol.named("zsl"))["zsl"]
        assert figures == json.loads(json.dumps(expected))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--scores", "s.csv"], "--scores and --logits must come with --targets and --protocol"),
        (["model", "--scores", "s.csv", "--targets", "t.npz", "--protocol", "zsl"], "and without a model"),
        ([], "model must be given, or --scores or --logits with --targets"),
        (
            ["protocol.topk=3", "--scores", "s.csv", "--targets", "t.npz", "--protocol", "zsl"],
            "protocol: unknown 'topk'; did you mean 'top_k'",
        ),
        (["--scores", "s.csv", "--targets", "t.npz", "--protocol", "zls"], "did you mean one of .*'zsl'"),
    ],
)
def test_the_command_line_refuses(files, monkeypatch, capsys, arguments, message):
    import re

    monkeypatch.chdir(files)
    assert main(["evaluate", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
