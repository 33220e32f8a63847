"""zsmld: zero-shot multi-label image classification. Score photos against any list of words.

import zsmld
model = zsmld.ZeroShotClassifier.from_pretrained("path-or-hub-id")
predictor = zsmld.Predictor(model, words=["dog", "red car", "beach"])
for p in predictor.predict("photos/", top_k=5):
    print(p.path, p.words, p.scores)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zsmld.datasets import build_dataset
    from zsmld.decoder import MLDecoder
    from zsmld.evaluator import Evaluator
    from zsmld.images import ImageEncoder
    from zsmld.interop import add_ml_decoder_head
    from zsmld.model import ZeroShotClassifier, create_model
    from zsmld.predictor import Predictor
    from zsmld.predictor.pipeline import pipeline
    from zsmld.text import TextEncoder
    from zsmld.trainer import Trainer
    from zsmld.vocabulary import Vocabulary

# The public names and where they live. Nothing is imported until one is used, so `import zsmld` is instant.
_PUBLIC = {
    "ZeroShotClassifier": "model",
    "create_model": "model",
    "Predictor": "predictor",
    "Evaluator": "evaluator",
    "Trainer": "trainer",
    "Vocabulary": "vocabulary",
    "TextEncoder": "text",
    "ImageEncoder": "images",
    "MLDecoder": "decoder",
    "build_dataset": "datasets",
    "add_ml_decoder_head": "interop",
    "pipeline": "predictor.pipeline",
}

__all__ = [
    "Evaluator",
    "ImageEncoder",
    "MLDecoder",
    "Predictor",
    "TextEncoder",
    "Trainer",
    "Vocabulary",
    "ZeroShotClassifier",
    "add_ml_decoder_head",
    "build_dataset",
    "create_model",
    "pipeline",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"zsmld.{_PUBLIC[name]}"), name)
    if name == "__version__":
        from importlib.metadata import version

        return version("zsmld")
    raise AttributeError(f"module 'zsmld' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
