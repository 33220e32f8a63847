"""Spatial embeddings of a frozen image encoder, computed once and used in place of images: in memory, or on disk."""

from zsmld.features.cache import FeatureCache, extract_features
from zsmld.features.dataset import FeatureDataset
from zsmld.features.shards import MappedEmbeddings
from zsmld.features.text import add_text_noise, encode_sentences

__all__ = [
    "FeatureCache",
    "FeatureDataset",
    "MappedEmbeddings",
    "add_text_noise",
    "encode_sentences",
    "extract_features",
]
