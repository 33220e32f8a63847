"""`zsmld predict`: what stands on the command line, made into a predictor and a call."""

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zsmld import Predictor
    from zsmld.predictor.collection import Outputs, Tagged

_NEEDS_OUTPUT = ("scores_output", "contact_sheet", "pictures", "shard", "overwrite", "restart", "merge")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb, but those of every verb that scores."""
    parser.add_argument("images", nargs="+", help="image files, folders, globs, tar shards; work folders with --merge")
    parser.set_defaults(overrides=[])
    parser.add_argument(
        "--model",
        help="must be given, but with --merge: model folder, Hub id, exported folder, clip:ARCH/PRETRAINED or "
        "conse:timm:NAME (no training), or scenes, the small one of generated scenes that comes with zsmld",
    )
    parser.add_argument(
        "--trust-program",
        action="store_true",
        help="load an export to torch.export or AOTInductor, which runs code; ONNX needs no trust",
    )
    parser.add_argument("--words", help="words to score, separated by commas; default those of the model")
    parser.add_argument("--words-file", help="the same, one word a line")
    parser.add_argument(
        "--descriptions", help='JSON file with sentences for some words, {"zebra": ["a striped animal", …]}'
    )
    parser.add_argument("--synonyms", help='JSON file with other texts for some words, {"sofa": ["couch", …]}')
    parser.add_argument(
        "--templates",
        nargs="+",
        help="sentences with one {} where the word goes, or photo, simple or imagenet; default the model's",
    )
    parser.add_argument("--top-k", type=int, default=5, help="words an image (default: %(default)s)")
    parser.add_argument(
        "--threshold",
        type=_threshold,
        help="only words with at least this score, in [0, 1]; `calibrated`: each word's own threshold; `stored`: those "
        "saved with the model",
    )
    parser.add_argument(
        "--thresholds-file", help='JSON file with the least scores of some words, {"dog": 0.4}; --threshold of the rest'
    )
    parser.add_argument("--uncalibrated", action="store_true", help="scores as the network gives them")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "int8"),
        default="fp32",
        help="of the head's large products; int8 on x86 processors (default: %(default)s)",
    )
    parser.add_argument(
        "--shortlist",
        type=int,
        metavar="N",
        help="for very large vocabularies: decode the N words of an image that are worth it, learnt from 256 of the "
        "images; the others get score 0 (512 are plenty; default: decode all)",
    )
    parser.add_argument(
        "--output", help=".jsonl, .csv or .parquet, resumed if interrupted; default a table on the screen"
    )
    parser.add_argument("--scores-output", help=".npy or .parquet, the scores of all words as well")
    parser.add_argument("--contact-sheet", help=".html, pages of thumbnails with their words")
    parser.add_argument("--pictures", help="folder for a picture of each image with its words")
    parser.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    parser.add_argument("--restart", action="store_true", help="throw away what an interrupted run has done")
    parser.add_argument("--shard", type=_shard, metavar="K/N", help="do the K-th of N shares, on this machine")
    parser.add_argument(
        "--merge", action="store_true", help="write --output from the work folders (OUTPUT.parts) of all shards"
    )


def predict(options: argparse.Namespace) -> int:
    """Rank words for images."""
    given = [name for name in _NEEDS_OUTPUT if getattr(options, name)]
    if options.output is None and given:
        raise ValueError(f"--{given[0].replace('_', '-')} must come with --output, got none; write --output tags.jsonl")
    if options.output is None:
        return _show(options)
    from zsmld.predictor.collection import Outputs

    outputs = Outputs(options.output, options.scores_output, options.contact_sheet)
    return _merge(options, outputs) if options.merge else _tag(options, outputs)


def _show(options: argparse.Namespace) -> int:
    """A line an image on the screen."""
    from zsmld.predictor.archives import list_collection, printable

    num_unreadable = 0
    images = list(list_collection(_images(options)))
    predictor = _predictor(options)
    threshold, default = _thresholds(options)
    if options.shortlist is not None:
        predictor.learn_shortlist((image.source() for image in images), options.shortlist)
    predictions = predictor.predict(
        (image.source() for image in images), top_k=options.top_k, threshold=threshold, default_threshold=default
    )
    for image, p in zip(images, predictions, strict=True):
        num_unreadable += p.error is not None
        ranked = "  ".join(f"{word} {score:.2f}" for word, score in zip(p.words, p.scores, strict=True))
        print(f"{image.path}  {printable(p.error or '') or ranked or '(no word reaches the threshold)'}", flush=True)
    return _status(num_unreadable, len(images))


def _tag(options: argparse.Namespace, outputs: "Outputs") -> int:
    """A collection, resumed where it was interrupted."""
    from zsmld.predictor.collection import OF_MAIN, join_processes, tag_collection

    options.device = join_processes(options.device)
    rank = os.environ.get("RANK", "0")
    main = rank == "0"
    try:
        images = _images(options)
        predictor = _predictor(options)
        threshold, default = _thresholds(options)
        tagged = tag_collection(
            predictor,
            images,
            outputs,
            top_k=options.top_k,
            threshold=threshold,
            default_threshold=default,
            pictures=options.pictures,
            shortlist=options.shortlist,
            shard=options.shard,
            overwrite=options.overwrite,
            restart=options.restart,
            progress=True,
        )
    except (ValueError, TypeError, OSError) as error:
        if main:
            raise
        if OF_MAIN not in getattr(error, "__notes__", ()):  # else the main process says it
            print(f"zsmld predict: process {rank}: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        if main and outputs.parts.is_dir():
            print(
                f"zsmld predict: what is done is kept in {outputs.parts}; repeat the command to go on", file=sys.stderr
            )
        raise
    if not main:  # a launcher ends all others as soon as one fails
        return 0
    _report(tagged, outputs, options)
    return _status(tagged.num_unreadable, tagged.num_images)


def _report(tagged: "Tagged", outputs: "Outputs", options: argparse.Namespace) -> None:
    def say(text: str) -> None:
        print(f"zsmld predict: {text}", file=sys.stderr)

    if tagged.num_resumed:
        say(f"went on with an interrupted run, {tagged.num_resumed} of {tagged.num_images} images were done")
    for paths, text in (
        (tagged.added, "images came after the run began and are not in the output, the first is"),
        (tagged.gone, "images of the run are no longer there, the first is"),
    ):
        if paths:
            say(f"{len(paths)} {text} {paths[0]}")
    if not tagged.is_written:
        number, of = options.shard
        say(
            f"shard {number} of {of} is done: {tagged.num_images} images in {outputs.parts}; when all are, "
            f"zsmld predict --merge with the work folders of all writes {options.output}"
        )


def _merge(options: argparse.Namespace, outputs: "Outputs") -> int:
    """Shares that were done apart."""
    from zsmld.predictor.collection import merge_parts

    superfluous = [name for name in ("model", "words", "words_file", "shard", "pictures") if getattr(options, name)]
    if superfluous:
        raise ValueError(
            f"--{superfluous[0].replace('_', '-')} must be left out beside --merge, whose work folders know it; give "
            f"the folders and the outputs"
        )
    tagged = merge_parts(options.images, outputs, options.overwrite)
    return _status(tagged.num_unreadable, tagged.num_images)


def _status(num_unreadable: int, num_images: int) -> int:
    if num_unreadable:
        print(f"zsmld predict: {num_unreadable} of {num_images} images could not be read", file=sys.stderr)
    return 1 if num_unreadable else 0


def _images(options: argparse.Namespace) -> str | list[str]:
    """The images, once the settings that stand among them are taken out."""
    from zsmld.cli.training_free import is_scorer_override, is_training_free

    # Settings may stand behind the images or the templates, which take all that follows up to the next option.
    settings = [text for text in options.images if is_scorer_override(text) and not Path(text).exists()]
    settings += [text for text in options.templates or () if is_scorer_override(text) and "{}" not in text]
    options.overrides = settings + options.overrides
    paths = [text for text in options.images if text not in settings]
    if options.templates is not None:
        options.templates = [text for text in options.templates if text not in settings]
    if options.model is None:
        raise ValueError(
            "--model must be given, got none; write the folder of yours, as --model runs/custom/model, a Hub id, or "
            "one that needs no training, as --model clip:ViT-B-16/openai --words dog,beach"
        )
    training_free = is_training_free(options.model)
    if options.overrides and not training_free:
        raise ValueError(
            f"settings must come with --model clip:… or conse:…, got {options.overrides} beside {options.model}, which "
            f"has its own; leave them out"
        )
    if training_free and options.words is None and options.words_file is None:
        raise ValueError(
            f"words must be given with --words or --words-file, {options.model} knows none of its own; write for "
            f"instance --words dog,beach"
        )
    # One path that is not there is a mistake to refuse; one of several is an image that cannot be read.
    return paths[0] if len(paths) == 1 else paths


def _predictor(options: argparse.Namespace) -> "Predictor":
    from zsmld import Predictor
    from zsmld.cli.training_free import open_model
    from zsmld.cli.verbs import words_of
    from zsmld.export import is_exported, load_exported
    from zsmld.vocabulary import read_descriptions

    words = words_of(options.words, options.words_file)
    descriptions = None if options.descriptions is None else read_descriptions(options.descriptions)
    synonyms = None if options.synonyms is None else _mapping(options.synonyms, "--synonyms", list)
    templates = _templates(options.templates)
    if is_exported(options.model):
        model = load_exported(options.model, options.device, options.trust_program)
    else:
        model = open_model(options.model, options.overrides, templates)
    return Predictor(
        model,
        words,
        device=options.device,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        templates=templates,
        descriptions=descriptions,
        calibrated=not options.uncalibrated,
        synonyms=synonyms,
        precision=options.precision,
    )


def _templates(given: list[str] | None) -> list[str] | str | None:
    """The name of a set, or sentences; checked before anything long begins."""
    from zsmld.vocabulary import TEMPLATE_SETS, check_templates

    if given is None:
        return None
    templates = given[0] if len(given) == 1 and given[0] in TEMPLATE_SETS else given
    check_templates(templates)
    return templates


def _thresholds(options: argparse.Namespace) -> tuple[Any, Any]:
    """Threshold and default threshold of `Predictor.predict`."""
    if options.thresholds_file is None:
        return options.threshold, 0.5
    mapping = _mapping(options.thresholds_file, "--thresholds-file", (int, float))
    return mapping, 0.5 if options.threshold is None else options.threshold


def _mapping(path: str, option: str, kind: Any) -> dict[str, Any]:
    wanted = '{"sofa": ["couch", "settee"]}' if kind is list else '{"dog": 0.4}'
    if not Path(path).exists():
        raise FileNotFoundError(f"{option} must be an existing JSON file, not found: {path}; correct the path")
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:  # no JSON, or no UTF-8
        raise ValueError(
            f"{option} must be a JSON file such as {wanted}, {path} is none: {error}; correct it"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, kind) for value in content.values()):
        raise ValueError(f"{option} must be a JSON file such as {wanted}, got {str(content)[:60]}; correct it")
    return content


def _threshold(text: str) -> float | str:
    if text in ("calibrated", "stored"):
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, calibrated or stored, got {text!r}; correct it") from None


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be K/N such as 1/4, got {text!r}")
    return int(found[1]), int(found[2])


def num_workers(text: str) -> int | str:
    """A number of processes, or "auto"."""
    return text if text == "auto" else int(text)
