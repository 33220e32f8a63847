"""What `zsmld demo` does, with public names only."""

from pathlib import Path

from zsmld import Evaluator, Predictor, ZeroShotClassifier, build_dataset
from zsmld.resources import resource_path

_NEW_WORDS = ("scarlet circle", "violet ring", "doughnut shape", "snow-white cross")


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

    print("\nNow words are added to a ready model, without training. First the ones it was trained with, then more:\n")
    predictor = Predictor(model, device=device)
    predictor.add_words(vocabulary.unseen)
    predictor.add_words(_NEW_WORDS)
    unseen = {vocabulary.index(word) for word in vocabulary.unseen}
    shown = [i for i in range(len(scenes)) if len(unseen & set(scenes.targets[i].indices.tolist())) >= 1][:5]
    items = [scenes[i] for i in shown]
    for item, prediction in zip(items, predictor.predict([item["image"] for item in items], top_k=4), strict=True):
        present = [word for word, target in zip(vocabulary, item["targets"], strict=True) if target == 1]
        ranked = ", ".join(
            f"{word}{'' if word in vocabulary.seen else '*'} {score:.2f}"
            for word, score in zip(prediction.words, prediction.scores, strict=True)
        )
        print(f"  there: {', '.join(present)}\n  found: {ranked}\n")
    print(f"  * never seen in training; {', '.join(_NEW_WORDS)} are not even in the dataset")

    json_path, html_path = report.save(output)
    print(f"\nreport  {json_path}\n        {html_path}")
    return json_path, html_path
