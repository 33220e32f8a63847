"""ZeroShotClassifier = ImageEncoder + MLDecoder; save, load, Hub.

Words are an argument of the network, never its state. Beside the network a checkpoint carries the vocabulary it was
trained with and those words' embeddings, so that scoring known words needs no text encoder.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from zsmld.decoder import MLDecoder, TrainingFreeScorer, build_decoder, stack_words
from zsmld.images import ImageEncoder
from zsmld.model.files import CONFIG, WEIGHTS, local_folder, package_versions, replaced
from zsmld.text import TextEncoder, resolve_device
from zsmld.vocabulary import DEFAULT_TEMPLATES, Vocabulary, check_words

__all__ = ["ZeroShotClassifier", "create_model", "package_versions"]

_FORMAT = 1
_IMAGE_KEYS = {"spec", "stage", "model_kwargs", "image_size", "mean", "std", "interpolation", "resize"} | {
    "projected",
    "value_path",
    "global_token",
}
_FORBIDDEN_KWARGS = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict"}


class ZeroShotClassifier(nn.Module):
    """Images and word embeddings in, logits out.

    Args:
        image_encoder: gives spatial embeddings (B,S,C).
        decoder: turns them into logits; its `encoder_dim` must be the encoder's. A trained head, or what needs no
            training.
        text_encoder: spec string of the encoder that made, and must make, the word embeddings, or the encoder itself.
        vocabulary: the words this model knows, with their partition; None before training.
        word_embeddings: (N,T) of those words.
        recipe: how it was trained, stored with it.

    Attributes:
        heldout_words: seen words that were left out of training, for selection and calibration; stored with it.
        calibration: a `zsmld.calibration.Calibration` as plain data, stored with it; None before calibration.
        prediction: words, synonyms and thresholds of the `zsmld.Predictor` that saved it, as plain data; None without.
        scores: what makes scores of logits: "sigmoid", or "softmax" where an image has one word; stored with it.
        training_record: how the weights came about, as plain data: the epoch, what selected it, whether they are
            averaged, every setting, the git revision; stored with it; None before training.

    Raises:
        ValueError: if the parts do not fit each other.
    """

    def __init__(
        self,
        image_encoder: ImageEncoder,
        decoder: MLDecoder | TrainingFreeScorer,
        text_encoder: str | TextEncoder | None = None,
        vocabulary: Vocabulary | None = None,
        word_embeddings: Tensor | None = None,
        recipe: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if decoder.encoder_dim != image_encoder.encoder_dim:
            raise ValueError(
                f"decoder must have encoder_dim={image_encoder.encoder_dim} to fit {image_encoder}, "
                f"got {decoder.encoder_dim}; build it with that width"
            )
        if decoder.num_global_tokens != image_encoder.num_global_tokens:
            raise ValueError(
                f"decoder must have num_global_tokens={image_encoder.num_global_tokens} to fit {image_encoder}, got "
                f"{decoder.num_global_tokens}; build it with that number"
            )
        self.image_encoder = image_encoder
        self.decoder = decoder
        self.text_encoder: str | None = None
        self.text_encoder_identity: str | None = None
        if text_encoder is not None:
            encoder = TextEncoder(text_encoder) if isinstance(text_encoder, str) else text_encoder
            self.text_encoder, self.text_encoder_identity = encoder.spec, encoder.identity
        self.vocabulary: Vocabulary | None = None
        self.word_embeddings: Tensor | None = None
        self.recipe = recipe
        self.heldout_words: tuple[str, ...] = ()
        self.calibration: dict[str, Any] | None = None
        self.prediction: dict[str, Any] | None = None
        self.scores: str = "sigmoid"
        self.training_record: dict[str, Any] | None = None
        if vocabulary is not None:
            self.remember_words(vocabulary, word_embeddings)

    def forward(self, images: Tensor, word_embeddings: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Score words against images.

        Args:
            images: (B,3,H,W), each through `image_encoder.transform`.
            word_embeddings: (N,T), or (N,K,T) where a word has several descriptions; None only in class mode.
            mask: (N,K) bool, which descriptions exist.

        Returns:
            Logits (B,N); column j is word j, and in eval mode it depends on that word and the image alone.

        Raises:
            ValueError: if a shape does not fit.
        """
        return self.decoder(self.image_encoder(images), word_embeddings, mask)

    def remember_words(self, vocabulary: Vocabulary, word_embeddings: Tensor | None) -> None:
        """Store a vocabulary and its embeddings with the model, (N,T) or (N,K,T); the network does not change.

        Raises:
            ValueError: if the embeddings do not fit, or in class mode the number of words.
        """
        if self.decoder.text_dim is not None:
            expected = (len(vocabulary), self.decoder.text_dim)
            shape = () if word_embeddings is None else tuple(word_embeddings.shape)
            if word_embeddings is None or len(shape) not in (2, 3) or (shape[0], shape[-1]) != expected:
                raise ValueError(
                    f"word_embeddings must be {expected}, one row for each word of the vocabulary, got "
                    f"{shape or None}; encode them with {self.text_encoder}"
                )
            # A plain attribute and not a buffer: the network must not depend on it.
            self.word_embeddings = word_embeddings.detach().cpu().float().clone()
        elif len(vocabulary) != self.decoder.num_classes:
            raise ValueError(
                f"vocabulary must have num_classes={self.decoder.num_classes} words in class mode, "
                f"got {len(vocabulary)}; give one word for each class"
            )
        self.vocabulary = vocabulary

    def encode_words(self, words: Vocabulary | Iterable[str], text_encoder: TextEncoder | None = None) -> Tensor:
        """Word embeddings on the CPU; known words are looked up, new ones encoded.

        Args:
            words: the words to embed; a list takes the templates and descriptions of the model's vocabulary. Words of
                a `Vocabulary` count as known only under the templates and descriptions they were stored with.
            text_encoder: used for new words; default the checkpoint's own, built here.

        Returns:
            (N,T); or (N,K,T) for a decoder that takes each word's descriptions one by one, zero where a word has
            fewer.

        Raises:
            ValueError: if the text encoder is not the one this model was trained with.
        """
        if text_encoder is not None and text_encoder.identity != self.text_encoder_identity:
            raise ValueError(
                f"text_encoder must be the one this model was trained with, {self.text_encoder_identity!r}, "
                f"got {text_encoder.identity!r}; its embeddings would mean nothing to this head"
            )
        if not isinstance(words, Vocabulary):
            words = self.prompted(words)
        new = self.unknown_words(words)
        fresh: dict[str, Tensor] = {}
        if new:
            if text_encoder is None and self.text_encoder is None:
                raise ValueError(
                    f"text_encoder must be known to encode {new[:3]}, and this model names none; pass a TextEncoder"
                )
            text_encoder, unknown = text_encoder or self.build_text_encoder(), words.select(new)
            several = self.decoder.descriptions != "mean"
            embeddings = text_encoder.encode_descriptions(unknown)[0] if several else text_encoder.encode_words(unknown)
            fresh = dict(zip(new, embeddings, strict=True))
        rows = []
        for word in words:
            if word in fresh:
                rows.append(fresh[word])
            else:
                assert self.vocabulary is not None and self.word_embeddings is not None  # it is a known word
                rows.append(self.word_embeddings[self.vocabulary.index(word)])
        return stack_words(rows)

    def prompted(
        self,
        words: Iterable[str],
        templates: Iterable[str] | str | None = None,
        descriptions: Mapping[str, Sequence[str]] | None = None,
    ) -> Vocabulary:
        """Words as a vocabulary of this model: seen or unseen as it has them, and with its templates and descriptions.

        Args:
            words: in any order.
            templates: instead of the model's own.
            descriptions: instead of the model's own; of words beyond these they are ignored.
        """
        words, known = check_words(words), self.vocabulary
        if templates is None:
            record = self.training_record or {}  # a training-free model knows no words, and how to ask for them
            templates = known.templates if known is not None else record.get("templates", DEFAULT_TEMPLATES)
        if descriptions is None:
            descriptions = known.descriptions if known is not None else {}
        own = {word: descriptions[word] for word in words if word in descriptions}
        seen = [word for word in words if known is not None and word in known and known.is_seen[known.index(word)]]
        return Vocabulary(words, seen=seen, templates=templates, descriptions=own)

    def unknown_words(self, words: Vocabulary) -> list[str]:
        """The words that the model has no embeddings of, under these templates and descriptions."""
        known = self.vocabulary
        if known is None:
            return list(words)
        return [word for word in words if word not in known or known.prompts(word) != words.prompts(word)]

    def build_text_encoder(self, device: str = "auto") -> TextEncoder:
        """The text encoder of this checkpoint, checked to be the same one.

        Raises:
            ValueError: if the model names none, or what that name gives here has other weights.
        """
        if self.text_encoder is None:
            raise ValueError("text_encoder must be named to encode words, this model has none; pass a TextEncoder")
        encoder = TextEncoder(self.text_encoder, device=device)
        if encoder.identity != self.text_encoder_identity:
            raise ValueError(
                f"text_encoder {self.text_encoder!r} must have the weights it was trained with, "
                f"{self.text_encoder_identity!r}, got {encoder.identity!r} on this machine; restore the original file"
            )
        return encoder

    # ---------------------------------------------------------------------------------------------- save and load

    def save_pretrained(self, folder: str | Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write `model.safetensors` and `config.json` to a folder, each completely or not at all.

        Args:
            folder: made if it does not exist.
            state_dict: weights to write instead of the current ones, for instance averaged ones.
        """
        from safetensors.torch import save_file

        folder, config = Path(folder), self._config_text()
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in (state_dict or self.state_dict()).items()
        }
        if self.word_embeddings is not None:
            tensors["word_embeddings"] = self.word_embeddings.contiguous()
        with replaced(folder / WEIGHTS) as path:
            save_file(tensors, path, metadata={"format": "pt"})
        with replaced(folder / CONFIG) as path:
            path.write_text(config, encoding="utf-8")

    def save_config(self, folder: str | Path) -> None:
        """Write `config.json` alone, into a folder that holds this model's weights: a new calibration, for instance.

        Raises:
            FileNotFoundError: if the folder holds no weights.
        """
        folder = Path(folder)
        if not (folder / WEIGHTS).is_file():
            raise FileNotFoundError(
                f"model folder must hold {WEIGHTS} to get another {CONFIG}, not found in {folder}; save the whole "
                f"model with save_pretrained"
            )
        config = self._config_text()
        with replaced(folder / CONFIG) as path:
            path.write_text(config, encoding="utf-8")

    def _config_text(self) -> str:
        config: dict[str, Any] = {
            "format": _FORMAT,
            "image_encoder": self.image_encoder.config(),
            "decoder": self.decoder.config(),
            "text_encoder": {"spec": self.text_encoder, "identity": self.text_encoder_identity},
            "vocabulary": None if self.vocabulary is None else self.vocabulary.to_dict(),
            "recipe": self.recipe,
            "versions": package_versions(),
        }
        if self.heldout_words:
            config["heldout_words"] = list(self.heldout_words)
        if self.calibration is not None:
            config["calibration"] = self.calibration
        if self.prediction is not None:
            config["prediction"] = self.prediction
        if self.scores != "sigmoid":
            config["scores"] = self.scores
        if self.training_record is not None:
            config["training"] = self.training_record
        return json.dumps(config, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_pretrained(
        cls, path_or_hub_id: str | Path, revision: str | None = None, device: str = "cpu"
    ) -> "ZeroShotClassifier":
        """Load a model from a folder, or from the Hugging Face Hub; downloads no other weights, runs no foreign code.

        Args:
            path_or_hub_id: a folder written by `save_pretrained`, or "owner/name" on the Hub.
            revision: branch, tag or commit on the Hub.
            device: where the network goes.

        Returns:
            The model in eval mode.

        Raises:
            FileNotFoundError: if there is no such folder and the Hub cannot be reached or has no such model.
            ValueError: if the files are damaged or do not fit each other; every key must match.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = local_folder(path_or_hub_id, revision)
        try:
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            tensors = load_file(folder / WEIGHTS)
        except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
            raise ValueError(f"checkpoint {folder} must be readable, it is damaged: {error}; save it again") from error
        if not isinstance(config, dict) or config.get("format") != _FORMAT:
            found = config.get("format") if isinstance(config, dict) else type(config).__name__
            raise ValueError(f"checkpoint {folder} must have format {_FORMAT}, got {found}; update zsmld")
        model, vocabulary = _from_config(cls, config, folder)
        word_embeddings = tensors.pop("word_embeddings", None)
        own = model.state_dict()
        missing, unexpected = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
        shapes = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
        if missing or unexpected or shapes:
            raise ValueError(
                f"checkpoint {folder} must fit its config, got {len(missing)} missing {missing[:3]}, "
                f"{len(unexpected)} unexpected {unexpected[:3]}, {len(shapes)} of other shape {shapes[:3]}; "
                f"save it again"
            )
        model.load_state_dict(tensors)
        if vocabulary is not None:
            model.remember_words(vocabulary, word_embeddings)
        return model.to(resolve_device(device)).eval()

    def __repr__(self) -> str:
        millions = sum(p.numel() for p in self.parameters()) / 1e6
        words = "no vocabulary" if self.vocabulary is None else f"{len(self.vocabulary)} words"
        return (
            f"ZeroShotClassifier({self.image_encoder.spec!r}, {self.image_encoder.transform.image_size}px, "
            f"text_encoder={self.text_encoder!r}, output={self.decoder.output!r}, {words}, {millions:.1f}M parameters)"
        )


def create_model(
    image_encoder: str | ImageEncoder,
    text_encoder: str | TextEncoder | None = None,
    num_classes: int | None = None,
    pretrained: bool = True,
    **decoder_options: Any,
) -> ZeroShotClassifier:
    """An untrained head on an image encoder.

    Args:
        image_encoder: a spec string such as "timm:resnet50.a1_in1k", or an `ImageEncoder`.
        text_encoder: for word queries: a spec string such as "minilm", or a `TextEncoder`.
        num_classes: for class queries instead.
        pretrained: load the image encoder's weights, when it is given by name.
        decoder_options: further arguments of `MLDecoder`.

    Raises:
        ValueError: if both or neither of `text_encoder` and `num_classes` are given, or a name is unknown.

    Example:
        >>> model = create_model("timm:resnet18", num_classes=20, pretrained=False, decoder_dim=64)
        >>> model.decoder.num_classes
        20
    """
    if isinstance(image_encoder, str):
        image_encoder = ImageEncoder(image_encoder, pretrained=pretrained)
    if isinstance(text_encoder, str):
        text_encoder = TextEncoder(text_encoder)
    decoder = MLDecoder(
        image_encoder.encoder_dim,
        text_dim=None if text_encoder is None else text_encoder.text_dim,
        num_classes=num_classes,
        num_global_tokens=image_encoder.num_global_tokens,
        **decoder_options,
    )
    return ZeroShotClassifier(image_encoder, decoder, text_encoder)


def _from_config(
    cls: type[ZeroShotClassifier], config: dict[str, Any], folder: Path
) -> tuple[ZeroShotClassifier, Vocabulary | None]:
    try:
        image_config = dict(config["image_encoder"])
        # A checkpoint is data: it must not make us read other files or fetch other weights.
        foreign = sorted((set(image_config) - _IMAGE_KEYS) | (set(image_config["model_kwargs"]) & _FORBIDDEN_KWARGS))
        if foreign:
            raise ValueError(f"checkpoint {folder} must not set {foreign} of its image encoder; it is not one of ours")
        image_encoder = ImageEncoder(pretrained=False, **image_config)
        decoder = build_decoder(config["decoder"])
        model = cls(image_encoder, decoder, recipe=config["recipe"])
        model.text_encoder = config["text_encoder"]["spec"]
        model.text_encoder_identity = config["text_encoder"]["identity"]
        vocabulary = None if config["vocabulary"] is None else Vocabulary.from_dict(config["vocabulary"])
        # Checkpoints that were written before these were stored, or have none, lack the keys.
        model.heldout_words = check_words(config.get("heldout_words", ()), "heldout_words", allow_empty=True)
        model.calibration = config.get("calibration")
        model.prediction = config.get("prediction")
        model.training_record = config.get("training")
        model.scores = config.get("scores", "sigmoid")
        if model.scores not in ("sigmoid", "softmax"):
            raise ValueError(f"checkpoint {folder} must have scores sigmoid or softmax, got {model.scores!r}")
        plain = {"calibration": model.calibration, "prediction": model.prediction, "training": model.training_record}
        for name, stored in plain.items():
            if not isinstance(stored, dict | None):
                raise TypeError(f"a {name} of type {type(stored).__name__}, which is no mapping")
        strangers = sorted(set(model.heldout_words) - set(() if vocabulary is None else vocabulary.seen))
        if strangers:
            raise ValueError(
                f"checkpoint {folder} must have heldout_words among its seen words, got {strangers[:5]}; correct "
                f"{CONFIG}"
            )
    except (KeyError, TypeError) as error:
        raise ValueError(f"checkpoint {folder} must have a complete {CONFIG}, got {error}; save it again") from error
    return model, vocabulary
