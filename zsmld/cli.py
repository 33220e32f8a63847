"""The command line: thin, no logic. Each verb opens one door."""

import argparse
import csv
import json
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from zsmld.report import Report

_WELCOME = """zsmld scores images against any list of words.

  zsmld demo                                             see it work, in a minute, with no network
  zsmld predict photos/ --model MODEL --words dog,beach  tag a folder
  zsmld recipes                                          trainings that come with zsmld
  zsmld train scenes_zsl                                 train one
  zsmld evaluate runs/scenes_zsl/model                   ZSL and GZSL figures, and a report to look at
  zsmld prepare nus_wide --root NUS-WIDE --output FOLDER check a download of a dataset, and index it

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
        with warnings.catch_warnings():  # a sentence, without the line of code that said it
            warnings.showwarning = lambda message, *_, **__: print(f"zsmld {options.verb}: {message}", file=sys.stderr)
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
        "compute ZSL and GZSL figures of a model, or of anyone's predictions, and write a report",
        "zsmld evaluate runs/scenes_zsl/model --protocol scenes_gzsl --output runs/scenes_zsl/report\n"
        "  zsmld evaluate --scores S.npy --targets T.npy --protocol nus_wide_gzsl --output report.json\n"
        "  zsmld evaluate --logits S.parquet --targets prepared/nus_wide --protocol nus_wide_gzsl "
        "protocol.keep_unlabelled=false",
    )
    evaluate.add_argument("model", nargs="?", help="model folder or Hub id; none with --scores or --logits")
    evaluate.add_argument(
        "overrides",
        nargs="*",
        help="changes of the model's recipe such as dataset.path=my.csv, and of policies such as protocol.top_k=[1,3]",
    )
    made = evaluate.add_mutually_exclusive_group()
    made.add_argument("--scores", help="predictions in [0,1]: .npy, .npz, .pt, .parquet, .csv or .tsv")
    made.add_argument("--logits", help="predictions that are any real numbers, likewise")
    evaluate.add_argument("--targets", help="1 present, 0 absent, -1 unknown: such a file, or a prepared index")
    evaluate.add_argument("--partition", help="JSON file with the seen and unseen words (default: the protocol's)")
    evaluate.add_argument("--words-file", help="words of the columns of a file without words, one a line")
    evaluate.add_argument("--external-knowledge", action="append", default=[], help="stated in the report; repeatable")
    evaluate.add_argument("--protocol", help="default the one of the model's recipe")
    evaluate.add_argument("--split", default="test", help="of the dataset (default: %(default)s)")
    evaluate.add_argument("--samples", type=int, default=12, help="images shown in the report (default: %(default)s)")
    evaluate.add_argument("--published", action="store_true", help="print published figures of the protocol beside")
    evaluate.add_argument(
        "--output", default="runs/evaluate", help="folder, or a .json file, for the report (default: %(default)s)"
    )
    evaluate.add_argument("--batch-size", type=int, default=64, help="images a batch (default: %(default)s)")
    evaluate.add_argument("--num-workers", type=int, default=0, help="processes that decode (default: %(default)s)")
    _add_device(evaluate)

    prepare = verb(
        "prepare",
        _prepare,
        "check a download and write one index of it, which opens at once",
        "zsmld prepare nus_wide --root NUS-WIDE --output prepared/nus_wide --missing-images drop\n"
        "  zsmld prepare coco --root coco --output prepared/coco year=2014",
    )
    prepare.add_argument("dataset", help="nus_wide, coco, open_images, voc, table, folder or image_list")
    prepare.add_argument("overrides", nargs="*", help="options of the dataset such as year=2014")
    prepare.add_argument("--root", required=True, help="where it was downloaded to: a folder, or a table's file")
    prepare.add_argument("--output", required=True, help="folder for rows.parquet and manifest.json")
    prepare.add_argument(
        "--missing-images",
        choices=("error", "drop"),
        default="error",
        help="refuse a download that lacks images, or use the others and list these (default: %(default)s)",
    )
    prepare.add_argument("--decode", type=int, default=64, help="images tried at random (default: %(default)s)")

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
    from zsmld.recipe import has_split

    recipe = Recipe.load(options.recipe, options.overrides)
    if options.print_config:
        print(recipe.to_yaml(), end="")
        return 0
    output = Path(options.output or f"runs/{Path(options.recipe).stem}")
    trainer = recipe.build_trainer(output, progress=True)
    test = recipe.build_dataset("test") if has_split(trainer.dataset, "test") else None
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
    report = _evaluate_predictions(options) if options.scores or options.logits else _evaluate_model(options)
    if report is None:  # another process writes it
        return 0
    _, page = report.save(options.output)
    print(f"{report.to_text(published=options.published)}\n\nreport: {page}")
    return 1 if report.dataset["num_unreadable"] else 0


def _evaluate_model(options: argparse.Namespace) -> "Report | None":
    import os

    from zsmld import Evaluator, Recipe, ZeroShotClassifier

    if options.model is None:
        raise ValueError("model must be given, or --scores or --logits with --targets; see zsmld evaluate --help")
    model = ZeroShotClassifier.from_pretrained(options.model)
    if model.recipe is None:
        raise ValueError(
            f"model {options.model} must name its dataset in its recipe, it has none; use Evaluator in Python"
        )
    protocol = [f"protocol.name={options.protocol}"] if options.protocol else []
    recipe = Recipe.from_dict(model.recipe, [*options.overrides, *protocol])
    dataset = recipe.build_dataset(options.split)
    main = True
    if "WORLD_SIZE" in os.environ:  # torchrun or accelerate launch: each process scores its share
        from accelerate import PartialState

        main = PartialState(cpu=options.device == "cpu").is_main_process
    evaluator = Evaluator(
        recipe.build_protocol(dataset.vocabulary),
        device=options.device,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        num_samples=options.samples,
        progress=main,
    )
    report = evaluator.evaluate(model, dataset)
    return report if main else None


def _evaluate_predictions(options: argparse.Namespace) -> "Report":
    from dataclasses import replace

    from zsmld import Evaluator, Vocabulary
    from zsmld.datasets import Index, read_partition
    from zsmld.evaluator import Matrix, read_matrix
    from zsmld.recipe import protocol_from

    if options.model is not None and "=" in options.model:  # the first override stands where a model could
        options.overrides.insert(0, options.model)
        options.model = None
    if options.model is not None or not options.targets or not options.protocol:
        raise ValueError("--scores and --logits must come with --targets and --protocol, and without a model")
    scores = read_matrix(options.scores or options.logits)
    name = Path(options.targets).stem
    if Path(options.targets).is_dir():
        dataset = Index.open(options.targets).dataset(options.split, options.partition)
        targets, name, vocabulary = Matrix.of_dataset(dataset), dataset.name, dataset.vocabulary
    else:
        targets, vocabulary = read_matrix(options.targets), None
    if options.words_file:
        lines = Path(options.words_file).read_text(encoding="utf-8-sig").splitlines()
        words = tuple(line.strip() for line in lines if line.strip())
        scores, targets = (m if m.words else replace(m, words=words) for m in (scores, targets))
    if options.partition and vocabulary is None:
        seen, unseen = read_partition(options.partition)
        vocabulary = Vocabulary([*seen, *unseen], seen=seen)
    return Evaluator(protocol_from(options.protocol, options.overrides)).evaluate_predictions(
        scores,
        targets,
        "scores" if options.scores else "logits",
        vocabulary,
        external_knowledge=options.external_knowledge,
        dataset=name,
        split=options.split,
    )


def _prepare(options: argparse.Namespace) -> int:
    from zsmld.datasets import prepare
    from zsmld.recipe import reader_options

    index = prepare(
        options.dataset,
        options.root,
        options.output,
        missing_images=options.missing_images,
        num_decoded=options.decode,
        **reader_options(options.dataset, options.overrides),
    )
    print(index.to_text())
    print(f"\nwrote {options.output}: rows.parquet, manifest.json")
    print(f"recipe: dataset: {{name: prepared, path: {options.output}}}")
    return 0


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
