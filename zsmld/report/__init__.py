"""Report -> JSON, Markdown, HTML with plots."""

import base64
import html
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zsmld.vocabulary import Vocabulary

_SEEN_COLOUR, _UNSEEN_COLOUR = "#4878a8", "#e07b39"


@dataclass(frozen=True)
class Sample:
    """One image of a report.

    Attributes:
        id: image id.
        image: the picture, or None when only features were there.
        overlays: where the head looked for the first words.
        words: best-scored words, best first.
        scores: theirs, in [0,1].
        present: words the image really has.
    """

    id: str
    image: Image.Image | None
    overlays: tuple[Image.Image, ...]
    words: tuple[str, ...]
    scores: tuple[float, ...]
    present: tuple[str, ...]


@dataclass
class Report:
    """The figures of one evaluation, and what they were computed from.

    Attributes:
        protocols: "zsl", "gzsl" or "supervised" -> figures, as in `report.json`.
        model: what was evaluated.
        dataset: on what.
        external_knowledge: what besides the labels of seen words touched the words.
        versions: of the packages that decide the numbers.
        protocol_name: for instance "nus_wide_gzsl".
        vocabulary: column order of `scores` and `targets`.
        scores: (M,N) fp32 logits; not part of the JSON.
        targets: (M,N) int8.
        ids: M image ids.
        samples: images shown in the HTML.
    """

    protocols: dict[str, dict[str, Any]]
    model: dict[str, Any]
    dataset: dict[str, Any]
    external_knowledge: list[str]
    versions: dict[str, str]
    protocol_name: str
    vocabulary: Vocabulary
    scores: np.ndarray = field(repr=False)
    targets: np.ndarray = field(repr=False)
    ids: list[str] = field(repr=False)
    samples: list[Sample] = field(default_factory=list, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The content of `report.json`."""
        return {
            "protocol": self.protocol_name,
            "protocols": self.protocols,
            "model": self.model,
            "dataset": self.dataset,
            "external_knowledge": self.external_knowledge,
            "versions": self.versions,
        }

    def to_markdown(self) -> str:
        """The headline table, with chance, and what it was computed on."""
        lines = [f"Protocol {self.protocol_name} on {self.dataset['name']} ({self.dataset['split']})", ""]
        columns = self._columns()
        rows = [columns, ["---"] + ["---:"] * (len(columns) - 1), *self._headline()]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        if self.dataset["num_unreadable"]:
            lines += ["", f"{self.dataset['num_unreadable']} images could not be read and are left out."]
        return "\n".join(lines) + "\n"

    def to_text(self) -> str:
        """The headline table for a terminal."""
        columns = self._columns()
        rows = [columns, *self._headline()]
        widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
        return "\n".join(
            "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        )

    def to_html(self) -> str:
        """One self-contained page: headline, plots, sample images with where the head looked, every word."""
        main = list(self.protocols)[-1]  # the part with the most words
        head = self._html_table(self._columns(), self._headline())
        policies = self._html_table(
            ["policy", *self.protocols],
            [
                [name, *(str(part["policies"][name]) for part in self.protocols.values())]
                for name in self.protocols[main]["policies"]
            ],
        )
        words = sorted(self.protocols[main]["words"].items(), key=lambda item: -(item[1]["average_precision"] or 0.0))
        table = self._html_table(
            ["word", "partition", "AP", "positives"],
            [
                [
                    word,
                    "seen" if figures["seen"] else "unseen",
                    "none" if figures["average_precision"] is None else f"{100 * figures['average_precision']:.1f}",
                    str(figures["num_positives"]),
                ]
                for word, figures in words
            ],
        )
        facts = "; ".join(f"{key.replace('_', ' ')}: {value}" for key, value in self.model.items())
        facts += "; external knowledge: " + ", ".join(self.external_knowledge or ["none"])
        unreadable = "".join(
            f"<li>{html.escape(entry['id'])}: {html.escape(entry['error'])}</li>"
            for entry in self.dataset["unreadable"]
        )
        return _PAGE.format(
            title=html.escape(f"{self.protocol_name} on {self.dataset['name']} ({self.dataset['split']})"),
            facts=html.escape(facts),
            versions=html.escape(", ".join(f"{name} {number}" for name, number in self.versions.items())),
            head=head,
            plots=self._plots(main),
            samples="".join(self._html_sample(sample) for sample in self.samples),
            policies=policies,
            words=table,
            unreadable=f"<h2>Not readable</h2><ul>{unreadable}</ul>" if unreadable else "",
        )

    def save(self, folder: str | Path) -> tuple[Path, Path]:
        """Write `report.json`, `report.md` and `report.html` to a folder.

        Returns:
            Paths of the JSON and of the HTML file.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        json_path, html_path = folder / "report.json", folder / "report.html"
        json_path.write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / "report.md").write_text(self.to_markdown(), encoding="utf-8")
        html_path.write_text(self.to_html(), encoding="utf-8")
        return json_path, html_path

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} mAP {100 * p['mean_average_precision']:.1f}" for name, p in self.protocols.items())
        return f"Report({self.protocol_name!r}, {self.dataset['name']!r}, {figures})"

    # ------------------------------------------------------------------------------------------------------- parts

    def _f1_keys(self) -> list[str]:
        widest = list(self.protocols.values())[-1]  # a part with few words may not have the larger K
        return [key for key in widest if key.startswith("f1_at_")]

    def _columns(self) -> list[str]:
        f1 = [f"F1@{key.removeprefix('f1_at_')}" for key in self._f1_keys()]
        return ["", "words", "images", "labels/image", "mAP", "chance", *f1]

    def _headline(self) -> list[list[str]]:
        rows = []
        for name, figures in self.protocols.items():
            common = [str(figures["num_images"]), f"{figures['labels_per_image']:.3f}"]
            f1 = [_percent(figures[key]) if key in figures else "" for key in self._f1_keys()]
            title = {"zsl": "ZSL (unseen words)", "gzsl": "GZSL (all words)", "supervised": "supervised"}[name]
            mean_ap, chance = figures["mean_average_precision"], figures["chance_mean_average_precision"]
            rows.append([title, str(figures["num_words"]), *common, _percent(mean_ap), _percent(chance), *f1])
            for group in ("seen", "unseen") if name == "gzsl" else ():
                words = [word for word in figures["words"].values() if word["seen"] == (group == "seen")]
                labels = sum(word["num_positives"] for word in words) / figures["num_images"]
                value = figures[f"{group}_mean_average_precision"]
                cells = [str(len(words)), str(figures["num_images"]), f"{labels:.3f}", _percent(value), ""]
                rows.append([f"  of which {group}", *cells, *[""] * len(f1)])
        return rows

    @staticmethod
    def _html_table(columns: list[str], rows: list[list[str]]) -> str:
        def line(cells: list[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        return f"<table>{line(columns, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"

    def _html_sample(self, sample: Sample) -> str:
        pictures = [picture for picture in (sample.image, *sample.overlays) if picture is not None]
        titles = ["image", *(f"looking for {word}" for word in sample.words)]
        images = "".join(
            f'<figure><img src="{_data_url(picture)}" alt="{html.escape(title)}"><figcaption>{html.escape(title)}'
            f"</figcaption></figure>"
            for picture, title in zip(pictures, titles, strict=False)
        )
        bars = "".join(
            f'<div class="bar"><span style="width:{100 * score:.0f}%" '
            f'class="{"right" if word in sample.present else "wrong"}"></span>'
            f"{html.escape(word)}{'' if self._is_seen(word) else ' (unseen)'} <b>{score:.2f}</b></div>"
            for word, score in zip(sample.words, sample.scores, strict=True)
        )
        present = html.escape(", ".join(sample.present) or "none")
        return f'<div class="sample">{images}<div class="words">{bars}<p>truly there: {present}</p></div></div>'

    def _is_seen(self, word: str) -> bool:
        return word not in self.vocabulary or bool(self.vocabulary.is_seen[self.vocabulary.index(word)])

    def _plots(self, main: str) -> str:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 3.4), layout="constrained")
        bars, curve, histogram = figure.subplots(1, 3, width_ratios=(1.4, 1, 1))
        words = sorted(self.protocols[main]["words"].values(), key=lambda w: -(w["average_precision"] or 0.0))
        heights = [100 * (w["average_precision"] or 0.0) for w in words]
        bars.bar(
            range(len(words)), heights, width=1.0, color=[_SEEN_COLOUR if w["seen"] else _UNSEEN_COLOUR for w in words]
        )
        bars.set(
            title=f"AP of each of {len(words)} words, {main.upper()}",
            xlabel="words, best first",
            ylabel="AP, %",
            ylim=(0, 100),
        )

        for name, group, colour in self._groups():
            scores, present = self.scores[:, group], self.targets[:, group] == 1
            known = self.targets[:, group] != -1
            if not known.any():
                continue
            recall, precision = _micro_curve(scores[known], present[known])
            curve.plot(100 * recall, 100 * precision, color=colour, label=name)
            for values, style in ((scores[known & present], "solid"), (scores[known & ~present], "dotted")):
                if len(values):
                    what = "present" if style == "solid" else "absent"
                    probabilities = 1 / (1 + np.exp(-values.astype(np.float64)))
                    num_bins = int(np.clip(len(values) / 25, 8, 40))  # few scores make a comb of narrow bins
                    histogram.hist(
                        probabilities,
                        bins=np.linspace(0, 1, num_bins + 1),
                        density=True,
                        histtype="step",
                        color=colour,
                        linestyle=style,
                        label=f"{name}, {what}",
                    )
        curve.set(
            title="Precision and recall, all pairs",
            xlabel="recall, %",
            ylabel="precision, %",
            xlim=(0, 100),
            ylim=(0, 102),
        )
        histogram.set(title="Scores", xlabel="score", ylabel="density, log", yscale="log")
        for axes in (curve, histogram):
            axes.legend(fontsize=7, framealpha=0.8, edgecolor="none")
        handles = [bars.plot([], [], "s", color=c, label=n)[0] for n, _, c in self._groups()]
        bars.legend(handles=handles, fontsize=7, loc="lower left", framealpha=0.9, edgecolor="none")
        for axes in (bars, curve, histogram):
            axes.spines[["top", "right"]].set_visible(False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        encoded = base64.b64encode(buffer.getvalue()).decode()
        return f'<img class="plots" alt="plots" src="data:image/png;base64,{encoded}">'

    def _groups(self) -> list[tuple[str, np.ndarray, str]]:
        seen = self.vocabulary.is_seen
        groups = [("seen", np.flatnonzero(seen), _SEEN_COLOUR), ("unseen", np.flatnonzero(~seen), _UNSEEN_COLOUR)]
        if "gzsl" not in self.protocols and "zsl" in self.protocols:
            groups = groups[1:]
        return [group for group in groups if len(group[1])]


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _micro_curve(scores: np.ndarray, present: np.ndarray, points: int = 500) -> tuple[np.ndarray, np.ndarray]:
    """Recall and precision over all image-word pairs, thinned to a few hundred points."""
    order = np.argsort(-scores, kind="stable")
    true_positives = np.cumsum(present[order])
    where = np.unique(np.linspace(0, len(order) - 1, points).astype(int))
    total = max(int(true_positives[-1]) if len(order) else 0, 1)
    return true_positives[where] / total, true_positives[where] / (where + 1)


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.5rem }}
h2 {{ font-size: 1.15rem; margin-top: 2rem }}
.facts {{ color: #666; font-size: .85rem }}
table {{ border-collapse: collapse; margin: .8rem 0 }}
th, td {{ padding: .2rem .8rem; text-align: right; white-space: pre }}
th:first-child, td:first-child {{ text-align: left }}
th {{ border-bottom: 1px solid #999 }}
tr:hover td {{ background: #f3f3f3 }}
img.plots {{ width: 100% }}
.samples {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(31rem, 1fr)); gap: 1.2rem }}
.sample {{ display: flex; gap: .5rem; align-items: flex-start }}
figure {{ margin: 0 }}
figure img {{ width: 7.2rem; display: block }}
figcaption {{ font-size: .7rem; color: #666; width: 7.2rem }}
.words {{ font-size: .85rem; min-width: 8rem; flex: 1 }}
.words p {{ color: #666; font-size: .75rem; margin: .3rem }}
.bar {{ position: relative; padding: 0 .3rem; margin-bottom: .2rem; z-index: 0 }}
.bar span {{ position: absolute; inset: 0 auto 0 0; z-index: -1; border-radius: 3px }}
.right {{ background: #bfe3c0 }}
.wrong {{ background: #f1c6bd }}
</style></head><body>
<h1>{title}</h1>
<p class="facts">{facts}<br>{versions}</p>
{head}{plots}
<h2>Sample images</h2>
<p class="facts">Bars are scores; green words are truly there. Heat is the cross-attention of the head.</p>
<div class="samples">{samples}</div>
<h2>Policies</h2>{policies}
<h2>Every word</h2>{words}{unreadable}
</body></html>
"""
