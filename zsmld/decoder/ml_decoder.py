"""The ML-Decoder head: queries attend to spatial embeddings and become logits. The paper in one file.

Letters used in the shapes: B images, S spatial positions, C encoder channels, T text width, D decoder width,
H attention heads, N words or classes, K descriptions of a word, G group queries.

Source: Ridnik et al., "ML-Decoder: Scalable and Versatile Classification Head", arXiv 2111.12933, sections 2.3 (the
decoder without self-attention), 2.4 (group decoding) and 3.2 (word queries with a shared projection).
"""

import math
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zsmld.decoder.arguments import Output, check_arguments, without_defaults
from zsmld.decoder.layer import DecoderLayer
from zsmld.decoder.training_free import (
    TrainingFreeScorer,
    average_descriptions,
    check_word_embeddings,
    existing_descriptions,
)


class MLDecoder(nn.Module):
    """Queries attend to spatial embeddings and become logits.

    The head has two query modes. *Word queries* (`text_dim` given): every word embedding is a query and all words
    share one output projection, so the words are an argument of `forward` and may be any words. *Class queries*
    (`num_classes` given): G fixed queries, each expanded by `group_fc` to ceil(N/G) classes.

    In eval mode a word's logit depends on its own embedding and the image alone: permuting words permutes columns,
    adding words changes no other column, and chunks of words give the same logits as all at once.

    Args:
        encoder_dim: C, channels of the spatial embeddings.
        text_dim: T, width of the word embeddings. Selects word mode; exactly one of `text_dim`, `num_classes`.
        num_classes: N, number of classes. Selects class mode.
        num_groups: G, class mode only; default the paper's 100, and never more than N.
        learnable_queries: class mode only; train the group queries instead of keeping them fixed at random.
        decoder_dim: D.
        num_heads: attention heads, a divisor of `decoder_dim`.
        feedforward_dim: hidden width of the feed-forward network.
        dropout: probability, in training only.
        num_layers: decoder layers; the paper uses one.
        output: word mode only. "shared": one linear projection of the decoded query, as in the paper. "cosine": the
            cosine between the attention's result, projected to T, and the word embedding, times a learnt temperature
            plus a bias. "sum": both added.
        num_global_tokens: how many of the first positions are global tokens of the encoder, 0 or 1.
        prior: word mode only. A training-free scorer whose logits are added: its scales and bias are learnt with the
            rest. The head then learns what the prior does not know.
        word_reach: with a prior only. How far from the seen words the head's own logit counts: it is multiplied by
            exp((c − 1) / word_reach), c the word's highest cosine with a seen word. Far from all of them the prior
            decides alone, as it knows more there. 0 lets it count everywhere.
        temperature: at first, of the cosine output; by default 10, and 1 beside a prior: it starts as the prior is.
        descriptions: word mode only. How several descriptions of a word become its query: their "mean"; or "attention",
            weighted for each image by how well they fit it, as in RAM++.
        prompts: word mode, "cosine" and "sum" only. Learn a positive and a negative prompt, two vectors added to every
            word embedding: the cosine with the negative one is subtracted.
        unit_positions: bring every spatial embedding to the same length, √C. Where images and texts share a space they
            differ in length; a head that is trained on texts and used on images needs it.

    Raises:
        ValueError: if the modes are mixed or a width does not fit.

    Source: arXiv 2111.12933, figure 3 and sections 2.3, 2.4, 3.2. Descriptions: RAM++, arXiv 2310.15200, section 3.2.
    Prompts: after DualCoOp, arXiv 2206.09541, which learns them before the text encoder. "cosine", `prior` and
    `word_reach` are ours.

    Example:
        >>> import torch
        >>> decoder = MLDecoder(encoder_dim=32, text_dim=16, decoder_dim=64, feedforward_dim=128).eval()
        >>> decoder(torch.randn(2, 49, 32), torch.randn(5, 16)).shape
        torch.Size([2, 5])
        >>> decoder = MLDecoder(encoder_dim=32, num_classes=10, num_groups=4, decoder_dim=64).eval()
        >>> decoder(torch.randn(2, 49, 32)).shape
        torch.Size([2, 10])
    """

    word_mean: Tensor
    word_scale: Tensor
    seen_words: Tensor
    group_queries: Tensor

    def __init__(
        self,
        encoder_dim: int,
        text_dim: int | None = None,
        num_classes: int | None = None,
        num_groups: int | None = None,
        learnable_queries: bool = False,
        decoder_dim: int = 768,
        num_heads: int = 8,
        feedforward_dim: int = 2048,
        dropout: float = 0.1,
        num_layers: int = 1,
        output: Output = "shared",
        num_global_tokens: int = 0,
        prior: TrainingFreeScorer | None = None,
        word_reach: float = 0.0,
        num_seen_words: int = 0,
        temperature: float | None = None,
        descriptions: Literal["mean", "attention"] = "mean",
        prompts: bool = False,
        unit_positions: bool = False,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        check_arguments(arguments)
        self.encoder_dim, self.text_dim, self.decoder_dim = encoder_dim, text_dim, decoder_dim
        self.num_classes, self.output, self.num_global_tokens = num_classes, output, num_global_tokens
        self.word_reach, self.descriptions, self.prompts = word_reach, descriptions, prompts
        self.unit_positions, self.prior = unit_positions, prior
        self._config = arguments
        self.spatial_proj = nn.Linear(encoder_dim, decoder_dim)
        self.layers = nn.ModuleList(
            DecoderLayer(
                decoder_dim,
                num_heads,
                feedforward_dim,
                dropout,
                attention_only=output == "cosine" and layer == num_layers - 1,
            )
            for layer in range(num_layers)
        )
        if text_dim is not None:
            self._build_word_mode(text_dim, (1.0 if prior else 10.0) if temperature is None else temperature)
            self._build_options(text_dim, num_seen_words)
        else:
            assert num_classes is not None  # for the type checker: the first check above made sure
            self._build_class_mode(num_classes, min(num_groups or 100, num_classes), learnable_queries)

    def _build_word_mode(self, text_dim: int, temperature: float) -> None:
        self.word_proj = nn.Linear(text_dim, self.decoder_dim)
        # Statistics of the seen words, set by `standardize_words`; identity until then. Part of the checkpoint.
        self.register_buffer("word_mean", torch.zeros(text_dim))
        self.register_buffer("word_scale", torch.ones(text_dim))
        if self.output in ("shared", "sum"):
            self.shared_fc = nn.Linear(self.decoder_dim, 1)
            nn.init.xavier_normal_(self.shared_fc.weight)
            nn.init.zeros_(self.shared_fc.bias)
        if self.output in ("cosine", "sum"):
            self.cosine_proj = nn.Linear(self.decoder_dim, text_dim)
            self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature)))  # logits start within ±10
            # Most words are absent from most images; beside a prior, that is the prior's bias.
            self.cosine_bias = nn.Parameter(torch.tensor(0.0 if self._config["prior"] else -2.0))

    def _build_options(self, text_dim: int, num_seen_words: int) -> None:
        if self.prior is not None and self.output in ("shared", "sum"):
            nn.init.zeros_(self.shared_fc.weight)  # it starts as the prior is
        if self.word_reach:
            self.register_buffer("seen_words", torch.zeros(num_seen_words, text_dim))
        if self.descriptions == "attention":
            self.description_proj = nn.Linear(self.encoder_dim, text_dim)
            nn.init.zeros_(self.description_proj.weight)  # it starts as the mean
            nn.init.zeros_(self.description_proj.bias)
        if self.prompts:
            self.positive_prompt = nn.Parameter(torch.zeros(text_dim))
            self.negative_prompt = nn.Parameter(torch.randn(text_dim))  # as long as a standardised word embedding

    def _build_class_mode(self, num_classes: int, num_groups: int, learnable_queries: bool) -> None:
        group_queries = torch.randn(num_groups, self.decoder_dim)
        if learnable_queries:
            self.group_queries = nn.Parameter(group_queries)
        else:
            self.register_buffer("group_queries", group_queries)
        classes_per_group = math.ceil(num_classes / num_groups)
        self.group_fc_weight = nn.Parameter(torch.empty(num_groups, self.decoder_dim, classes_per_group))
        self.group_fc_bias = nn.Parameter(torch.zeros(num_classes))
        nn.init.xavier_normal_(self.group_fc_weight)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, for a checkpoint; `build_decoder` takes them."""
        changed: dict[str, Any] = {"num_seen_words": len(self.seen_words)} if self.word_reach else {}
        changed["prior"] = None if self._config["prior"] is None else self._config["prior"].config()
        return without_defaults(self._config | changed)

    # ------------------------------------------------------------------------------------------------ word side

    @torch.no_grad()
    def standardize_words(self, seen_embeddings: Tensor) -> None:
        """Centre and scale word embeddings by the statistics of the seen words from now on.

        Sentence embeddings share a large common direction; without this the words are nearly parallel queries.

        Args:
            seen_embeddings: (N,T) or (N,K,T) with N ≥ 2, the *seen* words only: unseen words must not touch the head.

        Raises:
            ValueError: in class mode, on a wrong shape, or on fewer than two words.
        """
        self._check_words(seen_embeddings)
        if seen_embeddings.ndim == 3:
            seen_embeddings = average_descriptions(seen_embeddings)  # (N,T)
        if len(seen_embeddings) < 2:
            raise ValueError(
                f"seen_embeddings must be (N, {self.text_dim}) with N ≥ 2, got {tuple(seen_embeddings.shape)}; "
                f"pass the embeddings of all seen words"
            )
        self.word_mean.copy_(seen_embeddings.mean(0))
        deviation = seen_embeddings.std(0)
        # A dimension in which the seen words do not differ is left as it is: it says nothing, and must not blow up.
        self.word_scale.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    @torch.no_grad()
    def remember_seen_words(self, seen_embeddings: Tensor) -> None:
        """The words near which the head's own logit counts, for `word_reach`; a part of the checkpoint.

        Args:
            seen_embeddings: (N,T) or (N,K,T), after `standardize_words`.

        Raises:
            ValueError: without `word_reach`.
        """
        self._check_words(seen_embeddings)
        if not self.word_reach:
            raise ValueError("word_reach must be positive to remember seen words, got 0; build the head with it")
        seen_embeddings = average_descriptions(seen_embeddings) if seen_embeddings.ndim == 3 else seen_embeddings
        self.seen_words = F.normalize(self._standardized(seen_embeddings), dim=1)  # (N,T)

    def word_queries(self, word_embeddings: Tensor, mask: Tensor | None = None) -> tuple[Tensor, ...]:
        """Everything on the query side that does not depend on the image; compute it once per vocabulary.

        Args:
            word_embeddings: (N,T), or (N,K,T) for K descriptions of each word.
            mask: (N,K) bool, which descriptions exist; None: those whose embedding is not zero.

        Returns:
            What `decode` needs, each with one row a word: queries (N,D) and standardised word embeddings (N,T); with
            attention over descriptions, the standardised (N,K,T) and their mask (N,K) instead; with `word_reach` the
            words' shares (N,); then what the prior needs.

        Raises:
            ValueError: in class mode, or if a shape does not fit.
        """
        self._check_words(word_embeddings, mask)
        mean = average_descriptions(word_embeddings, mask) if word_embeddings.ndim == 3 else word_embeddings  # (N,T)
        standardized = self._standardized(mean)  # (N,T)
        if self.descriptions == "attention":
            several, kept = word_embeddings, mask  # (N,K,T), (N,K)
            if several.ndim == 2:
                several, kept = several[:, None], torch.ones_like(several[:, :1], dtype=torch.bool)
            kept = existing_descriptions(several) if kept is None else kept
            compiled: tuple[Tensor, ...] = (self._standardized(several), kept)  # (N,K,T), (N,K)
        else:
            compiled = (F.relu(self.word_proj(standardized)), standardized)  # (N,D), (N,T)
        if self.word_reach:
            if not len(self.seen_words):
                raise ValueError("seen words must be remembered for word_reach, got none; call remember_seen_words")
            nearest = (F.normalize(standardized, dim=1) @ self.seen_words.T).amax(1)  # (N,)
            compiled += (((nearest.clamp(max=1) - 1) / self.word_reach).exp(),)
        if self.prior is not None:
            compiled += self.prior.word_queries(word_embeddings, mask)
        return compiled

    def _standardized(self, word_embeddings: Tensor) -> Tensor:
        return (word_embeddings - self.word_mean) / self.word_scale  # (…,T)

    def _check_words(self, word_embeddings: Tensor, mask: Tensor | None = None) -> None:
        if self.text_dim is None:
            raise ValueError(
                f"word_embeddings must be None in class mode, got {tuple(word_embeddings.shape)}; "
                f"build the head with text_dim to score words"
            )
        check_word_embeddings(word_embeddings, mask, self.text_dim)

    # --------------------------------------------------------------------------------------------------- forward

    def forward(
        self,
        spatial_embeddings: Tensor,
        word_embeddings: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        with_embedding: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Score words, or the fixed classes, against images.

        Args:
            spatial_embeddings: (B,S,C).
            word_embeddings: (N,T) or (N,K,T) in word mode, None in class mode.
            mask: (N,K) bool for (N,K,T) embeddings, see `word_queries`.
            with_embedding: give one unit embedding (B,T) of each image as well: the mean of what its words saw, in the
                words' space. For distillation; needs the output "cosine" or "sum".

        Returns:
            Logits (B,N); column j is word j.

        Raises:
            ValueError: on a wrong width, or words in class mode, or no words in word mode.
        """
        if self.text_dim is None:
            if word_embeddings is not None:
                self._check_words(word_embeddings)
            return self._decode_classes(self.memory(spatial_embeddings))  # (B,N)
        if with_embedding and self.output == "shared":
            raise ValueError("output must be 'cosine' or 'sum' to embed an image in the words' space, got 'shared'")
        compiled = self.word_queries(self._needed(word_embeddings), mask)
        logits, looked_at = self._score(spatial_embeddings, compiled)  # (B,N), (B,N,T)
        return (logits, F.normalize(looked_at.mean(1), dim=1)) if with_embedding else logits

    def _needed(self, word_embeddings: Tensor | None) -> Tensor:
        if word_embeddings is None:
            raise ValueError(
                f"word_embeddings must be (N, {self.text_dim}) in word mode, got None; "
                f"pass the embeddings of the words to score"
            )
        return word_embeddings

    def memory(self, spatial_embeddings: Tensor) -> Tensor:
        """Project spatial embeddings (B,S,C) to what queries attend to, (B,S,D)."""
        if spatial_embeddings.ndim != 3 or spatial_embeddings.shape[2] != self.encoder_dim:
            raise ValueError(
                f"spatial_embeddings must be (B, S, {self.encoder_dim}) to fit encoder_dim={self.encoder_dim}, "
                f"got {tuple(spatial_embeddings.shape)}; flatten a map to (B, S, C) and use the encoder of this head"
            )
        if self.unit_positions:
            spatial_embeddings = F.normalize(spatial_embeddings, dim=2) * math.sqrt(self.encoder_dim)  # (B,S,C)
        return F.relu(self.spatial_proj(spatial_embeddings))  # (B,S,D)

    def decode(self, spatial_embeddings: Tensor, *compiled: Tensor) -> Tensor:
        """Decode compiled words: spatial embeddings (B,S,C) and the results of `word_queries` -> logits (B,N)."""
        return self._score(spatial_embeddings, compiled)[0]

    def _score(self, spatial_embeddings: Tensor, compiled: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        memory = self.memory(spatial_embeddings)  # (B,S,D)
        queries, words, *rest = self._image_conditioned(spatial_embeddings, compiled)
        t, attended = self._decode(memory, queries)  # (B,N,D), (B,N,D)
        logits = t.new_zeros(t.shape[:2])  # (B,N)
        looked_at = attended
        if self.output in ("shared", "sum"):
            logits = logits + self.shared_fc(t).squeeze(2)  # (B,N)
        if self.output in ("cosine", "sum"):
            looked_at = F.normalize(self.cosine_proj(attended), dim=2)  # (B,N,T)
            cosine = (looked_at * F.normalize(words + self.positive_prompt if self.prompts else words, dim=-1)).sum(2)
            if self.prompts:
                cosine = cosine - (looked_at * F.normalize(words + self.negative_prompt, dim=-1)).sum(2)
            logits = logits + self.log_temperature.exp() * cosine + self.cosine_bias  # (B,N)
        if self.word_reach:
            logits = logits * rest.pop(0)  # (B,N)
        if self.prior is not None:
            with torch.autocast(logits.device.type, enabled=False):  # its scales are large: bf16 would be too coarse
                logits = logits + self.prior.decode(spatial_embeddings.float(), *rest)  # (B,N)
        return logits, looked_at

    def image_embeddings(self, spatial_embeddings: Tensor) -> Tensor:
        """What a frozen encoder itself says of a whole image, in the space of standardised words: (B,S,C) -> (B,T).

        Raises:
            ValueError: without a prior, if the spatial embeddings are not in the words' space.
        """
        if self.prior is not None:
            return F.normalize(self.prior.image_views(spatial_embeddings)[:, 0] / self.word_scale, dim=1)
        if self.encoder_dim != self.text_dim:
            raise ValueError(
                f"encoder_dim must be text_dim={self.text_dim} to compare images with words, got {self.encoder_dim}; "
                f"give the head a prior, or project the image encoder into the joint space (projected=True)"
            )
        whole = self._whole(spatial_embeddings)  # (B,C)
        return F.normalize(self._standardized(F.normalize(whole, dim=1)), dim=1)

    def _whole(self, spatial_embeddings: Tensor) -> Tensor:
        """The encoder's own embedding of the whole image, or the mean over the positions: (B,S,C) -> (B,C)."""
        return spatial_embeddings[:, 0] if self.num_global_tokens else spatial_embeddings.mean(1)

    def _image_conditioned(self, spatial_embeddings: Tensor, compiled: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Queries (N,D) and words (N,T); weighted for each image, (B,N,D) and (B,N,T), with attention."""
        if self.descriptions == "mean":
            return compiled
        several, mask, *rest = compiled  # (N,K,T), (N,K)
        whole = self._whole(spatial_embeddings)  # (B,C)
        fit = torch.einsum("bt,nkt->bnk", self.description_proj(whole), F.normalize(several, dim=2))  # (B,N,K)
        weights = fit.masked_fill(~mask, -torch.inf).softmax(2)  # (B,N,K)
        words = torch.einsum("bnk,nkt->bnt", weights, several)  # (B,N,T)
        return F.relu(self.word_proj(words)), words, *rest  # (B,N,D), (B,N,T)

    def _decode_classes(self, memory: Tensor) -> Tensor:
        t, _ = self._decode(memory, self.group_queries)  # (B,G,D)
        logits = torch.einsum("bgd,gdf->bgf", t, self.group_fc_weight).flatten(1)  # (B,G·ceil(N/G))
        return logits[:, : self.num_classes] + self.group_fc_bias  # (B,N)

    def _decode(self, memory: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        t = attended = queries if queries.ndim == 3 else queries[None]  # (1|B,N,D)
        if self.training:
            t = t.expand(len(memory), -1, -1)  # (B,N,D): each image draws its own dropout, as in the official head
        for layer in self.layers:
            t, attended = layer(t, memory)  # (B,N,D), (B,N,D)
        return t, attended

    @torch.no_grad()
    def attention(self, spatial_embeddings: Tensor, word_embeddings: Tensor | None = None) -> Tensor:
        """Where each query looked: the last layer's cross-attention weights.

        Args:
            spatial_embeddings: (B,S,C).
            word_embeddings: (N,T) in word mode, None in class mode.

        Returns:
            (B,H,N,S), or (B,H,G,S) in class mode; the last dimension sums to one. Global tokens are no places: they
            are left out, and the others' shares made to sum to one.
        """
        memory = self.memory(spatial_embeddings)  # (B,S,D)
        if self.text_dim is None:
            if word_embeddings is not None:
                self._check_words(word_embeddings)
            queries = self.group_queries  # (G,D)
        else:
            compiled = self.word_queries(self._needed(word_embeddings))
            queries = self._image_conditioned(spatial_embeddings, compiled)[0]  # (N,D), or (B,N,D)
        t = queries if queries.ndim == 3 else queries[None]  # (1|B,N,D)
        for layer in self.layers[:-1]:
            t, _ = layer(t, memory)  # (B,N,D)
        last = cast(DecoderLayer, self.layers[-1])
        weights = last.attention_weights(last.normalize_queries(t), memory)[..., self.num_global_tokens :]  # (B,H,N,S)
        return weights / weights.sum(3, keepdim=True).clamp(min=1e-12) if self.num_global_tokens else weights
