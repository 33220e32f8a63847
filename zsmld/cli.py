"""The command line: thin, no logic. Each verb opens one door."""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

_WELCOME = """zsmld scores images against any list of words.

  zsmld demo                                             see it work, in a minute, with no network
  zsmld predict photos/ --model MODEL --words dog,beach  tag a folder
  zsmld recipes                                          trainings that come with zsmld
  zsmld train scenes_zsl                                 train one
  zsmld evaluate runs/scenes_zsl/model                   ZSL and GZSL figures, and a report to look at

`zsmld VERB --help` says more, with an example.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: default those of the process.

    Returns:
        Exit status: 0 done, 1 done but some images could not be read, 2 refused.
    """
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if not all(hasattr(options, "overrides") and "=" in text and not text.startswith("-") for text in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # argparse takes a list in one place only; overrides may stand after options as well
        options.overrides += rest
    if options.version:
        from zsmld import __version__

        print(f"zsmld {__version__}")
        return 0
    if options.verb is None:
        print(_WELCOME, end="")
        return 0
    try:
        status: int = options.run(options)
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        sys.stderr.close()
        return 0
    except (ValueError, TypeError, OSError) as error:
        print(f"zsmld {options.verb}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"zsmld {options.verb}: interrupted", file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="zsmld", description="Zero-shot multi-label image classification.")
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")

    def verb(name: str, run: object, description: str, example: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(
            name,
            help=description,
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    demo = verb("demo", _demo, "evaluate the bundled model and show unseen words", "zsmld demo --output runs/demo")
    demo.add_argument("--output", default="runs/demo", help="folder for the report (default: %(default)s)")
    _add_device(demo)

    predict = verb(
        "predict",
        _predict,
        "rank words for images",
        "zsmld predict photos/ --model runs/my_photos/model --words dog,beach,'red car' --output tags.jsonl",
    )
    predict.add_argument("images", nargs="+", help="image files, folders or globs")
    predict.add_argument("--model", required=True, help="model folder or Hub id")
    predict.add_argument("--words", help="words to score, separated by commas; default those of the model")
    predict.add_argument("--words-file", help="the same, one word a line")
    predict.add_argument("--top-k", type=int, default=5, help="words an image (default: %(default)s)")
    predict.add_argument("--threshold", type=float, help="only words with at least this score, in [0, 1]")
    predict.add_argument("--output", help=".jsonl or .csv; default a table on the screen")
    predict.add_argument("--batch-size", type=int, default=32, help="images a batch (default: %(default)s)")
    predict.add_argument("--num-workers", type=int, default=0, help="processes that decode (default: %(default)s)")
    _add_device(predict)

    train = verb("train", _train, "train a recipe", "zsmld train scenes_zsl trainer.epochs=2 --output runs/quick")
    train.add_argument("recipe", help="name of a bundled recipe, or a YAML file")
    train.add_argument("overrides", nargs="*", help="changes such as trainer.lr=2e-4")
    train.add_argument("--output", help="folder for log and model (default: runs/RECIPE)")
    train.add_argument("--print-config", action="store_true", help="print the effective recipe and leave")

    evaluate = verb(
        "evaluate",
        _evaluate,
        "compute ZSL and GZSL figures and write a report",
        "zsmld evaluate runs/scenes_zsl/model --protocol scenes_gzsl --output runs/scenes_zsl/report",
    )
    evaluate.add_argument("model", help="model folder or Hub id")
    evaluate.add_argument("overrides", nargs="*", help="changes of the model's recipe such as dataset.path=my.csv")
    evaluate.add_argument("--protocol", help="default the one of the model's recipe")
    evaluate.add_argument("--split", default="test", help="of the dataset (default: %(default)s)")
    evaluate.add_argument("--samples", type=int, default=12, help="images shown in the report (default: %(default)s)")
    evaluate.add_argument("--output", default="runs/evaluate", help="folder for the report (default: %(default)s)")
    evaluate.add_argument("--batch-size", type=int, default=64, help="images a batch (default: %(default)s)")
    evaluate.add_argument("--num-workers", type=int, default=0, help="processes that decode (default: %(default)s)")
    _add_device(evaluate)

    recipes = verb("recipes", _recipes, "list the bundled recipes, or copy one", "zsmld recipes copy custom")
    recipes.add_argument("action", nargs="?", choices=("list", "copy"), default="list")
    recipes.add_argument("name", nargs="?", help="the recipe to copy here")
    return parser


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")


def _demo(options: argparse.Namespace) -> int:
    from zsmld.demo import run_demo

    run_demo(options.output, device=options.device)
    return 0


def _predict(options: argparse.Namespace) -> int:
    from tqdm.auto import tqdm

    from zsmld import Predictor, ZeroShotClassifier
    from zsmld.predictor import list_images

    if options.words is not None and options.words_file is not None:
        raise ValueError("words must be given once, got --words and --words-file; leave one out")
    words = None  # those of the model
    if options.words is not None:
        words = [word for word in options.words.split(",") if word.strip()]
    if options.words_file is not None:
        lines = Path(options.words_file).read_text(encoding="utf-8-sig").splitlines()
        words = [line for line in lines if line.strip()]
    suffix = Path(options.output).suffix if options.output else ""
    if options.output and suffix not in (".jsonl", ".csv"):
        raise ValueError(f"--output must end in .jsonl or .csv, got {options.output}; rename it")
    # One path that is not there is a mistake to refuse; one of several is an image that cannot be read.
    images = list_images(options.images[0] if len(options.images) == 1 else options.images)
    model = ZeroShotClassifier.from_pretrained(options.model)
    predictor = Predictor(
        model, words, device=options.device, batch_size=options.batch_size, num_workers=options.num_workers
    )
    predictions = predictor.predict(images, top_k=options.top_k, threshold=options.threshold)
    num_unreadable = 0
    with ExitStack() as stack:
        stream: TextIO = sys.stdout
        if options.output:
            Path(options.output).parent.mkdir(parents=True, exist_ok=True)
            stream = stack.enter_context(open(options.output, "w", encoding="utf-8", newline=""))
        table = csv.writer(stream) if suffix == ".csv" else None
        if table is not None:
            table.writerow(["path", "words", "scores", "labels", "error"])
        for p in tqdm(predictions, total=len(images), unit="image", disable=None if options.output else True):
            num_unreadable += p.error is not None
            if table is not None:
                joined = ("|".join(p.words), "|".join(f"{s:.6f}" for s in p.scores), "|".join(map(str, p.labels)))
                table.writerow([p.path, *joined, p.error or ""])
            elif options.output:
                stream.write(json.dumps(p.to_dict(), ensure_ascii=False) + "\n")
            else:
                ranked = "  ".join(f"{word} {score:.2f}" for word, score in zip(p.words, p.scores, strict=True))
                print(f"{p.path}  {p.error or ranked or '(no word reaches the threshold)'}", flush=True)
    if num_unreadable:
        print(f"zsmld predict: {num_unreadable} of {len(images)} images could not be read", file=sys.stderr)
    return 1 if num_unreadable else 0


def _train(options: argparse.Namespace) -> int:
    from zsmld import Evaluator, Recipe

    recipe = Recipe.load(options.recipe, options.overrides)
    if options.print_config:
        print(recipe.to_yaml(), end="")
        return 0
    output = Path(options.output or f"runs/{Path(options.recipe).stem}")
    trainer = recipe.build_trainer(output, progress=True)
    test = recipe.build_dataset("test") if recipe.has_split("test") else None
    protocol = None if test is None else recipe.build_protocol(test.vocabulary)  # what cannot work is refused now
    print(f"train   {trainer.dataset!r}")
    if trainer.heldout:
        print(f"select  by the mAP of {len(trainer.heldout)} held-out seen words on {trainer.val_dataset!r}")
    else:
        print("select  the last epoch: no seen words are held out")
    print(f"model   {trainer.model!r}")
    model = trainer.fit()
    print(f"epoch {trainer.best_epoch} of {trainer.epochs} was selected; model: {output / 'model'}")
    for image_id, error in trainer.unreadable[:10]:
        print(f"left out {image_id}: {error}", file=sys.stderr)
    if test is not None and protocol is not None:
        report = Evaluator(protocol, num_samples=12, progress=True).evaluate(model, test)
        _, page = report.save(output / "report")
        print(f"\n{report.to_text()}\n\nreport: {page}")
    return 1 if trainer.unreadable else 0


def _evaluate(options: argparse.Namespace) -> int:
    from zsmld import Evaluator, Recipe, ZeroShotClassifier

    model = ZeroShotClassifier.from_pretrained(options.model)
    if model.recipe is None:
        raise ValueError(
            f"model {options.model} must name its dataset in its recipe, it has none; use Evaluator in Python"
        )
    recipe = Recipe.from_dict(model.recipe, options.overrides)
    dataset = recipe.build_dataset(options.split)
    evaluator = Evaluator(
        options.protocol or recipe.build_protocol(dataset.vocabulary),
        device=options.device,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        num_samples=options.samples,
        progress=True,
    )
    report = evaluator.evaluate(model, dataset)
    _, page = report.save(options.output)
    print(f"{report.to_text()}\n\nreport: {page}")
    return 1 if report.dataset["num_unreadable"] else 0


def _recipes(options: argparse.Namespace) -> int:
    from zsmld.recipe import recipe_header, recipe_names
    from zsmld.resources import resource_path

    if options.action == "copy":
        if options.name not in recipe_names():
            raise ValueError(f"name must be one of {recipe_names()}, got {options.name!r}; see `zsmld recipes`")
        target = Path(f"{options.name}.yaml")
        if target.exists():
            raise FileExistsError(f"{target} must not exist yet, it does; move it or work in another folder")
        target.write_text(resource_path("configs", target.name).read_text(encoding="utf-8"), encoding="utf-8")
        print(f"{target}  edit it, then: zsmld train {target}")
        return 0
    for name in recipe_names():
        print(name)
        for key, text in recipe_header(name).items():
            print(f"  {key + ':':<17}{text}")
    return 0
