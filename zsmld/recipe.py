"""Recipe <-> YAML: a whole training as data. YAML key = constructor argument; defaults live in the constructors alone.

    dataset: {name: table, path: photos.csv}
    image_encoder: {spec: timm:resnet50.a1_in1k}
    text_encoder: minilm
    decoder: {output: shared}
    augmentation: {noise: 0.1}
    trainer: {epochs: 20, lr: 2.0e-4}
    protocol: {name: gzsl}

Every error is reported at once, an unknown key with the nearest known one.
"""

import difflib
import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar, get_args

import torch
import yaml

from zsmld.augmentation import QueryAugmentation
from zsmld.datasets import DATASETS, READERS, build_dataset
from zsmld.decoder import MLDecoder
from zsmld.images import ImageEncoder
from zsmld.model import ZeroShotClassifier
from zsmld.protocols import PROTOCOLS, Protocol
from zsmld.resources import resource_path
from zsmld.text import TextEncoder
from zsmld.trainer import Trainer
from zsmld.vocabulary import Vocabulary

# Arguments that a recipe does not give: other sections make them, or the command does.
_NOT_IN_RECIPE = {
    "dataset": {"split"},
    "decoder": {"encoder_dim", "text_dim", "num_classes"},
    "trainer": {"model", "dataset", "val_dataset", "output", "augmentation", "text_encoder", "progress"},
    "protocol": {"task", "num_seen", "num_unseen", "words_file"},
    "options": {"root", "problems"},  # of a dataset's reader
}


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """YAML as version 1.2 has it in this: 48_17 is a text and not the number 4817, 1e-3 is a number."""

    yaml_implicit_resolvers: ClassVar = {
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"[-+]?[0-9]+$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"),
    list("-+0123456789."),
)


@dataclass
class Recipe:
    """Everything that decides a training.

    Args:
        dataset: `name`, one of `zsmld.datasets.DATASETS`, and that dataset's arguments.
        image_encoder: arguments of `ImageEncoder`.
        text_encoder: spec string of a `TextEncoder`; null trains class queries.
        decoder: arguments of `MLDecoder`, but for the widths, which follow from the encoders.
        augmentation: arguments of `QueryAugmentation`.
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
    augmentation: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        problems: list[str] = []
        for section, target in self._targets(problems).items():
            given = getattr(self, section) or {}  # a section with nothing below it
            if not isinstance(given, dict):
                problems.append(f"{section} must be a mapping, got {given!r}")
                continue
            setattr(self, section, _checked(section, given, target, problems))
        if self.text_encoder is not None and not isinstance(self.text_encoder, str):
            problems.append(f"text_encoder must be a text such as minilm, got {self.text_encoder!r}")
        if not problems:
            # Names and types are right: now ranges and combinations, of all parts that cost nothing to build.
            problems += _refusals(
                lambda: QueryAugmentation(**self.augmentation),
                lambda: self._protocol("gzsl"),
                self._try_decoder,
            )
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
            near = difflib.get_close_matches(str(name_or_path), recipe_names(), 3) or recipe_names()
            if str(name_or_path) not in recipe_names():
                raise FileNotFoundError(
                    f"recipe must be a YAML file or one of the bundled recipes, not found: {name_or_path}; "
                    f"did you mean one of {near}?"
                )
            path = resource_path("configs", f"{name_or_path}.yaml")
        try:
            content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
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
            _override(content, override, problems)
        known = [f.name for f in fields(cls)]
        problems += [_unknown(key, known, "section") for key in content if key not in known]
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
        plain: dict[str, Any] = _plain(asdict(self))
        return plain

    def to_yaml(self) -> str:
        """The effective recipe: every argument with its value, defaults included."""
        targets = self._targets([])
        effective: dict[str, Any] = {}
        for section in (f.name for f in fields(self)):
            given = getattr(self, section)
            if section in targets:
                defaults = {name: _default(p) for name, p in _arguments(section, targets[section]).items()}
                given = {**({"name": given["name"]} if "name" in given else {}), **defaults, **given}
            effective[section] = given
        return yaml.safe_dump(_plain(effective), sort_keys=False, allow_unicode=True)

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
        decoder = MLDecoder(image_encoder.encoder_dim, text_dim=text_dim, num_classes=num_classes, **self.decoder)
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
            text_encoder=text_encoder,
            progress=progress,
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

    def _try_decoder(self) -> None:
        widths: dict[str, Any] = {"num_classes": 100} if self.text_encoder is None else {"text_dim": 8}
        with torch.device("meta"):  # no memory, no random numbers
            MLDecoder(8, **widths, **self.decoder)

    def _targets(self, problems: list[str]) -> dict[str, Callable[..., Any]]:
        """Which constructor each section feeds."""
        targets: dict[str, Callable[..., Any]] = {
            "image_encoder": ImageEncoder,
            "decoder": MLDecoder,
            "augmentation": QueryAugmentation,
            "trainer": Trainer,
            "protocol": Protocol,
        }
        name = self.dataset.get("name") if isinstance(self.dataset, dict) else None
        if isinstance(name, str) and name in DATASETS:
            targets["dataset"] = DATASETS[name]
        else:
            problems.append(_unknown(name, sorted(DATASETS), "dataset.name"))
        protocol = self.protocol.get("name") if isinstance(self.protocol, dict) else None
        if protocol is not None and not (isinstance(protocol, str) and protocol in PROTOCOLS):
            problems.append(_unknown(protocol, sorted(PROTOCOLS), "protocol.name"))
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
        raise ValueError(_unknown(name, sorted(READERS), "dataset"))
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
        _override(given, assignment, problems)
    checked = _checked(section, given, target, problems)
    if problems:
        raise ValueError(f"{section} must be valid, got:\n  - " + "\n  - ".join(problems))
    return checked


def recipe_names() -> list[str]:
    """Names of the bundled recipes, sorted."""
    return sorted(path.stem for path in resource_path("configs").glob("*.yaml"))


def recipe_header(name: str) -> dict[str, str]:
    """The comment lines that open a bundled recipe: "source", "cost", "expected result", "command"."""
    header: dict[str, str] = {}
    key = ""
    for line in resource_path("configs", f"{name}.yaml").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.removeprefix("#").strip()
        title, colon, rest = text.partition(": ")
        if colon and title.lower() in ("source", "cost", "expected result", "command"):
            key = title.lower()
            header[key] = rest
        elif key:
            header[key] += " " + text
    return header


def _arguments(section: str, target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    hidden = _NOT_IN_RECIPE.get(section, set())
    return {
        name: p for name, p in inspect.signature(target).parameters.items() if name not in hidden and name != "self"
    }


def _checked(section: str, given: dict[str, Any], target: Callable[..., Any], problems: list[str]) -> dict[str, Any]:
    """Values of a section converted to their types; what is wrong goes to `problems`."""
    from jsonargparse import ArgumentParser

    arguments = _arguments(section, target)
    checked: dict[str, Any] = {}
    for key, value in given.items():
        if key == "name" and section in ("dataset", "protocol"):
            checked[key] = value
        elif key not in arguments:
            names = ["name", *arguments] if section == "dataset" else list(arguments)
            problems.append(_unknown(key, names, section))
        else:
            parser = ArgumentParser(exit_on_error=False)
            parser.add_argument(f"--{key}", type=arguments[key].annotation)
            if type(value) is int and str in get_args(arguments[key].annotation):
                value = str(value)  # a partition may be called 80
            try:
                checked[key] = parser.parse_object({key: value})[key]
            except Exception as error:  # jsonargparse has its own kinds; the reader needs key, type and value
                expected = inspect.formatannotation(arguments[key].annotation)
                if "Expected" not in str(error) and "validate" not in str(error):
                    raise
                problems.append(f"{section}.{key} must be {expected}, got {value!r}")
    optional = given if section != "protocol" else {"name"}  # a protocol's name may follow from the dataset
    required = [name for name, p in arguments.items() if p.default is inspect.Parameter.empty and name not in optional]
    problems += [f"{section}.{name} must be given" for name in required]
    return checked


def _refusals(*builders: Callable[[], Any]) -> list[str]:
    """What the builders say against what they are given."""
    said = []
    for build in builders:
        try:
            build()
        except ValueError as error:
            said.append(str(error))
    return said


def _override(content: dict[str, Any], override: str, problems: list[str]) -> None:
    path, equals, text = override.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        problems.append(f"override must be section.key=value, got {override!r}")
        return
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError:
        value = text
    if value == "" and text.strip() in ("|", ">"):  # a block of YAML without lines; here it is a separator
        value = text.strip()
    inner: Any = content
    for key in keys[:-1]:
        inner[key] = dict(inner.get(key) or {}) if isinstance(inner.get(key), (dict, type(None))) else inner[key]
        inner = inner[key]
        if not isinstance(inner, dict):
            problems.append(f"override {override!r} must name a section with keys, {key} has none")
            return
    inner[keys[-1]] = value


def _unknown(name: Any, known: Sequence[str], where: str) -> str:
    near = difflib.get_close_matches(str(name), known, 1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(known)}"
    return f"{where}: unknown {name!r}; {hint}"


def _default(parameter: inspect.Parameter) -> Any:
    """A parameter's default; what a dataclass makes afresh for each object is an empty mapping in all our doors."""
    if parameter.default is inspect.Parameter.empty:
        return None
    plain = (bool, int, float, str, tuple, type(None))
    return parameter.default if isinstance(parameter.default, plain) else {}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value
