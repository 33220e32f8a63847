"""The files of a tagged collection, written from its parts: records, the scores of all words, a contact sheet."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from zsmld.predictor.parts import THEN, PartsFolder, in_chunks, missing
from zsmld.predictor.pictures import ContactSheet
from zsmld.predictor.records import (
    RECORD_SUFFIXES,
    SCORES_SUFFIXES,
    predictions_from,
    rows_a_chunk,
    write_records,
    write_scores,
)
from zsmld.writing import check_folder, to_the_end, written_whole


@dataclass(frozen=True)
class Outputs:
    """The files of a tagged collection; each appears whole.

    Args:
        records: `.jsonl`, `.csv` or `.parquet`: a prediction record an image, in the order of the images.
        scores: `.npy` or `.parquet`: the scores of all words as well, see `write_scores`; the words of a `.npy` stand
            beside it, one a line, in `NAME.words.txt`.
        contact_sheet: `.html`: pages of thumbnails with their words.

    Raises:
        ValueError: if an ending is not one of these, or two are one file.
    """

    records: str | Path
    scores: str | Path | None = None
    contact_sheet: str | Path | None = None

    def __post_init__(self) -> None:
        endings = {"records": RECORD_SUFFIXES, "scores": SCORES_SUFFIXES, "contact_sheet": (".html",)}
        for name, suffixes in endings.items():
            path, option = getattr(self, name), "--output" if name == "records" else f"--{name}-output"
            option = "--contact-sheet" if name == "contact_sheet" else option
            if path is not None and Path(path).suffix not in suffixes:
                *others, last = suffixes
                wanted = f"{', '.join(others)} or {last}" if others else last
                raise ValueError(f"{option} must end in {wanted}, got {path}; rename it")
        if self.scores is not None and Path(self.scores).absolute() == Path(self.records).absolute():
            raise ValueError(f"--scores-output must be another file than --output, got {self.scores} twice; rename it")

    @property
    def parts(self) -> Path:
        """The work folder, beside the records."""
        return Path(f"{self.records}.parts")

    @property
    def scores_words(self) -> Path | None:
        """The words of a `.npy`."""
        scores = None if self.scores is None else Path(self.scores)
        return None if scores is None or scores.suffix != ".npy" else scores.with_suffix(".words.txt")

    def existing(self) -> list[Path]:
        """Those that are there, with all pages of the contact sheet."""
        given = [Path(path) for path in (self.records, self.scores, self.scores_words) if path is not None]
        if self.contact_sheet is not None:
            sheet = Path(self.contact_sheet)
            page = re.compile(re.escape(sheet.stem) + r"(-\d+)?" + re.escape(sheet.suffix))
            if sheet.parent.is_dir():
                given += sorted(path for path in sheet.parent.iterdir() if page.fullmatch(path.name))
        return [path for path in given if path.exists()]


def check_outputs(outputs: Outputs, overwrite: bool, pictures: Path | None = None) -> None:
    """Refuse outputs that cannot be written, or that are there and neither to be replaced nor of the interrupted run.

    Once a run has begun it is too late: its work folder would refuse the corrected command.

    Args:
        outputs: the files.
        overwrite: replace those that are there.
        pictures: their folder.

    Raises:
        FileExistsError: if one is there, or a file is in the place of a folder.
        PermissionError: if a folder cannot be written to.
    """
    files = {"--output": outputs.records, "--scores-output": outputs.scores, "--contact-sheet": outputs.contact_sheet}
    for option, path in files.items():
        if path is not None:
            check_folder(Path(path).parent, option, of_file=True)
    if pictures is not None:
        check_folder(pictures, "--pictures")
    existing = [path for path in outputs.existing() if not PartsFolder.wrote(outputs.parts, path)]
    if existing and not overwrite:
        raise FileExistsError(
            f"{existing[0]} must not exist yet, it does; replace it with overwrite=True (--overwrite), or choose "
            f"another name"
        )


def write_outputs(folders: Sequence[PartsFolder], outputs: Outputs, noted_in: PartsFolder | None = None) -> int:
    """Write all outputs from the parts, the records last, so that they say that all is done.

    Args:
        folders: work folders of one collection, which together have all of it.
        outputs: the files; each takes its place when it is whole.
        noted_in: remembers which files are of this run, so that it may go on if it is interrupted here.

    Returns:
        How many images could not be read.

    Raises:
        OSError: if a file cannot be written, on a full disk for instance; nothing of it stays.
        ValueError: if images are missing.
    """
    first = folders[0]
    parts = sorted(part for folder in folders for part in folder.parts())
    gaps = missing(parts, len(first))
    if gaps:
        raise ValueError(
            f"parts must be of all {len(first)} images, {sum(stop - start for start, stop in gaps)} are missing, first "
            f"image {gaps[0][0]}: {first.image(gaps[0][0]).path}; finish the other shards, and merge all of them"
        )
    words = first.identity["words"]
    rows = rows_a_chunk(len(words) if first.identity["full_scores"] else None)
    if outputs.scores is not None:
        scores = Path(outputs.scores)
        if outputs.scores_words is not None:
            with _output(outputs.scores_words, noted_in) as path:
                path.write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
        with _output(scores, noted_in) as path:
            write_scores(path, scores.suffix, in_chunks(parts, rows), len(first), words)
    if outputs.contact_sheet is not None:
        note = None if noted_in is None else noted_in.note_output
        with to_the_end(outputs.contact_sheet, THEN), ContactSheet(outputs.contact_sheet, on_page=note) as sheet:
            for row, prediction in enumerate(p for chunk in in_chunks(parts, rows) for p in predictions_from(chunk)):
                sheet.add(prediction, first.image(row).source())
    num_unreadable = 0

    def counted() -> Iterator[pa.Table]:
        nonlocal num_unreadable
        for chunk in in_chunks(parts, rows):
            num_unreadable += len(chunk) - chunk["error"].null_count
            yield chunk

    with _output(Path(outputs.records), noted_in) as path:
        write_records(path, Path(outputs.records).suffix, counted())
    return num_unreadable


@contextmanager
def _output(path: Path, noted_in: PartsFolder | None) -> Iterator[Path]:
    """One of the files, whole, and noted before it has its name: a process may die at any moment."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with to_the_end(path, THEN), written_whole(path) as temporary:
        yield temporary
        if noted_in is not None:
            noted_in.note_output(temporary, path)
