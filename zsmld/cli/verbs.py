"""What each verb does: it opens one door and prints."""

import argparse
import json
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from zsmld.cli.teaching import near
from zsmld.writing import check_folder, to_the_end, written_whole

if TYPE_CHECKING:
    from zsmld.report import Report


def demo(options: argparse.Namespace) -> int:
    """Evaluate the bundled model."""
    from zsmld.demo import run_demo
    from zsmld.report import report_path

    check_folder(report_path(options.output).parent)
    run_demo(options.output, device=options.device)
    return 0


def train(options: argparse.Namespace) -> int:
    """Train a recipe."""
    from zsmld import Evaluator
    from zsmld.model import model_card
    from zsmld.recipe import Recipe, has_split
    from zsmld.trainer import TrainingStopped

    recipe = Recipe.load(options.recipe, options.overrides)
    if options.print_config:
        print(recipe.to_yaml(), end="")
        return 0
    main = _is_main_process(recipe.trainer.get("device", "auto"))
    say = print if main else _say_nothing
    output = Path(options.output or f"runs/{Path(options.recipe).stem}")
    check_folder(output)
    trainer = recipe.build_trainer(output, progress=True)
    test = recipe.build_dataset("test") if has_split(trainer.dataset, "test") else None
    protocol = None if test is None else recipe.build_protocol(test.vocabulary)  # what cannot work is refused now
    if main:
        output.mkdir(parents=True, exist_ok=True)
        with to_the_end(output / "recipe.yaml"), written_whole(output / "recipe.yaml") as path:
            path.write_text(recipe.to_yaml(), encoding="utf-8")
    say(f"train   {trainer.dataset!r}")
    say(f"select  {trainer.selection_text()}")
    say(f"model   {trainer.model!r}")
    try:
        model = trainer.fit(resume=options.resume)
    except TrainingStopped as stopped:
        if main:
            print(f"zsmld train: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    say(f"epoch {trainer.best_epoch} of {trainer.epochs} was selected; model: {output / 'model'}")
    if main and trainer.unreadable:
        print(f"{len(trainer.unreadable)} images could not be read: {output / 'unreadable.csv'}", file=sys.stderr)
        for image_id, error in trainer.unreadable[:10]:
            print(f"left out {image_id}: {error}", file=sys.stderr)
    report = None
    if test is not None and protocol is not None:
        report = Evaluator(protocol, num_samples=12, progress=main, device=trainer.device).evaluate(model, test)
        if main:
            _, page = report.save(output / "report")
            print(f"\n{report.to_text()}\n\nreport: {page}")
    if main:
        model_card(model, report).save(output / "model" / "README.md")
    # Only the main process says so: a launcher ends all others as soon as one fails, and this one writes the report.
    return 1 if main and trainer.unreadable else 0


def _is_main_process(device: str) -> bool:
    """Whether this process speaks; under torchrun or accelerate launch each process does a share of the work."""
    import os

    if "WORLD_SIZE" not in os.environ:
        return True
    from accelerate import PartialState

    return bool(PartialState(cpu=device == "cpu").is_main_process)


def _say_nothing(*_: object) -> None:
    """`print` of the other processes."""


def evaluate(options: argparse.Namespace) -> int:
    """Figures of a model, or of predictions."""
    from zsmld.report import report_path

    check_folder(report_path(options.output).parent)
    report = _evaluate_predictions(options) if options.scores or options.logits else _evaluate_model(options)
    if report is None:  # another process writes it
        return 0
    _, page = report.save(options.output)
    aligned_by = report.dataset.get("aligned_by", {})
    for what in ("images", "words"):
        if aligned_by.get(what) == "position":
            order = f": {aligned_by['order_of_words']}" if what == "words" else ""
            print(f"note: {what} are taken in the order of the files, which have no names{order}", file=sys.stderr)
    print(f"{report.to_text(published=options.published)}\n\nreport: {page}")
    return 1 if report.dataset["num_unreadable"] else 0


def _evaluate_model(options: argparse.Namespace) -> "Report | None":
    from zsmld import Evaluator, ZeroShotClassifier
    from zsmld.cli.training_free import build_scorer, evaluation_recipe, is_training_free
    from zsmld.recipe import Recipe

    for name in ("targets", "partition", "words_file"):
        if getattr(options, name):
            raise ValueError(
                f"--{name.replace('_', '-')} must come with --scores or --logits, got it beside a model; a model is "
                f"evaluated on the dataset of its recipe, change that with dataset.…=…"
            )
    if options.model is None:
        raise ValueError("model must be given, or --scores or --logits with --targets; see zsmld evaluate --help")
    model = None if is_training_free(options.model) else ZeroShotClassifier.from_pretrained(options.model)
    settings: list[str] = []
    if model is None or model.recipe is None:
        recipe, settings = evaluation_recipe(options.model, options.overrides, options.protocol)
    else:
        protocol = [f"protocol.name={options.protocol}"] if options.protocol else []
        recipe = Recipe.from_dict(model.recipe, [*options.overrides, *protocol])
    dataset = recipe.build_dataset(options.split)
    main = _is_main_process(options.device)
    evaluator = Evaluator(
        recipe.build_protocol(dataset.vocabulary),
        device=options.device,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        num_samples=options.samples,
        progress=main,
    )
    if model is None:
        model = build_scorer(options.model, settings, dataset.vocabulary.templates)
    report = evaluator.evaluate(model, dataset)
    report.external_knowledge += options.external_knowledge
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
    protocol = protocol_from(options.protocol, options.overrides)
    scores = read_matrix(options.scores or options.logits)
    name = Path(options.targets).stem
    if Path(options.targets).is_dir():
        index = Index.open(options.targets)
        dataset = index.dataset(options.split, options.partition or index.partition_of(protocol))
        targets, name, vocabulary = Matrix.of_dataset(dataset), dataset.name, dataset.vocabulary
    else:
        targets, vocabulary = read_matrix(options.targets), None
    if options.words_file:
        words = tuple(lines_of(options.words_file))
        scores, targets = (
            m if m.words else replace(m, words=words, words_from=options.words_file) for m in (scores, targets)
        )
    if options.partition and vocabulary is None:
        seen, unseen = read_partition(options.partition)
        vocabulary = Vocabulary([*seen, *unseen], seen=seen)
    return Evaluator(protocol).evaluate_predictions(
        scores,
        targets,
        "scores" if options.scores else "logits",
        vocabulary,
        external_knowledge=options.external_knowledge,
        dataset=name,
        split=options.split,
    )


def lines_of(path: str) -> list[str]:
    """The lines of `--words-file` that are not empty, without the blanks around them."""
    if not Path(path).exists() or Path(path).is_dir():  # a pipe will do
        raise FileNotFoundError(f"--words-file must be an existing text file, not found: {path}; correct the path")
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--words-file must be a UTF-8 text file, {path} is not: {error}; convert it") from error
    return [line.strip() for line in lines if line.strip()]


def words_of(words: str | None, words_file: str | None = None) -> list[str] | None:
    """The words of `--words`, or of `--words-file`; None for those of the model.

    Raises:
        ValueError: if both are given.
    """
    if words is not None and words_file is not None:
        raise ValueError("words must be given once, got --words and --words-file; leave one out")
    if words is not None:
        return [word for word in words.split(",") if word.strip()]
    return None if words_file is None else lines_of(words_file)


def calibrate(options: argparse.Namespace) -> int:
    """Choose a calibration and store it with the model."""
    if options.output:
        check_folder(options.output)
    from zsmld import ZeroShotClassifier
    from zsmld.calibration import calibrate as choose
    from zsmld.model.hub import is_elsewhere
    from zsmld.recipe import Recipe

    if is_elsewhere(options.model) and not options.output:
        raise ValueError(
            f"--output must be given with the model {options.model}, which is no folder of yours; name one for the "
            f"calibrated model"
        )
    model = ZeroShotClassifier.from_pretrained(options.model)
    if model.recipe is None:
        raise ValueError(f"model {options.model} must name its dataset in its recipe, it has none; use calibrate()")
    recipe = Recipe.from_dict(model.recipe, options.overrides)
    calibration = choose(
        model,
        recipe.build_dataset(options.split),
        use_test_images=options.use_test_images,
        device=options.device,
        batch_size=options.batch_size,
        num_workers=options.num_workers,
        standardization=options.standardization,
        objective=options.objective,
        stacking_for=options.stacking_for,
        k=options.k,
        transductive=options.transductive,
    )
    model.calibration = calibration.to_dict()
    if options.output:
        model.save_pretrained(options.output)
    else:
        model.save_config(options.model)
    summary = calibration.summary()
    chosen_on = summary.pop("chosen_on", {})
    for key, value in (summary | {f"chosen on {key}": value for key, value in chosen_on.items()}).items():
        if not isinstance(value, dict):
            shown = ", ".join(value) if isinstance(value, (list, tuple)) else value
            print(f"{key.replace('_', ' '):<28}{f'{shown:.4g}' if isinstance(shown, float) else shown}")
    for name, figures in chosen_on.get("candidates", {}).items():
        print(f"  {name:<26}{', '.join(f'{key} {100 * value:.1f}' for key, value in figures.items())}")
    print(f"\ncalibrated model: {options.output or options.model}")
    return 0


def compare(options: argparse.Namespace) -> int:
    """Paired bootstrap of two reports."""
    from zsmld.report import compare as compare_reports

    suffix = Path(options.output).suffix if options.output else ""
    if options.output and suffix not in (".md", ".json"):
        raise ValueError(f"--output must end in .md or .json, got {options.output}; rename it")
    if options.output:
        check_folder(Path(options.output).parent, of_file=True)
    comparison = compare_reports(
        options.a,
        options.b,
        num_resamples=options.resamples,
        seed=options.seed,
        confidence=options.confidence,
        allow_different=options.allow_different,
    )
    print(comparison.to_text(num_words=options.words))
    if options.output:
        content = json.dumps(comparison.to_dict(), indent=1) + "\n"
        output = Path(options.output)
        output.parent.mkdir(parents=True, exist_ok=True)
        with to_the_end(output), written_whole(output) as path:
            path.write_text(content if suffix == ".json" else comparison.to_markdown(options.words), encoding="utf-8")
        print(f"\ncomparison: {options.output}")
    return 0


def prepare(options: argparse.Namespace) -> int:
    """Check a download and index it."""
    import inspect

    from zsmld.datasets import READERS
    from zsmld.datasets import prepare as prepare_index
    from zsmld.recipe import reader_options

    known = reader_options(options.dataset, options.overrides)
    if options.options:
        print(inspect.getdoc(READERS[options.dataset]))
        return 0
    if not options.root or not options.output:
        raise ValueError("--root and --output must be given: where the download is, and where the index goes")
    check_folder(options.output)
    index = prepare_index(
        options.dataset,
        options.root,
        options.output,
        missing_images=options.missing_images,
        num_decoded=options.decode,
        **known,
    )
    print(index.to_text())
    print(f"\nwrote {options.output}: rows.parquet, manifest.json")
    print(f"recipe: dataset: {{name: prepared, path: {options.output}}}")
    return 0


def recipes(options: argparse.Namespace) -> int:
    """List the bundled recipes, or copy one."""
    from zsmld.recipe import recipe_header, recipe_names
    from zsmld.resources import resource_path

    if options.action == "copy":
        if options.name not in recipe_names():
            similar = near(options.name or "", recipe_names())
            asked = f"did you mean {similar[0]}? " if similar else ""
            raise ValueError(
                f"name must be a bundled recipe's, got {options.name or 'none'}; {asked}`zsmld recipes` lists them"
            )
        target = Path(f"{options.name}.yaml")
        if target.exists():
            raise FileExistsError(f"{target} must not exist yet, it does; move it or work in another folder")
        target.write_text(resource_path("configs", target.name).read_text(encoding="utf-8"), encoding="utf-8")
        print(f"{target}  edit it, then: zsmld train {target}")
        return 0
    width = min(shutil.get_terminal_size().columns, 120)
    for name in recipe_names():
        print(name)
        for key in ("expected result", "cost", "command"):
            print(
                textwrap.fill(
                    recipe_header(name)[key], width, initial_indent=f"  {key + ':':<17}", subsequent_indent=" " * 19
                )
            )
    print("\n`zsmld recipes copy NAME` gives you your own, `zsmld train NAME --print-config` shows every option.")
    return 0
