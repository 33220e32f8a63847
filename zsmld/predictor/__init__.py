"""Door: Predictor. The vocabulary is compiled once, images are streamed, and unreadable ones come out as such.

sources       what stands for images
loading       images as batches, decoded by other processes
words         the words at hand, their synonyms and their query side
network       the model, folded
prediction    what comes out for one image
"""

import copy
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm.auto import tqdm

from zsmld.calibration import Calibration
from zsmld.decoder.inference import CompiledWords, Precision
from zsmld.model import ZeroShotClassifier
from zsmld.model.checkpoint import check_model
from zsmld.predictor.loading import LoadedImages, load_images, resolve_workers
from zsmld.predictor.network import Network, check_logits
from zsmld.predictor.prediction import (
    DefaultThreshold,
    Prediction,
    Threshold,
    Thresholds,
    check_threshold,
    predictions_of,
)
from zsmld.predictor.shortlist import NUM_SAMPLES, learn_shortlist
from zsmld.predictor.sources import IMAGE_SUFFIXES, list_images, open_images
from zsmld.predictor.stored import StoredPrediction, extended_vocabulary
from zsmld.predictor.words import ScoredWords, check_synonyms, fitting_synonyms, texts_of
from zsmld.text import TextEncoder, resolve_device
from zsmld.vocabulary import Vocabulary, check_descriptions, check_templates, check_words

__all__ = ["IMAGE_SUFFIXES", "Prediction", "Predictor", "list_images"]


class Predictor:
    """Scores images against any list of words. The model is put in eval mode, on the device.

    Args:
        model: a trained `ZeroShotClassifier`.
        words: the words to score; default those that a predictor was saved with, else those the model was trained with.
        device: "auto", "cpu", "cuda" or "mps".
        batch_size: images a batch.
        num_workers: processes that decode images; 0 decodes in this one, "auto" as `resolve_workers` says.
        text_encoder: encodes words the model does not know; default the checkpoint's own, built when first needed.
        templates: sentences with one `{}`, or the name of a set of them; default those of the model's vocabulary.
        descriptions: sentences about some of the words, which take the templates' place for these; see
            `zsmld.vocabulary.read_descriptions`. Default those of the model's vocabulary.
        calibrated: give calibrated scores where a calibration is stored with the model; False gives sigmoids of logits.
        synonyms: other texts for some of the words, {"sofa": ["couch", "settee"]}: one result, whose score is that of
            the best of them. Default those that a predictor was saved with.
        precision: of the head's large products: "fp32"; "bf16", for GPUs and the newest processors; "int8" on x86
            processors. docs/speed.md has what they gain, and what they change.
        compile: with "int8", fuse its smaller steps. It needs a C++ compiler, and half a minute the first time.

    Raises:
        ValueError: for no words, a duplicate, a synonym that is a word itself or of two words, another text encoder
            than the model's, a calibration that is damaged or transductive, or a device without the precision.
        TypeError: if the model is none, such as the name of one.

    Example:
        >>> model = ZeroShotClassifier.from_pretrained("scenes")
        >>> predictor = Predictor(model, words=["red star", "blue ring"])
        >>> predictor.vocabulary.words
        ('red star', 'blue ring')
    """

    def __init__(
        self,
        model: ZeroShotClassifier,
        words: Iterable[str] | None = None,
        device: str = "auto",
        batch_size: int = 32,
        num_workers: int | Literal["auto"] = "auto",
        text_encoder: TextEncoder | None = None,
        templates: Iterable[str] | str | None = None,
        descriptions: Mapping[str, Sequence[str]] | None = None,
        calibrated: bool = True,
        synonyms: Mapping[str, Iterable[str]] | None = None,
        precision: Precision = "fp32",
        compile: bool = False,
    ) -> None:
        check_model(model)
        self.device = resolve_device(device)
        self.model = model.to(self.device).eval()
        self._network = Network(self.model, precision, compile)
        if batch_size < 1:
            raise ValueError(f"batch_size must be ≥ 1, got {batch_size}; it is the number of images a batch")
        resolve_workers(num_workers, self.device, None, batch_size)  # a wrong one is refused here
        self.batch_size, self.num_workers, self.precision = batch_size, num_workers, precision
        self._text_encoder = text_encoder
        self._templates = None if templates is None else check_templates(templates)
        self._descriptions = None if descriptions is None else check_descriptions(descriptions)
        stored = StoredPrediction.of(model)
        if words is None:
            if model.vocabulary is None:
                raise ValueError(
                    "words must be given, the model knows none of its own; pass words=[...], "
                    "with class queries one name for each class"
                )
            words = stored.words or model.vocabulary.words
        words = check_words(words)
        synonyms = fitting_synonyms(stored.synonyms, words) if synonyms is None else check_synonyms(synonyms, words)
        if self._descriptions and not set(self._descriptions) & set(texts_of(words, synonyms)):
            raise ValueError(
                f"descriptions must be of some of the words, got those of {list(self._descriptions)[:3]} and words "
                f"{list(words[:3])}; write the words as they stand in the file"
            )
        self.calibration = Calibration.of(model) if calibrated else None
        if self.calibration is not None and self.calibration.transductive:
            raise ValueError(
                "calibrated must be False for this model, its calibration is transductive: it needs all images at once "
                "where these are streamed; pass calibrated=False (--uncalibrated), or calibrate without "
                "transductive=True (--transductive)"
            )
        # Their logits standardise each image's; they stand before the words and are scored in one pass with them.
        self._reference: CompiledWords | None = None
        if self.calibration is not None and self.calibration.reference_words and model.decoder.text_dim is not None:
            self._reference = self._network.compile(model.encode_words(self.calibration.reference_words, text_encoder))
        self._words = self._scored(words, synonyms, self._reference)
        self._thresholds = None if stored.thresholds is None else stored.thresholds.of_words(self.vocabulary)

    @property
    def vocabulary(self) -> Vocabulary:
        """The N results, in the order of their labels."""
        return self._words.vocabulary

    @property
    def synonyms(self) -> dict[str, tuple[str, ...]]:
        """Other texts of the words that have some; a copy."""
        return dict(self._words.synonyms)

    @property
    def thresholds(self) -> dict[str, float] | None:
        """Stored least scores of single words, see `set_thresholds`; a copy. None if nothing is stored."""
        return None if self._thresholds is None else dict(self._thresholds.words)

    @property
    def default_threshold(self) -> DefaultThreshold | None:
        """The stored least score of all other words; None if nothing is stored."""
        return None if self._thresholds is None else self._thresholds.default

    # ------------------------------------------------------------------------------------------------------ words

    def set_words(self, words: Iterable[str], synonyms: Mapping[str, Iterable[str]] | None = None) -> None:
        """Score these words from now on, in this order. A prediction that has begun goes on with those it began with.

        Args:
            words: in the order of their labels. Thresholds of those that stay, stay.
            synonyms: as for the predictor; default those that there were, as far as these words leave room for them.
        """
        words = check_words(words)
        synonyms = fitting_synonyms(self.synonyms, words) if synonyms is None else check_synonyms(synonyms, words)
        # All is replaced at the end: a word that cannot be encoded leaves the predictor as it was.
        self._replace(self._scored(words, synonyms, self._reference))

    def add_words(self, words: Iterable[str], synonyms: Mapping[str, Iterable[str]] | None = None) -> None:
        """Score more words as well, without training; the labels of the others stay as they are.

        Only the new words are encoded and compiled.

        Args:
            words: at the end, in this order.
            synonyms: of some of the new words.

        Raises:
            ValueError: if a word or synonym is already there, or in class mode.
        """
        if self.model.decoder.text_dim is None:
            raise ValueError(
                "words cannot be added in class mode, the classes are fixed; train a head with word queries"
            )
        now, words = self._words, check_words(words)
        taken = [word for word in words if word in now.texts]
        if taken:
            raise ValueError(f"words must be new, got {taken[:5]}, already among the words or synonyms; leave them out")
        every = now.vocabulary.add(words).words
        both = check_synonyms({**now.synonyms, **check_synonyms(synonyms or {}, words)}, every)
        more = self._scored(words, {word: both[word] for word in words if word in both})
        vocabulary = self._partitioned(every)
        texts = self._partitioned(texts_of(every, both)) if both else vocabulary
        self._replace(now.joined(more, vocabulary, texts))

    def remove_words(self, words: Iterable[str]) -> None:
        """Stop scoring some words; their synonyms and thresholds go with them.

        Raises:
            ValueError: if one is not there, or none would be left.
        """
        words = check_words(words)
        strangers = [word for word in words if word not in self.vocabulary]
        if strangers:
            raise ValueError(f"words must be among those of the predictor, got {strangers[:5]} besides; leave them out")
        if self.model.decoder.text_dim is None:
            raise ValueError("words cannot be removed in class mode, the classes are fixed; use top_k or a threshold")
        if len(words) == len(self.vocabulary):
            raise ValueError("words must have at least one left, all would be removed; use set_words")
        self._replace(self._words.without(words))

    def set_thresholds(self, thresholds: Mapping[str, float], default_threshold: DefaultThreshold = 0.5) -> None:
        """Store thresholds, which `threshold="stored"` uses and `save_pretrained` saves.

        Args:
            thresholds: least scores, in [0,1], of some of the words.
            default_threshold: of all others, also of words added later; "calibrated": that of the model's calibration.

        Raises:
            ValueError: if a word is not there or a score not in [0,1], or "calibrated" without a calibration.
        """
        given = Thresholds(thresholds, default_threshold)
        self._thresholds = given.checked(self.vocabulary, self.calibration is not None)

    # ----------------------------------------------------------------------------------------------------- images

    def predict(
        self,
        images: Any,
        top_k: int | None = 5,
        threshold: Threshold = None,
        full_scores: bool = False,
        progress: bool = False,
        default_threshold: DefaultThreshold = 0.5,
    ) -> Generator[Prediction, None, None]:
        """The best words of each image, in order; images are read and scored a batch at a time, as they are asked for.

        Args:
            images: a path, a folder (searched below, sorted), a glob, a PIL image, an array, a transformed tensor
                (3,H,W), an open file, bytes, a list of any of these, or anything that gives them one after the other,
                a generator for instance: it is never listed, and read ahead by no more than the workers' batches.
            top_k: at most this many words an image; None for all.
            threshold: only words with at least this score, in [0,1]; a mapping gives each word its own. "calibrated":
                only words that reach their own threshold in the model's calibration, or its default for words without
                labelled images; a synonym reaches its own for its word. "stored": those of `set_thresholds`.
            full_scores: give the scores of every word as well.
            progress: show a bar.
            default_threshold: of the words that a mapping lacks; as for `set_thresholds`.

        Yields:
            A `Prediction` for each image; one that cannot be read has `error` set, and the rest still comes out. Words
            and thresholds are those of the call, whatever the predictor is told before the last image.

        Raises:
            FileNotFoundError: if a path, folder or glob matches nothing.
            ValueError: on a bad top_k or threshold, calibrated thresholds without a calibration, stored ones that are
                not there, or if the model gives NaN.
        """
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1 or None, got {top_k}; choose how many words to return")
        thresholds = check_threshold(
            threshold, default_threshold, self._thresholds, self.vocabulary, self.calibration is not None
        )
        sources, total = open_images(images)
        return self._predict(self._words, thresholds, sources, total, top_k, full_scores, progress)

    def score(self, images: Any, progress: bool = False) -> tuple[np.ndarray, list[Prediction]]:
        """The whole score matrix.

        Args:
            images: as in `predict`.
            progress: show a bar.

        Returns:
            Scores (M,N) fp32 in [0,1] of the readable images, and a `Prediction` with `error` for each other one.
        """
        sources, total = open_images(images)
        rows, failed = [np.empty((0, len(self.vocabulary)), np.float32)], []
        for batch, scores, _ in self._stream(self._words, sources, total, progress):
            rows.append(scores)
            failed += [Prediction(batch.paths[place], error=error) for place, error in batch.errors.items()]
        return np.concatenate(rows), failed

    def learn_shortlist(self, images: Any, size: int = 512, progress: bool = False) -> None:
        """For very large vocabularies: from now on decode only the words of an image that are worth it.

        Some images are decoded in full, to learn which few words tell of all others. Afterwards an image is decoded for
        these and for `size` words that they speak for. Their scores are what they were (in fp32 to 1e-5), others are 0.
        A change of the words ends it.

        Args:
            images: as in `predict`, and as those to come as possible; the first 256 are used.
            size: words to decode for each image.
            progress: show a bar.

        Raises:
            ValueError: in class mode, for softmax scores, with synonyms, or on fewer than two readable images.
        """
        words = replace(self._words, shortlist=None)
        if words.compiled is None or self.model.scores == "softmax" or words.synonyms or size < 1:
            raise ValueError(
                f"shortlist must be ≥ 1 words with word queries and sigmoid scores, without synonyms, got {size} of "
                f"{self.model.scores} scores and {len(words.synonyms)} words with synonyms; score all words"
            )
        sources, total = open_images(images)
        sources = islice(sources, NUM_SAMPLES)
        total = NUM_SAMPLES if total is None else min(total, NUM_SAMPLES)
        rows = [logits[:, words.num_reference :] for _, logits in self._raw(words, sources, total, progress)]
        logits = np.concatenate([np.empty((0, len(words.texts)), np.float32), *rows])
        shortlist = learn_shortlist(torch.from_numpy(logits).to(self.device), size)
        self._words = replace(words, shortlist=shortlist)

    def save_pretrained(self, folder: str | Path) -> None:
        """Save the model as it is used here; `Predictor(ZeroShotClassifier.from_pretrained(folder))` goes on from it.

        With the network go the words, their embeddings, so that nobody needs the text encoder for them, their synonyms
        and thresholds. Words that the model did not know are unseen words of its vocabulary then; its partition and
        calibration stay what they were.

        Args:
            folder: made if it does not exist; that of the model itself is replaced.

        Raises:
            ValueError: if reference words of the calibration have other templates or descriptions here.
        """
        saved = copy.copy(self.model)  # with the same weights; this predictor's model stays as it is
        saved.prediction = StoredPrediction(self.vocabulary.words, self.synonyms, self._thresholds).to_dict()
        words = self._words
        if words.embeddings is not None:
            saved.remember_words(*extended_vocabulary(self.model, words.texts, words.embeddings))
        saved.save_pretrained(folder)

    # ------------------------------------------------------------------------------------------------------ inside

    def _predict(
        self,
        words: ScoredWords,
        thresholds: Thresholds | None,
        sources: Iterable[Any],
        total: int | None,
        top_k: int | None,
        full_scores: bool,
        progress: bool,
    ) -> Generator[Prediction, None, None]:
        least = None if thresholds is None else thresholds.least_scores(words.vocabulary)  # (N,)
        for batch, scores, of_texts in self._stream(words, sources, total, progress):
            given = np.ones(scores.shape, bool) if least is None else scores >= least
            if least is not None and np.isnan(least).any():
                assert self.calibration is not None  # it decides
                margins = words.best_of_texts(self.calibration.margins(of_texts, words.texts))
                given = np.where(np.isnan(least), margins >= 0, given)
            yield from predictions_of(batch.paths, scores, given, batch.errors, words.vocabulary, top_k, full_scores)

    @torch.no_grad()
    def _stream(
        self, words: ScoredWords, sources: Iterable[Any], total: int | None, progress: bool
    ) -> Generator[tuple[LoadedImages, np.ndarray, np.ndarray], None, None]:
        """Batches, the scores (G,N) of what could be read in them, and the logits (G,P) of texts, calibrated or not."""
        for batch, logits in self._raw(words, sources, total, progress):
            reference, of_texts = np.split(logits, [words.num_reference], axis=1)
            if self.calibration is not None:
                # Each text as what it is, trained or not; only then can texts be compared.
                of_texts = self.calibration.apply(of_texts, words.texts, reference if words.num_reference else None)
            yield batch, self._network.scores(words.best_of_texts(of_texts), self.calibration), of_texts

    def _raw(
        self, words: ScoredWords, sources: Iterable[Any], total: int | None, progress: bool
    ) -> Generator[tuple[LoadedImages, np.ndarray], None, None]:
        """Batches, and the logits (G,R+P) of what could be read in them. Workers begin with the first batch."""
        num_workers = resolve_workers(self.num_workers, self.device, total, self.batch_size)
        transform = self.model.image_encoder.transform
        with tqdm(total=total, unit="image", disable=not progress) as bar:
            for batch in load_images(sources, transform, self.batch_size, num_workers, self.device):
                logits = np.empty((0, words.num_reference + len(words.texts)), np.float32)
                if len(batch.inputs):
                    logits = self._network.logits(batch.inputs, words).cpu().numpy()
                    check_logits(logits, batch)
                yield batch, logits
                bar.update(len(batch.paths))

    def _scored(
        self,
        words: tuple[str, ...],
        synonyms: Mapping[str, tuple[str, ...]],
        reference: CompiledWords | None = None,
    ) -> ScoredWords:
        """Words and synonyms with their query side, behind that of the reference words."""
        if self.model.decoder.text_dim is None:
            return ScoredWords(vocabulary := self._classes(words, synonyms), {}, vocabulary)
        texts = self._partitioned(texts_of(words, synonyms))
        vocabulary = texts.select(words) if synonyms else texts
        if self.model.unknown_words(texts) and self._text_encoder is None and self.model.text_encoder is not None:
            self._text_encoder = self.model.build_text_encoder(str(self.device))
        embeddings = self.model.encode_words(texts, self._text_encoder)
        scored = ScoredWords(vocabulary, synonyms, texts, embeddings, self._network.compile(embeddings))
        return scored if reference is None else scored.behind(reference)

    def _replace(self, words: ScoredWords) -> None:
        self._words = words
        if self._thresholds is not None:
            self._thresholds = self._thresholds.of_words(words.vocabulary)

    def _partitioned(self, words: Iterable[str]) -> Vocabulary:
        """Words as seen or unseen as the model has them."""
        return self.model.prompted(words, self._templates, self._descriptions)

    def _classes(self, words: tuple[str, ...], synonyms: Mapping[str, tuple[str, ...]]) -> Vocabulary:
        if synonyms:
            raise ValueError(
                f"synonyms must be none in class mode, got those of {list(synonyms)[:3]}; train a head with word "
                f"queries"
            )
        # Unnamed classes take any names.
        classes = self.model.vocabulary or self._partitioned(words)
        if words != classes.words or len(words) != self.model.decoder.num_classes:
            raise ValueError(
                f"words must be the {self.model.decoder.num_classes} classes of the model in their order, it has class "
                f"queries, got {len(words)} words; train a head with word queries to score other words"
            )
        return classes

    def __repr__(self) -> str:
        return f"Predictor({self.model!r}, {len(self.vocabulary)} words, device={str(self.device)!r})"
