"""`zsmld export`: what stands on the command line, made into a call of `export_model`."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the verb."""
    parser.add_argument(
        "model",
        help="model folder, Hub id, clip:ARCH/PRETRAINED, conse:timm:NAME, or scenes, the small one that comes with "
        "zsmld",
    )
    parser.add_argument("--output", required=True, help="folder for the export; it must be free")
    parser.add_argument("--words", help="words to freeze, separated by commas; default none: words are an input")
    parser.add_argument("--words-file", help="the same, one word a line")
    parser.add_argument("--frozen", action="store_true", help="freeze the words of the model, with their synonyms")
    parser.add_argument(
        "--format",
        default="onnx",
        help="onnx, torch_export, or aot_inductor, which needs a C++ compiler (default: %(default)s)",
    )
    parser.add_argument("--precision", default="fp32", help="fp32, fp16, or int8 of onnx (default: %(default)s)")
    parser.add_argument(
        "--calibration-images",
        help="for int8: folder of typical photos, 128 are plenty; without, convolutions stay in fp32",
    )
    parser.add_argument(
        "--include-preprocessing", action="store_true", help="the model takes uint8 pixels and normalises inside"
    )
    parser.add_argument("--uncalibrated", action="store_true", help="scores as the network gives them")
    parser.add_argument("--opset", type=int, help="of onnx; default the exporter's")
    parser.add_argument("--no-verify", action="store_true", help="do not run the file and compare it with PyTorch")
    parser.add_argument("--overwrite", action="store_true", help="replace an export that is there")
    parser.add_argument(
        "--device", default="cpu", help="cpu, or cuda to compile for it with aot_inductor (default: %(default)s)"
    )


def export(options: argparse.Namespace) -> int:
    """Write a model for other programs."""
    from zsmld.cli.training_free import open_model
    from zsmld.cli.verbs import words_of
    from zsmld.export import export_model

    given = [name for name in ("words", "words_file", "frozen") if getattr(options, name)]
    if len(given) > 1:
        names = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ValueError(f"words must be given once, got {names}; leave one out")
    words = "stored" if options.frozen else words_of(options.words, options.words_file)
    report = export_model(
        open_model(options.model),
        options.output,
        words=words,
        format=options.format,
        precision=options.precision,
        include_preprocessing=options.include_preprocessing,
        calibrated=not options.uncalibrated,
        calibration_images=options.calibration_images,
        opset=options.opset,
        device=options.device,
        verify=not options.no_verify,
        overwrite=options.overwrite,
    )
    print(report.to_text())
    trust = "" if options.format == "onnx" else " --trust-program"
    print(f"\nuse it: zsmld predict PHOTOS --model {options.output}{trust}")
    return 0
