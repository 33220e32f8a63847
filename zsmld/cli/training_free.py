"""What `--model clip:…` and `--model conse:…` mean: a scorer that is made here, from its name and overrides."""

import inspect
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zsmld import ZeroShotClassifier
    from zsmld.recipe import Recipe

SECTIONS = ("image_encoder", "scorer", "text_encoder", "pretrained")
# What a scorer's name decides, or its parts do; standardisation needs calibration images, in Python.
_DECIDED = {
    "image_encoder": {"self", "spec", "pretrained", "stage", "projected", "global_token"},
    "scorer": {
        "image_encoder",
        "text_encoder",
        "kind",
        "checkpoint_path",
        "templates",
        "pretrained",
        "standardization",
    },
}
_NEED_CLASSIFIER = {"class_names", "centered", "top_classes", "temperature"}


def is_training_free(model: str | None) -> bool:
    """Whether `--model` names a scorer and not a trained model."""
    return model is not None and model.startswith(("clip:", "conse:"))


def open_model(
    model: str, overrides: Sequence[str] = (), templates: Sequence[str] | str | None = None
) -> "ZeroShotClassifier":
    """What `--model` names: a scorer that is made here, or a trained model.

    Args:
        model: clip:ARCH/PRETRAINED, conse:timm:NAME, a folder, or a Hub id.
        overrides: settings of a scorer.
        templates: of a scorer's prompts.
    """
    from zsmld import ZeroShotClassifier

    if is_training_free(model):
        return build_scorer(model, overrides, templates)
    return ZeroShotClassifier.from_pretrained(model)


def is_scorer_override(text: str) -> bool:
    """Whether a text on the command line is a setting of a scorer, such as scorer.top_positions=3."""
    key = text.partition("=")[0]
    return "=" in text and key.partition(".")[0] in SECTIONS


def scorer_arguments(spec: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Arguments of `create_scorer`.

    Raises:
        ValueError: listing everything that is wrong, with the nearest names.
    """
    from zsmld import ImageEncoder
    from zsmld.baseline import build_prior
    from zsmld.recipe.values import checked_values, override_value, unknown_name

    content: dict[str, Any] = {}
    problems: list[str] = []
    for override in overrides:
        override_value(content, override, problems)
    problems += [unknown_name(key, SECTIONS, "setting") for key in content if key not in SECTIONS]
    checked: dict[str, dict[str, Any]] = {}
    for section, target in (("image_encoder", ImageEncoder), ("scorer", build_prior)):
        given = content.get(section) or {}
        if not isinstance(given, dict):
            problems.append(f"{section} must have keys, as in {section}.…=…, got {given!r}")
            continue
        hidden = set(_DECIDED[section])
        if spec.startswith("clip:"):  # the weights are named in the spec, and there is no classifier
            hidden |= {"checkpoint_path"} if section == "image_encoder" else _NEED_CLASSIFIER
        checked[section] = checked_values(section, given, _without(target, hidden), problems)
    for key, kind in (("text_encoder", str), ("pretrained", bool)):
        if key in content and not isinstance(content[key], kind):
            problems.append(f"{key} must be {kind.__name__}, got {content[key]!r}")
    if problems:
        raise ValueError(f"settings of {spec} must be valid, got:\n  - " + "\n  - ".join(problems))
    plain: dict[str, Any] = {key: value for key, value in content.items() if key in ("text_encoder", "pretrained")}
    return {"image_encoder": checked["image_encoder"], **plain, **checked["scorer"]}


def evaluation_recipe(model: str, overrides: Sequence[str], protocol: str | None) -> "tuple[Recipe, list[str]]":
    """Dataset and protocol for a model without a recipe, as a recipe, and the overrides that are of the scorer.

    Raises:
        ValueError: listing everything that is wrong, of the scorer's settings too.
    """
    from zsmld.recipe import Recipe

    if not any(override.startswith("dataset.name=") for override in overrides):
        raise ValueError(
            f"model {model} must name its dataset in its recipe, it has none; name it here, for instance "
            f"dataset.name=prepared dataset.path=prepared/coco"
        )
    own = [override for override in overrides if override.partition("=")[0].split(".")[0] in ("dataset", "protocol")]
    rest = [override for override in overrides if override not in own]
    problems: list[str] = []
    try:
        if is_training_free(model):
            scorer_arguments(model, rest)
        elif rest:
            problems.append(f"overrides must be of dataset and protocol for a model without a recipe, got {rest}")
    except ValueError as error:
        problems += str(error).splitlines()[1:]
    try:
        own += [f"protocol.name={protocol}"] if protocol else []
        recipe = Recipe.from_dict({"dataset": {}, "image_encoder": {"spec": model}}, own)
    except ValueError as error:
        problems += str(error).splitlines()[1:]
    if problems:
        lines = "\n  - ".join(problem.strip().removeprefix("- ") for problem in problems)
        raise ValueError(f"settings must be valid, got:\n  - {lines}")
    return recipe, rest


def build_scorer(spec: str, overrides: Sequence[str], templates: Any = None) -> "ZeroShotClassifier":
    """The scorer; class names take the templates of the words."""
    from zsmld.baseline import create_scorer

    given = scorer_arguments(spec, overrides)
    return create_scorer(spec, **given, **({} if templates is None else {"templates": templates}))


def _without(target: Callable[..., Any], hidden: set[str]) -> Callable[..., Any]:
    """Something with the signature of `target` but for some arguments, for `checked_values`."""

    def visible(**_: Any) -> None:
        """Never called."""

    kept = [p for name, p in inspect.signature(target).parameters.items() if name not in hidden]
    visible.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in kept]
    )
    return visible
