"""The model card: what a model is, how well it does by a report, what made it, and what is not known about it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zsmld.decoder import TrainingFreeScorer
from zsmld.model.card_figures import ReportLike, check_report, eval_results, figures_text, read_report
from zsmld.model.files import CONFIG, package_versions
from zsmld.model.markup import fenced, inline, inline_code

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

    from zsmld.model import ZeroShotClassifier

_NUM_WORDS = 300  # of each list; what is longer is in the configuration


def model_card(
    model: "ZeroShotClassifier",
    report: ReportLike | None = None,
    license: str | None = None,
    repo_id: str | None = None,
    revision: str | None = None,
) -> "ModelCard":
    """The model card of a model: metadata that the Hub reads, and a text.

    It states what is known and says what is not: without a report that there are no figures, without a licence that
    none is stated. Words and names of other people are text in it, never markup.

    Args:
        model: to describe.
        report: a `Report` of this model, a folder or JSON file that one was saved to, or its content.
        license: of the weights, as the Hub writes it, for instance "apache-2.0" or "cc-by-4.0"; never guessed.
        repo_id: "owner/name" on the Hub, for the code.
        revision: commit, for the code.

    Returns:
        A `huggingface_hub.ModelCard`: change its `text` and `data`, `save` it, or give it to `push_to_hub`.

    Raises:
        FileNotFoundError: if there is no such report.
        ValueError: if the report is none, or is of another model; or the licence is no identifier.

    Example:
        >>> from zsmld import ZeroShotClassifier
        >>> model = ZeroShotClassifier.from_pretrained("scenes")
        >>> model_card(model, license="apache-2.0").data.license
        'apache-2.0'
    """
    from huggingface_hub import ModelCard, ModelCardData

    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license):
        raise ValueError(
            f"license must be an identifier of the Hub such as 'apache-2.0', got {license!r}; see "
            f"https://huggingface.co/docs/hub/repositories-licenses"
        )
    content = None if report is None else read_report(report)
    if content is not None:
        check_report(content, model)
    name = repo_id.split("/")[-1] if repo_id else "zsmld model"
    task = "image-classification" if model.decoder.text_dim is None else "zero-shot-image-classification"
    results = [] if content is None else eval_results(content, task)
    data = ModelCardData(
        library_name="zsmld",
        pipeline_tag=task,
        license=license,
        base_model=_base_model(model),
        datasets=_hub_dataset(model),
        tags=_tags(model),
        model_name=name if results else None,
        eval_results=results or None,
    )
    parts = [
        f"# {inline(name)}\n\n{_summary(model)}",
        f"## How to use it\n\n{_usage(model, repo_id, revision)}",
        f"## Intended use and limits\n\n{_limits(model)}",
        f"## Figures\n\n{figures_text(content)}",
        f"## Words\n\n{_words(model)}",
        f"## Training\n\n{_training(model)}",
        f"## External knowledge\n\n{_external_knowledge(model, content)}",
        f"## Licences\n\n{_licences(model, license)}",
        f"## Versions\n\n{', '.join(f'{key} {value}' for key, value in package_versions().items())}",
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n")


# ------------------------------------------------------------------------------------------------------------ sections


def _tags(model: "ZeroShotClassifier") -> list[str]:
    many = ["multi-label"] if model.scores == "sigmoid" else []
    open_words = [] if model.decoder.text_dim is None else ["zero-shot"]
    head = [] if isinstance(model.decoder, TrainingFreeScorer) else ["ml-decoder"]
    return ["zsmld", *many, *open_words, "image-classification", *head]


def _summary(model: "ZeroShotClassifier") -> str:
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    size = model.image_encoder.transform.image_size
    if model.decoder.text_dim is None:
        what = f"scores images against {model.decoder.num_classes} fixed classes"
    else:
        what = "scores images against any list of words, also words it was not trained with"
    head = "with an ML-Decoder head ([arXiv 2111.12933](https://arxiv.org/abs/2111.12933))"
    kind = "without training" if isinstance(model.decoder, TrainingFreeScorer) else head
    several = "each word has its own score, and several may apply"
    each = several if model.scores == "sigmoid" else "one word applies, and the scores of all add up to one"
    several_words = "A multi-label image" if model.scores == "sigmoid" else "An image"
    text = (
        f"{several_words} classifier made with zsmld. It {what}, {kind}; {each}.\n\n"
        f"- Image encoder: {inline_code(model.image_encoder.spec)}, {size}×{size} px\n"
    )
    if model.decoder.text_dim is not None:
        text += (
            f"- Text encoder: {inline_code(model.text_encoder or 'none')}, identity "
            f"{inline_code(model.text_encoder_identity or 'none')}; it is needed for new words only\n"
        )
    return text + f"- {millions:.1f} M parameters, in this repository complete"


def _usage(model: "ZeroShotClassifier", repo_id: str | None, revision: str | None) -> str:
    where = repo_id or "FOLDER"
    pin = f", revision={revision!r}" if revision else ""
    example = list(model.vocabulary.words[:2]) if model.vocabulary is not None else ["dog", "red car"]
    words = f", words={example!r}" if model.decoder.text_dim is not None else ""
    code = (
        f"from zsmld import Predictor, ZeroShotClassifier\n\n"
        f"model = ZeroShotClassifier.from_pretrained({where!r}{pin})\n"
        f"predictor = Predictor(model{words})\n"
        f'for p in predictor.predict("photos/", top_k=5):\n'
        f"    print(p.path, p.words, p.scores)"
    )
    shell = f"zsmld predict photos/ --model {where}{f'@{revision}' if revision else ''}"
    which = "the words it knows"
    if model.vocabulary is None and model.decoder.text_dim is not None:  # it knows none
        shell, which = f"{shell} --words '{','.join(example)}'", "any words"
    text = f"{fenced(code, 'python')}\n\nOr on the shell, with {which}:\n\n{fenced(shell, 'sh')}"
    if revision:
        text += "\n\nThe revision pins the weights: a branch may move, a commit does not."
    if (model.text_encoder or "").startswith("vectors:"):
        text += (
            "\n\nNew words need the word-vector file named above, with the same content; it is not in this repository. "
            "Known words need nothing."
        )
    return text


def _limits(model: "ZeroShotClassifier") -> str:
    if model.calibration is None:
        scores = "Scores rank words; they are not probabilities, and no thresholds were chosen for them."
    else:
        scores = "Scores rank words; the stored calibration was chosen on the images it names, and holds for such ones."
    said = [
        "It is made for tagging, sorting and searching photos like those it was trained on, and for research on "
        "zero-shot classification.",
        scores,
        "How well a word that was not trained is found depends on how near it is to trained words, in meaning and in "
        "looks. Try it on labelled images of your own before you rely on it.",
        "What its training images, labels and encoders show or leave out, it repeats.",
        "It is not made for identifying people, for judging their traits, or for decisions that harm when they are "
        "wrong.",
    ]
    if model.decoder.text_dim is None:
        said[2] = "Its classes are fixed: it cannot take new words."
    return "\n".join(f"- {sentence}" for sentence in said)


def _words(model: "ZeroShotClassifier") -> str:
    vocabulary = model.vocabulary
    if vocabulary is None:
        return "It stores no words."
    text = f"{len(vocabulary)} words are stored: {len(vocabulary.seen)} seen, {len(vocabulary.unseen)} unseen."
    if model.decoder.text_dim is not None:
        text += " Seen words had labels in training, or were held out of it for selection."
    lists = {"Seen words": vocabulary.seen, "Unseen words": vocabulary.unseen, "Held-out words": model.heldout_words}
    for title, words in lists.items():
        if words:
            shown = ", ".join(map(inline, words[:_NUM_WORDS]))
            if len(words) > _NUM_WORDS:
                shown += f", … and {len(words) - _NUM_WORDS} more, all in <code>{CONFIG}</code> under “vocabulary”"
            # One block of HTML without an empty line: Markdown leaves what is in it alone.
            text += f"\n\n<details><summary>{title} ({len(words)})</summary>\n<p>{shown}</p>\n</details>"
    if model.decoder.text_dim is not None:
        text += f"\n\nTemplates: {', '.join(map(inline_code, vocabulary.templates))}"
        if vocabulary.descriptions:
            text += f"; {len(vocabulary.descriptions)} words have descriptions instead"
    return text


def _training(model: "ZeroShotClassifier") -> str:
    record, recipe = model.training_record or {}, model.recipe or {}
    said = []
    if dataset := recipe.get("dataset", {}):
        said.append(f"Dataset: {inline_code(dataset.get('name', 'unknown'))}")
    settings = record.get("settings", {})
    for key, title in (("images", "Training images"), ("val_images", "Validation images")):
        if settings.get(key):
            said.append(f"{title}: {inline_code(settings[key])}")
    if "weights" in record:
        kind = "averaged over steps (EMA)" if record["weights"] == "averaged" else "those of the last step (raw)"
        epoch, selected_by = inline(record.get("epoch")), inline_code(record.get("selected_by"))
        said.append(f"Weights: {kind}, of epoch {epoch}, selected by {selected_by}")
    if origin := record.get("imported"):
        kind = f"{inline_code(origin['code'])} checkpoint {inline_code(origin['file'])}"
        said.append(f"Imported from the {kind}, weights {inline(origin['weights'])}")
    if record.get("training_free"):
        said.append(f"None: {inline_code(record['training_free'])} needs no training")
    if record.get("git"):
        said.append(f"Git revision of zsmld: {inline_code(record['git'])}")
    text = "\n".join(f"- {sentence}" for sentence in said) or "How it was trained is not recorded."
    if recipe:
        import yaml

        written = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=100).rstrip()
        text += f"\n\nRecipe, for `zsmld train`:\n\n{fenced(written, 'yaml')}"
    return text


def _external_knowledge(model: "ZeroShotClassifier", content: Mapping[str, Any] | None) -> str:
    known = [] if content is None else list(content.get("external_knowledge", ["not stated"]) or ["none"])
    if content is None:
        known = [f"image encoder {model.image_encoder.spec}: what it was pretrained on, if it was"]
        if model.text_encoder:
            known.append(f"text encoder {model.text_encoder}: its training texts")
    intro = "What besides the labels of seen words touched the words:\n\n"
    return intro + "\n".join(f"- {inline(item)}" for item in known)


def _licences(model: "ZeroShotClassifier", license: str | None) -> str:
    said = ["these weights: " + (inline_code(license) if license else "not stated; ask the owner before you use them")]
    encoder, origin = inline_code(model.image_encoder.spec), _base_model(model)
    if _began_with_weights(model) is False:
        said.append(f"image encoder {encoder}: its weights were trained from random ones")
    else:
        see = f", see <https://huggingface.co/{origin}>" if origin else ""
        said.append(f"image encoder {encoder}, from which these weights may be derived: not recorded{see}")
    if model.text_encoder:
        said.append(f"text encoder {inline_code(model.text_encoder)}, which is not in this repository: not recorded")
    said.append("training images and labels: not recorded")
    return "\n".join(f"- {item}" for item in said)


def _began_with_weights(model: "ZeroShotClassifier") -> bool | None:
    """Whether the image encoder had weights before training; None if nobody wrote it down."""
    options = (model.recipe or {}).get("image_encoder")
    if not isinstance(options, Mapping):
        return None
    return bool(options.get("pretrained", True) or options.get("checkpoint_path"))


def _base_model(model: "ZeroShotClassifier") -> str | None:
    """The timm weights on the Hub that training began with, where the recipe says that it began with them."""
    options, spec = (model.recipe or {}).get("image_encoder") or {}, model.image_encoder.spec
    if not _began_with_weights(model) or options.get("checkpoint_path") or options.get("spec") != spec:
        return None
    origin = getattr(model.image_encoder.body, "pretrained_cfg", None) or {}
    return origin.get("hf_hub_id") if spec.startswith("timm:") and "." in spec else None


def _hub_dataset(model: "ZeroShotClassifier") -> list[str] | None:
    """The Hub's name of the training data; our own names of datasets mean nothing there."""
    dataset = (model.recipe or {}).get("dataset")
    if not isinstance(dataset, Mapping) or dataset.get("name") != "hugging_face":
        return None
    path = str(dataset.get("path", ""))
    return [path] if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", path) and not Path(path).exists() else None
