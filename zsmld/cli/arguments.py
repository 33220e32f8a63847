"""Arguments of every verb."""

import argparse
from typing import Any

from zsmld.cli import export as exporting
from zsmld.cli import import_weights as importing
from zsmld.cli import predict as predicting
from zsmld.cli import serve as serving
from zsmld.cli import verbs
from zsmld.cli.teaching import TeachingParser


def parsers_of(parser: argparse.ArgumentParser) -> dict[str, TeachingParser]:
    """The parser of each verb, of what `build_parser` made."""
    choices: Any = next(action.choices for action in parser._actions if action.dest == "verb")
    return dict(choices)


def build_parser() -> TeachingParser:
    """Every verb with its arguments; `options.run(options)` runs the chosen one."""
    parser = TeachingParser(
        prog="zsmld",
        description="Zero-shot multi-label image classification.",
        epilog="example:\n  zsmld demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and leave")
    choices = parser.add_subparsers(dest="verb", metavar="VERB")

    def verb(name: str, run: object, description: str, example: str) -> TeachingParser:
        added = choices.add_parser(
            name,
            help=description,
            description=description,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(run=run)
        return added

    demo = verb("demo", verbs.demo, "evaluate the bundled model and show unseen words", "zsmld demo --output runs/demo")
    demo.add_argument("--output", default="runs/demo", help="folder for the report (default: %(default)s)")
    _add_device(demo)

    predict = verb(
        "predict",
        predicting.predict,
        "rank words for images",
        "zsmld predict photos/ --model scenes --words 'red star','blue ring'\n"
        "  zsmld predict photos/ --model runs/custom/model --words dog,beach,'red car' --output tags.jsonl\n"
        "  zsmld predict 'shards/*.tar' --model runs/custom/model --output tags.parquet --scores-output scores.npy\n"
        "  torchrun --nproc_per_node 8 -m zsmld predict photos/ --model runs/custom/model --output tags.csv\n"
        "  zsmld predict photos/ --words dog,beach --model clip:ViT-B-16/openai scorer.views=global\n"
        "  zsmld predict photos/ --words dog,beach --model conse:timm:resnet50.a1_in1k scorer.top_positions=3\n\n"
        "Repeated after an interruption, the same command goes on where it stopped. The exit status is 0, 1 if some\n"
        "images could not be read, 2 if it was refused, 130 if it was interrupted; see docs/tagging.md.\n\n"
        "clip: and conse: need no training. image_encoder.…=…, scorer.…=… and text_encoder=… at the end change them,\n"
        "see docs/training_free.md.",
    )
    predicting.add_arguments(predict)
    predict.add_argument("--batch-size", type=int, default=32, help="images a batch (default: %(default)s)")
    predict.add_argument(
        "--num-workers",
        type=predicting.num_workers,
        default="auto",
        help="processes that decode; auto by machine (default: %(default)s)",
    )
    _add_device(predict)

    train = verb(
        "train",
        verbs.train,
        "train a recipe, on one device or many",
        "zsmld train scenes_zsl trainer.epochs=2 --output runs/quick\n"
        "  zsmld train coco_zsl_48_17 dataset.path=prepared/coco --resume\n"
        "  torchrun --nproc_per_node 8 -m zsmld train nus_wide_zsl trainer.precision=bf16",
    )
    train.add_argument("recipe", help="name of a bundled recipe, or a YAML file")
    train.add_argument("overrides", nargs="*", default=[], help="changes such as trainer.lr=2e-4")
    train.add_argument("--output", help="folder for log and model (default: runs/RECIPE)")
    train.add_argument(
        "--resume", action="store_true", help="go on from the checkpoint in --output, if there is one; else start"
    )
    train.add_argument("--print-config", action="store_true", help="print the effective recipe and leave")

    evaluate = verb(
        "evaluate",
        verbs.evaluate,
        "compute ZSL and GZSL figures of a model, or of anyone's predictions, and write a report",
        "zsmld evaluate scenes\n"
        "  zsmld evaluate runs/scenes_zsl/model --protocol scenes_gzsl --output runs/scenes_zsl/report\n"
        "  zsmld evaluate --scores S.npy --targets T.npy --protocol nus_wide_gzsl --output report.json\n"
        "  zsmld evaluate --logits S.parquet --targets prepared/nus_wide --protocol nus_wide_gzsl "
        "protocol.keep_unlabelled=false\n"
        "  zsmld evaluate clip:ViT-B-16/openai dataset.name=prepared dataset.path=prepared/coco "
        "dataset.partition=48_17 --protocol coco_gzsl_48_17\n"
        "  zsmld evaluate conse:timm:resnet50.a1_in1k dataset.name=scenes --protocol gzsl scorer.views=global",
    )
    evaluate.add_argument(
        "model",
        nargs="?",
        help="model folder, Hub id, clip:ARCH/PRETRAINED, conse:timm:NAME, or scenes, the small one that comes with "
        "zsmld; none with --scores or --logits",
    )
    evaluate.add_argument(
        "overrides",
        nargs="*",
        default=[],
        help="changes of the model's recipe such as dataset.path=my.csv, of policies such as protocol.top_k=[1,3], and "
        "of a training-free model such as scorer.views=global",
    )
    made = evaluate.add_mutually_exclusive_group()
    made.add_argument("--scores", help="predictions in [0,1]: .npy, .npz, .pt, .parquet, .csv or .tsv")
    made.add_argument("--logits", help="predictions that are any real numbers, likewise")
    evaluate.add_argument("--targets", help="1 present, 0 absent, -1 unknown: such a file, or a prepared index")
    evaluate.add_argument(
        "--partition",
        help="JSON file with the seen and unseen words, or a partition of the prepared index (default: the protocol's)",
    )
    evaluate.add_argument("--words-file", help="words of the columns of a file without words, one a line")
    evaluate.add_argument("--external-knowledge", action="append", default=[], help="stated in the report; repeatable")
    evaluate.add_argument("--protocol", help="default the one of the model's recipe")
    evaluate.add_argument("--split", default="test", help="of the dataset (default: %(default)s)")
    evaluate.add_argument("--samples", type=int, default=12, help="images shown in the report (default: %(default)s)")
    evaluate.add_argument("--published", action="store_true", help="print published figures of the protocol beside")
    evaluate.add_argument(
        "--output", default="runs/evaluate", help="folder, or a .json file, for the report (default: %(default)s)"
    )
    _add_scoring(evaluate, batch_size=64)

    calibrate = verb(
        "calibrate",
        verbs.calibrate,
        "choose thresholds, and the constant between seen and unseen words, on held-out seen words",
        "zsmld calibrate runs/custom/model --objective precision=0.9\n"
        "  zsmld predict photos/ --model runs/custom/model --threshold calibrated",
    )
    calibrate.add_argument("model", help="model folder")
    calibrate.add_argument(
        "overrides", nargs="*", default=[], help="changes of the model's recipe such as dataset.path=my.csv"
    )
    calibrate.add_argument("--split", default="val", help="images to calibrate on (default: %(default)s)")
    calibrate.add_argument(
        "--use-test-images", action="store_true", help="allow --split test, whose figures are then no longer fair"
    )
    calibrate.add_argument(
        "--objective", default="f1", help="of the thresholds: f1, or precision=0.9 (default: %(default)s)"
    )
    calibrate.add_argument(
        "--standardization",
        choices=("auto", "none", "per_image", "per_word", "both"),
        default="auto",
        help="of the logits, before anything else (default: %(default)s, by held-out words)",
    )
    calibrate.add_argument(
        "--stacking-for",
        choices=("harmonic_mean", "f1"),
        default="harmonic_mean",
        help="the constant for unseen words has the best of this, at the best K words (default: %(default)s)",
    )
    calibrate.add_argument("-k", type=int, default=3, help="words an image for the constant (default: %(default)s)")
    calibrate.add_argument(
        "--transductive", action="store_true", help="statistics from the very images that are scored; labelled so"
    )
    calibrate.add_argument("--output", help="folder for the calibrated model (default: the model's own folder)")
    _add_scoring(calibrate, batch_size=64)

    prepare = verb(
        "prepare",
        verbs.prepare,
        "check a download and write one index of it, which opens at once",
        "zsmld prepare nus_wide --root NUS-WIDE --output prepared/nus_wide --missing-images drop\n"
        "  zsmld prepare coco --root coco --output prepared/coco year=2014",
    )
    prepare.add_argument("dataset", help="nus_wide, coco, open_images, voc, table, folder or image_list")
    prepare.add_argument(
        "overrides", nargs="*", default=[], help="options of the dataset such as year=2014; see --options"
    )
    prepare.add_argument("--options", action="store_true", help="explain the dataset's options and leave")
    prepare.add_argument("--root", help="where it was downloaded to: a folder, or a table's file")
    prepare.add_argument("--output", help="folder for rows.parquet and manifest.json")
    prepare.add_argument(
        "--missing-images",
        choices=("error", "drop"),
        default="error",
        help="refuse a download that lacks images, or use the others and list these (default: %(default)s)",
    )
    prepare.add_argument("--decode", type=int, default=64, help="images tried at random (default: %(default)s)")

    compare = verb(
        "compare",
        verbs.compare,
        "is one report better than another? paired bootstrap over images",
        "zsmld compare runs/a/report runs/b/report --output comparison.md",
    )
    compare.add_argument("a", help="report.json, or its folder; report.npz must stand beside it")
    compare.add_argument("b", help="likewise; differences are b − a")
    compare.add_argument("--resamples", type=int, default=1000, help="of the images (default: %(default)s)")
    compare.add_argument("--seed", type=int, default=0, help="of the resamples (default: %(default)s)")
    compare.add_argument("--confidence", type=float, default=0.95, help="of the intervals (default: %(default)s)")
    compare.add_argument("--words", type=int, default=10, help="words that moved most (default: %(default)s)")
    compare.add_argument(
        "--allow-different", action="store_true", help="compare the common images and words of different reports"
    )
    compare.add_argument("--output", help=".md or .json; default the screen alone")

    import_weights = verb(
        "import-weights",
        importing.import_weights,
        "turn a checkpoint of another ML-Decoder, or word vectors of any form, into ours",
        "zsmld import-weights tresnet_l_coco.pth --words coco.txt --output models/tresnet_l_coco\n"
        "  zsmld import-weights model_best.pth.tar --image-encoder timm:resnet50 --output models/mine\n"
        "  zsmld import-weights ResNet50_ml_decoder.pdparams --output models/paddle\n"
        "  zsmld import-weights glove.6B.300d.txt --words words.txt --output vectors.npz\n"
        "  zsmld import-weights wordvec_array.npy --classes classes.txt --output vectors.npz\n\n"
        "Nothing in a file is run. Every tensor is accounted for in import.txt; what does not fit is listed and\n"
        "nothing is written. See docs/migrate_weights.md.",
    )
    importing.add_arguments(import_weights)

    serve = verb(
        "serve",
        serving.serve,
        "a page in the browser: drop pictures, type words, see scores and where the model looked",
        "zsmld serve\n  zsmld serve --model runs/custom/model --port 8000 --open\n"
        "  zsmld serve --model clip:ViT-B-16/openai --words dog,beach",
    )
    serving.add_arguments(serve)
    _add_device(serve)

    export = verb(
        "export",
        exporting.export,
        "write a model as ONNX, torch.export or AOTInductor, and check it against PyTorch",
        "zsmld export runs/custom/model --output exported\n"
        "  zsmld export runs/custom/model --output exported --words dog,beach,'red car' --include-preprocessing\n"
        "  zsmld export runs/custom/model --output exported --frozen --precision int8 --calibration-images photos/\n"
        "  zsmld predict photos/ --model exported",
    )
    exporting.add_arguments(export)

    recipes = verb("recipes", verbs.recipes, "list the bundled recipes, or copy one", "zsmld recipes copy custom")
    recipes.add_argument("action", nargs="?", choices=("list", "copy"), default="list")
    recipes.add_argument("name", nargs="?", help="the recipe to copy here")
    return parser


def _add_scoring(parser: argparse.ArgumentParser, batch_size: int) -> None:
    parser.add_argument("--batch-size", type=int, default=batch_size, help="images a batch (default: %(default)s)")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that decode (default: %(default)s)")
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: %(default)s)")
