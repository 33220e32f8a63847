"""The ML-Decoder head: queries attend to spatial embeddings and become logits. The paper in one file.

Letters used in the shapes: B images, S spatial positions, C encoder channels, T text width, D decoder width,
H attention heads, N words or classes, G group queries.

Source: Ridnik et al., "ML-Decoder: Scalable and Versatile Classification Head", arXiv 2111.12933, sections 2.3 (the
decoder without self-attention), 2.4 (group decoding) and 3.2 (word queries with a shared projection).
"""

import math
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Output = Literal["shared", "cosine", "sum"]


class DecoderLayer(nn.Module):
    """Cross-attention and feed-forward, without the self-attention of a standard decoder layer (paper, section 2.3).

    The attention is our own projections around `scaled_dot_product_attention`: `nn.MultiheadAttention` and
    `nn.TransformerDecoder` break the official head on every recent torch, and break export.

    Args:
        decoder_dim: D, the width of queries and memory.
        num_heads: H, which must divide `decoder_dim`.
        feedforward_dim: width of the hidden layer of the feed-forward network.
        dropout: probability, in training only.
        attention_only: leave out what follows the attention; the cosine output does not use it.
    """

    def __init__(
        self,
        decoder_dim: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float,
        attention_only: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads, self.attention_only = num_heads, attention_only
        self.norm1 = nn.LayerNorm(decoder_dim)
        self.query_proj = nn.Linear(decoder_dim, decoder_dim)
        self.key_proj = nn.Linear(decoder_dim, decoder_dim)
        self.value_proj = nn.Linear(decoder_dim, decoder_dim)
        self.out_proj = nn.Linear(decoder_dim, decoder_dim)
        self.dropout = nn.Dropout(dropout)
        if not attention_only:
            self.norm2 = nn.LayerNorm(decoder_dim)
            self.norm3 = nn.LayerNorm(decoder_dim)
            self.linear1 = nn.Linear(decoder_dim, feedforward_dim)
            self.linear2 = nn.Linear(feedforward_dim, decoder_dim)
        # The initialisation of nn.MultiheadAttention: its three input projections are one (3D, D) matrix.
        bound = math.sqrt(6 / (decoder_dim + 3 * decoder_dim))
        for proj in (self.query_proj, self.key_proj, self.value_proj):
            nn.init.uniform_(proj.weight, -bound, bound)
            nn.init.zeros_(proj.bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, queries: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Decode queries against the memory.

        Args:
            queries: (B,N,D), or (1,N,D) when they are the same for every image.
            memory: (B,S,D) projected spatial embeddings.

        Returns:
            The decoded queries (B,N,D) and the attention's own result (B,N,D), which has no residual of the query; that
            result twice with `attention_only`.
        """
        t = self.normalize_queries(queries)  # (1|B,N,D)
        attended = self.attend(t, memory)  # (B,N,D)
        if self.attention_only:
            return attended, attended
        t = self.norm2(t + self.dropout(attended))  # (B,N,D)
        hidden = self.dropout(F.relu(self.linear1(t)))  # (B,N,F)
        t = self.norm3(t + self.dropout(self.linear2(hidden)))  # (B,N,D)
        return t, attended

    def normalize_queries(self, queries: Tensor) -> Tensor:
        """What stands where self-attention was: the query plus its own dropout, normalised. Any shape (…,D)."""
        return self.norm1(queries + self.dropout(queries))

    def attend(self, t: Tensor, memory: Tensor) -> Tensor:
        """Multi-head cross-attention: t (1|B,N,D), memory (B,S,D) -> (B,N,D)."""
        query, key, value = self._heads(t, memory)
        dropout = self.dropout.p if self.training else 0.0
        heads = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout)  # (B,H,N,D/H)
        return self.out_proj(heads.transpose(1, 2).flatten(2))  # (B,N,D)

    def attention_weights(self, t: Tensor, memory: Tensor) -> Tensor:
        """The weights `attend` uses: (B,H,N,S), rows sum to one."""
        query, key, _ = self._heads(t, memory)
        return (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(-1)  # (B,H,N,S)

    def _heads(self, t: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        split = (self.num_heads, memory.shape[2] // self.num_heads)
        query = self.query_proj(t).unflatten(2, split).transpose(1, 2)  # (1|B,H,N,D/H)
        key = self.key_proj(memory).unflatten(2, split).transpose(1, 2)  # (B,H,S,D/H)
        value = self.value_proj(memory).unflatten(2, split).transpose(1, 2)  # (B,H,S,D/H)
        return query.expand(len(memory), -1, -1, -1), key, value


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

    Raises:
        ValueError: if the modes are mixed or a width does not fit.

    Source: arXiv 2111.12933, figure 3 and sections 2.3, 2.4, 3.2. "cosine" is ours.

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
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        super().__init__()
        if (text_dim is None) == (num_classes is None):
            raise ValueError(
                f"exactly one of text_dim (word queries) and num_classes (class queries) must be given, "
                f"got text_dim={text_dim}, num_classes={num_classes}; leave one of them out"
            )
        if num_heads < 1 or decoder_dim % num_heads:
            raise ValueError(
                f"num_heads must divide decoder_dim={decoder_dim}, got {num_heads}; choose one of "
                f"{[h for h in (1, 2, 4, 8, 12, 16) if decoder_dim % h == 0]}"
            )
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}; the paper uses 1")
        if output not in ("shared", "cosine", "sum"):
            raise ValueError(f"output must be 'shared', 'cosine' or 'sum', got {output!r}; the paper's is 'shared'")
        if num_classes is not None and (num_classes < 1 or output != "shared"):
            raise ValueError(
                f"class mode needs num_classes ≥ 1 and output='shared', got {num_classes} and {output!r}; "
                f"the cosine output needs word queries (text_dim)"
            )

        if num_classes is None and (num_groups is not None or learnable_queries):
            raise ValueError(
                f"num_groups and learnable_queries belong to class mode, got num_groups={num_groups}, "
                f"learnable_queries={learnable_queries} with text_dim; leave them out"
            )
        if num_groups is not None and num_groups < 1:
            raise ValueError(f"num_groups must be at least 1, got {num_groups}; the paper uses 100")

        self.encoder_dim, self.text_dim, self.decoder_dim = encoder_dim, text_dim, decoder_dim
        self.num_classes, self.output = num_classes, output
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
            self._build_word_mode(text_dim)
        else:
            assert num_classes is not None  # for the type checker: the first check above made sure
            self._build_class_mode(num_classes, min(num_groups or 100, num_classes), learnable_queries)

    def _build_word_mode(self, text_dim: int) -> None:
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
            self.log_temperature = nn.Parameter(torch.tensor(math.log(10.0)))  # logits start within ±10
            self.cosine_bias = nn.Parameter(torch.tensor(-2.0))  # most words are absent from most images

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
        """The constructor's arguments, for a checkpoint."""
        return dict(self._config)

    # ------------------------------------------------------------------------------------------------ word side

    @torch.no_grad()
    def standardize_words(self, seen_embeddings: Tensor) -> None:
        """Centre and scale word embeddings by the statistics of the seen words from now on.

        Sentence embeddings share a large common direction; without this the words are nearly parallel queries.

        Args:
            seen_embeddings: (N,T) with N ≥ 2, the *seen* words only: unseen words must not touch the head.

        Raises:
            ValueError: in class mode, on a wrong shape, or on fewer than two words.
        """
        self._check_words(seen_embeddings)
        if seen_embeddings.ndim != 2 or len(seen_embeddings) < 2:
            raise ValueError(
                f"seen_embeddings must be (N, {self.text_dim}) with N ≥ 2, got {tuple(seen_embeddings.shape)}; "
                f"pass the embeddings of all seen words"
            )
        self.word_mean.copy_(seen_embeddings.mean(0))
        deviation = seen_embeddings.std(0)
        # A dimension in which the seen words do not differ is left as it is: it says nothing, and must not blow up.
        self.word_scale.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def word_queries(self, word_embeddings: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Everything on the query side that does not depend on the image; compute it once per vocabulary.

        Args:
            word_embeddings: (N,T), or (N,K,T) for K descriptions of each word, which are averaged.
            mask: (N,K) bool, which descriptions exist; None when all do.

        Returns:
            Queries (N,D) and standardised word embeddings (N,T), the two things `decode` needs.

        Raises:
            ValueError: in class mode, or if the width is not `text_dim`.
        """
        self._check_words(word_embeddings)
        if mask is not None and word_embeddings.ndim == 2:
            raise ValueError(
                f"mask must be None for word_embeddings (N, T), got {tuple(mask.shape)} beside "
                f"{tuple(word_embeddings.shape)}; it belongs to several descriptions (N, K, T)"
            )
        if word_embeddings.ndim == 3:
            word_embeddings = average_descriptions(word_embeddings, mask)  # (N,T)
        standardized = (word_embeddings - self.word_mean) / self.word_scale  # (N,T)
        return F.relu(self.word_proj(standardized)), standardized  # (N,D), (N,T)

    def _check_words(self, word_embeddings: Tensor) -> None:
        if self.text_dim is None:
            raise ValueError(
                f"word_embeddings must be None in class mode, got {tuple(word_embeddings.shape)}; "
                f"build the head with text_dim to score words"
            )
        if not isinstance(word_embeddings, Tensor):
            raise TypeError(
                f"word_embeddings must be a tensor (N, {self.text_dim}), got {type(word_embeddings).__name__}; "
                f"encode the words first, with model.encode_words"
            )
        if word_embeddings.ndim not in (2, 3) or word_embeddings.shape[-1] != self.text_dim or not len(word_embeddings):
            raise ValueError(
                f"word_embeddings must be (N, {self.text_dim}) to fit text_dim={self.text_dim}, "
                f"got {tuple(word_embeddings.shape)}; encode the words with the checkpoint's text encoder"
            )

    # --------------------------------------------------------------------------------------------------- forward

    def forward(
        self, spatial_embeddings: Tensor, word_embeddings: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Score words, or the fixed classes, against images.

        Args:
            spatial_embeddings: (B,S,C).
            word_embeddings: (N,T) or (N,K,T) in word mode, None in class mode.
            mask: (N,K) bool for (N,K,T) embeddings.

        Returns:
            Logits (B,N); column j is word j.

        Raises:
            ValueError: on a wrong width, or words in class mode, or no words in word mode.
        """
        memory = self.memory(spatial_embeddings)  # (B,S,D)
        if self.text_dim is None:
            if word_embeddings is not None:
                self._check_words(word_embeddings)
            return self._decode_classes(memory)  # (B,N)
        return self.decode(memory, *self.word_queries(self._needed(word_embeddings), mask))  # (B,N)

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
        return F.relu(self.spatial_proj(spatial_embeddings))  # (B,S,D)

    def decode(self, memory: Tensor, queries: Tensor, standardized: Tensor) -> Tensor:
        """Decode compiled words: memory (B,S,D) and the two results of `word_queries` -> logits (B,N)."""
        t, attended = self._decode(memory, queries)  # (B,N,D), (B,N,D)
        logits = t.new_zeros(t.shape[:2])  # (B,N)
        if self.output in ("shared", "sum"):
            logits = logits + self.shared_fc(t).squeeze(2)  # (B,N)
        if self.output in ("cosine", "sum"):
            looked_at = F.normalize(self.cosine_proj(attended), dim=2)  # (B,N,T)
            cosine = (looked_at * F.normalize(standardized, dim=1)).sum(2)  # (B,N)
            logits = logits + self.log_temperature.exp() * cosine + self.cosine_bias  # (B,N)
        return logits

    def _decode_classes(self, memory: Tensor) -> Tensor:
        t, _ = self._decode(memory, self.group_queries)  # (B,G,D)
        logits = torch.einsum("bgd,gdf->bgf", t, self.group_fc_weight).flatten(1)  # (B,G·ceil(N/G))
        return logits[:, : self.num_classes] + self.group_fc_bias  # (B,N)

    def _decode(self, memory: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        t = attended = queries[None]  # (1,N,D)
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
            (B,H,N,S), or (B,H,G,S) in class mode; the last dimension sums to one.
        """
        memory = self.memory(spatial_embeddings)  # (B,S,D)
        if self.text_dim is None:
            if word_embeddings is not None:
                self._check_words(word_embeddings)
            queries = self.group_queries  # (G,D)
        else:
            queries, _ = self.word_queries(self._needed(word_embeddings))  # (N,D)
        t = queries[None]  # (1,N,D)
        for layer in self.layers[:-1]:
            t, _ = layer(t, memory)  # (B,N,D)
        last = cast(DecoderLayer, self.layers[-1])
        return last.attention_weights(last.normalize_queries(t), memory)  # (B,H,N,S)


def average_descriptions(word_embeddings: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean over the descriptions of each word: (N,K,T) and mask (N,K) bool -> (N,T).

    Raises:
        ValueError: if the mask does not fit, or leaves a word without any description.
    """
    if mask is None:
        return word_embeddings.mean(1)
    if mask.shape != word_embeddings.shape[:2] or not mask.any(1).all():
        raise ValueError(
            f"mask must be bool {tuple(word_embeddings.shape[:2])} with at least one True for each word, got "
            f"{tuple(mask.shape)}; give every word a description"
        )
    weights = mask.to(word_embeddings.dtype)[:, :, None]  # (N,K,1)
    return (word_embeddings * weights).sum(1) / weights.sum(1)  # (N,T)
