"""`zsmld import-weights`: other people's checkpoints and word vectors become ours."""

import argparse
import json
from pathlib import Path


def import_weights(options: argparse.Namespace) -> int:
    """Import a checkpoint into a model folder, or word vectors into an `.npz`."""
    output = Path(options.output)
    are_vectors = output.suffix == ".npz"
    if are_vectors:
        _refuse_options_of_checkpoints(options)
    elif options.classes:
        raise ValueError("--classes is for an array of word vectors, and --output of these ends in .npz; use --words")
    if output.exists() and not options.overwrite:
        raise FileExistsError(f"--output {output} must not exist yet, it does; name another or add --overwrite")
    return _import_vectors(options) if are_vectors else _import_checkpoint(options, output)


def _import_checkpoint(options: argparse.Namespace, output: Path) -> int:
    from zsmld.interop import import_weights as import_checkpoint

    named = ("image_encoder", "words", "word_vectors", "num_heads", "image_size", "mean", "std")
    given = {name: value for name in named if (value := getattr(options, name)) is not None}
    if options.model_kwargs is not None:
        given["model_kwargs"] = _as_dict(options.model_kwargs)
    averaged = {"auto": None, "averaged": True, "last": False}[options.weights]
    report = import_checkpoint(options.file, output, averaged=averaged, ignore=options.ignore, **given)
    print(report if options.verbose else report.summary())
    if report.left and not options.verbose:
        print(f"every tensor, and why {len(report.left)} were left out: {output / 'import.txt'}")
    return 0


def _as_dict(text: str) -> dict[str, object]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise ValueError(f"--model-kwargs must be a JSON object such as '{{\"layers\": [3, 4]}}', got {text}; quote it")
    return found


def _refuse_options_of_checkpoints(options: argparse.Namespace) -> None:
    names = ("image_encoder", "word_vectors", "model_kwargs", "num_heads", "image_size", "mean", "std")
    given = [name for name in names if getattr(options, name) is not None]
    given += [name for name, default in (("weights", "auto"), ("ignore", [])) if getattr(options, name) != default]
    if given:
        raise ValueError(
            f"--{given[0].replace('_', '-')} is for a checkpoint, and --output {options.output} asks for word vectors; "
            f"leave it out or name a folder"
        )


def _import_vectors(options: argparse.Namespace) -> int:
    from zsmld.interop import import_word_vectors

    report = import_word_vectors(options.file, options.output, words=options.words, classes=options.classes)
    print(f"{report}\nsaved to {options.output}; it is the text encoder vectors:{options.output}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument(
        "file", help="checkpoint (.pth, .pt, .ckpt, .safetensors, .pdparams), or word vectors in any usual form"
    )
    parser.add_argument("--output", required=True, help="folder for the model; for word vectors a file ending in .npz")
    parser.add_argument("--words", help="file with what the classes are called, in order; of word vectors those wanted")
    parser.add_argument("--classes", help="word vectors: file with the words of an array that has no names")
    parser.add_argument("--word-vectors", help="word mode: the vectors that the head was trained with")
    parser.add_argument("--image-encoder", help="the body, timm:resnet50 for instance, where the file does not tell")
    parser.add_argument("--model-kwargs", metavar="JSON", help="further arguments of its timm model")
    parser.add_argument(
        "--weights",
        choices=("auto", "averaged", "last"),
        default="auto",
        help="of a checkpoint with both: the averaged ones (EMA) or those of the last step (default: averaged)",
    )
    parser.add_argument("--num-heads", type=int, help="attention heads, which no checkpoint stores (default: 8)")
    parser.add_argument("--image-size", type=int, help="pixels (default: what the checkpoint or its code base says)")
    parser.add_argument("--mean", type=float, nargs=3, metavar="M", help="per channel, in [0,1]; likewise")
    parser.add_argument("--std", type=float, nargs=3, metavar="S", help="likewise")
    parser.add_argument("--ignore", action="append", default=[], help="tensors to leave out, 'aux.*'; repeatable")
    parser.add_argument("--overwrite", action="store_true", help="replace the model in --output")
    parser.add_argument("--verbose", action="store_true", help="print what became of every tensor")
