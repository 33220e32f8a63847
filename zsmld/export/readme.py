"""README.md of an exported folder."""

from zsmld.export.folder import ExportSettings, describe_preprocessing
from zsmld.export.formats import FILES
from zsmld.export.verification import ExportReport
from zsmld.export.vocabulary import FrozenWords
from zsmld.model import ZeroShotClassifier


def readme(
    model: ZeroShotClassifier, settings: ExportSettings, report: ExportReport, frozen: FrozenWords | None
) -> str:
    """The text."""
    file, how = (
        FILES[settings.format],
        describe_preprocessing(model.image_encoder.transform, settings.include_preprocessing),
    )
    size, kind = how["image_size"], "uint8" if settings.include_preprocessing else "float32"
    inputs = [f"| input | `images` | {kind} (B, 3, {size}, {size}) | {how['input']} |"]
    dim = model.decoder.text_dim
    if frozen is None and model.decoder.descriptions == "mean":
        inputs.append(f"| input | `word_embeddings` | float32 (N, {dim}) | one row a word, by {model.text_encoder} |")
    elif frozen is None:
        inputs.append(
            f"| input | `word_embeddings` | float32 (N, K, {dim}) | K descriptions a word, zero where fewer |"
        )
        inputs.append("| input | `mask` | bool (N, K) | which descriptions there are |")
    columns = "N" if frozen is None else len(frozen.columns)
    num_words = "N" if frozen is None else len(frozen.words)
    outputs = [
        f"| output | `logits` | float32 (B, {columns}) | `columns` of words.json, in their order |",
        f"| output | `scores` | float32 (B, {num_words}) | `words` of words.json, in [0, 1]; see `scores_are` |",
    ]
    if frozen is None:
        outputs[0] = "| output | `logits` | float32 (B, N) | one column a word |"
        outputs[1] = "| output | `scores` | float32 (B, N) | the same in [0, 1] |"
    trust = "" if settings.format == "onnx" else " --trust-program"
    parts = [
        "# A zero-shot multi-label image classifier, exported by zsmld",
        report.to_text().partition(": ")[2],
        "\n".join(["| | name | type | meaning |", "|---|---|---|---|", *inputs, *outputs]),
        "B, the number of images, may be any." + (" So may N, the number of words." if frozen is None else ""),
        f"`preprocessing.json` says how a photo becomes `images`. {_scores(model, frozen)}",
        "Use it with zsmld, which gives records, tables and pictures:",
        f"```\nzsmld predict photos/ --model THIS_FOLDER --output tags.jsonl{trust}\n```",
    ]
    if settings.format == "onnx" and (frozen is not None or model.vocabulary is not None):
        parts += ["Without zsmld:", "```\npip install numpy pillow onnxruntime\npython score.py PHOTO ...\n```"]
    elif settings.format != "onnx":
        load = (
            f'torch.export.load("{file}").module()'
            if settings.format == "torch_export"
            else f'torch._inductor.aoti_load_package("{file}")'
        )
        more = [f"torch.randn(5, {dim})"] if frozen is None and model.decoder.descriptions == "mean" else []
        arguments = ", ".join([f"torch.zeros(1, 3, {size}, {size}, dtype=torch.{kind})", *more])
        parts += [
            "Without zsmld:",
            f"```\nimport torch\nprogram = {load}\nlogits, scores = program({arguments})\n```"
            if frozen is not None or more
            else f"```\nimport torch\nprogram = {load}\n```",
            "The file is a program: load it only from where you would run one.",
        ]
    return "\n\n".join(parts) + "\n"


def _scores(model: ZeroShotClassifier, frozen: FrozenWords | None) -> str:
    if frozen is not None:
        return "Words are inside and cannot be changed." + (
            " `scores` are calibrated." if frozen.calibration is not None else ""
        )
    known = "" if model.vocabulary is None else " `word_embeddings.npy` has the embeddings of `words.json`."
    if model.calibration is None:
        return f"Embeddings of new words come from the text encoder {model.text_encoder}.{known}"
    return (
        f"Embeddings of new words come from the text encoder {model.text_encoder}.{known} The model has a calibration, "
        f"which `zsmld predict` applies; `scores` of the file are without it. Freeze words to have it inside."
    )
