"""One self-contained HTML page of a report: nothing is loaded, everything is escaped."""

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from zsmld.display import data_url
from zsmld.display import escaped as _text
from zsmld.report.errors import Confusion, confusion_counts, confusions
from zsmld.report.headline import headline, notes, percent
from zsmld.report.plots import (
    SEEN_COLOUR,
    UNSEEN_COLOUR,
    plot_all_pairs,
    plot_scores,
    plot_some_words,
    plot_words,
    sampled_rows,
)
from zsmld.report.published import published_tables
from zsmld.report.template import PAGE

if TYPE_CHECKING:
    from zsmld.report import Report, Sample

_NUM_CURVES, _NUM_EXTREMES, _NUM_CONFUSIONS, _NUM_HEAT = 4, 10, 20, 12


def build_page(report: "Report") -> str:
    """The page: headline, published figures, plots, best and worst words, errors, samples, every word, policies."""
    main = list(report.protocols)[-1]  # the part with the most words
    words = report.protocols[main]["words"]
    labels = report.vocabulary.labels(words)
    said = (f"{note[0].upper()}{note[1:]}" for note in notes(report.protocols, report.model, report.dataset))
    head = _table(*headline(report.protocols)) + "".join(f'<p class="facts">{_text(note)}</p>' for note in said)
    for title, columns, rows, remarks in published_tables(report.protocol_name, report.protocols):
        listed = "".join(f"<li>{_text(note)}</li>" for note in remarks)
        head += (
            f'<h3>{_text(title)}</h3>{_table(columns, rows, text=(0, len(columns) - 1))}<ul class="facts">{listed}</ul>'
        )
    knowledge = ", ".join(report.external_knowledge or ["none"])
    samples = "".join(_sample(report, sample) for sample in report.samples)
    unreadable = "".join(f"<li>{_text(e['id'])}: {_text(e['error'])}</li>" for e in report.dataset["unreadable"])
    evaluated = _evaluated(report, main, labels)
    plots, sampling = _plots(evaluated, main, labels)
    return PAGE.substitute(
        title=_text(f"{report.protocol_name} on {report.dataset['name']} ({report.dataset['split']})"),
        facts=f"External knowledge: {_text(knowledge)}",
        head=head,
        plots=plots,
        sampling=_text(sampling),
        extremes=_extremes(words),
        errors=_errors(evaluated, main, labels),
        samples="<h2>Sample images</h2>"
        '<p class="facts">Bars are scores; green words are truly there. Heat is the cross-attention of the head.</p>'
        f'<div class="samples">{samples}</div>'
        if samples
        else "",
        words=_words(words, report.protocols[main]["num_images"], report.model.get("heldout_words", ())),
        policies=_table(
            ["policy", *report.protocols],
            [
                [name, *(str(part["policies"][name]) for part in report.protocols.values())]
                for name in report.protocols[main]["policies"]
            ],
        ),
        origin=_origin(report),
        unreadable=f"<h2>Not readable</h2><ul>{unreadable}</ul>" if unreadable else "",
    )


def _evaluated(report: "Report", main: str, labels: np.ndarray) -> "Report":
    """The report on the images that its figures are of: without those that a policy leaves out."""
    if report.protocols[main]["policies"]["keep_unlabelled"]:
        return report
    kept = (report.targets[:, labels] == 1).any(1)
    return replace(report, scores=report.scores[kept], targets=report.targets[kept])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], text: Sequence[int] = (0,)) -> str:
    """A table, the columns of `text` to the left and the others to the right."""

    def line(cells: Sequence[str], tag: str) -> str:
        classes = (' class="text"' if i in text else "" for i in range(len(cells)))
        return "<tr>" + "".join(f"<{tag}{c}>{_text(cell)}</{tag}>" for c, cell in zip(classes, cells, strict=True))

    body = "".join(f"{line(row, 'td')}</tr>" for row in rows)
    return f'<div class="wide"><table><thead>{line(columns, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def _side(seen: bool) -> str:
    return f'<span class="{"seen" if seen else "unseen"}">{"seen" if seen else "unseen"}</span>'


def _words(words: Mapping[str, Any], num_images: int, heldout: Sequence[str]) -> str:
    """The table of every word, best first; numbers stand in data-value, unrounded, for the script that sorts."""
    heads = ("word", "partition", "AP", "positives", "share of images, %")
    columns = "".join(
        f'<th scope="col"{" class=text" if i < 2 else ""}{" aria-sort=descending" if name == "AP" else ""}>'
        f'<button type="button">{name}</button></th>'
        for i, name in enumerate(heads)
    )
    rows = []
    for word, figures in sorted(words.items(), key=lambda item: -(item[1]["average_precision"] or 0.0)):
        ap, count = figures["average_precision"], figures["num_positives"]
        rows.append(
            f'<tr><td>{_text(word)}</td><td class="text">{_side(figures["seen"])}'
            f"{', held out' if word in heldout else ''}</td>"
            f'<td data-value="{-1 if ap is None else ap}">{"none" if ap is None else percent(ap)}</td>'
            f'<td data-value="{count}">{count}</td>'
            f'<td data-value="{count}">{100 * count / num_images:.2f}</td></tr>'
        )
    return f'<table id="words"><thead><tr>{columns}</tr></thead><tbody>{"".join(rows)}</tbody></table>'


def _extremes(words: Mapping[str, Any]) -> str:
    """The words with the highest and the lowest AP, seen and unseen apart."""
    blocks = []
    for seen in (False, True):
        side = [(word, f) for word, f in words.items() if f["seen"] == seen and f["average_precision"] is not None]
        side.sort(key=lambda item: -item[1]["average_precision"])
        count = min(_NUM_EXTREMES, len(side) // 2 if len(side) > 1 else 1)
        for title, chosen in (("best", side[:count]), ("worst", side[-count:][::-1] if len(side) > 1 else [])):
            if chosen:
                rows = [[word, percent(f["average_precision"]), str(f["num_positives"])] for word, f in chosen]
                table = _table(["word", "AP", "positives"], rows)
                blocks.append(f"<div><h3>{title.capitalize()} {_side(seen)} words</h3>{table}</div>")
    return "".join(blocks)


def _errors(report: "Report", main: str, labels: np.ndarray) -> str:
    """Confusions in the best K: a list of the most frequent ones, and a map of the words that take part in most."""
    k = min(report.protocols[main]["policies"]["top_k"][0], len(labels))
    scores, targets, words = report.scores, report.targets, report.vocabulary.words
    if len(labels) < len(words):
        scores, targets = scores[:, labels], targets[:, labels]
    counts, wrong = confusion_counts(scores, targets, k)
    positives = (targets == 1).sum(0)
    found = confusions(counts, wrong, positives, len(scores), _NUM_CONFUSIONS)
    about = (
        f"An error is an absent word among an image's best {k} words ({main.upper()}). Each line: on how many images "
        f"with the present word the absent one was given, which share of them that is, and the share of all images to "
        f"which it was given wrongly. Unknown labels are no errors."
    )
    if not found:
        return f'<p class="facts">{_text(about)} There are none.</p>'

    def row(confusion: Confusion) -> list[str]:
        pair = (words[labels[confusion.present]], words[labels[confusion.given]])
        return [*pair, str(confusion.count), percent(confusion.share), percent(confusion.share_of_all)]

    columns = ["present", "given, but absent", "images", "% of present", "% of all"]
    table = _table(columns, [row(confusion) for confusion in found], text=(0, 1))
    heat = _heat([words[label] for label in labels], counts, positives)
    return f'<p class="facts">{_text(about)}</p><div class="beside">{table}{heat}</div>'


def _heat(words: Sequence[str], counts: np.ndarray, positives: np.ndarray) -> str:
    """A map of shares: rows the present words with the most errors, columns the words that are given wrongly most."""
    present = np.argsort(-counts.sum(1), kind="stable")[:_NUM_HEAT]
    given = np.argsort(-counts.sum(0), kind="stable")[:_NUM_HEAT]
    shares = counts[np.ix_(present, given)] / np.maximum(positives[present], 1)[:, None]
    head = "".join(f'<th scope="col">{_text(words[j])}</th>' for j in given)
    rows = "".join(
        f'<tr><th scope="row">{_text(words[i])}</th>'
        + "".join(
            f'<td style="background:rgba(192,64,32,{0.85 * share:.3f})">{f"{100 * share:.0f}" if share else ""}</td>'
            for share in line
        )
        + "</tr>"
        for i, line in zip(present, shares, strict=True)
    )
    return (
        '<div class="wide"><table class="heat"><caption class="facts">Row: present word. Column: absent word that was '
        f"given. In percent of the images with the present word.</caption><thead><tr><td></td>{head}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _plots(report: "Report", main: str, labels: np.ndarray) -> tuple[str, str]:
    words, seen = report.protocols[main]["words"], report.vocabulary.is_seen[labels]
    rows = sampled_rows(len(report.scores), len(labels))
    scores, targets = (report.scores, report.targets) if rows is None else (report.scores[rows], report.targets[rows])
    groups = [
        (name, colour, scores[:, labels[chosen]], targets[:, labels[chosen]])
        for name, chosen, colour in (("seen", seen, SEEN_COLOUR), ("unseen", ~seen, UNSEEN_COLOUR))
        if (targets[:, labels[chosen]] >= 0).any()
    ]
    pictures = [("Average precision of each word", plot_words(list(words.values()), main))]
    pictures += [("Precision over recall of all image-word pairs", plot_all_pairs(groups))]
    pictures += [("Histograms of the scores of present and absent words", plot_scores(groups, report.kind))]
    ranked = [(f["average_precision"], word) for word, f in words.items() if f["average_precision"] is not None]
    ranked.sort(key=lambda pair: -pair[0])
    count = min(_NUM_CURVES, len(ranked) // 2)
    for title, chosen in (("best", ranked[:count]), ("worst", ranked[len(ranked) - count :])):
        columns = [(f"{100 * ap:.0f}  {word}", report.vocabulary.index(word)) for ap, word in chosen]
        curves = [(name, report.scores[:, j], report.targets[:, j]) for name, j in columns]
        if curves:
            pictures.append(
                (f"Precision over recall of the {title} words", plot_some_words(curves, f"The {title} words, with AP"))
            )
    # What reads Matplotlib's fonts leaves circles of frames, which hold their callers' and all scores in these.
    gc.collect()
    shown = "".join(f'<img class="plots" src="{url}" alt="{_text(title)}">' for title, url in pictures)
    if rows is None:
        return shown, f"All curves and histograms are of all {len(report.scores)} images."
    return shown, (
        f"The curves of all pairs and the histograms are of a random sample (seed 0) of {len(rows)} of "
        f"{len(report.scores)} images; everything else is of all images."
    )


def _origin(report: "Report") -> str:
    rows: list[list[str]] = []
    details = ""
    for title, facts in (("model", report.model), ("dataset", report.dataset), ("version", report.versions)):
        for name, value in facts.items():
            if isinstance(value, dict | list):
                if value and name != "unreadable":
                    content = _text(json.dumps(value, indent=1, ensure_ascii=False, default=str))
                    details += (
                        f"<details><summary>{_text(title)}: {_text(name)}</summary><pre>{content}</pre></details>"
                    )
            else:
                rows.append([f"{title}: {name.replace('_', ' ')}", "none" if value is None else str(value)])
    lines = "".join(f'<tr><td>{_text(name)}</td><td class="text">{_text(value)}</td></tr>' for name, value in rows)
    return f"<table><tbody>{lines}</tbody></table>{details}"


def _sample(report: "Report", sample: "Sample") -> str:
    pictures = [picture for picture in (sample.image, *sample.overlays) if picture is not None]
    titles = ["image", *(f"looking for {word}" for word in sample.words)]
    images = "".join(
        f'<figure><img src="{data_url(picture, quality=85)}" alt="{_text(title)}">'
        f"<figcaption>{_text(title)}</figcaption></figure>"
        for picture, title in zip(pictures, titles, strict=False)
    )
    vocabulary = report.vocabulary
    bars = "".join(
        f'<div class="bar"><span style="width:{100 * score:.0f}%" '
        f'class="{"right" if word in sample.present else "wrong"}"></span>{_text(word)}'
        f"{'' if word not in vocabulary or vocabulary.is_seen[vocabulary.index(word)] else ' (unseen)'} "
        f"<b>{score:.2f}</b></div>"
        for word, score in zip(sample.words, sample.scores, strict=True)
    )
    present = _text(", ".join(sample.present) or "none")
    return f'<div class="sample">{images}<div class="words">{bars}<p>truly there: {present}</p></div></div>'
