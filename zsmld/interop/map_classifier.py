"""A head that takes a map as other networks give it, and a network with this head that looks like timm's."""

import re
from collections.abc import Callable, Iterable
from typing import Any, cast

from torch import Tensor, nn

from zsmld.decoder import MLDecoder
from zsmld.images.timm_body import positions_of
from zsmld.text import TextEncoder
from zsmld.vocabulary import Vocabulary

MapFunction = Callable[[nn.Module, Tensor], Tensor]

# What needs more than a head on a map: statistics of the seen words, or an encoder of ours.
_NOT_HERE = ("encoder_dim", "text_dim", "num_classes", "num_global_tokens", "prior", "word_reach", "num_seen_words")


class MLDecoderHead(nn.Module):
    """A map in, logits out: our head with its words beside it, in the place of pooling and classifier.

    Args:
        encoder_dim: C, channels of the map.
        num_classes: N, for class queries.
        words: for word queries: their embeddings (N,T), or the words themselves.
        text_encoder: spec of the encoder for words given as texts.
        decoder_options: further arguments of `MLDecoder`.

    Attributes:
        decoder: the `MLDecoder`.
        word_embeddings: (N,T), a buffer; only with `words`.
        vocabulary: the words as texts, or None.

    Raises:
        ValueError: if an argument does not fit.

    Example:
        >>> head = MLDecoderHead(32, num_classes=5, decoder_dim=64)
        >>> import torch
        >>> head(torch.zeros(2, 32, 7, 7)).shape, head(torch.zeros(2, 49, 32)).shape
        (torch.Size([2, 5]), torch.Size([2, 5]))
    """

    word_embeddings: Tensor

    def __init__(
        self,
        encoder_dim: int,
        num_classes: int | None = None,
        words: Tensor | Iterable[str] | None = None,
        text_encoder: str | TextEncoder | None = "minilm",
        **decoder_options: Any,
    ) -> None:
        super().__init__()
        foreign = sorted(set(decoder_options) & set(_NOT_HERE))
        if foreign:
            raise ValueError(
                f"decoder_options must not set {foreign}, which come with the network; use zsmld.create_model for them"
            )
        self.text_encoder, self.options, self.encoder_dim = text_encoder, decoder_options, encoder_dim
        self.vocabulary: Vocabulary | None = None
        if words is None:
            self.decoder = MLDecoder(encoder_dim, num_classes=num_classes, **decoder_options)
            return
        embeddings, vocabulary = self._encode(words)
        if num_classes not in (None, len(embeddings)):
            raise ValueError(
                f"num_classes must be the number of words or left out, got {num_classes} for {len(embeddings)} words; "
                f"leave it out"
            )
        self.vocabulary = vocabulary
        self.decoder = MLDecoder(encoder_dim, text_dim=embeddings.shape[1], **decoder_options)
        if len(embeddings) > 1:
            self.decoder.standardize_words(embeddings)
        self.register_buffer("word_embeddings", embeddings)

    @property
    def num_classes(self) -> int:
        """N, the number of logits."""
        if self.decoder.text_dim is None:
            return cast(int, self.decoder.num_classes)
        return len(self.word_embeddings)

    @property
    def words(self) -> tuple[str, ...] | None:
        """The words as texts; None for classes, and for embeddings that were given without them."""
        return None if self.vocabulary is None else self.vocabulary.words

    def set_words(self, words: Tensor | Iterable[str]) -> None:
        """Other words from now on, seen in training or not; the weights stay what they are.

        Args:
            words: embeddings (N,T), or texts for the text encoder.

        Raises:
            ValueError: in class mode, or if the embeddings do not fit.
        """
        if self.decoder.text_dim is None:
            raise ValueError("words must be given when the head is added to set others later, this one has classes")
        embeddings, vocabulary = self._encode(words)
        if embeddings.shape[1] != self.decoder.text_dim:
            raise ValueError(
                f"words must be (N, {self.decoder.text_dim}) to fit the head's first words, got "
                f"{tuple(embeddings.shape)}; encode them with the same text encoder"
            )
        self.word_embeddings = embeddings.to(self.word_embeddings)
        self.vocabulary = vocabulary

    def forward(self, features: Tensor) -> Tensor:
        """Score the words or classes.

        Args:
            features: a map (B,C,H,W), positions (B,S,C), or a flattened map (B,C·S).

        Returns:
            Logits (B,N).
        """
        if features.ndim == 4:
            features = features.flatten(2).transpose(1, 2)  # (B,S,C)
        elif features.ndim == 2:
            features = features.unflatten(1, (self.encoder_dim, -1)).transpose(1, 2)  # (B,S,C)
        if self.decoder.text_dim is None:
            return cast(Tensor, self.decoder(features))
        return cast(Tensor, self.decoder(features, self.word_embeddings))

    def _encode(self, words: Tensor | Iterable[str]) -> tuple[Tensor, Vocabulary | None]:
        if isinstance(words, Tensor):
            if words.ndim != 2 or not words.is_floating_point() or not len(words):
                raise ValueError(
                    f"words must be embeddings (N, T) of floats or a list of texts, got {tuple(words.shape)} of "
                    f"{words.dtype}; give one row a word"
                )
            return words.detach().clone(), None
        if self.text_encoder is None:
            raise ValueError(
                "text_encoder must be named for words given as texts, got None; write text_encoder='minilm'"
            )
        encoder = TextEncoder(self.text_encoder) if isinstance(self.text_encoder, str) else self.text_encoder
        vocabulary = words if isinstance(words, Vocabulary) else Vocabulary(words)
        return encoder.encode_words(vocabulary), vocabulary

    def extra_repr(self) -> str:
        """How many of what."""
        return f"{self.num_classes} {'classes' if self.decoder.text_dim is None else 'words'}"


class MapClassifier(nn.Module):
    """A network that gives a map, and the head on it. To training loops it looks like a model of timm.

    Made by `add_ml_decoder_head`.

    Args:
        body: the network.
        head: what scores its map.
        map_of: how to get the map: (body, images) -> (B,C,H,W) or (B,S,C); None for a model of timm.

    Attributes:
        pretrained_cfg: of the body, from which timm's loaders take size, mean and std; {} if it has none.
    """

    def __init__(self, body: nn.Module, head: MLDecoderHead, map_of: MapFunction | None = None) -> None:
        super().__init__()
        self.body, self.head, self.map_of = body, head, map_of
        self.pretrained_cfg = getattr(body, "pretrained_cfg", {})
        self.default_cfg = self.pretrained_cfg
        self.num_features = head.encoder_dim

    @property
    def num_classes(self) -> int:
        """N, the number of logits."""
        return self.head.num_classes

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) -> logits (B,N)."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) -> positions (B,S,C), or whatever `map_of` gives."""
        if self.map_of is not None:
            return self.map_of(self.body, images)
        return positions_of(self.body, cast(Any, self.body).forward_features(images)).flatten(1, -2)  # (B,S,C)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """What `forward_features` gave -> logits (B,N); the features themselves before them."""
        return features if pre_logits else cast(Tensor, self.head(features))

    def set_words(self, words: Tensor | Iterable[str]) -> None:
        """See `MLDecoderHead.set_words`."""
        self.head.set_words(words)

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new, untrained head for this many classes.

        Args:
            num_classes: N, at least 1.
            global_pool: must be None: there is no pool.

        Raises:
            ValueError: if there is no such head.
        """
        if global_pool is not None:
            raise ValueError(f"global_pool must be None, the head attends instead, got {global_pool!r}; leave it out")
        options = {name: value for name, value in self.head.options.items() if name not in _OF_WORDS}
        one = next(self.head.parameters())
        self.head = MLDecoderHead(self.head.encoder_dim, num_classes, **options).to(one.device, one.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """As the body does it."""
        cast(Any, self.body).set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Parameters of the body that its authors train without weight decay."""
        own = getattr(self.body, "no_weight_decay", None)
        return set() if own is None else {f"body.{name}" for name in own()}

    def group_matcher(self, coarse: bool = False) -> Any:
        """The body's groups of layers, for layer-wise learning rates; the head is last.

        Raises:
            ValueError: if the body has none.
        """
        own = getattr(self.body, "group_matcher", None)
        if own is None:
            raise ValueError(
                f"layer decay must be off for {type(self.body).__name__}, which names no groups of layers; leave it out"
            )
        groups = own(coarse=coarse)
        if callable(groups):  # a few of timm's networks number a name with a function
            return lambda name: groups(name.removeprefix("body.")) if name.startswith("body.") else float("inf")
        return {group: _below(pattern, "body") for group, pattern in groups.items()}


_OF_WORDS = ("output", "temperature", "prompts", "descriptions")


def _below(pattern: Any, root: str) -> Any:
    """A regular expression about names, or timm's nested (expression, order), for the same names below a root."""
    if isinstance(pattern, str):
        # timm matches from the start of a name, and its expressions have alternatives: "^cls_token|pos_embed".
        inner = re.sub(r"(?<!\[)\^", "", pattern)
        return rf"{root}\.(?:{inner})"
    if isinstance(pattern, (list, tuple)):
        return type(pattern)(_below(part, root) for part in pattern)
    return pattern
