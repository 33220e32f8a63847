"""ZSL and GZSL mAP on real photos: 5-fold cross-validation over the 412 COCO photos, with three kinds of words.

    python evaluation/coco_photos_zsl.py --root ../shared/real

Frozen ImageNet MobileNetV2, features extracted once; the head is trained on the photos of four folds, with the unseen
words' columns hidden, and scores the fifth. Out-of-fold scores are pooled, AP is computed once per word, words without
a positive are skipped, photos with unseen words are kept. No word, fold or epoch is selected by unseen words.

Resumable: every fold's scores are kept under --work. Cost: about 2 minutes a fold and kind of words on two cores.
Writes evaluation/reports/coco_photos_zsl.{json,md}.
"""

import argparse
import hashlib
import json
from pathlib import Path

import numpy as np
import torch

from zsmld import Evaluator, ImageEncoder, MLDecoder, TextEncoder, Trainer, ZeroShotClassifier, build_dataset
from zsmld.augmentation import QueryAugmentation
from zsmld.evaluator import evaluate_scores
from zsmld.features import FeatureDataset, extract_features
from zsmld.model import package_versions
from zsmld.protocols import Protocol

NUM_FOLDS = 5
# Chosen on held-out seen words of fold 0 (`--select`), then fixed for every fold, partition and kind of words.
TRAINER = {"epochs": 20, "batch_size": 32, "lr": 3e-4, "weight_decay": 1e-2, "ema_decay": 0.99, "seed": 0}
DECODER = {"output": "shared"}


def load_features(root: Path) -> FeatureDataset:
    """Spatial embeddings of the 412 photos, with the 48/17 partition."""
    photos = build_dataset(
        "table",
        path=root / "coco_photos/labels.csv",
        partition=f"{root / 'coco_photos/zero_shot_partitions.json'}#48/17",
        templates=("a {}",),  # the prompt of the CLIP vectors
    )
    return extract_features(image_encoder(root), photos, progress=True)


def image_encoder(root: Path) -> ImageEncoder:
    """The frozen MobileNetV2."""
    return ImageEncoder(
        "timm:mobilenetv2_100",
        checkpoint_path=root / "weights/mobilenetv2_100_tf2_ptq.safetensors",
        model_kwargs={"pad_type": "same"},
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
    )


def folds(num_images: int) -> list[np.ndarray]:
    """Rows of each test fold."""
    return [np.sort(part) for part in np.array_split(np.random.default_rng(0).permutation(num_images), NUM_FOLDS)]


def train(
    features: FeatureDataset, rows: np.ndarray, encoder: ImageEncoder, words: TextEncoder, val: np.ndarray | None = None
) -> tuple[ZeroShotClassifier, Trainer]:
    """The plain word head of the paper, D=768, trained on some rows."""
    torch.manual_seed(TRAINER["seed"])
    decoder = MLDecoder(encoder.encoder_dim, text_dim=words.text_dim, **DECODER)
    trainer = Trainer(
        ZeroShotClassifier(encoder, decoder, words),
        features.select(rows, split="train"),
        val_dataset=None if val is None else features.select(val, split="val"),
        text_encoder=words,
        freeze_image_encoder=True,
        holdout_words=0.25,
        augmentation=QueryAugmentation(),
        **TRAINER,
    )
    return trainer.fit(), trainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("../shared/real"))
    parser.add_argument("--work", type=Path, default=Path("runs/coco_photos_zsl"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "reports")
    parser.add_argument(
        "--select", action="store_true", help="print held-out seen words' mAP by epoch on fold 0, and stop"
    )
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)

    encoder, features = image_encoder(options.root), load_features(options.root)
    kinds = {
        "CLIP ViT-B/32": f"vectors:{options.root / 'vectors/coco80_clip_vit_b32.npz'}",
        "MiniLM": "minilm",
        "word2vec": f"vectors:{options.root / 'vectors/coco80_w2v_300d.npz'}",
    }
    test_rows = folds(len(features))
    if options.select:
        rows = np.concatenate(test_rows[1:])
        for kind, spec in kinds.items():
            _, trainer = train(features, rows[80:], encoder, TextEncoder(spec), val=rows[:80])
            for record in trainer.history:
                print(kind, {key: round(value, 4) for key, value in record.items()}, flush=True)
        return

    protocol = Protocol("coco_photos_gzsl_48_17", "gzsl", 48, 17, empty_words="skip")
    results = {}
    for kind, spec in kinds.items():
        words = TextEncoder(spec)
        scores = np.full((len(features), len(features.vocabulary)), np.nan, np.float32)
        for fold, rows in enumerate(test_rows):
            settings = hashlib.sha256(json.dumps([TRAINER, DECODER, spec, NUM_FOLDS]).encode()).hexdigest()[:8]
            kept = options.work / f"{spec.split('/')[-1].split(':')[-1]}_{settings}_fold{fold}.npy"
            if not kept.exists():
                others = np.concatenate([r for f, r in enumerate(test_rows) if f != fold])
                model, _ = train(features, others, encoder, words)
                fold_report = Evaluator(protocol).evaluate(model, features.select(rows, split="test"))
                np.save(kept, fold_report.scores)
                print(f"{kind} fold {fold}: {fold_report!r}", flush=True)
            scores[rows] = np.load(kept)
        targets = features.targets.toarray()
        results[kind] = evaluate_scores(scores, targets, features.vocabulary, protocol)
        # Pooled scores of five models share no scale, so the mean over folds, each ranked by one model, stands beside.
        per_fold = [evaluate_scores(scores[r], targets[r], features.vocabulary, protocol) for r in test_rows]
        for part, figures in results[kind].items():
            values = [fold[part]["mean_average_precision"] for fold in per_fold]
            figures["mean_average_precision_of_each_fold"] = values
    write(results, options.output)


def write(results: dict[str, dict[str, dict[str, object]]], output: Path) -> None:
    """The report, as JSON and as Markdown."""
    output.mkdir(parents=True, exist_ok=True)
    content = {
        "command": "python evaluation/coco_photos_zsl.py --root ../shared/real",
        "trainer": TRAINER,
        "decoder": DECODER,
        "num_folds": NUM_FOLDS,
        "external_knowledge": "ImageNet labels of MobileNetV2 (some name unseen words), the text encoders' texts",
        "versions": package_versions(),
        "results": results,
    }
    (output / "coco_photos_zsl.json").write_text(json.dumps(content, indent=1) + "\n")
    first = next(iter(results.values()))
    zsl, gzsl = first["zsl"], first["gzsl"]
    lines = [
        "# Zero-shot on real photos: the plain head, 48/17",
        "",
        f"{zsl['num_images']} COCO photos, {NUM_FOLDS}-fold cross-validation with pooled out-of-fold scores,",
        "frozen ImageNet MobileNetV2 (224 px), the paper's word head (D=768, shared output, no query augmentation).",
        "mAP in percent; words without a positive are skipped, photos with unseen words are kept. Written by",
        "`python evaluation/coco_photos_zsl.py --root ../shared/real`; settings and every word's AP are in the JSON.",
        "",
        "| words | ZSL mAP (17 unseen) | GZSL mAP (65) | seen mAP (48) | GZSL F1@3 | ZSL mAP by fold |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for kind, parts in results.items():
        values = [
            parts["zsl"]["mean_average_precision"],
            parts["gzsl"]["mean_average_precision"],
            parts["gzsl"]["seen_mean_average_precision"],
            parts["gzsl"]["f1_at_3"],
        ]
        by_fold = 100 * np.array(parts["zsl"]["mean_average_precision_of_each_fold"])
        cells = [*(f"{100 * value:.1f}" for value in values), f"{by_fold.mean():.1f} ± {by_fold.std(ddof=1):.1f}"]
        lines.append(f"| {kind} | " + " | ".join(cells) + " |")
    lines.append(
        f"| chance | {100 * zsl['chance_mean_average_precision']:.1f} | "
        f"{100 * gzsl['chance_mean_average_precision']:.1f} | | | |"
    )
    lines += [
        "",
        "By fold: mean and deviation of the ZSL mAP of each fold's own photos, ranked by one model; with about 80",
        "photos a fold, fewer words have a positive there, so it is not the same figure.",
        f"Labels per image: {zsl['labels_per_image']:.3f} of the 17, {gzsl['labels_per_image']:.3f} of the 65.",
        "External knowledge: ImageNet's class names contain some unseen words, and MobileNetV2 was trained on them.",
        "",
    ]
    (output / "coco_photos_zsl.md").write_text("\n".join(lines))
    print((output / "coco_photos_zsl.md").read_text())


if __name__ == "__main__":
    main()
