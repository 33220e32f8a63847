"""Report: a fixed JSON shape, a Markdown table that parses, one self-contained and escaped HTML page."""

import errno
import gc
import json
import os
import weakref
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zsmld.evaluator import evaluate_scores
from zsmld.protocols import Protocol
from zsmld.report import Report, Sample, read_scores
from zsmld.report.headline import headline
from zsmld.report.plots import plot_scores, plot_some_words, precision_recall, sampled_rows
from zsmld.vocabulary import Vocabulary

NASTY = ("<b>&", "<script>alert('1')</script>", 'a "quoted" word', "naïve 犬", "{brace}", "50% | off")


def make_report(protocol="gzsl", num_words=12, seed=0, unreadable=(), **policies):
    """A report of random scores, without any model; the last half of the words is unseen."""
    rng = np.random.default_rng(seed)
    words = [*NASTY, *(f"word {i}" for i in range(len(NASTY), num_words))][:num_words]
    seen = words if protocol in ("supervised", "single_label") else words[: num_words // 2]
    vocabulary = Vocabulary(words, seen=seen)
    scores = rng.standard_normal((30, num_words)).astype(np.float32)
    targets = (rng.random((30, num_words)) < 0.2).astype(np.int8)
    targets[:, -1] = 0  # a word without positives
    if protocol == "single_label":
        targets = np.eye(num_words, dtype=np.int8)[rng.integers(0, num_words - 1, 30)]
    parts = Protocol.named(protocol, **policies)
    picture = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    return Report(
        protocols=evaluate_scores(scores, targets, vocabulary, parts),
        model={"image_encoder": "timm:<i>resnet</i>", "text_encoder": None},
        dataset={
            "name": "pictures & <u>words</u>",
            "split": "test",
            "num_images": 30 + len(unreadable),
            "num_unreadable": len(unreadable),
            "unreadable": [{"id": name, "error": f"cannot decode {name}"} for name in unreadable],
            "vocabulary_sha256": vocabulary.digest(),
        },
        external_knowledge=["a <em>text</em> encoder"],
        versions={"zsmld": "0", "torch": "0"},
        protocol_name=protocol,
        vocabulary=vocabulary,
        scores=scores,
        targets=targets,
        ids=[f"{i}.png" for i in range(30)],
        samples=[
            Sample("<0>.png", picture, (picture, picture), tuple(words[:3]), (0.9, 0.5, 0.1), (words[1],)),
            Sample("1.png", None, (), (words[2],), (0.25,), ()),
        ],
    )


class Page(HTMLParser):
    """What a browser would see: tags, attributes, text, and the cells of each table."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.attributes, self.text, self.tables, self.open = [], [], [], [], []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in ("meta", "img", "br", "input"):
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.text.append(data)
        if {"td", "th"} & set(self.open):  # a button or a span may stand in between
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def report():
    return make_report(unreadable=("<broken>.jpg",))


@pytest.fixture(scope="module")
def saved(report, tmp_path_factory):
    """The folder a report was saved to, which did not exist before, and the paths `save` returned."""
    folder = tmp_path_factory.mktemp("reports") / "new" / "folder"
    return folder, *report.save(folder)


@pytest.fixture(scope="module")
def source(saved):
    return saved[2].read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(source):
    return Page(source)


# --------------------------------------------------------------------------------------------------------- JSON


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


@pytest.mark.parametrize(
    "protocol, parts", [("zsl", ["zsl"]), ("gzsl", ["zsl", "gzsl"]), ("supervised", ["supervised"])]
)
def test_report_json_has_its_fixed_shape(protocol, parts):
    report = make_report(protocol)
    content = json.loads(json.dumps(report.to_dict()), parse_constant=refuse)
    assert {"protocols", "model", "dataset", "versions"} <= set(content)
    assert list(content["protocols"]) == parts
    for part in content["protocols"].values():
        for name in ("mean_average_precision", "f1_at_3", "labels_per_image"):
            assert isinstance(part[name], float), name
        assert 0 <= part["mean_average_precision"] <= 1  # fractions; percent only where they are printed
        assert part["num_images"] == 30
        assert {"task", "keep_unlabelled", "empty_words", "average_precision"} <= set(part["policies"])
        assert len(part["words"]) == part["num_words"]
        for figures in part["words"].values():
            assert set(figures) == {"average_precision", "num_positives", "seen"}


def test_a_saved_report_is_the_report(report, saved):
    folder, json_path, html_path = saved
    content = json.loads(json_path.read_text(encoding="utf-8"))
    assert content.pop("scores_file")["name"] == "report.npz"
    assert content == json.loads(json.dumps(report.to_dict()))
    assert sorted(f.name for f in folder.iterdir()) == ["report.html", "report.json", "report.md", "report.npz"]
    assert (json_path, html_path) == (folder / "report.json", folder / "report.html")
    assert (folder / "report.md").read_text(encoding="utf-8") == report.to_markdown()


def test_words_come_back_from_json_as_they_were(report, saved):
    content = json.loads(saved[1].read_text(encoding="utf-8"))
    assert tuple(content["protocols"]["gzsl"]["words"]) == report.vocabulary.words
    assert tuple(content["protocols"]["zsl"]["words"]) == report.vocabulary.unseen


# ----------------------------------------------------------------------------------------------------- Markdown


def markdown_table(text):
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip().strip("|").split("|")] for row in rows]


@pytest.mark.parametrize("protocol", ["zsl", "gzsl", "seen", "supervised"])
@pytest.mark.parametrize("num_words", [12, 8])  # with 8 words F1@5 exists for all words and not for the 4 unseen ones
def test_the_markdown_table_parses_and_has_the_figures(protocol, num_words):
    report = make_report(protocol, num_words=num_words)
    header, separator, *rows = markdown_table(report.to_markdown())
    assert all(len(row) == len(header) for row in (separator, *rows))
    assert all(set(cell) <= set("-:") and "---" in cell for cell in separator)
    main = [row for row in rows if row[header.index("chance")]]  # the others are parts of the row above
    assert len(main) == len(report.protocols)
    for row, figures in zip(main, report.protocols.values(), strict=True):
        cells = dict(zip(header, row, strict=True))
        assert int(cells["words"]) == figures["num_words"]
        assert int(cells["images"]) == figures["num_images"]
        assert float(cells["labels/image"]) == pytest.approx(figures["labels_per_image"], abs=5e-4)
        assert float(cells["mAP"]) == pytest.approx(100 * figures["mean_average_precision"], abs=0.051)
        assert float(cells["chance"]) == pytest.approx(100 * figures["chance_mean_average_precision"], abs=0.051)
        assert float(cells["F1@3"]) == pytest.approx(100 * figures["f1_at_3"], abs=0.051)
        if "f1_at_5" in figures and "F1@5" in cells:
            assert float(cells["F1@5"]) == pytest.approx(100 * figures["f1_at_5"], abs=0.051)


def test_gzsl_shows_its_seen_and_unseen_words_below_it(report):
    header, _, *rows = markdown_table(report.to_markdown())
    cells = {row[0].split()[-1].rstrip(")"): dict(zip(header, row, strict=True)) for row in rows}
    for group in ("seen", "unseen"):
        assert int(cells[group]["words"]) == 6
        expected = 100 * report.protocols["gzsl"][f"{group}_mean_average_precision"]
        assert float(cells[group]["mAP"]) == pytest.approx(expected, abs=0.051)


@pytest.mark.parametrize("num_words", [12, 8])
def test_the_text_table_is_aligned(num_words):
    report = make_report(num_words=num_words)
    lines = report.to_text().splitlines()
    assert len({len(line) for line in lines[:-1]}) == 1 and len(lines[0]) <= 110
    assert lines[-1] == "policies: keep_unlabelled=True, empty_words=zero, average_precision=exact"
    assert f"{100 * report.protocols['zsl']['mean_average_precision']:.1f}" in lines[1]


def test_unreadable_images_are_mentioned_only_if_there_are_some(report):
    assert "1 image" in report.to_markdown()
    assert "could not be read" in report.to_markdown()
    assert "could not be read" not in make_report().to_markdown()


# --------------------------------------------------------------------------------------------------------- HTML


def test_the_page_loads_nothing(source, page):
    sources = [value for _, name, value in page.attributes if name in ("src", "href", "srcset", "data", "action")]
    assert sources
    assert all(value.startswith("data:image/") for value in sources)
    assert not {"link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert page.tags.count("script") == 1 and not [name for tag, name, _ in page.attributes if tag == "script"]
    policy = next(value for tag, name, value in page.attributes if tag == "meta" and "default-src" in value)
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    style = source.partition("<style>")[2].partition("</style>")[0]
    assert style
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_is_well_formed(page):
    assert page.open == []
    assert page.tags.count("img") == len([name for _, name, value in page.attributes if name == "alt" and value])


def test_words_are_escaped_and_read_back_as_they_are(report, source, page):
    words = next(table for table in page.tables if table[0][:2] == ["word", "partition"])
    assert sorted(row[0] for row in words[1:]) == sorted(report.vocabulary.words)
    assert page.tags.count("script") == 1  # the page's own
    assert "<b>&" not in source
    assert "&lt;b&gt;&amp;" in source
    everything = "".join(page.text)
    for text in ("timm:<i>resnet</i>", "pictures & <u>words</u>", "a <em>text</em> encoder", "<broken>.jpg"):
        assert text in everything, text
    assert not {"i", "u", "em", "broken"} & set(page.tags)


def test_the_words_table_has_each_words_figures_best_first(report, page):
    table = next(table for table in page.tables if table[0][:2] == ["word", "partition"])
    header, rows = table[0], [dict(zip(table[0], row, strict=True)) for row in table[1:]]
    assert header == ["word", "partition", "AP", "positives", "share of images, %"]
    shown = []
    for row in rows:
        figures = report.protocols["gzsl"]["words"][row["word"]]
        assert row["partition"] == ("seen" if figures["seen"] else "unseen")
        assert row["positives"] == str(figures["num_positives"])
        assert float(row["share of images, %"]) == pytest.approx(100 * figures["num_positives"] / 30, abs=0.0051)
        if figures["average_precision"] is None:
            assert row["AP"] == "none"
        else:
            shown.append(figures["average_precision"])
            assert float(row["AP"]) == pytest.approx(100 * shown[-1], abs=0.051)
    assert shown == sorted(shown, reverse=True)
    assert len(shown) == len(rows) - 1


def test_every_policy_of_every_part_is_on_the_page(report, page):
    table = next(table for table in page.tables if table[0][0] == "policy")
    assert table[0][1:] == list(report.protocols)
    assert {row[0]: row[1:] for row in table[1:]} == {
        name: [str(part["policies"][name]) for part in report.protocols.values()]
        for name in report.protocols["gzsl"]["policies"]
    }


def test_samples_show_their_words_scores_and_truth(report, page):
    text = "".join(page.text)
    for sample in report.samples:
        for word, score in zip(sample.words, sample.scores, strict=True):
            assert f"{score:.2f}" in text
            assert word in text
    assert f"truly there: {report.samples[0].present[0]}" in text
    assert "truly there: none" in text
    jpegs = [value for tag, name, value in page.attributes if name == "src" and value.startswith("data:image/jpeg")]
    assert len(jpegs) == 3  # the picture and two overlays of the first sample, nothing for the second


@pytest.mark.parametrize("protocol", ["zsl", "seen", "supervised", "single_label"])
def test_every_kind_of_protocol_makes_a_page(protocol):
    report = make_report(protocol)
    words = next(table for table in Page(report.to_html()).tables if table[0][:2] == ["word", "partition"])
    assert len(words) - 1 == report.protocols[protocol]["num_words"]


def test_repr_names_protocol_dataset_and_figures(report):
    text = repr(report)
    assert "'gzsl'" in text
    assert f"zsl mAP {100 * report.protocols['zsl']['mean_average_precision']:.1f}" in text


def test_a_partition_without_any_known_entry_still_makes_a_page():
    report = make_report()
    report.targets[:, : len(report.vocabulary.seen)] = -1
    assert Page(report.to_html()).tables


def test_labels_per_image_of_seen_and_unseen_add_up_to_all():
    from zsmld import Vocabulary
    from zsmld.evaluator import evaluate_scores
    from zsmld.protocols import Protocol
    from zsmld.report import Report

    rng = np.random.default_rng(0)
    vocabulary = Vocabulary([f"word {i}" for i in range(9)], seen=[f"word {i}" for i in range(5)])
    targets = (rng.random((40, 9)) < [0.5] * 5 + [0.1] * 4).astype(np.int8)
    scores = rng.standard_normal((40, 9)).astype(np.float32)
    figures = evaluate_scores(scores, targets, vocabulary, Protocol.named("gzsl"))
    dataset = {"name": "d", "split": "test", "num_unreadable": 0, "unreadable": []}
    report = Report(figures, {}, dataset, [], {}, "gzsl", vocabulary, scores, targets, [])
    cells = {row[0].strip(): float(row[3]) for row in headline(report.protocols)[1] if row[3]}
    assert cells["of which seen"] == round(targets[:, :5].sum() / 40, 3)
    assert cells["of which unseen"] == cells["ZSL (unseen words)"] == round(targets[:, 5:].sum() / 40, 3)
    assert cells["GZSL (all words)"] == round(targets.sum() / 40, 3)


# ------------------------------------------------------------------------------------------------- more of the headline


def test_the_harmonic_mean_and_a_calibration_have_their_rows():
    report = make_report()
    calibrated = {"f1_at_3": 0.375, "seen_unseen_constant": 0.1}
    report.protocols["gzsl"]["calibrated"] = calibrated
    columns, rows = headline(report.protocols)
    cells = {row[0].strip(): dict(zip(columns, row, strict=True)) for row in rows}
    assert float(cells["harmonic mean"]["mAP"]) == pytest.approx(
        100 * report.protocols["gzsl"]["harmonic_mean"], abs=0.051
    )
    assert cells["GZSL, calibrated"]["F1@3"] == "37.5"
    assert cells["GZSL, calibrated"]["mAP"] == "" and cells["GZSL, calibrated"]["images"] == "30"
    assert "GZSL, calibrated" in report.to_text() and "GZSL, calibrated" in report.to_html()


def everywhere(report):
    """What a person reads: terminal, Markdown and page, blanks joined."""
    page = " ".join(Page(report.to_html()).text)
    return [" ".join(text.split()) for text in (report.to_text(), report.to_markdown().replace("\\", ""), page)]


def test_a_calibration_says_what_makes_it_unfair():
    report = make_report()
    calibration = {"standardization": "per_word", "stacking": 1.25, "transductive": False}
    calibration["chosen_on"] = {"split": "val", "num_images": 7, "heldout_words": ["x"], "image_ids_sha256": "a"}
    report.dataset["image_ids_sha256"] = "b"
    report.protocols["gzsl"]["calibrated"] = {"f1_at_3": 0.375, "calibration": calibration}
    fair = everywhere(report)
    for text in fair:
        assert "stacking 1.25, chosen on 7 val images with 1 held-out words" in text
        assert "GZSL, calibrated (" not in text and "TRANSDUCTIVE" not in text and "NOT A FAIR" not in text.upper()
    calibration["transductive"], calibration["chosen_on"]["split"] = True, "test"
    report.dataset["image_ids_sha256"] = "a"
    for text in everywhere(report):
        assert "GZSL, calibrated (transductive, on test images)" in text
        assert "TRANSDUCTIVE: its statistics are those of the evaluated images" in text
        assert "CHOSEN ON THE EVALUATED IMAGES: not a fair figure" in text


@pytest.mark.parametrize(("split", "said"), [("all", "on test images"), ("train", "on training images")])
def test_a_calibration_on_other_images_than_validation_ones_is_named_so(split, said):
    report = make_report()
    calibration = {"standardization": "none", "stacking": 0.5, "chosen_on": {"split": split}}
    report.protocols["gzsl"]["calibrated"] = {"f1_at_3": 0.375, "calibration": calibration}
    assert all(f"GZSL, calibrated ({said})" in text for text in everywhere(report))


def test_held_out_words_and_images_left_out_are_said():
    report = make_report()
    assert all("held out" not in text and "left out" not in text for text in everywhere(report))
    report.model["heldout_words"] = [NASTY[3], NASTY[0]]
    report.dataset["manifest"] = {"images": {"listed": 40, "unlabelled": 8, "used": 32}, "missing_images": 2}
    for text in everywhere(report):
        assert "2 of the seen words had no labels in training; they chose the epoch and count as seen" in text
        assert "left out before the evaluation: 8 unlabelled, 2 missing on disk" in text
    cells = {row[0]: row[1] for table in Page(report.to_html()).tables for row in table if len(row) == 5}
    assert cells[NASTY[3]] == "seen, held out" and cells[NASTY[1]] == "seen" and cells["word 7"] == "unseen"


def test_the_page_is_of_the_images_that_the_figures_are_of(monkeypatch):
    import zsmld.report.page as page

    report, seen = make_report(keep_unlabelled=False), []
    report.targets[::2] = 0
    report.protocols = evaluate_scores(
        report.scores, report.targets, report.vocabulary, Protocol.named("gzsl", keep_unlabelled=False)
    )
    number = report.protocols["gzsl"]["num_images"]
    assert 0 < number < 30
    monkeypatch.setattr(
        page, "confusion_counts", lambda s, t, k: seen.append(len(s)) or (np.zeros((12, 12)), np.zeros(12))
    )
    assert f"All curves and histograms are of all {number} images." in report.to_html()
    assert seen == [number]


def test_nothing_but_an_earlier_report_is_overwritten(tmp_path):
    own = tmp_path / "mine.npz"
    np.savez(own, logits=np.ones(3))
    content = own.read_bytes()
    with pytest.raises(ValueError, match=r"(?s)path must leave other files alone, .*mine.npz would be overwritten"):
        make_report().save(tmp_path / "mine.json")
    make_report().save(tmp_path / "mine.json", scores=False)
    assert own.read_bytes() == content
    make_report().save(tmp_path / "folder")
    make_report(seed=1).save(tmp_path / "folder")  # its own files are replaced
    make_report().save(tmp_path / "folder", scores=False)
    assert not (tmp_path / "folder" / "report.npz").exists()
    with pytest.raises(ValueError, match=r"path must be a folder or end in .json, got .*r.txt; write r.json"):
        make_report().save(tmp_path / "r.txt")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "report.html").write_text("mine")
    with pytest.raises(ValueError, match=r"report.html would be overwritten and is not an earlier report's"):
        make_report().save(tmp_path / "other")


def test_a_report_and_its_scores_are_given_back_once_the_page_is_made():
    """Without waiting for a collection, which a process with little else to do may never come to."""
    from matplotlib import _fontconfig_pattern

    _fontconfig_pattern.parse_fontconfig_pattern.cache_clear()  # as in a process that draws for the first time
    gc.disable()
    try:
        report = make_report()
        held = weakref.ref(report)
        report.to_html()
        del report
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("ending", [".md", ".html", ".json"])
def test_a_report_stays_until_another_one_is_whole(tmp_path, monkeypatch, ending):
    make_report().save(tmp_path)
    before, write_text = {path.name: path.read_bytes() for path in tmp_path.iterdir()}, Path.write_text

    def full(path, *given, **options):
        if ending in path.name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_text(path, *given, **options)

    other = make_report(seed=1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(
            OSError, match=r"must be written to the end, got No space left .*; make room and repeat the"
        ):
            other.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    json_path, _ = other.save(tmp_path)
    name = json.loads(json_path.read_text())["scores_file"]
    assert (read_scores(tmp_path / name["name"], name["sha256"]).scores == other.scores).all()


def test_double_precision_is_saved(tmp_path):
    report = make_report()
    report.scores = report.scores.astype(np.float64) + 1e-12
    json_path, _ = report.save(tmp_path)
    name = json.loads(json_path.read_text())["scores_file"]
    saved = read_scores(tmp_path / name["name"], name["sha256"])
    assert saved.scores.dtype == np.float64 and (saved.scores == report.scores).all()


def test_supervised_words_have_cf1_and_of1_and_single_labels_top_1_and_top_5():
    figures = make_report("supervised").protocols["supervised"]
    columns, [row] = headline({"supervised": figures})
    assert columns[-2:] == ["CF1", "OF1"]
    assert float(row[-2]) == pytest.approx(100 * figures["per_class_f1"], abs=0.051)
    assert float(row[-1]) == pytest.approx(100 * figures["overall_f1"], abs=0.051)
    figures = make_report("single_label").protocols["single_label"]
    columns, [row] = headline({"single_label": figures})
    assert columns == ["", "words", "images", "labels/image", "mAP", "chance", "top-1", "top-5"]
    assert float(row[-2]) == pytest.approx(100 * figures["top_1_accuracy"], abs=0.051)


def test_policies_and_external_knowledge_are_printed_with_the_figures():
    text = make_report(keep_unlabelled=False).to_markdown()
    assert "keep_unlabelled=False, empty_words=zero, average_precision=exact" in text
    assert "External knowledge: a <em>text</em> encoder" in text


# ------------------------------------------------------------------------------------------------ saved for comparison


@pytest.mark.parametrize("share_unknown", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("kind", ["logits", "scores"])
def test_the_scores_file_gives_back_what_was_saved(tmp_path, share_unknown, kind):
    report = make_report(unreadable=())
    report.kind = kind
    if kind == "scores":
        report.scores = (1 / (1 + np.exp(-report.scores))).astype(np.float32)
    report.targets[np.random.default_rng(1).random(report.targets.shape) < share_unknown] = -1
    json_path, _ = report.save(tmp_path / "run 1.json")
    assert json_path == tmp_path / "run 1.json" and (tmp_path / "run 1.html").is_file()
    file = json.loads(json_path.read_text(encoding="utf-8"))["scores_file"]
    content = read_scores(tmp_path / file["name"], file["sha256"])
    assert (content.scores == report.scores).all() and content.scores.dtype == np.float32
    assert (content.targets == report.targets).all() and content.targets.dtype == np.int8
    assert content.ids == report.ids and content.kind == kind
    assert content.vocabulary.words == report.vocabulary.words and content.vocabulary.seen == report.vocabulary.seen
    before = (tmp_path / file["name"]).read_bytes()
    report.save(tmp_path / "run 1.json")
    assert (tmp_path / file["name"]).read_bytes() == before


def test_the_scores_file_is_one_that_evaluate_reads(tmp_path):
    from zsmld.evaluator import read_matrix

    report = make_report("zsl")
    report.save(tmp_path)
    matrix = read_matrix(tmp_path / "report.npz")
    assert matrix.words == report.vocabulary.unseen and list(matrix.ids) == report.ids  # the ranked words only
    assert (matrix.values == report.scores[:, report.vocabulary.labels(report.vocabulary.unseen)]).all()


def test_without_scores_no_file_is_left(tmp_path):
    report = make_report()
    report.save(tmp_path)
    report.save(tmp_path, scores=False)
    assert not (tmp_path / "report.npz").exists()
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))["scores_file"] is None


def test_ids_that_do_not_fit_are_refused(tmp_path):
    report = make_report()
    report.ids.pop()
    with pytest.raises(ValueError, match=r"scores and targets must be \(29, 12\), one row an image id"):
        report.save(tmp_path)


# --------------------------------------------------------------------------------------------------------------- plots


def test_scores_are_not_sigmoided_and_logits_are(monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(Axes, "hist", lambda self, values, **_: drawn.append(values))
    values, targets = np.array([[0.0, 1.0], [0.25, -np.inf]]), np.array([[1, 0], [1, 0]])
    plot_scores([("seen", "red", values, targets)], "logits")
    assert drawn[0].tolist() == [0.5, pytest.approx(0.5621765)] and drawn[1].tolist() == [pytest.approx(0.7310586), 0]
    drawn.clear()
    plot_scores([("seen", "red", values, targets)], "scores")
    assert drawn[0].tolist() == [0.0, 0.25]


def test_the_curve_is_that_of_scikit_learn():
    from sklearn.metrics import precision_recall_curve

    rng = np.random.default_rng(0)
    scores, present = rng.integers(0, 40, 300) / 8, rng.random(300) < 0.2
    recall, precision = precision_recall(scores, present, points=10**6)
    expected_precision, expected_recall, _ = precision_recall_curve(present, scores)
    cut = np.flatnonzero(expected_recall == 1)[-1]  # ours ends at the last positive
    assert recall[:0:-1] == pytest.approx(expected_recall[cut:-1])
    assert precision[:0:-1] == pytest.approx(expected_precision[cut:-1])
    thinned = precision_recall(scores, present, points=10)
    assert len(thinned[0]) == 11 and set(zip(*thinned, strict=True)) <= set(zip(recall, precision, strict=True))


def test_a_word_with_dollars_or_an_underscore_is_drawn_as_it_is():
    curve = (np.array([0.5, 0.1]), np.array([1, 0]))
    for name in (r"$\frac$ and $x$", "_hidden", "犬"):
        assert plot_some_words([(f"50  {name}", *curve)], "words").startswith("data:image/png")


def test_a_large_report_says_what_its_curves_are_of(monkeypatch):
    report = make_report()
    assert "of all 30 images" in report.to_html()
    monkeypatch.setattr("zsmld.report.plots._NUM_PAIRS", 60)
    rows = sampled_rows(30, 12)
    assert len(rows) == 5 and (rows == sampled_rows(30, 12)).all() and len(set(rows)) == 5
    assert "are of a random sample (seed 0) of 5 of 30 images" in report.to_html()


# ---------------------------------------------------------------------------------------------- best, worst, and errors


def test_best_and_worst_words_stand_on_the_page(report, page):
    tables = [table for table in page.tables if table[0] == ["word", "AP", "positives"]]
    assert len(tables) == 4  # unseen and seen, best and worst
    for table, seen, worst in zip(tables, (False, False, True, True), (False, True) * 2, strict=True):
        side = {w: f["average_precision"] for w, f in report.protocols["gzsl"]["words"].items() if f["seen"] == seen}
        aps = sorted((ap for ap in side.values() if ap is not None), reverse=not worst)
        shown = [side[row[0]] for row in table[1:]]
        assert shown == aps[: len(shown)] and len(shown) >= 2


def test_errors_name_the_words_that_come_together(report, page):
    table = next(table for table in page.tables if table[0][0] == "present")
    counted = {}
    for scores, targets in zip(report.scores, report.targets, strict=True):
        given = [j for j in np.argsort(-scores, kind="stable")[:3] if targets[j] == 0]
        for i in np.flatnonzero(targets == 1):
            for j in given:
                key = (report.vocabulary.words[i], report.vocabulary.words[j])
                counted[key] = counted.get(key, 0) + 1
    assert [int(row[2]) for row in table[1:]] == sorted(counted.values(), reverse=True)[:20]
    for present, given, count, share, _ in table[1:]:
        assert counted[present, given] == int(count)
        positives = report.protocols["gzsl"]["words"][present]["num_positives"]
        assert float(share) == pytest.approx(100 * int(count) / positives, abs=0.051)


def test_a_perfect_report_has_no_errors():
    report = make_report("single_label", top_k=(1,))
    report.scores = report.targets.astype(np.float32)
    assert "There are none." in report.to_html()


def test_headings_sort_by_keyboard_too(source):
    page = Page(source)
    assert page.tags.count("button") == 5  # a button takes Tab and Enter
    assert ("th", "aria-sort", "descending") in page.attributes
    assert [v for tag, name, v in page.attributes if name == "data-value"].count("-1") == 1  # no AP sorts below 0
