"""Published figures: the file is whole and sourced, and the two NUS-WIDE test sets are never mixed."""

import pytest

from zsmld.protocols import PROTOCOLS, Protocol
from zsmld.report.published import published_beside, published_tables, read_published
from zsmld.resources import resource_path

HEADER = "method,dataset,part,num_words,test_set,num_images,metric,percent,protocol_matches,source,note\n"


@pytest.fixture(scope="module")
def figures():
    return read_published()


def test_every_known_figure_is_there(figures):
    found = {(f.method, f.dataset, f.part, f.metric): f.percent for f in figures}
    expected = {}
    for method, zsl, gzsl in (
        ("Fast0Tag", (27.8, 26.4, 15.1), (11.5, 13.5, 3.7)),
        ("LESA", (31.6, 28.7, 19.4), (14.4, 16.8, 5.6)),
        ("Generative", (32.8, 29.3, 25.7), (18.9, 22.0, 8.9)),
        ("CONSE", (21.6, 20.2, 9.4), (7.0, 8.1, 2.1)),
        ("Attention per Label", (25.8, 23.6, 10.4), (10.9, 13.2, 3.7)),
        ("Attention per Cluster", (24.6, 22.9, 12.9), (6.4, None, 2.6)),
    ):
        for part, values in (("zsl", zsl), ("gzsl", gzsl)):
            for metric, value in zip(("f1_at_3", "f1_at_5", "mean_average_precision"), values, strict=True):
                if value is not None:
                    expected[method, "nus_wide", part, metric] = value
    for method, value in (
        ("SDL", 25.9),
        ("ML-Decoder", 31.1),
        ("ADDS", 36.56),
        ("MKT", 37.6),
        ("DualCoOp", 43.6),
        ("TaI-DPT", 44.99),
        ("Recover and Match", 53.2),
    ):
        expected[method, "nus_wide", "zsl", "mean_average_precision"] = value
    for method, value in (
        ("TResNet-M 224", 84.2),
        ("TResNet-L 448", 90.1),
        ("TResNet-XL 640", 91.4),
        ("PP-LCNet_x1_0 448 (PaddleClas)", 77.96),
        ("PP-HGNetV2-B0 448 (PaddleClas)", 80.98),
        ("PP-HGNetV2-B4 448 (PaddleClas)", 87.96),
        ("PP-HGNetV2-B6 448 (PaddleClas)", 91.25),
        ("ResNet50 448 (PaddleClas)", 83.50),
        ("ResNet101 448 (PaddleClas)", 91.40),
        ("CLIP ViT-B/16 448 (PaddleClas)", 89.15),
    ):
        expected[f"ML-Decoder {method}", "coco", "supervised", "mean_average_precision"] = value
    expected["ML-Decoder TResNet-M 224", "open_images", "supervised", "mean_average_precision"] = 86.8
    expected["ML-Decoder", "voc2007", "supervised", "mean_average_precision"] = 96.6
    expected["ML-Decoder ResNet50", "imagenet", "single_label", "top_1_accuracy"] = 80.7
    assert found == expected


def test_each_has_a_source_a_protocol_and_a_metric_of_ours(figures):
    assert len(figures) == 55
    for f in figures:
        assert any(mark in f.source for mark in ("arXiv", "CVPR", "README.md")), f
        protocol = PROTOCOLS[f"{f.dataset}_{f.part}"]
        counts = {"zsl": protocol.num_unseen, "gzsl": (protocol.num_seen or 0) + (protocol.num_unseen or 0)}
        if f.dataset != "open_images" or f.part != "supervised":  # that protocol takes any number of words
            assert f.num_words == counts.get(f.part, protocol.num_seen)
        assert f.metric in {"mean_average_precision", "top_1_accuracy", *(f"f1_at_{k}" for k in protocol.top_k)}
        if f.test_set == "unknown":
            assert f.protocol_matches != "yes"
    unverified = next(f for f in figures if f.method == "ML-Decoder ResNet101 448 (PaddleClas)")
    assert "unverified" in unverified.note


def test_the_file_ends_its_lines_alike():
    content = resource_path("evaluation", "published.csv").read_bytes()
    assert content.endswith(b"\n") and b"\r" not in content and not content.startswith(b"\xef\xbb\xbf")


# ----------------------------------------------------------------------------------------------------- beside a run


def run(name, num_images, **policies):
    protocol = Protocol.named(name, **policies)
    words = {"zsl": 81, "gzsl": 1006, "supervised": 80, "single_label": 1000}
    return {
        part: {
            "num_words": words[part],
            "num_images": num_images,
            "policies": protocol.policies(),
            "mean_average_precision": 0.5,
            "f1_at_3": 0.5,
        }
        for part in protocol.parts
    }


def test_a_full_run_stands_beside_full_ones_and_the_unknown_apart():
    same, unknown = published_beside("nus_wide_gzsl", run("nus_wide_gzsl", 107859))
    assert len(same) == 18 and {f.test_set for f in same} == {"full"}
    assert len(unknown) == 7 + 17 and {f.test_set for f in unknown} == {"unknown"}


def test_a_run_on_labelled_images_never_stands_beside_full_ones():
    same, unknown = published_beside("nus_wide_gzsl", run("nus_wide_gzsl", 83898, keep_unlabelled=False))
    assert same == [] and {f.test_set for f in unknown} == {"unknown"}


def test_a_full_run_never_stands_beside_labelled_ones(tmp_path):
    path = tmp_path / "published.csv"
    path.write_text(HEADER + "A,nus_wide,zsl,81,labelled,,f1_at_3,30,yes,arXiv 1,\n")
    figures = read_published(path)
    assert published_beside("nus_wide_zsl", run("nus_wide_zsl", 107859), figures) == ([], [])
    same, unknown = published_beside("nus_wide_zsl", run("nus_wide_zsl", 5, keep_unlabelled=False), figures)
    assert [f.method for f in same] == ["A"] and unknown == []


def test_a_run_on_some_of_the_images_is_not_comparable_as_it_stands():
    same, unknown = published_beside("nus_wide_zsl", run("nus_wide_zsl", 107858))
    assert same == [] and len(unknown) == 9 + 7 + 9


def test_other_words_or_another_dataset_have_no_figures():
    fewer = run("nus_wide_zsl", 107859)
    fewer["zsl"]["num_words"] = 80
    assert published_beside("nus_wide_zsl", fewer) == ([], [])
    assert published_beside("zsl", run("nus_wide_zsl", 107859)) == ([], [])
    assert published_tables("zsl", run("nus_wide_zsl", 107859)) == []


def test_tables_have_sources_and_notes_and_fit_a_terminal():
    from zsmld.report.headline import text_table

    tables = published_tables("nus_wide_gzsl", run("nus_wide_gzsl", 107859))
    assert [title.split(",")[0] for title, *_ in tables] == ["Published on the same words and test images", "Published"]
    for _, columns, rows, _ in tables:
        assert columns[-1] == "source" and all(row[-1] for row in rows)
        assert max(len(line) for line in text_table(columns, rows).splitlines()) <= 110
    assert "not comparable as they stand" in tables[1][0]
    assert any(note.startswith("ML-Decoder: ") and "probably not the full test set" in note for note in tables[1][3])
    row = next(row for row in tables[0][2] if row[0] == "ZSL Fast0Tag")
    assert row[1:] == ["81", "107859", "15.1", "27.8", "arXiv 1605.09759"]  # the run has no F1@5


# --------------------------------------------------------------------------------------------------------- bad files


def test_everything_wrong_in_a_file_is_named_at_once(tmp_path):
    path = tmp_path / "p.csv"
    good = "A,coco,supervised,80,full,5,f1_at_3,30,yes,arXiv 1,\n"
    bad = [
        good,
        "B,coco,supervised,80,full,5,f1_at_3,300,yes,arXiv 1,\n",
        "C,coco,supervised,80,some,5,f1_at_3,30,yes,arXiv 1,\n",
        "D,coco,supervised,80,full,5,f1_at_3,30,perhaps,arXiv 1,\n",
        "E,coco,supervised,80,full,5,f1_at_3,30,yes, ,\n",
        "F,coco,supervised,eighty,full,5,f1_at_3,30,yes,arXiv 1,\n",
        "G,coco\n",
    ]
    path.write_text(HEADER + good + "".join(bad))
    with pytest.raises(ValueError, match=r"p\.csv must have one well-formed figure a line") as error:
        read_published(path)
    for text in (
        "line 3: A has its f1_at_3 a second time",
        "line 4: percent must be above 0 and at most 100, got 300",
        "line 5: test_set must be one of",
        "line 6: protocol_matches must be one of",
        "line 7: source must not be empty",
        "line 8: invalid literal",
        "line 9: another number of cells than columns",
    ):
        assert text in str(error.value), text


def test_other_columns_are_refused(tmp_path):
    (tmp_path / "p.csv").write_text("method,value\n")
    with pytest.raises(ValueError, match=r"p.csv must have the columns \['method'"):
        read_published(tmp_path / "p.csv")
    with pytest.raises(FileNotFoundError):
        read_published(tmp_path / "none.csv")


@pytest.mark.parametrize("policy", [{"empty_words": "skip"}, {"average_precision": "11point"}])
def test_other_policies_than_those_of_papers_are_not_comparable(policy):
    policies = {"keep_unlabelled": True, "empty_words": "zero", "average_precision": "exact"}
    run = {"zsl": {"num_words": 81, "num_images": 107_859, "policies": policies}}
    same, _ = published_beside("nus_wide_zsl", run)
    assert {figure.method for figure in same} == {"Fast0Tag", "LESA", "Generative"}
    run["zsl"]["policies"] = policies | policy
    none, unknown = published_beside("nus_wide_zsl", run)
    assert none == [] and {figure.method for figure in same} <= {figure.method for figure in unknown}


def test_figures_are_printed_as_published():
    policies = {"keep_unlabelled": True, "empty_words": "zero", "average_precision": "exact"}
    part = {"num_words": 81, "num_images": 107_859, "policies": policies, "mean_average_precision": 0.5}
    cells = {cell for *_, rows, _ in published_tables("nus_wide_zsl", {"zsl": part}) for row in rows for cell in row}
    assert {"36.56", "44.99", "53.2", "15.1"} <= cells and "36.6" not in cells
    part = {"num_words": 80, "num_images": 40_504, "policies": policies | {"keep_unlabelled": False}}
    part["mean_average_precision"] = 0.5
    tables = published_tables("coco_supervised", {"supervised": part})
    cells = {cell for *_, rows, _ in tables for row in rows for cell in row}
    assert "91.40" in cells and "83.50" in cells  # with a zero at the end, where it was published so
