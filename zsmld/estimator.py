"""MLDecoderClassifier: the head as a scikit-learn estimator, from features to words.

Letters used in the shapes: M images, F features of an image, S spatial positions, C channels of a position (F = S·C),
T text width, N words or classes.
"""

import copy
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from scipy.special import expit, softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
from torch import Tensor

from zsmld.augmentation import QueryAugmentation
from zsmld.decoder import MLDecoder
from zsmld.decoder.arguments import Output
from zsmld.losses import build_loss
from zsmld.text import TextEncoder, resolve_device
from zsmld.vocabulary import Vocabulary, check_words

_PAIRS_AT_ONCE = 65_536  # of an image and a word, in prediction: 64 MB for each of the head's arrays at width 256


class MLDecoderClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Trains an `MLDecoder` on features that are there already, and scores any words with it.

    With `words` or `word_embeddings` the head has *word queries*, and `set_words` changes after fitting what is scored,
    without training. With neither it has *class queries*: a plain classifier of the columns, or classes, it was fitted
    with.

    What y is decides what is learnt. An indicator matrix (M,N): an image may have several words, or none. One word or
    class for each image (M,): it has exactly one.

    Args:
        words: names of the columns of y; for y (M,) the words that it holds, in any order.
        word_embeddings: (N,T) of the words, instead of encoding them. Without `words` the columns have no names.
        text_encoder: spec string of what encodes `words`, see `zsmld.text`.
        templates: sentences with one `{}` each, or the name of a set of them, see `zsmld.vocabulary`.
        num_positions: S. A row of X is the S positions of an image one after the other, `maps.reshape(M, -1)` for maps
            (M,S,C); 1 for pooled features.
        decoder_dim: width of the head.
        num_heads: attention heads, a divisor of `decoder_dim`.
        feedforward_dim: hidden width of the feed-forward network.
        dropout: probability, in training only.
        output: with words, "shared", "cosine" or "sum", see `MLDecoder`.
        augmentation: of the word queries in training, see `QueryAugmentation` (no captions).
        loss: for an indicator matrix, a name that `build_loss` knows. The default is the one whose scores are
            probabilities. With one word an image it is cross-entropy.
        lr: peak of the learning rate (AdamW, one cycle).
        weight_decay: of AdamW.
        epochs: passes over the images.
        batch_size: images a step.
        random_state: an int for the same head each time on the same machine.
        device: "auto", "cpu", "cuda" or "mps"; the fitted head is kept on the CPU, so that it can be sent anywhere.

    Attributes:
        decoder_: the fitted `MLDecoder`, in eval mode.
        words_: the words that are scored, in the order of the columns; None for columns without names.
        word_embeddings_: (N,T) of these; None with class queries.
        classes_: one word an image: the classes, sorted, in the order of the columns. Indicator matrix: (N,2), for
            each column [0, 1], as scikit-learn's forests and neighbours have it.
        n_features_in_: F.
        feature_names_in_: (F,) the names of the columns of X, if it had some.
        loss_curve_: mean loss of an image in each epoch.

    Source: the head is that of arXiv 2111.12933; see `MLDecoder`.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X, Y = rng.normal(size=(40, 8)), rng.integers(0, 2, (40, 3))
        >>> head = MLDecoderClassifier(["dog", "cat", "boat"], decoder_dim=16, num_heads=2, epochs=2, device="cpu")
        >>> head.fit(X, Y).predict_proba(X).shape
        (40, 3)
        >>> head.set_words(["zebra", "boat"]).predict(X).shape  # no training
        (40, 2)
    """

    def __init__(
        self,
        words: Iterable[str] | None = None,
        word_embeddings: Any = None,
        *,
        text_encoder: str = "minilm",
        templates: Any = "photo",
        num_positions: int = 1,
        decoder_dim: int = 128,
        num_heads: int = 4,
        feedforward_dim: int = 256,
        dropout: float = 0.1,
        output: Output = "cosine",
        augmentation: QueryAugmentation | None = None,
        loss: str = "binary_cross_entropy",
        lr: float = 1e-3,
        weight_decay: float = 1e-2,
        epochs: int = 40,
        batch_size: int = 32,
        random_state: Any = None,
        device: str = "auto",
    ) -> None:
        self.words = words
        self.word_embeddings = word_embeddings
        self.text_encoder = text_encoder
        self.templates = templates
        self.num_positions = num_positions
        self.decoder_dim = decoder_dim
        self.num_heads = num_heads
        self.feedforward_dim = feedforward_dim
        self.dropout = dropout
        self.output = output
        self.augmentation = augmentation
        self.loss = loss
        self.lr = lr
        self.weight_decay = weight_decay
        self.epochs = epochs
        self.batch_size = batch_size
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any) -> "MLDecoderClassifier":
        """Train the head.

        Args:
            X: (M,F) features.
            y: (M,N) array or sparse matrix in {1, 0, −1} with a column for each word, 1 present, 0 absent, −1 unknown;
                or (M,) with the one word, or class, of each image.

        Returns:
            The estimator itself.

        Raises:
            ValueError: if X, y, the words and the options do not fit each other, or training diverges.
        """
        X, y = validate_data(
            self, _flat(X), y.toarray() if issparse(y) else y, dtype=np.float32, multi_output=True, ensure_min_samples=1
        )
        check_classification_targets(y)
        self._check_options(X.shape[1])
        self._identity: str | None = None
        words, embeddings = self._embedded(self.words, self.word_embeddings)
        if embeddings is None and y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        self._one_word = y.ndim == 1
        if not self._one_word:
            targets = _checked_targets(y, None if embeddings is None else len(embeddings))
        elif embeddings is None:
            words, label = np.unique(y, return_inverse=True)
            targets = np.eye(len(words), dtype=np.int8)[label]
        else:
            targets = _indicators(y, words)
        self._set_columns(words if embeddings is not None or self._one_word else None, embeddings, targets.shape[1])
        augmentation = self.augmentation
        if self._one_word and augmentation is not None and augmentation != QueryAugmentation(augmentation.noise):
            raise ValueError(
                f"augmentation must be noise alone where an image has exactly one word, got {augmentation}; give y as "
                f"an indicator matrix for the others"
            )
        self._train(X, targets)
        return self

    def set_words(self, words: Iterable[str] | None = None, word_embeddings: Any = None) -> "MLDecoderClassifier":
        """Score these words from now on, without training.

        Columns are in this order; after a fit with one word an image they are sorted, as `classes_` are.

        Args:
            words: any, those of the training among them or not.
            word_embeddings: (N,T) of them, instead of encoding them: from what embedded the training words.

        Returns:
            The estimator itself. Fitting again goes back to the words of the constructor.

        Raises:
            ValueError: if the head has class queries, the embeddings do not fit, or the text encoder is not the one
                it was fitted with.
        """
        check_is_fitted(self)
        if self.word_embeddings_ is None:
            raise ValueError(
                "words cannot be set for class queries, which the fit without words gave; pass words or "
                "word_embeddings to MLDecoderClassifier and fit it again"
            )
        text_dim = self.word_embeddings_.shape[1]
        names, embeddings = self._embedded(words, word_embeddings)
        if embeddings is None or embeddings.shape[1] != text_dim:
            raise ValueError(
                f"word_embeddings must be (N, {text_dim}) as in the fit, got "
                f"{None if embeddings is None else embeddings.shape}; encode the words as the training words were"
            )
        if self._one_word and names is None:
            raise ValueError("words must be given after a fit with one word an image, got None; predict returns them")
        self._set_columns(names, embeddings, len(embeddings))
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits (M,N) fp32, column j of word j; for two classes (M,), that of the second less that of the first."""
        check_is_fitted(self)
        logits = self._logits(validate_data(self, _flat(X), dtype=np.float32, reset=False))
        return logits[:, 1] - logits[:, 0] if self._one_word and logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any) -> np.ndarray:
        """Scores (M,N) fp32 in [0,1]: sigmoids of the logits; with one word an image their softmax."""
        logits = self.decision_function(X)
        if logits.ndim == 1:
            return np.stack([expit(-logits), expit(logits)], 1)
        return softmax(logits, 1) if self._one_word else expit(logits)

    def predict(self, X: Any) -> np.ndarray:
        """(M,N) int64, 1 for words with a score above 0.5; or (M,) the best class, as y was."""
        logits = self.decision_function(X)
        if not self._one_word:
            return (logits > 0).astype(np.int64)
        return self.classes_[(logits > 0).astype(int) if logits.ndim == 1 else logits.argmax(1)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    # ------------------------------------------------------------------------------------------------------- words

    def _embedded(self, words: Any, word_embeddings: Any) -> tuple[Any, np.ndarray | None]:
        """Words as an array of texts, and their embeddings (N,T); None where there are none."""
        names = None if words is None else check_words(words)
        if word_embeddings is not None:
            given = word_embeddings.detach().cpu() if isinstance(word_embeddings, Tensor) else word_embeddings
            embeddings = np.asarray(given, np.float32).copy()
            if embeddings.ndim != 2 or not embeddings.size or len(embeddings) != len(names or embeddings):
                wanted = "N" if names is None else len(names)
                raise ValueError(
                    f"word_embeddings must be ({wanted}, T), a row for each word, got {embeddings.shape}; encode the "
                    f"same words"
                )
            if not np.isfinite(embeddings).all():
                raise ValueError("word_embeddings must be finite numbers, got NaN or infinity; encode the words again")
        elif names is not None:
            encoder = TextEncoder(self.text_encoder, self.device)
            if self._identity not in (None, encoder.identity):
                raise ValueError(
                    f"text_encoder {self.text_encoder!r} must have the weights that the head was fitted with, "
                    f"{self._identity!r}, got {encoder.identity!r} on this machine; restore the original file"
                )
            embeddings = encoder.encode_words(Vocabulary(names, templates=self.templates)).numpy()
            self._identity = encoder.identity
        else:
            return None, None
        return None if names is None else np.array(names), embeddings

    def _set_columns(self, words: np.ndarray | None, embeddings: np.ndarray | None, num_columns: int) -> None:
        """What each column is from now on. scikit-learn's metrics take classes to be sorted."""
        if self._one_word:
            assert words is not None  # fit and set_words made sure
            order = np.argsort(words)
            words = words[order]
            embeddings = None if embeddings is None else embeddings[order]
            self.classes_: Any = words
        else:
            # An array and not a list: `cross_val_predict` asks for its shape.
            self.classes_ = np.tile(np.array([0, 1]), (num_columns, 1))
        self.words_ = None if words is None else tuple(words.tolist())
        self.word_embeddings_ = embeddings

    # ----------------------------------------------------------------------------------------------------- the head

    def _train(self, X: np.ndarray, targets: np.ndarray) -> None:
        device = resolve_device(self.device)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        loss = build_loss("cross_entropy" if self._one_word else self.loss)
        augmentation = self.augmentation or QueryAugmentation()
        spatial, truth = self._positions(X), torch.from_numpy(targets)  # (M,S,C), (M,N)
        # The caller's own random numbers stay where they are.
        with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
            torch.manual_seed(seed)
            generator = torch.Generator().manual_seed(seed)  # of the order of images and of the augmentation
            decoder = self._new_decoder(spatial.shape[2], targets.shape[1]).to(device).train()
            words = None if self.word_embeddings_ is None else torch.from_numpy(self.word_embeddings_).to(device)
            optimizer = torch.optim.AdamW(decoder.parameters(), lr=self.lr, weight_decay=self.weight_decay)
            num_steps = int(self.epochs * -(-len(X) // self.batch_size))  # a search gives integers of numpy
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=num_steps)
            self.loss_curve_: list[float] = []
            for epoch in range(self.epochs):
                summed = 0.0
                for rows in torch.randperm(len(X), generator=generator).split(int(self.batch_size)):
                    queries, wanted = words, truth[rows].to(device)  # (N,T), (B,N)
                    if words is not None:
                        queries, wanted = augmentation(words, wanted, generator)  # (N',T), (B,N')
                    cost = loss(decoder(spatial[rows].to(device), queries), wanted)
                    optimizer.zero_grad()
                    (cost / len(rows)).backward()
                    optimizer.step()
                    schedule.step()
                    summed += cost.item()
                if not np.isfinite(summed):
                    raise ValueError(
                        f"lr must be small enough for training to converge, the loss is {summed} in epoch {epoch} with "
                        f"lr={self.lr}; lower it, or scale X with StandardScaler"
                    )
                self.loss_curve_.append(summed / len(X))
        self.decoder_ = decoder.cpu().eval()

    def _new_decoder(self, encoder_dim: int, num_columns: int) -> MLDecoder:
        sizes: dict[str, Any] = {
            "decoder_dim": self.decoder_dim,
            "num_heads": self.num_heads,
            "feedforward_dim": self.feedforward_dim,
            "dropout": self.dropout,
        }
        if self.word_embeddings_ is None:
            return MLDecoder(encoder_dim, num_classes=num_columns, **sizes)
        decoder = MLDecoder(encoder_dim, text_dim=self.word_embeddings_.shape[1], output=self.output, **sizes)
        if num_columns > 1:  # a single word has no deviation
            decoder.standardize_words(torch.from_numpy(self.word_embeddings_))
        return decoder

    @torch.no_grad()
    def _logits(self, X: np.ndarray) -> np.ndarray:
        """(M,F) -> (M,N), some images at a time."""
        device = resolve_device(self.device)
        decoder = self.decoder_ if device.type == "cpu" else copy.deepcopy(self.decoder_).to(device)
        rows = max(1, _PAIRS_AT_ONCE // len(self.classes_))
        if self.word_embeddings_ is None:
            logits = [decoder(part.to(device)).cpu() for part in self._positions(X).split(rows)]
        else:
            queries = decoder.word_queries(torch.tensor(self.word_embeddings_, device=device))
            logits = [decoder.decode(part.to(device), *queries).cpu() for part in self._positions(X).split(rows)]
        return torch.cat(logits).numpy()

    def _positions(self, X: np.ndarray) -> Tensor:
        """(M,F) -> (M,S,C)."""
        return torch.tensor(X).unflatten(1, (int(self.num_positions), -1))

    def _check_options(self, num_features: int) -> None:
        for name in ("epochs", "batch_size", "num_positions"):
            value = getattr(self, name)
            if not isinstance(value, (int, np.integer)) or not value >= 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}; correct it")
        if num_features % self.num_positions:
            raise ValueError(
                f"num_positions must divide the {num_features} features of X, got {self.num_positions}; flatten maps "
                f"(M, S, C) with maps.reshape(M, -1) and give S"
            )
        if not self.lr > 0 or not self.weight_decay >= 0:
            raise ValueError(
                f"lr must be positive and weight_decay not negative, got {self.lr}, {self.weight_decay}; correct it"
            )


def _flat(X: Any) -> Any:
    """X itself; maps are refused with what to do."""
    if getattr(X, "ndim", 2) > 2:
        raise ValueError(
            f"X must be (M, F), got dim {X.ndim} with shape {tuple(X.shape)}; flatten maps (M, S, C) with "
            f"X.reshape(len(X), -1) and set num_positions=S"
        )
    return X


def _checked_targets(y: np.ndarray, num_words: int | None) -> np.ndarray:
    """An indicator matrix as int8, or what is wrong with it."""
    if num_words not in (None, y.shape[1]):
        raise ValueError(
            f"y must have a column for each of the {num_words} words, got {y.shape}; select the same words in both"
        )
    if not np.isin(y, (1, 0, -1)).all():
        strange = y[~np.isin(y, (1, 0, -1))][0]
        raise ValueError(f"y must be 1 (present), 0 (absent) or -1 (unknown) in a matrix, got {strange!r}; recode it")
    if not (y == 0).any() and (y < 0).any():
        raise ValueError("y must be 0 where a word is absent, got only -1, which is unknown; recode it")
    return y.astype(np.int8)


def _indicators(y: np.ndarray, words: np.ndarray | None) -> np.ndarray:
    """One word for each image as an indicator matrix, its columns those of the words sorted."""
    strange = [] if words is None else sorted(set(y.tolist()) - set(words.tolist()), key=str)
    if words is None or strange:
        raise ValueError(
            f"y must be (M, N) with a column for each word, or (M,) texts that are among words, got {y.shape} "
            f"{'and no words' if words is None else f'with {strange[:3]}'}; for one word write y.reshape(-1, 1)"
        )
    return np.equal.outer(y.astype(words.dtype), np.sort(words)).astype(np.int8)
