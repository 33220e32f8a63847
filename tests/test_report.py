"""Report: a fixed JSON shape, a Markdown table that parses, one self-contained and escaped HTML page."""

import json
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from zsmld.evaluator import evaluate_scores
from zsmld.protocols import Protocol
from zsmld.report import Report, Sample
from zsmld.vocabulary import Vocabulary

NASTY = ("<b>&", "<script>alert('1')</script>", 'a "quoted" word', "naïve 犬", "{brace}", "50% | off")


def make_report(protocol="gzsl", num_words=12, seed=0, unreadable=(), **policies):
    """A report of random scores, without any model; the last half of the words is unseen."""
    rng = np.random.default_rng(seed)
    words = [*NASTY, *(f"word {i}" for i in range(len(NASTY), num_words))][:num_words]
    seen = words if protocol == "supervised" else words[: num_words // 2]
    vocabulary = Vocabulary(words, seen=seen)
    scores = rng.standard_normal((30, num_words)).astype(np.float32)
    targets = (rng.random((30, num_words)) < 0.2).astype(np.int8)
    targets[:, -1] = 0  # a word without positives
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
        if tag not in ("meta", "img", "br"):
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
        if self.open and self.open[-1] in ("td", "th"):
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
    assert json.loads(json_path.read_text(encoding="utf-8")) == json.loads(json.dumps(report.to_dict()))
    assert sorted(file.name for file in folder.iterdir()) == ["report.html", "report.json", "report.md"]
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


@pytest.mark.parametrize("protocol", ["zsl", "gzsl", "supervised"])
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
    cells = {row[0].split()[-1]: dict(zip(header, row, strict=True)) for row in rows}
    for group in ("seen", "unseen"):
        assert int(cells[group]["words"]) == 6
        expected = 100 * report.protocols["gzsl"][f"{group}_mean_average_precision"]
        assert float(cells[group]["mAP"]) == pytest.approx(expected, abs=0.051)


@pytest.mark.parametrize("num_words", [12, 8])
def test_the_text_table_is_aligned(num_words):
    report = make_report(num_words=num_words)
    lines = report.to_text().splitlines()
    assert len({len(line) for line in lines}) == 1
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
    assert not {"script", "link", "iframe", "object", "embed", "base"} & set(page.tags)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    style = source.partition("<style>")[2].partition("</style>")[0]
    assert style
    assert "url(" not in style
    assert "@import" not in style


def test_the_page_is_well_formed(page):
    assert page.open == []
    assert page.tags.count("img") == len([name for _, name, value in page.attributes if name == "alt" and value])


def test_words_are_escaped_and_read_back_as_they_are(report, source, page):
    words = next(table for table in page.tables if table[0][0] == "word")
    assert sorted(row[0] for row in words[1:]) == sorted(report.vocabulary.words)
    assert "script" not in page.tags
    assert "<b>&" not in source
    assert "&lt;b&gt;&amp;" in source
    everything = "".join(page.text)
    for text in ("timm:<i>resnet</i>", "pictures & <u>words</u>", "a <em>text</em> encoder", "<broken>.jpg"):
        assert text in everything, text
    assert not {"i", "u", "em", "broken"} & set(page.tags)


def test_the_words_table_has_each_words_figures_best_first(report, page):
    table = next(table for table in page.tables if table[0][0] == "word")
    header, rows = table[0], [dict(zip(table[0], row, strict=True)) for row in table[1:]]
    assert header == ["word", "partition", "AP", "positives"]
    shown = []
    for row in rows:
        figures = report.protocols["gzsl"]["words"][row["word"]]
        assert row["partition"] == ("seen" if figures["seen"] else "unseen")
        assert row["positives"] == str(figures["num_positives"])
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


@pytest.mark.parametrize("protocol", ["zsl", "supervised"])
def test_every_kind_of_protocol_makes_a_page(protocol):
    report = make_report(protocol)
    words = next(table for table in Page(report.to_html()).tables if table[0][0] == "word")
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
    cells = {row[0].strip(): float(row[3]) for row in report._headline()}
    assert cells["of which seen"] == round(targets[:, :5].sum() / 40, 3)
    assert cells["of which unseen"] == cells["ZSL (unseen words)"] == round(targets[:, 5:].sum() / 40, 3)
    assert cells["GZSL (all words)"] == round(targets.sum() / 40, 3)
