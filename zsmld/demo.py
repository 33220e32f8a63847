"""What `zsmld demo` does, with public names only."""

from pathlib import Path
from typing import Any

from zsmld import Evaluator, Predictor, Vocabulary, ZeroShotClassifier, build_dataset
from zsmld.resources import resource_path


def run_demo(output: str | Path = "runs/demo", device: str = "auto", num_images: int = 2000) -> tuple[Path, Path]:
    """Evaluate the bundled model on held-out scenes, add words it never saw, and write a report.

    Args:
        output: folder for `report.json` and `report.html`.
        device: "auto", "cpu", "cuda" or "mps".
        num_images: test scenes.

    Returns:
        Paths of the JSON and of the HTML report.
    """
    folder = resource_path("data", "scenes", "model")
    model = ZeroShotClassifier.from_pretrained(folder)
    scenes = build_dataset("scenes", split="test", num_images=num_images)
    vocabulary = scenes.vocabulary
    print(f"model   {model!r}")
    print(f"images  {len(scenes)} generated test scenes, one to four objects each")
    never = ", ".join(vocabulary.unseen[:4])
    print(f"words   {len(vocabulary.seen)} seen in training, {len(vocabulary.unseen)} never: {never}, …\n")

    report = Evaluator("scenes_gzsl", device=device, num_samples=12).evaluate(model, scenes)
    print("Mean average precision and F1 in percent; chance is what random scores reach.\n")
    print(report.to_text())

    print("\nWords are added to the ready model, without training: the unseen ones, marked *.\n")
    predictor = Predictor(model, device=device)
    predictor.add_words(vocabulary.unseen)
    unseen = vocabulary.labels(vocabulary.unseen)
    shown = [scenes[i] for i in range(len(scenes)) if scenes.targets[i, unseen].nnz][:5]
    for item, p in zip(shown, predictor.predict([item["image"] for item in shown], top_k=4), strict=True):
        marked = [
            f"{word}{'' if word in vocabulary.seen else '*'} {s:.2f}" for word, s in zip(p.words, p.scores, strict=True)
        ]
        print(f"  there: {_present(vocabulary, item)}\n  found: {', '.join(marked)}\n")

    json_path, html_path = report.save(output)
    print(f"report  {json_path}\n        {html_path}")
    return json_path, html_path


def _present(vocabulary: Vocabulary, item: dict[str, Any]) -> str:
    return ", ".join(word for word, target in zip(vocabulary, item["targets"], strict=True) if target == 1)
