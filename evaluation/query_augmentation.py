"""Which query augmentation helps? Each kind alone and the best mix, on generated scenes and on real photos.

    python evaluation/query_augmentation.py --study scenes
    python evaluation/query_augmentation.py --study photos --root ../shared/real

Every run holds out a fifth of the *seen* words and a part of the training images; their mAP selects the epoch, and is
what chooses kinds and mix. Unseen words and test images only measure: ZSL and GZSL mAP of each run stand beside.

1. Screening, MiniLM words: no augmentation, each kind alone, the mixes of the best two and of the best three kinds.
2. Finals, three seeds: no augmentation, the best kind alone, the best mix; on the photos the better of these two, with
   CLIP and word2vec words too.

Both for the paper's `shared` output and for the `cosine` output. Resumable: every run is kept under --work and is not
run again. Cost: about an hour each on one core.
Writes evaluation/reports/query_augmentation_{scenes,photos}.{json,md}.
"""

import argparse
import hashlib
import json
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from coco_photos_zsl import image_encoder, load_features
from shipped import shipped_model

from zsmld import Evaluator, ImageEncoder, MLDecoder, TextEncoder, Trainer, ZeroShotClassifier, build_dataset
from zsmld.augmentation import QueryAugmentation
from zsmld.evaluator import evaluate_scores
from zsmld.features import extract_features
from zsmld.model import package_versions
from zsmld.protocols import Protocol
from zsmld.resources import resource_path

OUTPUTS = ("shared", "cosine")
SEEDS = (0, 1, 2)
# Noise in deviations of the words; extra queries beside 64 (scenes) or 38 (photos) training words.
KINDS: dict[str, list[dict[str, Any]]] = {
    "noise": [{"noise": 0.3}, {"noise": 1.0}],
    "random queries": [
        {"random_queries": 8, "random_target": "positive"},
        {"random_queries": 8, "random_target": "negative"},
    ],
    "captions": [{"captions": 16}],
    "word dropout": [{"word_dropout": 0.5}],
    "mixed": [{"mixed": 16}],
}


class Runs:
    """What was run, each under the digest of all its settings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, settings: dict[str, Any]) -> Path:
        """Where the figures of a run with these settings are kept."""
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
        return self.folder / f"{digest}.json"

    def kept(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """The figures of a run, if it was run."""
        path = self.path(settings)
        return json.loads(path.read_text())["figures"] if path.exists() else None

    def __call__(self, run: Any, settings: dict[str, Any]) -> dict[str, Any]:
        path = self.path(settings)
        if not path.exists():
            started = time.perf_counter()
            figures = run(settings) | {"seconds": time.perf_counter() - started}
            temporary = path.with_suffix(".part")
            temporary.write_text(json.dumps({"settings": settings, "figures": figures}))
            temporary.replace(path)
            print({k: v for k, v in settings.items() if k != "trainer"}, figures, flush=True)
        return json.loads(path.read_text())["figures"]


# --------------------------------------------------------------------------------------------------- the two studies


class Scenes:
    """1,000 generated scenes, 80 seen and 20 unseen words: a new head on the shipped model's frozen image encoder."""

    name, outputs, words, num_train, num_test = "scenes", OUTPUTS, ("MiniLM",), 1000, 2000
    screening_seeds = {"shared": SEEDS, "cosine": SEEDS[:1]}  # noqa: RUF012
    notes = (
        "500 validation and 2,000 test scenes; captions name two to four words of a training scene. The encoder was "
        "trained with labels of the 72 training words of the shipped model, so it has met most of the words that are "
        "held out here, and none of the unseen ones."
    )
    trainer: dict[str, Any] = {  # noqa: RUF012
        "epochs": 18, "batch_size": 32, "lr": 2e-3, "schedule": "cosine", "warmup": 0.1, "weight_decay": 0.01,
        "ema_decay": 0.99, "max_grad_norm": 1.0, "holdout_words": 0.2, "freeze_image_encoder": True, "device": "cpu",
    }  # fmt: skip
    decoder: dict[str, Any] = {"decoder_dim": 128, "num_heads": 4, "feedforward_dim": 256, "dropout": 0.0}  # noqa: RUF012

    def __init__(self, options: argparse.Namespace) -> None:
        self.encoder = ZeroShotClassifier.from_pretrained(resource_path("data", "scenes", "model")).image_encoder
        self.text_encoder = TextEncoder("minilm")
        self.parts = {}
        for split, number in (("train", self.num_train), ("val", 500), ("test", self.num_test)):
            scenes = build_dataset("scenes", split=split, num_images=number)
            self.parts[split] = extract_features(self.encoder, scenes, "cpu", progress=True)

    def settings(self) -> dict[str, Any]:
        settings = {"trainer": self.trainer, "decoder": self.decoder, "num_train": self.num_train}
        return settings | {"shipped_model": shipped_model()}

    def run(self, settings: dict[str, Any]) -> dict[str, float]:
        torch.manual_seed(settings["seed"])
        parts = self.parts["train"], self.parts["val"]
        model, heldout = _fit(self, self.encoder, self.text_encoder, settings, settings["seed"], *parts)
        return {"heldout": heldout, **_figures(Evaluator("scenes_gzsl").evaluate(model, self.parts["test"]).protocols)}


class Photos:
    """412 COCO photos, 48 seen and 17 unseen words, 3-fold cross-validation, frozen ImageNet MobileNetV2."""

    name, outputs, words, num_folds = "photos", OUTPUTS, ("MiniLM", "CLIP ViT-B/32", "word2vec"), 3
    notes = (
        "Figures are means over the folds, each ranked by its own model; captions name two to four words of a training "
        "photo, and for word vectors are the mean of these words."
    )
    # One seed: its three folds hold out different words.
    screening_seeds = {"shared": SEEDS[:1], "cosine": SEEDS[:1]}  # noqa: RUF012
    trainer: dict[str, Any] = {  # noqa: RUF012
        "epochs": 16, "batch_size": 32, "lr": 2e-3, "schedule": "cosine", "warmup": 0.2, "weight_decay": 0.01,
        "ema_decay": 0.9, "holdout_words": 0.2, "freeze_image_encoder": True,
    }  # fmt: skip
    decoder: dict[str, Any] = {"decoder_dim": 256, "feedforward_dim": 512}  # noqa: RUF012
    protocol = Protocol("coco_photos_gzsl_48_17", "gzsl", 48, 17, empty_words="skip")

    def __init__(self, options: argparse.Namespace) -> None:
        self.encoder, self.features = image_encoder(options.root), load_features(options.root)
        specs = ("minilm", "coco80_clip_vit_b32.npz", "coco80_w2v_300d.npz")
        self.text_encoders = {
            words: TextEncoder(spec if spec == "minilm" else f"vectors:{options.root / 'vectors' / spec}")
            for words, spec in zip(self.words, specs, strict=True)
        }

    def settings(self) -> dict[str, Any]:
        return {"trainer": self.trainer, "decoder": self.decoder, "num_folds": self.num_folds}

    def run(self, settings: dict[str, Any]) -> dict[str, Any]:
        order = np.random.default_rng(0).permutation(len(self.features))  # equal folds for every run
        folds, by_fold = np.array_split(order, self.num_folds), []
        pooled = np.full(self.features.targets.shape, np.nan, np.float32)
        for fold, rows in enumerate(folds):
            others = np.concatenate([part for number, part in enumerate(folds) if number != fold])
            val, train = np.split(np.random.default_rng([1, fold]).permutation(others), [len(others) // 5])
            seed = settings["seed"] * 10 + fold  # each fold holds out other words
            torch.manual_seed(seed)
            parts = self.features.select(train, "train"), self.features.select(val, "val")
            model, heldout = _fit(self, self.encoder, self.text_encoders[settings["words"]], settings, seed, *parts)
            report = Evaluator(self.protocol).evaluate(model, self.features.select(np.sort(rows), "test"))
            pooled[np.sort(rows)] = report.scores
            by_fold.append({"heldout": heldout, **_figures(report.protocols)})
        together = evaluate_scores(pooled, self.features.targets.toarray(), self.features.vocabulary, self.protocol)
        mean = {figure: float(np.mean([one[figure] for one in by_fold])) for figure in by_fold[0]}
        return mean | {f"pooled_{figure}": value for figure, value in _figures(together).items()} | {"folds": by_fold}


def _fit(
    study: Any, encoder: ImageEncoder, words: TextEncoder, settings: dict[str, Any], seed: int, train: Any, val: Any
) -> tuple[ZeroShotClassifier, float]:
    """The model of the epoch with the best mAP of held-out seen words, and that mAP."""
    decoder = MLDecoder(encoder.encoder_dim, text_dim=words.text_dim, output=settings["output"], **study.decoder)
    trainer = Trainer(
        ZeroShotClassifier(encoder, decoder, words),
        train,
        val_dataset=val,
        text_encoder=words,
        augmentation=QueryAugmentation(**settings["augmentation"]),
        seed=seed,
        **study.trainer,
    )
    model = trainer.fit()
    return model, max(record["heldout_mean_average_precision"] for record in trainer.history)


def _figures(protocols: dict[str, dict[str, Any]]) -> dict[str, float]:
    return {
        "zsl": protocols["zsl"]["mean_average_precision"],
        "gzsl": protocols["gzsl"]["mean_average_precision"],
        "seen": protocols["gzsl"]["seen_mean_average_precision"],
    }


# ------------------------------------------------------------------------------------------------------ the protocol


def candidates() -> Iterator[tuple[str, dict[str, Any]]]:
    """No augmentation, then every kind alone."""
    yield "none", {}
    for strengths in KINDS.values():
        for knobs in strengths:
            yield describe(knobs), knobs


def describe(knobs: dict[str, Any]) -> str:
    """Such as "noise 0.3, random queries 8 (negative)"."""
    named = [f"{key.replace('_', ' ')} {value}" for key, value in knobs.items() if key != "random_target"]
    return ", ".join(named) + (f" ({knobs['random_target']})" if "random_target" in knobs else "")


def study_output(study: Any, runs: Runs, output: str) -> dict[str, Any]:
    """Screening and finals for one output of the head."""

    def run(augmentation: dict[str, Any], words: str, seed: int) -> dict[str, Any]:
        varied = {"study": study.name, "output": output, "augmentation": augmentation, "words": words, "seed": seed}
        return runs(study.run, study.settings() | varied)

    def screen(augmentation: dict[str, Any]) -> list[dict[str, Any]]:
        return [run(augmentation, "MiniLM", seed) for seed in study.screening_seeds[output]]

    def heldout(name: str) -> float:
        return float(np.mean([figures["heldout"] for figures in screened[name][1]]))

    screened = {name: (knobs, screen(knobs)) for name, knobs in candidates()}
    # Of each kind the setting that does best on held-out words; then the two and the three best kinds together.
    ranked = sorted((max(map(describe, strengths), key=heldout) for strengths in KINDS.values()), key=heldout)[::-1]
    mixes = []
    for names in (ranked[:2], ranked[:3]):
        knobs = {key: value for name in names for key, value in screened[name][0].items()}
        mixes.append(f"mix: {describe(knobs)}")
        screened[mixes[-1]] = (knobs, screen(knobs))
    finalists = ["none", ranked[0], max(mixes, key=heldout)]
    if len(study.words) > 1:  # three kinds of words: only the best of all
        finalists = ["none", max(finalists[1:], key=heldout)]
    finals = {
        words: {name: [run(screened[name][0], words, seed) for seed in SEEDS] for name in finalists}
        for words in study.words
    }
    return {"screening": {n: {"knobs": k, "figures": f} for n, (k, f) in screened.items()}, "finals": finals}


# -------------------------------------------------------------------------------------------------------- the report


def write(study: Any, results: dict[str, Any], output: Path) -> None:
    """The report, as JSON and Markdown."""
    command = f"python evaluation/query_augmentation.py --study {study.name}"
    content = {"command": command, **study.settings(), "results": results, "versions": package_versions()}
    output.mkdir(parents=True, exist_ok=True)
    (output / f"query_augmentation_{study.name}.json").write_text(json.dumps(content, indent=1) + "\n")
    notes = textwrap.wrap(" ".join(study_notes(study).split()), 118)
    lines = [f"# Query augmentation: {study.name}", "", *notes, ""]
    for head, result in results.items():
        lines += [f"## Output `{head}`", "", "Three seeds, mean ± deviation; mAP in percent.", ""]
        lines += [
            "| words | augmentation | held-out seen words | ZSL | GZSL | seen words |",
            "|---|---|---:|---:|---:|---:|",
        ]
        for words, finalists in result["finals"].items():
            for name, figures in finalists.items():
                cells = " | ".join(_mean(figures, figure) for figure in ("heldout", "zsl", "gzsl", "seen"))
                lines.append(f"| {words} | {name} | {cells} |")
        lines += [
            "",
            f"Screening: MiniLM words, {len(study.screening_seeds[head])} seed(s); chosen by the held-out words.",
            "",
        ]
        lines += ["| augmentation | held-out seen words | ZSL | GZSL | seen words |", "|---|---:|---:|---:|---:|"]
        for name, entry in result["screening"].items():
            cells = " | ".join(_mean(entry["figures"], figure) for figure in ("heldout", "zsl", "gzsl", "seen"))
            lines.append(f"| {name} | {cells} |")
        lines.append("")
    lines.append(f"Written by `{command}`; every run's settings and figures are in the JSON.")
    (output / f"query_augmentation_{study.name}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


def study_notes(study: Any) -> str:
    """What a reader must know to read the figures."""
    return f"""{study.__doc__} Head: D={study.decoder["decoder_dim"]}, {study.trainer["epochs"]} epochs, one thread.
    A fifth of the seen words is held out of training: its mAP on validation images selects the epoch, and chose kinds
    and mix; unseen words and test images only measure, so a row that is best in ZSL need not have been chosen. Held-out
    words differ from seed to seed, and much of the deviation is theirs. {study.notes}"""


def _mean(figures: list[dict[str, float]], figure: str) -> str:
    values = 100 * np.array([one[figure] for one in figures])
    return f"{values.mean():.1f}" + (f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=("scenes", "photos"), required=True)
    parser.add_argument("--root", type=Path, default=Path("../shared/real"), help="of the photos")
    parser.add_argument("--work", type=Path, default=Path("runs/query_augmentation"))
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "reports")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the two studies run side by side, on a core each
    runs = Runs(options.work)
    study = {"scenes": Scenes, "photos": Photos}[options.study](options)
    write(study, {output: study_output(study, runs, output) for output in study.outputs}, options.output)


if __name__ == "__main__":
    main()
