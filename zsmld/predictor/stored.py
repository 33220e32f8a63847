"""What a predictor leaves in a checkpoint: its words, synonyms and thresholds, as plain data."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from zsmld.decoder import stack_words
from zsmld.model import ZeroShotClassifier
from zsmld.predictor.prediction import Thresholds
from zsmld.predictor.words import check_synonyms
from zsmld.vocabulary import Vocabulary, check_words


@dataclass(frozen=True)
class StoredPrediction:
    """How a model was last used, for `ZeroShotClassifier.prediction`.

    Attributes:
        words: the results, in the order of their labels; none if nothing was stored.
        synonyms: of some of them.
        thresholds: None if none were set.
    """

    words: tuple[str, ...] = ()
    synonyms: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    thresholds: Thresholds | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "words": list(self.words),
            "synonyms": {word: list(texts) for word, texts in self.synonyms.items()},
            "thresholds": None if self.thresholds is None else asdict(self.thresholds),
        }

    @classmethod
    def of(cls, model: ZeroShotClassifier) -> "StoredPrediction":
        """What is stored with a model, checked.

        Raises:
            ValueError: if it is damaged.
        """
        state = model.prediction
        if state is None:
            return cls()
        try:
            words, thresholds = check_words(state["words"]), state["thresholds"]
            if thresholds is not None:
                thresholds = Thresholds(**thresholds).checked(Vocabulary(words), is_calibrated=True)
            return cls(words, check_synonyms(state["synonyms"], words), thresholds)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(
                f"prediction stored with the model must be as Predictor.save_pretrained writes it, it is damaged: "
                f"{error!r}; save it again, or set model.prediction = None"
            ) from error


def extended_vocabulary(model: ZeroShotClassifier, texts: Vocabulary, embeddings: Tensor) -> tuple[Vocabulary, Tensor]:
    """The vocabulary and embeddings of a model, with texts as they are scored; new ones are unseen, at the end.

    A text whose templates or descriptions are not the model's is stored with its own prompts as descriptions.

    Args:
        model: left as it is.
        texts: P texts.
        embeddings: (P,T) or (P,K,T).

    Raises:
        ValueError: if reference words of the calibration would change.
    """
    known, changed = model.vocabulary, model.unknown_words(texts)
    reference = set((model.calibration or {}).get("reference_words", ()))
    if known is not None and any(word in known and word in reference for word in changed):
        raise ValueError(
            f"templates and descriptions of the calibration's reference words must stay those of the model, got others "
            f"for {[word for word in changed if word in reference][:3]}; calibrate the model anew, or leave them out"
        )
    templates = texts.templates if known is None else known.templates
    descriptions = {} if known is None else known.descriptions
    rows = (
        {} if known is None or model.word_embeddings is None else dict(zip(known, model.word_embeddings, strict=True))
    )
    for word in changed:
        descriptions.pop(word, None)
        if texts.prompts(word) != tuple(template.format(word) for template in templates):
            descriptions[word] = texts.prompts(word)
        rows[word] = embeddings[texts.index(word)]
    vocabulary = Vocabulary(rows, () if known is None else known.seen, templates, descriptions)
    return vocabulary, stack_words(list(rows.values()))
