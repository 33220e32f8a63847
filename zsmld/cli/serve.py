"""`zsmld serve`: what stands on the command line, made into a predictor and a page."""

import argparse
import io
import os
import re
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zsmld import ZeroShotClassifier

_NUM_EXAMPLES = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb, but those of every verb that scores."""
    parser.set_defaults(overrides=[])
    parser.add_argument(
        "--model",
        help="model folder, Hub id, clip:ARCH/PRETRAINED or conse:timm:NAME (default: the small model of generated "
        "scenes that comes with zsmld)",
    )
    parser.add_argument("--words", help="words that can be had besides the typed ones; default those of the model")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for other machines too (default: %(default)s)")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another name under which the page may be opened, such as that of a server in front; repeatable",
    )
    parser.add_argument("--port", type=int, default=7860, help="0 takes any that is free (default: %(default)s)")
    parser.add_argument("--max-upload-mb", type=float, default=20, help="size of a file (default: %(default)s)")
    parser.add_argument(
        "--max-pixels", type=int, default=50_000_000, help="width times height of a picture (default: %(default)s)"
    )
    parser.add_argument("--open", action="store_true", help="open the page in this machine's browser")


def serve(options: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C."""
    from zsmld import ZeroShotClassifier
    from zsmld.cli.training_free import is_training_free, open_model
    from zsmld.cli.verbs import words_of
    from zsmld.web import Limits
    from zsmld.web import serve as serve_page

    limits = Limits(options.max_upload_mb, options.max_pixels)
    words = words_of(options.words)
    page: dict[str, Any] = {}
    if options.model is None:
        model = ZeroShotClassifier.from_pretrained("scenes")
        page = _scenes(model)
    elif is_training_free(options.model):
        if words is None:
            raise ValueError(
                f"words must be given with --words, {options.model} knows none of its own; write for instance "
                f"--words dog,beach"
            )
        model = open_model(options.model, options.overrides)
        page = {"about": f"{_shown_name(options.model)}, without training, scores your pictures against any words."}
    else:
        model = open_model(options.model)
        page = {"about": f"{_shown_name(options.model)} scores your pictures against any words."}

    def started(address: str) -> None:
        print(f"zsmld serve: {address}  (Ctrl-C ends it)", flush=True)
        if options.open:
            import webbrowser

            webbrowser.open(address)

    # Until the page answers, SIGTERM does what Ctrl-C does: temporary files go. Then the server takes both.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve_page(
            model, words, options.device, options.host, options.port, limits, options.allow_host,
            on_start=started, **page,
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGTERM, before)
    print("\nzsmld serve: ended")
    return 0


def _shown_name(model: str) -> str:
    """`--model` as visitors may read it: of a path, also at the end of a scorer's name, what it leads to."""
    for start in (0, *(sign.end() for sign in re.finditer("[:/]", model))):
        if os.path.exists(model[start:]):
            return model[:start] + os.path.basename(os.path.abspath(model[start:]))
    return model


def _scenes(model: "ZeroShotClassifier") -> dict[str, Any]:
    """What the page of the bundled model says and shows: scenes with words that it never saw."""
    from zsmld import build_dataset

    scenes = build_dataset("scenes", split="test", num_images=100, image_size=256)
    unseen = scenes.vocabulary.labels(scenes.vocabulary.unseen)
    chosen = [i for i in range(len(scenes)) if scenes.targets[i, unseen].nnz and scenes.targets[i].nnz > 2]
    examples, words = [], dict[str, None]()
    for number in chosen[:_NUM_EXAMPLES]:
        file = io.BytesIO()
        scenes[number]["image"].save(file, "PNG")
        examples.append((f"scene {number}.png", file.getvalue()))
        labels = scenes.targets[number].indices
        words |= dict.fromkeys(scenes.vocabulary.words[j] for j in labels if not scenes.vocabulary.is_seen[j])
    num_trained = 0 if model.vocabulary is None else len(model.vocabulary.seen) - len(model.heldout_words)
    return {
        "about": f"The small model that comes with zsmld: it knows coloured shapes in generated scenes, and no photos. "
        f"It was trained on {num_trained} words; the typed ones below it never saw.",
        "typed": ", ".join(words),
        "examples": examples,
    }
