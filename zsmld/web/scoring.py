"""What the page shows, without a page: pictures that were read within limits, words, scores, attention, records."""

import copy
import io
import secrets
import tempfile
import threading
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from zsmld.attention import explain
from zsmld.images import load_image
from zsmld.predictor import IMAGE_SUFFIXES, Prediction, Predictor
from zsmld.predictor.records import check_record_words, table_of, write_records
from zsmld.text import TextEncoder
from zsmld.vocabulary import Vocabulary
from zsmld.web.limits import Limits

# Pillow reads more, but some of it runs other programs (EPS) or is no photo.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
SHOWN_SIZE = 1024  # longer side, in pixels, of what is kept of a picture


@dataclass(frozen=True, eq=False)
class Picture:
    """What is kept of an uploaded picture.

    Attributes:
        name: of its file, without folders.
        shown: a JPEG of at most `SHOWN_SIZE` pixels; empty if the picture could not be read.
        fitted: what the encoder sees, RGB, of the encoder's size; None likewise.
        error: why it could not be read, or None.
        key: tells it from any other picture that is or was on the board.
    """

    name: str
    shown: bytes = b""
    fitted: Image.Image | None = None
    error: str | None = None
    key: str = ""


@dataclass(frozen=True, eq=False)
class Board:
    """The page of one visitor. Immutable: a change makes another, and no two visitors share one.

    Attributes:
        pictures: in the order they came.
        typed: the visitor's words.
        vocabulary: all words that were scored, those of the model among them if they were wanted; None before.
        predictions: of the pictures, all words ranked.
    """

    pictures: tuple[Picture, ...] = ()
    typed: tuple[str, ...] = ()
    vocabulary: Vocabulary | None = None
    predictions: tuple[Prediction, ...] = ()


class Scorer:
    """Scores the pictures and words of many visitors with one model, one at a time.

    The predictor stays as it is: each call scores with the words of its board.

    Args:
        predictor: its words are those that a visitor may have besides the typed ones.
        text_encoder: encodes words for `attention`, best the one that the predictor was given; default the
            checkpoint's, built each time.
        limits: of what a visitor may ask for.

    Example:
        >>> from zsmld import ZeroShotClassifier
        >>> model = ZeroShotClassifier.from_pretrained("scenes")
        >>> scorer = Scorer(Predictor(model, ["red star", "blue ring"], device="cpu"))
        >>> file = io.BytesIO()
        >>> Image.new("RGB", (90, 60)).save(file, "PNG")
        >>> picture = scorer.read("night.png", file.getvalue())
        >>> board = scorer.score(Board((picture,)), ("pink heart",), with_own=True)
        >>> board.vocabulary.words, len(board.predictions[0].words)
        (('red star', 'blue ring', 'pink heart'), 3)
    """

    def __init__(
        self, predictor: Predictor, text_encoder: TextEncoder | None = None, limits: Limits | None = None
    ) -> None:
        self.predictor, self.text_encoder, self.limits = predictor, text_encoder, limits or Limits()
        self._lock = threading.Lock()  # of the network: visitors wait for each other instead of for memory

    @property
    def takes_words(self) -> bool:
        """Whether any words can be scored; in class mode the classes are fixed."""
        return self.predictor.model.decoder.text_dim is not None

    @property
    def trained_words(self) -> frozenset[str] | None:
        """Words whose labels the model was trained on: seen ones, but for those held out. None if it knows no words."""
        model = self.predictor.model
        return None if model.vocabulary is None else frozenset(model.vocabulary.seen) - set(model.heldout_words)

    def words(self, text: str) -> tuple[str, ...]:
        """Words as they were typed: by commas or one a line; blanks are trimmed, repeated words count once.

        Raises:
            ValueError: if there are too many, or one is too long or no text.
        """
        words = tuple(
            dict.fromkeys(filter(None, (" ".join(part.split()) for part in text.replace("\n", ",").split(","))))
        )
        if len(words) > self.limits.max_words:
            raise ValueError(f"words must be at most {self.limits.max_words}, got {len(words)}; remove some")
        for word in words:
            if len(word) > self.limits.max_word_length:
                raise ValueError(
                    f"a word must have at most {self.limits.max_word_length} characters, got {len(word)} in "
                    f"“{word[:30]}…”; shorten it, or put commas between words"
                )
            if not word.isprintable():
                raise ValueError(f"words must be readable text, got {word[:30]!r}; remove what is not")
        return words

    def read(self, name: str, content: bytes) -> Picture:
        """A picture of a file's bytes, or one with the reason why there is none."""
        name, limits = Path(name).name, self.limits
        if len(content) > limits.max_upload_bytes:
            return Picture(name, error=f"{name} must have at most {limits.max_upload_mb:g} MB; make it smaller")
        too_many = f"{name} must have at most {limits.max_pixels:,} pixels; make it smaller"
        try:
            with Image.open(io.BytesIO(content), formats=_formats()) as opened:
                if opened.width * opened.height > limits.max_pixels:  # nothing of it is decoded yet
                    return Picture(name, error=too_many)
                image = load_image(opened)
        except UnidentifiedImageError:
            return Picture(name, error=f"{name} must be a picture, its format is not known; choose a JPEG or PNG file")
        except Image.DecompressionBombError:
            return Picture(name, error=too_many)
        except Exception as error:  # what decoders raise on damaged files has no end
            return Picture(name, error=f"{name} must be a whole picture, it cannot be decoded: {error}; replace it")
        fitted = self.predictor.model.image_encoder.transform.fit(image)
        image.thumbnail((SHOWN_SIZE, SHOWN_SIZE), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        image.save(file, "JPEG", quality=88)
        return Picture(name, file.getvalue(), fitted, key=secrets.token_hex(8))

    def take(self, board: Board, files: Iterable[Path], is_folder: bool = False) -> tuple[Board, list[str]]:
        """Uploaded files as pictures of a board, not scored yet; the files are removed.

        Args:
            board: to add to.
            files: that are this page's alone.
            is_folder: take what looks like a picture by its name, sorted, as `zsmld predict` does of a folder.

        Returns:
            The board, and a sentence about what was left out, if something was.
        """
        files = list(dict.fromkeys(files))  # the same file twice has one path
        wanted, said = files, []
        room = self.limits.max_pictures - len(board.pictures)
        try:
            if is_folder:
                wanted = sorted((f for f in files if f.suffix.lower() in IMAGE_SUFFIXES), key=lambda file: file.name)
                left_out = len(files) - len(wanted)
                said += [f"Files of the folder that are no pictures were left out: {left_out}."] if left_out else []
            board = self.add(board, (self._of_file(file) for file in wanted))
        finally:
            for file in files:  # nothing of a visitor stays on the disk, whatever happens to one of them
                with suppress(OSError):
                    file.unlink()
        if len(wanted) > room:
            said.append(
                f"A page has at most {self.limits.max_pictures} pictures, {len(wanted) - room} found no room; remove "
                f"those that are here, or score many with zsmld predict."
            )
        return board, said

    def add(self, board: Board, pictures: Iterable[Picture]) -> Board:
        """The board with more pictures, not scored yet, each under a name of its own; those beyond its room not."""
        kept, names = list(board.pictures), {picture.name for picture in board.pictures}
        for picture in islice(pictures, max(0, self.limits.max_pictures - len(kept))):  # no more are even read
            path, number = Path(picture.name), 2
            while picture.name in names:
                picture = replace(picture, name=f"{path.stem} ({number}){path.suffix}")
                number += 1
            names.add(picture.name)
            kept.append(picture)
        return replace(board, pictures=tuple(kept))

    def score(self, board: Board, typed: Sequence[str], with_own: bool) -> Board:
        """The board with its pictures scored.

        Args:
            board: pictures to score.
            typed: words of the visitor.
            with_own: score the words of the predictor as well; they come first.

        Raises:
            ValueError: if there are no words, or one cannot be encoded.
        """
        own = self.predictor.vocabulary
        if not self.takes_words:
            typed, with_own = (), True
        if not typed and not with_own:
            raise ValueError("words must be typed, got none; write some, separated by commas")
        with self._lock:
            # A shallow copy has the same network and takes other words; nobody else has it.
            predictor = copy.copy(self.predictor)
            predictor.num_workers = 0  # a process with threads must not be forked
            new = [word for word in typed if word not in own]
            if not with_own:
                predictor.set_words(typed)
            elif new:
                predictor.add_words(new)
            images = [picture.fitted for picture in board.pictures if picture.fitted is not None]
            found = iter(list(predictor.predict(images, top_k=None)) if images else ())
        predictions = tuple(
            replace(next(found), path=picture.name)
            if picture.error is None
            else Prediction(picture.name, error=picture.error)
            for picture in board.pictures
        )
        return replace(board, typed=tuple(typed), vocabulary=predictor.vocabulary, predictions=predictions)

    def attention(self, board: Board, key: str, word: str) -> Image.Image:
        """Where the head looked in a picture for a word: the picture, warm at these places.

        Args:
            board: scored.
            key: of the picture; its position may be another's by now.
            word: of the board's vocabulary.

        Raises:
            ValueError: if there is no such picture or word.
        """
        picture = next((picture for picture in board.pictures if picture.key == key and picture.error is None), None)
        if board.vocabulary is None or picture is None:
            raise ValueError("the picture must still be on the page, it is gone; drop it again")
        if word not in board.vocabulary:
            raise ValueError("the word must be one of those that were scored, it is not; score the words again")
        # Of a class its group counts, for which all classes are needed.
        words = board.vocabulary.select([word]) if self.takes_words else [word]
        with self._lock:
            found = explain(self.predictor, io.BytesIO(picture.shown), words, text_encoder=self.text_encoder)
        return found.overlay(word)

    def records(self, board: Board, threshold: float) -> str:
        """CSV as `zsmld predict` writes it, with the words that reach a threshold in [0,1].

        Raises:
            ValueError: if there is nothing to write, or a word holds the sign that joins words.
        """
        if not board.predictions or board.vocabulary is None:
            raise ValueError("pictures must be scored before their words can be downloaded, there are none; drop some")
        check_record_words(".csv", board.vocabulary)
        predictions = [reaching(prediction, threshold) for prediction in board.predictions]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "words.csv")
            write_records(path, ".csv", [table_of(predictions)])
            return path.read_text(encoding="utf-8")

    def _of_file(self, file: Path) -> Picture:
        try:
            return self.read(file.name, file.read_bytes())
        except OSError:  # it waited for too long, or an event named it twice
            return Picture(file.name, error=f"{file.name} must be sent again, it is gone; drop it once more")


@cache
def _formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this build of Pillow reads."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def reaching(prediction: Prediction, threshold: float) -> Prediction:
    """Only the words whose scores, which are fp32, reach a threshold.

    Example:
        >>> reaching(Prediction("a.jpg", ("dog", "cat"), (0.75, 0.25), (3, 1)), 0.5).words
        ('dog',)
    """
    count = int(np.count_nonzero(np.asarray(prediction.scores, np.float32) >= np.float32(threshold)))
    return replace(
        prediction,
        words=prediction.words[:count],
        scores=prediction.scores[:count],
        labels=prediction.labels[:count],
    )
