"""DecoderLayer: cross-attention and feed-forward, the one layer of the ML-Decoder.

Letters used in the shapes: B images, S spatial positions, D decoder width, H attention heads, N queries.
"""

import math

import torch.nn.functional as F
from torch import Tensor, nn


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
        return query.expand(memory.shape[0], -1, -1, -1), key, value  # .shape: len() would fix B in torch.export
