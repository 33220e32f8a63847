"""Report -> JSON, Markdown, HTML with plots; comparison of two reports; published figures beside a run."""

import json
import textwrap
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zsmld.display import facts, panel, table
from zsmld.report.comparison import Comparison, Difference, compare
from zsmld.report.headline import headline, markdown_table, notes, percent, text_table
from zsmld.report.page import build_page
from zsmld.report.published import PublishedFigure, published_beside, published_tables, read_published
from zsmld.report.scores_file import Kind, ScoresFile, is_scores_of, read_scores, report_path, write_scores
from zsmld.vocabulary import Vocabulary
from zsmld.writing import to_the_end, written_whole

__all__ = [
    "Comparison",
    "Difference",
    "Kind",
    "PublishedFigure",
    "Report",
    "Sample",
    "ScoresFile",
    "compare",
    "published_beside",
    "read_published",
    "read_scores",
    "report_path",
]


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
        protocols: part ("zsl", "gzsl", "seen", "supervised", "single_label") -> figures, as in `report.json`.
        model: what was evaluated.
        dataset: on what.
        external_knowledge: what besides the labels of seen words touched the words.
        versions: of the packages that decide the numbers.
        protocol_name: for instance "nus_wide_gzsl".
        vocabulary: column order of `scores` and `targets`.
        scores: (M,N) fp32 or fp64; not part of the JSON.
        targets: (M,N) int8.
        ids: M image ids.
        kind: whether `scores` are "logits" or "scores" in [0,1].
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
    kind: Kind = "logits"
    samples: list[Sample] = field(default_factory=list, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """The content of `report.json`, but for "scores_file", which is known only when the scores are saved."""
        return {
            "protocol": self.protocol_name,
            "protocols": self.protocols,
            "kind": self.kind,
            "model": self.model,
            "dataset": self.dataset,
            "external_knowledge": self.external_knowledge,
            "versions": self.versions,
        }

    def to_markdown(self, published: bool = False) -> str:
        """The headline table, with chance, the policies, and what it was computed on.

        Args:
            published: add the published figures on the same words; those on other or unknown test images stand in a
                table of their own, those on a test set that is known to be the other one in none.
        """
        text = f"Protocol {self.protocol_name} on {self.dataset['name']} ({self.dataset['split']}), in percent\n\n"
        text += markdown_table(*headline(self.protocols))
        text += "\n" + "".join(f"{note[0].upper()}{note[1:]}  \n" for note in self._notes())
        text += f"External knowledge: {', '.join(self.external_knowledge or ['none'])}\n"
        if self.dataset["num_unreadable"]:
            text += f"\n{self.dataset['num_unreadable']} images could not be read and are left out.\n"
        for title, columns, rows, remarks in self._published() if published else ():
            text += f"\n{title}\n\n{markdown_table(columns, rows)}" + "".join(f"\n- {note}" for note in remarks)
            text += "\n" if remarks else ""
        return text

    def to_text(self, published: bool = False) -> str:
        """The headline table and the policies for a terminal, in percent.

        Args:
            published: as `to_markdown`.
        """
        text = text_table(*headline(self.protocols))
        text += "".join("\n" + textwrap.fill(note, 110, subsequent_indent="  ") for note in self._notes())
        for title, columns, rows, remarks in self._published() if published else ():
            text += f"\n\n{title}\n{text_table(columns, rows)}"
            text += "".join("\n" + textwrap.fill(note, 110, subsequent_indent="  ") for note in remarks)
        return text

    def to_html(self) -> str:
        """One self-contained page: headline, plots, errors, sample images with where the head looked, every word."""
        return build_page(self)

    def save(self, path: str | Path, scores: bool = True) -> tuple[Path, Path]:
        """Write the report as JSON, Markdown and HTML, and beside them what a comparison needs.

        The files get their names together, once all are on the disk: if one cannot be written, an earlier report stays.

        Args:
            path: a folder, for `report.json`, `report.md`, `report.html` and `report.npz`; or a path that ends in
                .json, whose stem the others take.
            scores: write the .npz file, 4 bytes an image and ranked word (8 for fp64 scores); the JSON has its name
                and SHA-256 as "scores_file", or null. Without, an earlier report's .npz file there is removed.

        Returns:
            Paths of the JSON and of the HTML file.

        Raises:
            ValueError: if ids and scores do not fit each other, the path has another ending, or a file would be
                overwritten that is not an earlier report's.
            OSError: if they cannot be written, on a full disk for instance.
        """
        json_path = report_path(path, scores)
        json_path.parent.mkdir(parents=True, exist_ok=True)
        content, scores_path = self.to_dict(), json_path.with_suffix(".npz")
        content["scores_file"] = None
        # The last gets its name first: a report without its JSON would be taken for files of the user.
        endings = [".html", ".md", *([".npz"] if scores else []), ".json"]
        with to_the_end(json_path.parent), ExitStack() as written:
            files = {e: written.enter_context(written_whole(json_path.with_suffix(e))) for e in endings}
            if scores:
                content["scores_file"] = {
                    "name": scores_path.name,
                    "sha256": write_scores(files[".npz"], self._ranked()),
                }
            files[".md"].write_text(self.to_markdown(published=True), encoding="utf-8")
            files[".html"].write_text(self.to_html(), encoding="utf-8")
            files[".json"].write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            if json_path.is_file() and is_scores_of(json.loads(json_path.read_text(encoding="utf-8")), scores_path):
                scores_path.unlink()  # of an earlier report, and not this one's; the user's own file would stay
        return json_path, json_path.with_suffix(".html")

    def __repr__(self) -> str:
        figures = ", ".join(f"{name} mAP {percent(p['mean_average_precision'])}" for name, p in self.protocols.items())
        return f"Report({self.protocol_name!r}, {self.dataset['name']!r}, {figures})"

    def _repr_html_(self) -> str:
        left_out = self.dataset["num_unreadable"]
        return panel(
            f"{self.protocol_name} on {self.dataset['name']} ({self.dataset['split']}), in percent",
            table(*headline(self.protocols)),
            facts(*self._notes(), f"external knowledge: {', '.join(self.external_knowledge or ['none'])}"),
            facts(f"{left_out} images could not be read and are left out") if left_out else "",
            facts("save(folder) writes the page with plots, every word and sample images"),
        )

    def _notes(self) -> list[str]:
        return notes(self.protocols, self.model, self.dataset)

    def _published(self) -> list[tuple[str, list[str], list[list[str]], list[str]]]:
        return published_tables(self.protocol_name, self.protocols)

    def _ranked(self) -> ScoresFile:
        """Scores and targets of the words that the widest part ranks: a comparison needs no others."""
        words = list(list(self.protocols.values())[-1]["words"])
        scores, targets, vocabulary = self.scores, self.targets, self.vocabulary
        if tuple(words) != vocabulary.words:
            labels = vocabulary.labels(words)
            scores, targets, vocabulary = scores[:, labels], targets[:, labels], vocabulary.select(words)
        return ScoresFile(scores, targets, self.ids, vocabulary, self.kind)
