"""TrainingFreeScorer: what an image encoder knows already, compared with words; no training at all.

Two kinds of knowledge take one form. Every position of an image gets a *view*, a unit vector in the space of the word
embeddings, and a word's similarities with the views are its evidence:

    CLIP     the position's own embedding, where image and text share a space
    ConSE    a classifier's class names, averaged with the probabilities it gives them at that position

Letters used in the shapes: B images, V views, S spatial positions, C encoder channels, T text width, K classes or
descriptions, N words.

Source: ConSE: Norouzi et al., arXiv 1312.5650, section 3.1; per position it is ours. Dense CLIP: MaskCLIP, Zhou et al.,
arXiv 2112.01071.
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Views = Literal["global", "local", "both"]
Descriptions = Literal["mean", "attention", "max", "second"]
Standardization = Literal["none", "per_word", "per_image", "both"]


class TrainingFreeScorer(nn.Module):
    """Spatial embeddings and words -> logits, with the interface of `MLDecoder`; it can also stand inside one.

    The global view is the first position where the encoder gives a global token, else that of the mean over all
    positions. A word's local similarity is the mean of its `top_positions` best ones. Its logit is the sum of both
    similarities, each times its scale, plus a bias: three numbers, that a calibration or a training can set.

    A word's logit depends on its own embedding and the image alone, as in `MLDecoder`.

    Args:
        encoder_dim: C.
        text_dim: T.
        num_global_tokens: how many of the first positions are global tokens of the encoder, 0 or 1.
        num_classes: K, of the classifier whose class names make the views (ConSE); None where the spatial embeddings
            are in the words' space already (CLIP), so that C = T.
        top_classes: only this many classes count at each position; None for all.
        temperature: of the classifier's softmax; above 1 more classes have a say.
        views: "global", "local" or "both".
        top_positions: how many positions make the local similarity.
        descriptions: how a word's several descriptions become one similarity: "mean" of their embeddings; "attention",
            weighted by their similarity with the global view of the image; the "max", or the "second" highest, which
            one wrong description cannot raise.
        description_scale: sharpness of that attention.
        standardization: "per_word" centres and scales each similarity by the word's mean and deviation over views of a
            calibration set, "per_image" by those of the view over reference words, "both" first by word, then by image.
            `fit_statistics` takes them; they hold for any word and any image, since both follow from means and
            covariances.
        scale: of the similarities, at first; one number for each of the two views, or one for both.
        bias: at first.

    Raises:
        ValueError: if an option is unknown, or the widths do not fit.

    Example:
        >>> scorer = TrainingFreeScorer(encoder_dim=32, text_dim=32)
        >>> scorer(torch.randn(2, 49, 32), torch.randn(5, 32)).shape
        torch.Size([2, 5])
    """

    class_weight: Tensor
    class_bias: Tensor
    class_embeddings: Tensor
    word_center: Tensor
    temperature: Tensor
    view_mean: Tensor
    view_covariance: Tensor
    word_mean: Tensor
    word_covariance: Tensor

    def __init__(
        self,
        encoder_dim: int,
        text_dim: int,
        num_global_tokens: int = 0,
        num_classes: int | None = None,
        top_classes: int | None = None,
        temperature: float = 1.0,
        views: Views = "both",
        top_positions: int = 1,
        descriptions: Descriptions = "mean",
        description_scale: float = 1 / 0.07,
        standardization: Standardization = "none",
        scale: float = 10.0,
        bias: float = -2.0,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        for name, value, known in (
            ("views", views, ("global", "local", "both")),
            ("descriptions", descriptions, ("mean", "attention", "max", "second")),
            ("standardization", standardization, ("none", "per_word", "per_image", "both")),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {known}, got {value!r}; choose one")
        if num_global_tokens not in (0, 1):
            raise ValueError(f"num_global_tokens must be 0 or 1, got {num_global_tokens}; take the image encoder's")
        for name, number in (("top_positions", top_positions), ("top_classes", top_classes)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}; choose how many count")
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}; 1 is the classifier's own")
        if num_classes is None and encoder_dim != text_dim:
            raise ValueError(
                f"encoder_dim must be text_dim={text_dim} where there is no classifier, got {encoder_dim}; project the "
                f"image encoder into the joint space (projected=True), or take the text encoder of the same CLIP"
            )
        self.encoder_dim, self.text_dim, self.num_global_tokens = encoder_dim, text_dim, num_global_tokens
        self.num_classes = None  # words are queries; the classifier's classes are knowledge and no output
        self.top_classes, self.views, self.top_positions = top_classes, views, top_positions
        self.descriptions, self.description_scale, self.standardization = (
            descriptions,
            description_scale,
            standardization,
        )
        self.output = "clip" if num_classes is None else "conse"
        self._config = arguments
        self.register_buffer("word_center", torch.zeros(text_dim))  # set by `set_classes`; a part of the checkpoint
        if num_classes is not None:
            self.register_buffer("class_weight", torch.zeros(num_classes, encoder_dim))
            self.register_buffer("class_bias", torch.zeros(num_classes))
            self.register_buffer("class_embeddings", torch.zeros(num_classes, text_dim))
            self.register_buffer("temperature", torch.tensor(float(temperature)))
        if standardization in ("per_word", "both"):
            self.register_buffer("view_mean", torch.zeros(2, text_dim))  # global, local
            self.register_buffer("view_covariance", torch.eye(text_dim).repeat(2, 1, 1))
        if standardization in ("per_image", "both"):
            self.register_buffer("word_mean", torch.zeros(2, text_dim))
            self.register_buffer("word_covariance", torch.eye(text_dim).repeat(2, 1, 1))
        self._sides = {"global": [0], "local": [1], "both": [0, 1]}[views]
        self.scale = nn.Parameter(torch.full((len(self._sides),), float(scale)))  # V' of these
        self.bias = nn.Parameter(torch.tensor(float(bias)))

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, for a checkpoint."""
        return {"training_free": True, **self._config}

    # ------------------------------------------------------------------------------------------------- knowledge

    @torch.no_grad()
    def set_classes(self, weight: Tensor, bias: Tensor, embeddings: Tensor, centered: bool = True) -> None:
        """The classifier of ConSE, and the embeddings of its class names.

        Args:
            weight: (K,C) of its last linear layer.
            bias: (K).
            embeddings: (K,T) of the class names, made as those of the words will be.
            centered: subtract the mean of the class names from class names and words alike. Sentence embeddings share
                a large common direction, in which all words are alike.

        Raises:
            ValueError: without a classifier, or on another shape.
        """
        shapes = {name: tuple(t.shape) for name, t in (("weight", weight), ("bias", bias), ("embeddings", embeddings))}
        if self.output != "conse":
            raise ValueError("num_classes must be given to have a classifier, got None; build the scorer with it")
        own = {"weight": self.class_weight, "bias": self.class_bias, "embeddings": self.class_embeddings}
        if shapes != {name: tuple(t.shape) for name, t in own.items()}:
            raise ValueError(
                f"classes must be {[tuple(t.shape) for t in own.values()]}, got {list(shapes.values())}; "
                f"take the classifier of this image encoder and one name for each class"
            )
        unit = F.normalize(embeddings, dim=1)
        self.word_center.copy_(unit.mean(0) if centered else torch.zeros_like(unit[0]))
        self.class_weight.copy_(weight)
        self.class_bias.copy_(bias)
        self.class_embeddings.copy_(unit)

    @torch.no_grad()
    def fit_statistics(self, spatial_embeddings: Tensor, reference_embeddings: Tensor) -> None:
        """Take the statistics of `standardization` from a calibration set; never from the images to be scored.

        Args:
            spatial_embeddings: (M,S,C) of M ≥ 2 calibration images, on any device.
            reference_embeddings: (R,T) of R ≥ 2 reference words.

        Raises:
            ValueError: if there are too few of either.
        """
        if len(spatial_embeddings) < 2 or len(reference_embeddings) < 2:
            raise ValueError(
                f"calibration must have at least 2 images and 2 reference words, got {len(spatial_embeddings)} and "
                f"{len(reference_embeddings)}; give more"
            )
        words = self._unit(reference_embeddings).repeat(2, 1, 1)  # (2,R,T)
        if self.standardization in ("per_word", "both"):
            # A part at a time: a classifier of many classes gives each position a row of probabilities.
            parts = [self.image_views(part.to(words.device)) for part in spatial_embeddings.split(64)]
            views = torch.cat(parts)  # (M,V,T)
            for side, part in enumerate((views[:, 0], views[:, 1:].flatten(0, 1))):
                self.view_mean[side], self.view_covariance[side] = part.mean(0), part.T.cov()
            words = words / self._word_deviation(words[0])[:, :, None]  # (2,R,T)
        if self.standardization in ("per_image", "both"):
            for side in (0, 1):
                self.word_mean[side], self.word_covariance[side] = words[side].mean(0), words[side].T.cov()

    # ---------------------------------------------------------------------------------------------------- scoring

    def word_queries(self, word_embeddings: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Everything on the word side; compute it once per vocabulary.

        Args:
            word_embeddings: (N,T), or (N,K,T) for K descriptions of each word.
            mask: (N,K) bool, which descriptions exist; None: those whose embedding is not zero.

        Returns:
            Unit word embeddings (N,T); or (N,K,T) with their mask (N,K).

        Raises:
            ValueError: if a shape does not fit.
        """
        check_word_embeddings(word_embeddings, mask, self.text_dim)
        if word_embeddings.ndim == 2:
            return (self._unit(word_embeddings),)  # (N,T)
        if mask is None:
            mask = existing_descriptions(word_embeddings)  # (N,K)
        if self.descriptions == "mean":
            unit = F.normalize(word_embeddings, dim=2)  # (N,K,T)
            return (self._unit(average_descriptions(unit, mask)),)  # (N,T)
        return self._unit(word_embeddings), mask  # (N,K,T), (N,K)

    def decode(self, spatial_embeddings: Tensor, *compiled: Tensor) -> Tensor:
        """Score compiled words: spatial embeddings (B,S,C) and the results of `word_queries` -> logits (B,N)."""
        pairs = self.similarities(self.image_views(spatial_embeddings), *compiled)  # (B,N,1|2)
        return pairs @ self.scale + self.bias  # (B,N)

    def forward(
        self, spatial_embeddings: Tensor, word_embeddings: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Spatial embeddings (B,S,C) and word embeddings (N,T) or (N,K,T) -> logits (B,N).

        Raises:
            ValueError: if a shape does not fit, or there are no words.
        """
        if word_embeddings is None:
            raise ValueError(
                f"word_embeddings must be (N, {self.text_dim}), got None; pass those of the words to score"
            )
        return self.decode(spatial_embeddings, *self.word_queries(word_embeddings, mask))

    def image_views(self, spatial_embeddings: Tensor, temperature: float | None = None) -> Tensor:
        """Spatial embeddings (B,S,C) -> unit views (B,V,T), the global one first; all that the words need to know.

        Args:
            spatial_embeddings: (B,S,C).
            temperature: of the classifier, instead of the scorer's.
        """
        if spatial_embeddings.ndim != 3 or spatial_embeddings.shape[2] != self.encoder_dim:
            raise ValueError(
                f"spatial_embeddings must be (B, S, {self.encoder_dim}) to fit encoder_dim={self.encoder_dim}, "
                f"got {tuple(spatial_embeddings.shape)}; use the image encoder of this scorer"
            )
        spatial_embeddings = self.with_global(spatial_embeddings)  # (B,V,C)
        if self.output == "clip":
            return self._unit(spatial_embeddings)  # (B,V,T)
        probabilities = self.class_probabilities(spatial_embeddings, temperature)  # (B,V,K)
        if self.top_classes is not None and self.top_classes < probabilities.shape[2]:
            best = probabilities.topk(self.top_classes, dim=2)
            probabilities = torch.zeros_like(probabilities).scatter(2, best.indices, best.values)
        classes = self._unit(self.class_embeddings)  # (K,T)
        return F.normalize(probabilities @ classes, dim=2)  # (B,V,T); a sum and a mean point alike

    def with_global(self, spatial_embeddings: Tensor) -> Tensor:
        """(B,S,C) -> (B,V,C), the global token first: the encoder's own, or the mean."""
        if self.num_global_tokens:
            return spatial_embeddings
        return torch.cat([spatial_embeddings.mean(1, keepdim=True), spatial_embeddings], 1)

    def class_probabilities(self, spatial_embeddings: Tensor, temperature: float | None = None) -> Tensor:
        """The classifier's opinion of each position: (B,V,C) -> (B,V,K); by default at the scorer's temperature."""
        logits = spatial_embeddings @ self.class_weight.T + self.class_bias  # (B,V,K)
        return (logits / (self.temperature if temperature is None else temperature)).softmax(2)

    def similarities(self, views: Tensor, words: Tensor, mask: Tensor | None = None) -> Tensor:
        """Global and local similarity of each word.

        Args:
            views: (B,V,T).
            words: (N,T), or (N,K,T), as `word_queries` gives them.
            mask: (N,K), which of K are there.

        Returns:
            (B,N,2), or (B,N,1) if only one of them is wanted.
        """
        if mask is None:
            return self._similarities(views, words)  # (B,N,2)
        num_words, num_descriptions = words.shape[:2]
        pairs = self._similarities(views, words.flatten(0, 1))  # (B,N·K,2)
        pairs = pairs.unflatten(1, (num_words, num_descriptions))  # (B,N,K,2)
        if self.descriptions == "attention":
            likeness = torch.einsum("bt,nkt->bnk", views[:, 0], words)  # (B,N,K)
            weights = (self.description_scale * likeness).masked_fill(~mask, -torch.inf).softmax(2)
            return (weights[..., None] * pairs).sum(2)  # (B,N,2)
        pairs = pairs.masked_fill(~mask[None, :, :, None], -torch.inf)
        if self.descriptions == "max" or num_descriptions == 1:
            return pairs.amax(2)
        best, second = pairs.topk(2, dim=2).values.unbind(2)  # (B,N,2), (B,N,2)
        return torch.where(second.isfinite(), second, best)  # a word with a single description has no second

    def _similarities(self, views: Tensor, words: Tensor) -> Tensor:
        """(B,V,T) and (N,T) -> (B,N,2)."""
        sides = []
        deviation = self._word_deviation(words) if self.standardization in ("per_word", "both") else None  # (2,N)
        for side in self._sides:
            part = views[:, :1] if side == 0 else views[:, 1:]  # (B,V',T)
            similarity = part @ words.T  # (B,V',N)
            if deviation is not None:
                similarity = (similarity - words @ self.view_mean[side]) / deviation[side]
                part = part - self.view_mean[side]  # what the standardised words are compared with
            if self.standardization in ("per_image", "both"):
                mean = part @ self.word_mean[side]  # (B,V')
                variance = torch.einsum("bvt,tu,bvu->bv", part, self.word_covariance[side], part)
                similarity = (similarity - mean[..., None]) / variance.clamp(min=1e-12).sqrt()[..., None]
            best = similarity if side == 0 else similarity.topk(min(self.top_positions, part.shape[1]), dim=1).values
            sides.append(best.mean(1))  # (B,N)
        return torch.stack(sides, 2)  # (B,N,2)

    def _word_deviation(self, words: Tensor) -> Tensor:
        """Deviation of each word's similarity over the calibration views: (N,T) -> (2,N)."""
        return torch.einsum("nt,stu,nu->sn", words, self.view_covariance, words).clamp(min=1e-12).sqrt()

    def _unit(self, embeddings: Tensor) -> Tensor:
        """Unit vectors, after the common direction is gone. Any shape (…,T)."""
        return F.normalize(F.normalize(embeddings, dim=-1) - self.word_center, dim=-1)

    @torch.no_grad()
    def attention(self, spatial_embeddings: Tensor, word_embeddings: Tensor | None = None) -> Tensor:
        """Where each word is: its similarity with each position, as shares that sum to one. (B,1,N,S)."""
        if word_embeddings is None:
            raise ValueError(
                f"word_embeddings must be (N, {self.text_dim}), got None; pass those of the words to score"
            )
        views = self.image_views(spatial_embeddings)[:, 1:]  # (B,S,T)
        words = self.word_queries(
            average_descriptions(word_embeddings) if word_embeddings.ndim == 3 else word_embeddings
        )
        similarity = views @ words[0].T  # (B,S,N)
        return (similarity * self.description_scale).softmax(1).transpose(1, 2)[:, None]  # (B,1,N,S)


def check_word_embeddings(word_embeddings: Tensor, mask: Tensor | None, text_dim: int) -> None:
    """Refuse what is not (N,T), or (N,K,T) with a fitting mask.

    Raises:
        TypeError: if the embeddings are no tensor.
        ValueError: on another shape, a mask that does not fit, or a word without a description.
    """
    if not isinstance(word_embeddings, Tensor):
        raise TypeError(
            f"word_embeddings must be a tensor (N, {text_dim}), got {type(word_embeddings).__name__}; "
            f"encode the words first, with model.encode_words"
        )
    shape = word_embeddings.shape  # and not len(), which would fix N in torch.export
    if word_embeddings.ndim not in (2, 3) or shape[-1] != text_dim or not shape[0]:
        raise ValueError(
            f"word_embeddings must be (N, {text_dim}) to fit text_dim={text_dim}, "
            f"got {tuple(word_embeddings.shape)}; encode the words with the checkpoint's text encoder"
        )
    if mask is not None and word_embeddings.ndim == 2:
        raise ValueError(
            f"mask must be None for word_embeddings (N, T), got {tuple(mask.shape)} beside "
            f"{tuple(word_embeddings.shape)}; it belongs to several descriptions (N, K, T)"
        )
    if word_embeddings.ndim == 3:
        _check_mask(word_embeddings, existing_descriptions(word_embeddings) if mask is None else mask)


def _check_mask(word_embeddings: Tensor, mask: Tensor) -> None:
    # A program that is exported or compiled has no values to look at yet.
    is_empty = not torch.compiler.is_compiling() and not mask.any(1).all()
    if mask.shape != word_embeddings.shape[:2] or is_empty:
        raise ValueError(
            f"mask must be bool {tuple(word_embeddings.shape[:2])} with at least one True for each word, got "
            f"{tuple(mask.shape)}; give every word a description"
        )


def existing_descriptions(word_embeddings: Tensor) -> Tensor:
    """Which of K descriptions a word has: (N,K,T) -> (N,K) bool. Words with fewer are filled up with zeros."""
    mask: Tensor = (word_embeddings != 0).any(2)
    return mask


def average_descriptions(word_embeddings: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the descriptions of each word that exist: (N,K,T) and mask (N,K) bool -> (N,T)."""
    if mask is None:
        mask = existing_descriptions(word_embeddings)  # (N,K)
    _check_mask(word_embeddings, mask)
    weights = mask.to(word_embeddings.dtype)[:, :, None]  # (N,K,1)
    return (word_embeddings * weights).sum(1) / weights.sum(1)  # (N,T)
