"""Other people's weights and models: read into ours, or given our head.

import_weights         a checkpoint of another ML-Decoder (official, timm, PaddleClas) -> a model of ours, and a report
load_weights           the same without a folder
import_word_vectors    word vectors in any usual form -> one .npz for the words that are wanted, and a report
add_ml_decoder_head    our head on any timm model, or on any network that gives a map
to_classifier          such a timm model, trained in anybody's loop -> a model of ours

checkpoint_files reads what others wrote without running it; head_names and body_names know their names of tensors.
"""

from zsmld.interop.conversion import to_classifier
from zsmld.interop.drop_in import add_ml_decoder_head
from zsmld.interop.map_classifier import MapClassifier, MLDecoderHead
from zsmld.interop.vector_arrays import VectorReport, import_word_vectors
from zsmld.interop.weights import ImportReport, import_weights, load_weights

__all__ = [
    "ImportReport",
    "MLDecoderHead",
    "MapClassifier",
    "VectorReport",
    "add_ml_decoder_head",
    "import_weights",
    "import_word_vectors",
    "load_weights",
    "to_classifier",
]
