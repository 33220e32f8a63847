"""Recipe <-> YAML: a whole training as data. YAML key = constructor argument; defaults live in the constructors alone.

    dataset: {name: table, path: photos.csv}
    image_encoder: {spec: timm:resnet50.a1_in1k}
    text_encoder: minilm
    decoder: {output: shared}
    augmentation: {noise: 0.1}
    image_augmentation: {cutout: 0.5}
    trainer: {epochs: 20, lr: 2.0e-4}
    protocol: {name: gzsl}

Every error is reported at once, an unknown key with the nearest known one.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import yaml

from zsmld.augmentation import QueryAugmentation
from zsmld.baseline import build_prior
from zsmld.datasets import DATASETS, READERS, build_dataset
from zsmld.decoder import MLDecoder, TrainingFreeScorer
from zsmld.features import FeatureCache
from zsmld.images import ImageAugmentation, ImageEncoder
from zsmld.model import ZeroShotClassifier
from zsmld.protocols import PROTOCOLS, Protocol
from zsmld.recipe.bundled import recipe_header, recipe_names
from zsmld.recipe.values import (
    arguments_of,
    checked_values,
    default_of,
    override_value,
    read_yaml,
    refusals,
    unknown_name,
)
from zsmld.resources import resource_path
from zsmld.text import TextEncoder
from zsmld.trainer import Trainer
from zsmld.trainer.options import option_problems, plain
from zsmld.vocabulary import Vocabulary

__all__ = ["Recipe", "has_split", "protocol_from", "reader_options", "recipe_header", "recipe_names"]


# A prior's classifier has the weights of the image encoder.
_OF_ENCODER = ("checkpoint_path", "pretrained")


@dataclass
class Recipe:
    """Everything that decides a training.

    Args:
        dataset: `name`, one of `zsmld.datasets.DATASETS`, and that dataset's arguments.
        image_encoder: arguments of `ImageEncoder`.
        text_encoder: spec string of a `TextEncoder`; null trains class queries.
        decoder: arguments of `MLDecoder`, but for the widths, which follow from the encoders.
        prior: arguments of `zsmld.baseline.build_prior`, such as {kind: conse}: what the image encoder knows already,
            as a part of the head; null gives it none.
        augmentation: arguments of `QueryAugmentation`.
        image_augmentation: arguments of `ImageAugmentation`.
        features: arguments of `FeatureCache`, such as a folder `cache`; null computes no features beforehand.
        trainer: arguments of `Trainer`.
        protocol: `name` of a protocol, and policies to change in it; default "gzsl" where the dataset has unseen words,
            else "supervised".

    Raises:
        ValueError: on any wrong key, type or name; the message lists all of them.

    Example:
        >>> recipe = Recipe.load("scenes_zsl", ["trainer.lr=1e-3", "trainer.epochs=2"])
        >>> recipe.trainer["lr"], recipe.trainer["epochs"], recipe.text_encoder
        (0.001, 2, 'minilm')
    """

    dataset: dict[str, Any]
    image_encoder: dict[str, Any]
    text_encoder: str | None = None
    decoder: dict[str, Any] = field(default_factory=dict)
    prior: dict[str, Any] | None = None
    augmentation: dict[str, Any] = field(default_factory=dict)
    image_augmentation: dict[str, Any] = field(default_factory=dict)
    features: dict[str, Any] | None = None
    trainer: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems: list[str] = []
        for section, target in self._targets(problems).items():
            if section in ("features", "prior") and getattr(self, section) is None:
                continue  # none is not one with every default
            given = getattr(self, section) or {}  # a section with nothing below it
            if not isinstance(given, dict):
                problems.append(f"{section} must be a mapping, got {given!r}")
                continue
            setattr(self, section, checked_values(section, given, target, problems))
        if self.text_encoder is not None and not isinstance(self.text_encoder, str):
            problems.append(f"text_encoder must be a text such as minilm, got {self.text_encoder!r}")
        if not problems:
            # Names and types are right: now ranges and combinations, of all parts that cost nothing to build.
            problems += refusals(
                lambda: QueryAugmentation(**self.augmentation),
                lambda: ImageAugmentation(**self.image_augmentation),
                lambda: FeatureCache(**self.features or {}),
                lambda: self._protocol("gzsl"),
                self._try_decoder,
            )
            problems += [f"trainer: {problem}" for problem in self._option_problems()]
            problems += self._prior_problems()
        if problems:
            raise ValueError("recipe must be valid, got:\n  - " + "\n  - ".join(problems))

    @classmethod
    def load(cls, name_or_path: str | Path, overrides: Sequence[str] = ()) -> "Recipe":
        """A recipe from a YAML file, or a bundled one by name.

        Args:
            name_or_path: for instance "scenes_zsl" or "my/recipe.yaml".
            overrides: dotted assignments such as "trainer.lr=2e-4".

        Raises:
            FileNotFoundError: if there is neither such a file nor such a bundled recipe.
            ValueError: if the YAML or an override is wrong; the message lists everything.
        """
        path = Path(name_or_path)
        if not path.is_file():
            near = difflib.get_close_matches(str(name_or_path), recipe_names(), 3)
            if str(name_or_path) not in recipe_names():
                raise FileNotFoundError(
                    f"recipe must be a YAML file or one of the bundled recipes, not found: {name_or_path}; "
                    f"{f'did you mean one of {near}? ' if near else ''}`zsmld recipes` lists them"
                )
            path = resource_path("configs", f"{name_or_path}.yaml")
        try:
            content = read_yaml(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"recipe {path} must be YAML, it cannot be read: {error}") from error
        return cls.from_dict(content, overrides)

    @classmethod
    def from_dict(cls, content: Any, overrides: Sequence[str] = ()) -> "Recipe":
        """A recipe from nested mappings, with overrides applied.

        Raises:
            ValueError: listing everything wrong.
        """
        if not isinstance(content, dict):
            raise ValueError(f"recipe must be a mapping of sections, got {type(content).__name__}; see configs/")
        content = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
        problems: list[str] = []
        for override in overrides:
            override_value(content, override, problems)
        known = [f.name for f in fields(cls)]
        problems += [unknown_name(key, known, "section") for key in content if key not in known]
        problems += [f"section {key} must be given" for key in ("dataset", "image_encoder") if key not in content]
        try:
            recipe = cls(**{key: content.get(key, {}) for key in known if key in content or key in known[:2]})
        except ValueError as error:
            problems += [line.removeprefix("  - ") for line in str(error).splitlines()[1:]]
        if problems:
            raise ValueError("recipe must be valid, got:\n  - " + "\n  - ".join(problems))
        return recipe

    def to_dict(self) -> dict[str, Any]:
        """Nested mappings of what was given; what is not in them has its default."""
        given: dict[str, Any] = plain(asdict(self))
        return given

    def effective(self) -> dict[str, Any]:
        """Nested mappings of every argument with its value, defaults included."""
        targets = self._targets([])
        found: dict[str, Any] = {}
        for section in (f.name for f in fields(self)):
            given = getattr(self, section)
            if section in targets and given is not None:
                defaults = {name: default_of(p) for name, p in arguments_of(section, targets[section]).items()}
                if section == "protocol" and given.get("name"):  # a named protocol has policies of its own
                    defaults = {name: getattr(PROTOCOLS[given["name"]], name) for name in defaults}
                given = {**({"name": given["name"]} if "name" in given else {}), **defaults, **given}
            found[section] = plain(given)
        return found

    def to_yaml(self) -> str:
        """The effective recipe."""
        return yaml.safe_dump(self.effective(), sort_keys=False, allow_unicode=True)

    # ------------------------------------------------------------------------------------------- what it describes

    def build_dataset(self, split: str) -> Any:
        """The dataset of a split, "train", "val" or "test"."""
        return build_dataset(**self.dataset, split=split)

    def build_model(
        self, text_encoder: TextEncoder | None = None, vocabulary: Vocabulary | None = None
    ) -> ZeroShotClassifier:
        """The untrained model, with weights drawn from the trainer's seed; what is at hand is not built again."""
        torch.manual_seed(self.trainer.get("seed", 0))
        image_encoder = ImageEncoder(**self.image_encoder)
        if text_encoder is None and self.text_encoder is not None:
            text_encoder = TextEncoder(self.text_encoder)
        num_classes = None
        if text_encoder is None:
            num_classes = len(vocabulary or self.build_dataset("train").vocabulary)
        text_dim = None if text_encoder is None else text_encoder.text_dim
        prior = None
        if self.prior is not None and text_encoder is not None:
            same = {name: self.image_encoder[name] for name in _OF_ENCODER if name in self.image_encoder}
            templates = (vocabulary or self.build_dataset("train").vocabulary).templates  # class names as the words
            options: dict[str, Any] = {"templates": templates} | same | self.prior
            prior = build_prior(image_encoder, text_encoder, **options)
        decoder = MLDecoder(
            image_encoder.encoder_dim,
            text_dim=text_dim,
            num_classes=num_classes,
            num_global_tokens=image_encoder.num_global_tokens,
            prior=prior,
            **self.decoder,
        )
        return ZeroShotClassifier(image_encoder, decoder, text_encoder, recipe=self.to_dict())

    def build_trainer(self, output: str | Path | None = None, progress: bool = False) -> Trainer:
        """The trainer with everything it needs."""
        text_encoder = None if self.text_encoder is None else TextEncoder(self.text_encoder)
        dataset = self.build_dataset("train")
        return Trainer(
            self.build_model(text_encoder, dataset.vocabulary),
            dataset,
            val_dataset=self.build_dataset("val") if has_split(dataset, "val") else None,
            output=output,
            augmentation=QueryAugmentation(**self.augmentation),
            image_augmentation=ImageAugmentation(**self.image_augmentation),
            features=None if self.features is None else FeatureCache(**self.features),
            text_encoder=text_encoder,
            progress=progress,
            configuration=self.effective(),
            **self.trainer,
        )

    def build_protocol(self, vocabulary: Vocabulary) -> Protocol:
        """The protocol a dataset with this vocabulary is evaluated under.

        Raises:
            ValueError: if the vocabulary does not fit it.
        """
        protocol = self._protocol("gzsl" if vocabulary.unseen else "supervised")
        protocol.check(vocabulary)
        return protocol

    # -------------------------------------------------------------------------------------------------- validation

    def _protocol(self, default: str) -> Protocol:
        policies = {key: value for key, value in self.protocol.items() if key != "name"}
        return Protocol.named(self.protocol.get("name") or default, **policies)

    def _option_problems(self) -> list[str]:
        """What is wrong with the trainer's options; None where something before it is wrong."""
        defaults = {name: default_of(p) for name, p in arguments_of("trainer", Trainer).items()}
        try:
            parts = {
                "augmentation": QueryAugmentation(**self.augmentation),
                "image_augmentation": ImageAugmentation(**self.image_augmentation),
                "features": None if self.features is None else FeatureCache(**self.features),
            }
        except ValueError:
            return []  # it is said already
        return option_problems(SimpleNamespace(**defaults | self.trainer | parts))

    def _prior_problems(self) -> list[str]:
        """What does not fit between the prior, the encoders and the trainer."""
        spec, trainer = str(self.image_encoder.get("spec")), self.trainer
        if self.prior is None:
            wanting = [name for name in ("teacher_words", "teacher_list") if trainer.get(name)]
            return [
                f"trainer.{name} needs a prior, which is the teacher: give one, or leave it out" for name in wanting
            ]
        is_clip = self.prior.get("kind") == "clip"
        kind, other = ("clip", "open_clip:") if is_clip else ("conse", "timm:")
        rules = {
            f"prior.kind={kind} needs image_encoder.spec={other}…, got {spec}; give the other kind, or prior=null "
            f"decoder.word_reach=0": spec.startswith(other),
            "prior needs image_encoder.projected=true": bool(self.image_encoder.get("projected")),
            "prior needs trainer.freeze_image_encoder=true: it knows the encoder as it is": (
                trainer.get("freeze_image_encoder") is True
            ),
            f"prior.kind=clip needs text_encoder={spec}, the same CLIP, got {self.text_encoder}": (
                not is_clip or self.text_encoder == spec
            ),
            "trainer.teacher_words of prior.kind=clip needs trainer.teacher_list": (
                not is_clip or not trainer.get("teacher_words") or bool(trainer.get("teacher_list"))
            ),
        }
        problems = [sentence for sentence, kept in rules.items() if not kept]
        of_conse = [name for name in ("class_names", "top_classes", "temperature") if self.prior.get(name) is not None]
        if is_clip and of_conse:
            problems.append(f"prior.kind=clip has no {', '.join(of_conse)}, which belong to conse; leave them out")
        return problems

    def _try_decoder(self) -> None:
        widths: dict[str, Any] = {"num_classes": 100} if self.text_encoder is None else {"text_dim": 8}
        with torch.device("meta"):  # no memory, no random numbers
            options = {name: (self.prior or {}).get(name) for name in ("standardization", "descriptions")}
            known = {name: value for name, value in options.items() if value is not None}
            prior = None if self.prior is None else TrainingFreeScorer(8, 8, **known)
            try:
                MLDecoder(8, **widths, prior=prior, **self.decoder)
            except RuntimeError as error:  # of torch, for sizes beyond all memory
                raise ValueError(f"decoder must be of sizes that a machine can hold: {error}") from error

    def _targets(self, problems: list[str]) -> dict[str, Callable[..., Any]]:
        """Which constructor each section feeds."""
        targets: dict[str, Callable[..., Any]] = {
            "image_encoder": ImageEncoder,
            "decoder": MLDecoder,
            "prior": build_prior,
            "augmentation": QueryAugmentation,
            "image_augmentation": ImageAugmentation,
            "features": FeatureCache,
            "trainer": Trainer,
            "protocol": Protocol,
        }
        name = self.dataset.get("name") if isinstance(self.dataset, dict) else None
        if isinstance(name, str) and name in DATASETS:
            targets["dataset"] = DATASETS[name]
        else:
            problems.append(unknown_name(name, sorted(DATASETS), "dataset.name"))
        protocol = self.protocol.get("name") if isinstance(self.protocol, dict) else None
        if protocol is not None and not (isinstance(protocol, str) and protocol in PROTOCOLS):
            problems.append(unknown_name(protocol, sorted(PROTOCOLS), "protocol.name"))
        return targets


def has_split(dataset: Any, split: str) -> bool:
    """Whether the data that a dataset was taken from have a split as well; generated data have every split."""
    return split in getattr(dataset, "splits", (split,))


def reader_options(name: str, assignments: Sequence[str]) -> dict[str, Any]:
    """Options of a dataset's reader from texts such as "year=2014", for `prepare`.

    Raises:
        ValueError: for an unknown dataset, and listing every wrong key or value.

    Example:
        >>> reader_options("coco", ["year=2014"])
        {'year': 2014}
    """
    if name not in READERS:
        raise ValueError(unknown_name(name, sorted(READERS), "dataset"))
    return _assigned("options", assignments, READERS[name])


def protocol_from(name: str, assignments: Sequence[str] = ()) -> Protocol:
    """A named protocol with policies changed by texts such as "protocol.keep_unlabelled=false".

    Raises:
        ValueError: for an unknown protocol, and listing every wrong key or value.

    Example:
        >>> protocol_from("coco_zsl_48_17", ["protocol.top_k=[1, 3]"]).top_k
        (1, 3)
    """
    return Protocol.named(name, **_assigned("protocol", [a.removeprefix("protocol.") for a in assignments], Protocol))


def _assigned(section: str, assignments: Sequence[str], target: Callable[..., Any]) -> dict[str, Any]:
    problems: list[str] = []
    given: dict[str, Any] = {}
    for assignment in assignments:
        override_value(given, assignment, problems)
    checked = checked_values(section, given, target, problems)
    if problems:
        raise ValueError(f"{section} must be valid, got:\n  - " + "\n  - ".join(problems))
    return checked
