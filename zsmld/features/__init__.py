"""Spatial embeddings of a frozen image encoder, computed once and used in place of images: in memory, or on disk."""

from zsmld.features.cache import FeatureCache, extract_features
from zsmld.features.dataset import FeatureDataset
from zsmld.features.shards import MappedEmbeddings

__all__ = ["FeatureCache", "FeatureDataset", "MappedEmbeddings", "extract_features"]
