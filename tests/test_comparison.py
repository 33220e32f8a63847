"""Comparison of two reports: a slow bootstrap that really resamples, laws, refusals."""

import hashlib
import json
import math

import numpy as np
import oracles
import pytest

from zsmld.evaluator import evaluate_scores
from zsmld.metrics import average_precision
from zsmld.protocols import Protocol
from zsmld.report import Report, compare
from zsmld.report.bootstrap import draw_weights, resampled_average_precision
from zsmld.report.errors import best_words, confusion_counts
from zsmld.report.scores_file import _dense
from zsmld.vocabulary import Vocabulary

WORDS = [f"word {i}" for i in range(12)]


@pytest.fixture(autouse=True)
def without_pages(monkeypatch):
    """Nothing here looks at the HTML page, which takes longest to make."""
    monkeypatch.setattr(Report, "to_html", lambda self: "")


def make_data(seed=0, num_images=40, unknown=0.0, ties=False):
    rng = np.random.default_rng(seed)
    scores = rng.standard_normal((num_images, len(WORDS))).astype(np.float32)
    targets = (rng.random(scores.shape) < 0.25).astype(np.int8)
    targets[0] = 1
    scores += targets
    targets[:, 3] = 0  # a word without positives
    targets[1:, 4] = 0  # and one with a single positive, which every third resample does not draw
    targets[rng.random(scores.shape) < unknown] = -1
    return (np.round(scores) if ties else scores), targets


def make_report(scores, targets, protocol="gzsl", ids=None, words=WORDS, seen=WORDS[:7], kind="logits", **policies):
    vocabulary = Vocabulary(words, seen=words if protocol in ("supervised", "single_label") else seen)
    named = Protocol.named(protocol, **policies)
    return Report(
        protocols=evaluate_scores(scores, targets, vocabulary, named, kind),
        model={},
        dataset={"name": "d", "split": "test", "num_images": len(scores), "num_unreadable": 0, "unreadable": []},
        external_knowledge=[],
        versions={},
        protocol_name=protocol,
        vocabulary=vocabulary,
        scores=scores,
        targets=targets,
        ids=[f"{i}.jpg" for i in range(len(scores))] if ids is None else ids,
        kind=kind,
    )


def save_pair(folder, a, b):
    a.save(folder / "a.json")
    b.save(folder / "b.json")
    return folder / "a.json", folder / "b.json"


@pytest.fixture
def pair(tmp_path):
    scores, targets = make_data()
    other = scores + np.random.default_rng(9).standard_normal(scores.shape).astype(np.float32)
    return save_pair(tmp_path, make_report(scores, targets), make_report(other, targets))


# ------------------------------------------------------------------------------------------------ the slow bootstrap


def slow_figures(scores, targets, vocabulary, protocol, empty):
    """The compared figures of one resample, by `evaluate_scores`; words that are empty in the sample count as zero."""
    skipping = Protocol.named(protocol.name, **{**policies_of(protocol), "empty_words": "skip"})
    result = {}
    for part, figures in evaluate_scores(scores, targets, vocabulary, skipping).items():
        groups = {"mean": set(figures["words"])}
        if part == "gzsl":
            groups |= {"seen_mean": set(vocabulary.seen), "unseen_mean": set(vocabulary.unseen)}
        found = {}
        for name, words in groups.items():
            factor = 1.0 if protocol.empty_words == "skip" else len(words - empty[part]) / len(words)
            found[f"{name}_average_precision"] = figures[f"{name}_average_precision"] * factor
        if part == "gzsl":
            s, u = found["seen_mean_average_precision"], found["unseen_mean_average_precision"]
            found["harmonic_mean"] = 2 * s * u / (s + u)
        found |= {k: v for k, v in figures.items() if k.startswith("f1_at_")}
        result[part] = found, {word: f["average_precision"] for word, f in figures["words"].items()}
    return result


def policies_of(protocol):
    return {k: v for k, v in protocol.policies().items() if k != "task"}


@pytest.mark.parametrize("method", ["exact", "legacy", "integral", "11point"])
@pytest.mark.parametrize("keep_unlabelled", [True, False])
@pytest.mark.parametrize("empty_words", ["zero", "skip"])
def test_it_is_the_slow_bootstrap(tmp_path, method, keep_unlabelled, empty_words):
    policies = {"average_precision": method, "keep_unlabelled": keep_unlabelled, "empty_words": empty_words}
    protocol = Protocol.named("gzsl", **policies)
    scores, targets = make_data(unknown=0.1, ties=True)
    targets[5:9, 7:] = 0  # images without an unseen word
    other = np.round(scores + np.random.default_rng(1).standard_normal(scores.shape)).astype(np.float32)
    reports = [make_report(s, targets, **policies) for s in (scores, other)]
    found = compare(*save_pair(tmp_path, *reports), num_resamples=30, seed=5, confidence=0.8)
    empty = {
        part: {w for w, f in figures["words"].items() if f["average_precision"] is None}
        for part, figures in reports[0].protocols.items()
    }
    rng = np.random.default_rng(5)
    resamples = [np.sort(rng.integers(0, 40, 40)) for _ in range(30)]
    drawn = [
        [slow_figures(s[rows], targets[rows], reports[0].vocabulary, protocol, empty) for rows in resamples]
        for s in (scores, other)
    ]
    assert list(found.figures) == ["zsl", "gzsl"]
    for part, figures in found.figures.items():
        assert set(figures) == set(drawn[0][0][part][0])
        for name, value in figures.items():
            a, b = (np.array([figures[part][0][name] for figures in side]) for side in drawn)
            check_difference(value, *(r.protocols[part][name] for r in reports), a, b)
    for word, value in found.words.items():
        a, b = (np.array([f["gzsl"][1][word] for f in side], float) for side in drawn)
        known = ~np.isnan(a)
        figures = [r.protocols["gzsl"]["words"][word]["average_precision"] for r in reports]
        check_difference(value, *figures, a[known], b[known])
    assert set(found.words) == set(WORDS) - empty["gzsl"]
    assert not np.isfinite(np.array([f["gzsl"][1]["word 4"] for f in drawn[0]], float)).all()  # the case is there


def check_difference(value, a, b, a_drawn, b_drawn):
    def close(x, y):
        assert x == pytest.approx(y, abs=1e-12)

    close((value.a, value.b, value.difference), (a, b, b - a))
    close(value.a_interval, tuple(np.quantile(a_drawn, (0.1, 0.9))))
    close(value.b_interval, tuple(np.quantile(b_drawn, (0.1, 0.9))))
    close(value.interval, tuple(np.quantile(b_drawn - a_drawn, (0.1, 0.9))))
    close(value.share_b_above, np.mean(b_drawn > a_drawn + 1e-15))


@pytest.mark.parametrize("method", ["exact", "legacy", "integral", "11point"])
def test_one_words_resamples_are_those_of_repeated_rows(method):
    scores, targets = make_data(3, unknown=0.1, ties=True)
    weights = draw_weights(40, 70, seed=1)  # several blocks
    stacked = np.concatenate(weights, axis=1)
    assert stacked.shape == (40, 71) and (stacked[:, 0] == 1).all() and (stacked.sum(0) == 40).all()
    for j in (0, 3, 4):
        found = resampled_average_precision(scores[:, j], targets[:, j], weights, method)
        for r in range(71):
            rows = np.repeat(np.arange(40), stacked[:, r])
            expected = average_precision(scores[rows][:, [j]], targets[rows][:, [j]], method)[0]
            assert found[r] == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_single_labels_compare_their_accuracies(tmp_path):
    rng = np.random.default_rng(0)
    targets = np.eye(12, dtype=np.int8)[rng.integers(0, 12, 60)]
    scores = (rng.standard_normal(targets.shape) + 2 * targets).astype(np.float32)
    other = (rng.standard_normal(targets.shape) + targets).astype(np.float32)
    paths = save_pair(tmp_path, *(make_report(s, targets, "single_label") for s in (scores, other)))
    found = compare(*paths, num_resamples=200)
    assert list(found.figures["single_label"]) == ["mean_average_precision", "top_1_accuracy", "top_5_accuracy"]
    top_1 = found.figures["single_label"]["top_1_accuracy"]
    hits = scores.argmax(1) == targets.argmax(1)
    rng = np.random.default_rng(0)
    drawn = [hits[rng.integers(0, 60, 60)].mean() for _ in range(200)]
    assert top_1.a == hits.mean()
    assert top_1.a_interval == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=1e-12)
    assert top_1.interval[1] < 0 and top_1.share_b_above < 0.01  # b is worse


# -------------------------------------------------------------------------------------------------------------- laws


def test_a_report_does_not_differ_from_itself(pair):
    found = compare(pair[0], pair[0], num_resamples=50)
    for value in [v for figures in found.figures.values() for v in figures.values()] + list(found.words.values()):
        assert value.difference == value.share_b_above == 0
        assert value.interval == (0, 0) and value.a_interval == value.b_interval


def test_turned_round_it_is_the_negative(pair):
    there, back = compare(*pair, num_resamples=50), compare(*pair[::-1], num_resamples=50)
    for part, figures in there.figures.items():
        for name, value in figures.items():
            other = back.figures[part][name]
            assert (value.a, value.b, value.difference) == (other.b, other.a, -other.difference)
            assert value.interval == pytest.approx((-other.interval[1], -other.interval[0]), abs=1e-15)


def test_it_is_the_same_again_with_any_number_of_threads_and_another_with_another_seed(pair):
    once = compare(*pair, num_resamples=50, num_threads=1)
    assert once == compare(*pair, num_resamples=50, num_threads=3)
    assert once.to_text() == compare(*pair, num_resamples=50).to_text()
    assert once.figures != compare(*pair, num_resamples=50, seed=1).figures


def test_another_order_of_images_and_words_is_no_difference(tmp_path, pair):
    content = make_report(*make_data())
    rows, columns = np.random.default_rng(0).permutation(40), np.random.default_rng(1).permutation(12)
    moved = make_report(
        content.scores[rows][:, columns],
        content.targets[rows][:, columns],
        ids=[content.ids[row] for row in rows],
        words=[WORDS[j] for j in columns],
    )
    moved.save(tmp_path / "moved.json")
    found = compare(pair[0], tmp_path / "moved.json", num_resamples=20)
    assert not found.different
    assert {value.difference for value in found.words.values()} == {0}
    assert found.figures["gzsl"]["mean_average_precision"].interval == (0, 0)


def test_logits_and_their_scores_rank_alike(tmp_path):
    scores, targets = make_data()
    probabilities = 1 / (1 + np.exp(-scores.astype(np.float64)))
    reports = make_report(scores, targets), make_report(probabilities.astype(np.float32), targets, kind="scores")
    found = compare(*save_pair(tmp_path, *reports), num_resamples=20)
    assert found.figures["gzsl"]["mean_average_precision"].difference == pytest.approx(0, abs=1e-12)


def test_intervals_cover_the_true_difference_about_as_often_as_they_say(tmp_path):
    """Test sets drawn from one population of images; the top-1 accuracies of two models in it are known."""
    rng = np.random.default_rng(0)
    population = np.eye(4, dtype=np.int8)[rng.integers(0, 4, 4000)]
    scores = [(rng.standard_normal(population.shape) + shift * population) for shift in (1.0, 1.3)]
    truth = np.diff([(s.argmax(1) == population.argmax(1)).mean() for s in scores])[0]
    covered = []
    for _ in range(60):
        rows = rng.choice(4000, 150, replace=False)
        reports = [
            make_report(s[rows].astype(np.float32), population[rows], "single_label", words=WORDS[:4], top_k=(1,))
            for s in scores
        ]
        found = compare(*save_pair(tmp_path, *reports), num_resamples=200, confidence=0.8)
        low, high = found.figures["single_label"]["top_1_accuracy"].interval
        covered.append(low <= truth <= high)
    assert 0.65 <= np.mean(covered) <= 0.95  # three standard errors around 0.8


# ---------------------------------------------------------------------------------------------------------- refusals


def refused(a, b, **options):
    with pytest.raises(ValueError, match="must") as error:
        compare(a, b, num_resamples=5, **options)
    return str(error.value)


def test_everything_that_differs_is_named_at_once(tmp_path):
    scores, targets = make_data()
    changed = targets.copy()
    changed[2, 2] = 1 - changed[2, 2]
    a = make_report(scores, targets)
    b = make_report(
        scores[1:, :11], changed[1:, :11], words=WORDS[:11], seen=WORDS[:5], ids=[*a.ids[1:39], "x.jpg"], top_k=(3,)
    )
    message = refused(*save_pair(tmp_path, a, b))
    for text in (
        "images: 2 only in",
        "'39.jpg'",
        "1 only in",
        "'x.jpg'",
        "words: 1 only in",
        "word 11",
        "partition: 2 words are seen in one and unseen in the other ['word 5', 'word 6']",
        "policies: top_k is [3, 5] in",
        "targets: 1 of 418 entries",
        "--allow-different",
    ):
        assert text in message, (text, message)


@pytest.mark.parametrize(
    "policy, value", [("keep_unlabelled", False), ("empty_words", "skip"), ("average_precision", "legacy")]
)
def test_each_policy_that_decides_a_figure_must_be_the_same(tmp_path, policy, value):
    scores, targets = make_data()
    paths = save_pair(tmp_path, make_report(scores, targets), make_report(scores, targets, **{policy: value}))
    assert f"policies: {policy} is" in refused(*paths)


def test_a_threshold_decides_no_compared_figure(tmp_path):
    scores, targets = make_data()
    paths = save_pair(tmp_path, make_report(scores, targets), make_report(scores, targets, threshold=0.7))
    assert not compare(*paths, num_resamples=5).different


def test_what_both_have_is_compared_if_one_insists_and_says_so(tmp_path):
    scores, targets = make_data()
    a = make_report(scores, targets)
    b = make_report(scores[5:], targets[5:], ids=a.ids[5:])
    found = compare(*save_pair(tmp_path, a, b), num_resamples=5, allow_different=True)
    assert found.num_images == 35
    assert found.different[0].startswith("images: 5 only in")
    assert "COMPARED ALTHOUGH THEY DIFFER" in found.to_text() and "5 only in" in found.to_markdown()
    expected = evaluate_scores(scores[5:], targets[5:], a.vocabulary, Protocol.named("gzsl"))
    value = found.figures["gzsl"]["mean_average_precision"]
    assert value.a == value.b == pytest.approx(expected["gzsl"]["mean_average_precision"], abs=1e-12)


def test_parts_that_only_one_has_are_a_difference(tmp_path):
    scores, targets = make_data()
    paths = save_pair(tmp_path, make_report(scores, targets), make_report(scores, targets, "zsl"))
    assert "parts: 1 only in" in refused(*paths)
    found = compare(*paths, num_resamples=5, allow_different=True)
    assert list(found.figures) == ["zsl"] and len(found.words) == 5
    make_report(scores, targets, "supervised").save(tmp_path / "c.json")
    assert "must have a part in common" in refused(paths[0], tmp_path / "c.json", allow_different=True)


def test_without_scores_there_is_nothing_to_resample(tmp_path, pair):
    make_report(*make_data()).save(tmp_path / "c.json", scores=False)
    message = refused(pair[0], tmp_path / "c.json")
    assert "saved without them" in message and "scores=True" in message
    (tmp_path / "b.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"b\.npz must be the scores that the report was saved with, not found"):
        compare(*pair)


def test_other_scores_than_the_reports_own_are_refused(tmp_path, pair):
    other = tmp_path / "other"
    make_report(*make_data(1)).save(other)
    (tmp_path / "b.npz").write_bytes((other / "report.npz").read_bytes())
    assert "SHA-256 is not the one in the report" in refused(*pair)


def test_figures_that_are_not_those_of_the_scores_are_refused(pair):
    content = json.loads(pair[1].read_text())
    content["protocols"]["gzsl"]["f1_at_3"] += 0.01
    pair[1].write_text(json.dumps(content))
    assert "gzsl f1_at_3 is" in refused(*pair)


def test_what_is_no_report_is_refused(tmp_path, pair):
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "text.json").write_text("no json")
    assert "it has no protocols" in refused(pair[0], tmp_path / "list.json")
    assert "it is no JSON" in refused(pair[0], tmp_path / "text.json")
    with pytest.raises(FileNotFoundError, match="must be the JSON file of a report, not found"):
        compare(pair[0], tmp_path / "nothing.json")
    for options in ({"num_resamples": 0}, {"confidence": 1.0}):
        with pytest.raises(ValueError, match="num_resamples must be at least 1 and confidence inside"):
            compare(*pair, **options)


def damage(content, key, value):
    """A report's JSON with one entry changed, or taken away for None."""
    *path, last = key
    inner = content
    for name in path:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (("scores_file", "sha256"), None, "scores_file must have name and sha256, or be null"),
        (("scores_file", "name"), 3, "scores_file must have name and sha256, or be null"),
        (("scores_file",), "b.npz", "scores_file must have name and sha256, or be null"),
        (("protocols", "gzsl", "words"), None, "gzsl must have words"),
        (("protocols", "zsl", "words"), [], "zsl must have words"),
        (("protocols", "gzsl", "policies"), None, "gzsl must have policies"),
        (("protocols", "gzsl", "policies", "top_k"), "3", "gzsl must have the policy top_k, got '3'"),
        (("protocols", "zsl", "policies", "empty_words"), None, "zsl must have the policy empty_words, got None"),
        (("protocols", "gzsl"), 7, "'gzsl' is no part of a protocol"),
        (("protocols", "gzsl", "f1_at_3"), "high", "gzsl f1_at_3 is high there"),
    ],
)
def test_a_damaged_report_is_named_and_so_is_what_it_lacks(pair, key, value, message):
    content = json.loads(pair[1].read_text())
    damage(content, key, value)
    pair[1].write_text(json.dumps(content))
    found = refused(*pair)
    assert "b.json must" in found and message in found


def test_a_report_with_words_that_have_no_scores_is_refused(pair):
    content = json.loads(pair[1].read_text())
    content["protocols"]["gzsl"]["words"]["zebra"] = content["protocols"]["gzsl"]["words"]["word 0"]
    pair[1].write_text(json.dumps(content))
    assert "must have the words of its scores, ['zebra'] have none" in refused(*pair)


@pytest.mark.parametrize("how", ["cut", "other arrays", "no archive"])
def test_a_scores_file_that_cannot_be_read_is_named_though_its_hash_fits(tmp_path, pair, how):
    file = tmp_path / "b.npz"
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    elif how == "other arrays":
        np.savez(file, logits=np.zeros((2, 2), np.float32))
    else:
        file.write_bytes(b"PK\x03\x04 no archive")
    content = json.loads(pair[1].read_text())
    content["scores_file"]["sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
    pair[1].write_text(json.dumps(content))
    assert "b.npz must be the scores that the report was saved with, it cannot be read as such" in refused(*pair)


def test_images_with_equal_ids_cannot_be_brought_into_another_order(tmp_path):
    scores, targets = make_data()
    ids = ["0.jpg", *[f"{i}.jpg" for i in range(39)]]
    paths = save_pair(tmp_path, make_report(scores, targets, ids=ids), make_report(scores, targets, ids=ids[::-1]))
    assert "must name each image once" in refused(*paths)


# ------------------------------------------------------------------------------------------------------------ output


def test_the_text_has_the_figures_and_fits_a_terminal(pair):
    found = compare(*pair, num_resamples=50)
    text = found.to_text(num_words=3)
    assert all(len(line) <= 110 for line in text.splitlines() if "json" not in line)
    value = found.figures["gzsl"]["harmonic_mean"]
    row = next(line for line in text.splitlines() if line.startswith("  harmonic mean"))
    assert row.split()[2] == f"{100 * value.a:.1f}"
    assert f"{100 * value.difference:+.1f}" in row
    assert f"[{100 * value.interval[0]:+.1f}, {100 * value.interval[1]:+.1f}]" in row
    assert "40 images; 50 paired resamples of the images, seed 0; 95% percentile intervals" in text
    assert "keep_unlabelled=True" in text and "not corrected" in text
    sizes = [abs(found.words[word].difference) for word in found.moved(None)]
    assert sizes == sorted(sizes, reverse=True) and len(sizes) == 11
    assert [line.split(" (")[0] for line in text.splitlines()[-3:]] == found.moved(3)


def test_the_dictionary_is_json_and_has_every_word(pair):
    found = compare(*pair, num_resamples=20)
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert set(content["words"]) == set(WORDS) - {"word 3"}
    assert content["figures"]["zsl"]["f1_at_3"]["a"] == found.figures["zsl"]["f1_at_3"].a
    assert content["seed"] == 0 and content["different"] == []


def test_the_markdown_tables_are_whole(pair):
    text = compare(*pair, num_resamples=20).to_markdown()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {row.count("|") for row in rows} == {9} and len(rows) == 2 + 2 + 3 + 6 + 2 + 10


# ------------------------------------------------------------------------------------------- the best words, and errors


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("k", [1, 3, 12])
def test_best_words_are_those_of_the_oracle(ties, k):
    scores, targets = make_data(2, unknown=0.3, ties=ties)
    targets[7] = -1
    scores[8, :5] = -np.inf
    rows, columns = best_words(scores, targets, k)
    for i in range(len(scores)):
        assert set(columns[rows == i]) == set(oracles.best_words(scores[i], targets[i], k))


def test_confusions_are_counted_one_by_one():
    scores, targets = make_data(4, unknown=0.1)
    counts, wrong = confusion_counts(scores, targets, 3)
    expected, given_wrongly = np.zeros((12, 12), int), np.zeros(12, int)
    for s, t in zip(scores, targets, strict=True):
        for j in oracles.best_words(s, t, 3):
            if t[j] == 0:
                given_wrongly[j] += 1
                for i in range(12):
                    expected[i, j] += t[i] == 1
    assert (counts == expected).all() and (wrong == given_wrongly).all() and counts.sum() > 20
    assert not math.isclose(counts.trace(), 1) and counts.trace() == 0


def test_where_no_word_moved_none_is_listed(pair):
    same = compare(pair[0], pair[0], num_resamples=20)
    assert same.moved() == [] and f"No word moved, of {len(same.words)}." in same.to_text()
    assert "No word moved" in same.to_markdown()
    assert "calibrated figures, CF1 and OF1 take no part" in " ".join(same.to_text().split())


@pytest.mark.parametrize(
    ("values", "columns", "starts", "shape", "fill"),
    [
        ([1], [2], [0, 1, 1], (2, 2), 0),
        ([1], [-1], [0, 1, 1], (2, 2), 0),
        ([1], [0], [0, 1], (2, 2), 0),
        ([1], [0], [1, 1, 1], (2, 2), 0),
        ([1], [0], [0, 2**63, 1], (2, 2), 0),
        ([1], [0], [0, 9, 1], (2, 2), 0),
        ([1, 1], [0], [0, 1, 1], (2, 2), 0),
        ([1], [0], [0, 1], (2,), 0),
        ([257], [0], [0, 1, 1], (2, 2), 0),
        ([1.0], [0], [0, 1, 1], (2, 2), 0),
        ([1], [0], [0, 1, 1], (2, 2), 5),
        ([1], [0], [0, 1, 1], (2, 2), [0, 0]),
    ],
)
def test_targets_of_a_scores_file_that_make_no_sense_are_refused(values, columns, starts, shape, fill):
    """Each of them, before anything is written where it does not belong."""
    starts = np.array(starts, np.uint64 if max(starts) > 2**62 else np.int64)
    with pytest.raises(ValueError, match=r"start|target"):
        _dense(np.array(values), np.array(columns), starts, np.array(fill), shape)


def test_targets_of_a_scores_file_are_those_that_were_written():
    found = _dense(np.array([1, -1, 1]), np.array([1, 0, 1]), np.array([0, 1, 3]), np.array(0, np.int8), (2, 2))
    assert found.tolist() == [[0, 1], [-1, 1]] and found.dtype == np.int8
