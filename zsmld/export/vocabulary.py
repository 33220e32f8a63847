"""FrozenWords: the vocabulary that goes into an exported model as constants."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from zsmld.calibration import Calibration
from zsmld.model import ZeroShotClassifier
from zsmld.predictor.stored import StoredPrediction
from zsmld.predictor.words import fitting_synonyms, texts_of
from zsmld.text import TextEncoder
from zsmld.vocabulary import check_words


@dataclass(frozen=True)
class FrozenWords:
    """Words, and all that stands for them.

    Attributes:
        words: N words, in the order of the scores.
        columns: P ≥ N texts, in the order of the logits: every word, each followed by its synonyms, then the reference
            words of the calibration that are none of these.
        places: of each word, the columns whose best is its own.
        embeddings: of the columns, (P,T) or (P,K,T); None in class mode.
        calibration: None for scores as the network gives them.
    """

    words: tuple[str, ...]
    columns: tuple[str, ...]
    places: tuple[tuple[int, ...], ...]
    embeddings: Tensor | None
    calibration: Calibration | None

    @property
    def reference(self) -> tuple[str, ...]:
        """Reference words of the calibration."""
        return () if self.calibration is None else self.calibration.reference_words

    @property
    def synonyms(self) -> dict[str, tuple[str, ...]]:
        """Other texts of the words that have some."""
        texts = {word: places[1:] for word, places in zip(self.words, self.places, strict=True)}
        return {word: tuple(self.columns[p] for p in places) for word, places in texts.items() if places}


def freeze_words(
    model: ZeroShotClassifier,
    words: Iterable[str] | str,
    calibration: Calibration | None,
    text_encoder: TextEncoder | None = None,
) -> FrozenWords:
    """Gather what a vocabulary needs; known words are looked up, others encoded.

    Args:
        model: with its stored synonyms.
        words: to freeze, or "stored": those the model was saved with by a predictor, else those it was trained with.
        calibration: of the model, or None.
        text_encoder: default the model's own, built when it is needed.

    Raises:
        ValueError: if the model knows no words of its own, or in class mode on other words than its classes.
    """
    stored, known = StoredPrediction.of(model), model.vocabulary
    if words == "stored":
        if known is None:
            raise ValueError('words must be given, the model knows none of its own, got "stored"; pass a list of words')
        words = stored.words or known.words
    words = check_words(words)
    if model.decoder.text_dim is None:
        if len(words) != model.decoder.num_classes or (known is not None and words != known.words):
            raise ValueError(
                f"words must be the {model.decoder.num_classes} classes of the model in their order, it has class "
                f'queries, got {len(words)} words; pass "stored"'
            )
        return FrozenWords(words, words, tuple((place,) for place in range(len(words))), None, calibration)
    synonyms = fitting_synonyms(stored.synonyms, words)
    texts = texts_of(words, synonyms)
    reference = () if calibration is None else calibration.reference_words
    columns = tuple(dict.fromkeys([*texts, *reference]))
    labels = {text: place for place, text in enumerate(columns)}
    places = tuple(tuple(labels[text] for text in (word, *synonyms.get(word, ()))) for word in words)
    return FrozenWords(words, columns, places, model.encode_words(columns, text_encoder), calibration)
