"""What a model shows of itself in a notebook: its parts with their widths, and the words it knows."""

from typing import TYPE_CHECKING

from torch import nn

from zsmld.decoder import MLDecoder
from zsmld.display import chips, panel, table

if TYPE_CHECKING:
    from zsmld.model import ZeroShotClassifier


def summary_html(model: "ZeroShotClassifier") -> str:
    """HTML of a model for a notebook: a line a part, and the words it was trained with."""
    encoder, vocabulary = model.image_encoder, model.vocabulary
    rows, columns = encoder.grid_size
    size = f"{encoder.transform.image_size} × {encoder.transform.image_size} px"
    tokens = " and one of the whole image" if encoder.num_global_tokens else ""
    calibrated = ", calibrated" if model.calibration is not None else ""
    lines = [
        ["image encoder", encoder.spec, _parameters(encoder)],
        ["", f"{size} → {rows} × {columns} spatial embeddings of {encoder.encoder_dim}{tokens}", ""],
        ["decoder", _decoder(model), _parameters(model.decoder)],
        ["text encoder", _text_encoder(model), ""],
        ["scores", f"{model.scores}{calibrated}", ""],
        ["all", f"on {next(model.parameters()).device}", _parameters(model)],
    ]
    if model.heldout_words:
        lines.insert(-1, ["held out", f"{len(model.heldout_words)} seen words, for selection and calibration", ""])
    words = [] if vocabulary is None else [(side, getattr(vocabulary, side)) for side in ("seen", "unseen")]
    return panel(
        f"ZeroShotClassifier, {'no vocabulary' if vocabulary is None else f'{len(vocabulary)} words'}",
        table(["", "", "parameters"], lines, text=(0, 1)),
        *(chips(f"{len(known)} {side}", known, side == "seen", 30) for side, known in words if known),
    )


def _decoder(model: "ZeroShotClassifier") -> str:
    decoder = model.decoder
    if not isinstance(decoder, MLDecoder):
        return f"{type(decoder).__name__}, {decoder.output}: no training"
    config = decoder.config()
    prior = " beside a prior" if decoder.prior is not None else ""
    queries = "word queries" if decoder.text_dim is not None else f"class queries for {decoder.num_classes} classes"
    return (
        f"MLDecoder with {queries}, output {decoder.output}{prior}; {len(decoder.layers)} × ({decoder.decoder_dim} "
        f"wide, {config['num_heads']} heads, feed-forward {config['feedforward_dim']})"
    )


def _text_encoder(model: "ZeroShotClassifier") -> str:
    if model.decoder.text_dim is None:
        return "none: classes are fixed"
    return f"{model.text_encoder or 'not named'}: words → embeddings of {model.decoder.text_dim}"


def _parameters(module: nn.Module) -> str:
    count = sum(p.numel() for p in module.parameters())
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    return f"{count:,}" + ("" if trained in (0, count) else f", {trained:,} trainable")
