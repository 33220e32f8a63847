"""ZeroShotClassifier = ImageEncoder + MLDecoder; save, load, Hub.

Words are an argument of the network, never its state. Beside the network a checkpoint carries the vocabulary it was
trained with and those words' embeddings, so that scoring known words needs no text encoder.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from zsmld.decoder import MLDecoder, TrainingFreeScorer, stack_words
from zsmld.images import ImageEncoder
from zsmld.model.card import model_card
from zsmld.model.card_figures import ReportLike
from zsmld.model.checkpoint import load_checkpoint, storing_problems
from zsmld.model.files import CONFIG, FORMAT, WEIGHTS, package_versions
from zsmld.model.hub import find_checkpoint, push_checkpoint
from zsmld.model.summary import summary_html
from zsmld.reading import digest_of
from zsmld.text import TextEncoder, resolve_device
from zsmld.vocabulary import DEFAULT_TEMPLATES, Vocabulary, check_words
from zsmld.writing import to_the_end, written_whole

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo, ModelCard

__all__ = ["ZeroShotClassifier", "create_model", "model_card", "package_versions"]


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
        source: "owner/name@commit" where it was loaded from the Hub, which loads the same one again; else None.

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
        self.weights_sha256: str | None = None  # of the file that it was loaded from, or saved as
        self.prediction: dict[str, Any] | None = None
        self.scores: str = "sigmoid"
        self.training_record: dict[str, Any] | None = None
        self.source: str | None = None
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

        Raises:
            ValueError: if the image encoder could not be rebuilt: its options name files or are no plain values, or it
                is from a local folder with an architecture that open_clip does not know by name.
        """
        from safetensors.torch import save

        folder, config = Path(folder), self._config()
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            name: tensor.detach().cpu().contiguous() for name, tensor in (state_dict or self.state_dict()).items()
        }
        if self.word_embeddings is not None:
            tensors["word_embeddings"] = self.word_embeddings.contiguous()
        content = save(tensors, metadata={"format": "pt"})
        config["weights_sha256"] = hashlib.sha256(content).hexdigest()
        # Both are on the disk before the first has its name: a full disk leaves the model that was there. A kill in
        # between leaves a configuration without its weights, which is refused, and never a model of both.
        with to_the_end(folder, "save again"), written_whole(folder / WEIGHTS) as weights:
            with weights.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            with written_whole(folder / CONFIG) as path:
                path.write_text(_text(config), encoding="utf-8")
        self.weights_sha256 = config["weights_sha256"]

    def save_config(self, folder: str | Path) -> None:
        """Write `config.json` alone, into a folder that holds this model's weights: a new calibration, for instance.

        Raises:
            FileNotFoundError: if the folder holds no weights.
            ValueError: if it holds others than this model was loaded from or saved as.
        """
        folder = Path(folder)
        if not (folder / WEIGHTS).is_file():
            raise FileNotFoundError(
                f"model folder must hold {WEIGHTS} to get another {CONFIG}, not found in {folder}; save the whole "
                f"model with save_pretrained"
            )
        found = digest_of(folder / WEIGHTS)
        if self.weights_sha256 not in (None, found):
            raise ValueError(f"folder must hold this model's weights, got others in {folder}; load it again")
        config = self._config() | {"weights_sha256": found}
        with to_the_end(folder, "save again"), written_whole(folder / CONFIG) as path:
            path.write_text(_text(config), encoding="utf-8")

    def _config(self) -> dict[str, Any]:
        image_config = self.image_encoder.config()
        if problems := storing_problems(image_config):
            raise ValueError("; ".join(problems))
        config: dict[str, Any] = {
            "format": FORMAT,
            "image_encoder": image_config,
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
        return config

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        revision: str | None = None,
        device: str = "cpu",
        token: str | bool | None = None,
    ) -> "ZeroShotClassifier":
        """Load a model from a folder, or from the Hugging Face Hub; downloads no other weights, runs no foreign code.

        Args:
            path_or_hub_id: a folder written by `save_pretrained`; "scenes", the small model that comes with zsmld, if
                no folder here has that name; or on the Hub "owner/name" or "owner/name@revision".
            revision: commit hash, tag or branch on the Hub. A commit never changes, and once it is in the cache it
                needs no network; without one the newest is loaded, with a warning that names it.
            device: where the network goes.
            token: for private models on the Hub; default the one of `hf auth login`.

        Returns:
            The model in eval mode; `source` says where on the Hub it is from.

        Raises:
            FileNotFoundError: if there is no such folder and the Hub cannot be reached or has no such model.
            ValueError: if the files are damaged or do not fit each other; every key must match.
        """
        folder, source = find_checkpoint(path_or_hub_id, revision, token)
        model = load_checkpoint(cls, folder, source or str(folder))
        model.source = source
        return model.to(resolve_device(device)).eval()

    def push_to_hub(
        self,
        repo_id: str,
        *,
        report: ReportLike | None = None,
        license: str | None = None,
        card: "ModelCard | None" = None,
        private: bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str = "Upload model",
        token: str | bool | None = None,
    ) -> "CommitInfo":
        """Publish this model on the Hugging Face Hub, with a model card; see `zsmld.model.hub.push_checkpoint`.

        Args:
            repo_id: "owner/name", made if it does not exist.
            report, license: for the card, see `zsmld.model.model_card`.
            card: instead of the generated one, as it is.
            private: of a new repository; True refuses one that is public.
            revision: branch, made if it does not exist; default main.
            create_pr: open a pull request instead.
            commit_message: of the weights; the card's commit follows.
            token: that may write; default the one of `hf auth login`.

        Returns:
            The last commit: `from_pretrained(repo_id, revision=commit.oid)` loads this model wherever the branch goes.
        """
        return push_checkpoint(
            self, repo_id, report, license, card, private, revision, create_pr, commit_message, token
        )

    _repr_html_ = summary_html

    def __repr__(self) -> str:
        millions = sum(p.numel() for p in self.parameters()) / 1e6
        words = "no vocabulary" if self.vocabulary is None else f"{len(self.vocabulary)} words"
        return (
            f"ZeroShotClassifier({self.image_encoder.spec!r}, {self.image_encoder.transform.image_size}px, "
            f"text_encoder={self.text_encoder!r}, output={self.decoder.output!r}, {words}, {millions:.1f}M parameters"
            f"{f', {self.source}' if self.source else ''})"
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


def _text(config: dict[str, Any]) -> str:
    return json.dumps(config, indent=1, ensure_ascii=False) + "\n"
