"""Whether a training gives the same weights twice, and whether the shipped model is what its recipe makes.

    python evaluation/reproducibility.py

Runs `zsmld train scenes_zsl` twice, each in a process of its own, and compares both models with each other and with
`data/scenes/model`, by the bytes of their files. Writes evaluation/reports/reproducibility.{json,md}.
Cost: about ten minutes on two cores.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark_head import processor_name
from safetensors.torch import load_file

from zsmld import Evaluator, ZeroShotClassifier, build_dataset
from zsmld.model import package_versions
from zsmld.reading import digest_of
from zsmld.resources import resource_path

RECIPE = "scenes_zsl"
TEST = build_dataset("scenes", split="test")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs",
        type=Path,
        default=Path("runs/reproducibility"),
        help="where both trainings go; what they left there before is removed",
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "reports")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE", help="of the recipe, to try this script out")
    options = parser.parse_args()
    models = []
    for name in ("first", "second"):
        train(options.runs / name, options.settings)
        models.append(options.runs / name / "model")
    shipped = resource_path("data", "scenes", "model")
    content = {
        "command": "python evaluation/reproducibility.py",
        "recipe": RECIPE,
        "settings": options.settings,
        "first_and_second": difference(*models),
        "first_and_shipped": difference(models[0], shipped),
        "figures": {"first": figures(models[0]), "shipped": figures(shipped)},
        "machine": {"processor": processor_name(), "system": platform.platform()},
        "versions": package_versions(),
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "reproducibility.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    (options.output / "reproducibility.md").write_text(page(content), encoding="utf-8")
    print(page(content))


def train(output: Path, settings: list[str]) -> None:
    """The recipe, as a user runs it; what an earlier run left, whole or not, is not taken for this one."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, "-m", "zsmld", "train", RECIPE, *settings, "--output", str(output)]
    subprocess.run(command, check=True)


def difference(ours: Path, theirs: Path) -> dict[str, Any]:
    """What two model folders do not share.

    Returns:
        SHA-256 of both weight files, whether they are the same bytes, the number of tensors that differ with the
        largest difference of an element, and the parts of `config.json` that differ.
    """
    weights = [load_file(folder / "model.safetensors") for folder in (ours, theirs)]
    assert list(weights[0]) == list(weights[1])
    apart = {
        name: float((weights[0][name].double() - weights[1][name].double()).abs().max())
        for name in weights[0]
        if not weights[0][name].equal(weights[1][name])
    }
    hashes = [digest_of(folder / "model.safetensors") for folder in (ours, theirs)]
    configs = [
        dict(settings_of(json.loads((folder / "config.json").read_text(encoding="utf-8")))) for folder in (ours, theirs)
    ]
    return {
        "sha256": hashes,
        "same_bytes": hashes[0] == hashes[1],
        "tensors": len(weights[0]),
        "tensors_apart": len(apart),
        "largest_difference": max(apart.values(), default=0.0),
        "config_keys_apart": sorted(
            key for key in configs[0].keys() | configs[1].keys() if configs[0].get(key) != configs[1].get(key)
        ),
    }


def settings_of(config: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, with dotted names such as `recipe.trainer.epochs`."""
    for key, value in config.items():
        if isinstance(value, dict) and value:
            yield from settings_of(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def figures(model: Path) -> dict[str, float]:
    """mAP of a model on the test scenes, in percent."""
    protocols = Evaluator("scenes_gzsl").evaluate(ZeroShotClassifier.from_pretrained(model), TEST).protocols
    return {
        "ZSL mAP, 20 unseen words": 100 * protocols["zsl"]["mean_average_precision"],
        "GZSL mAP, 100 words": 100 * protocols["gzsl"]["mean_average_precision"],
    }


def page(content: dict[str, Any]) -> str:
    """The report as Markdown."""
    rows = [
        (f"two runs of `zsmld train {content['recipe']}`", content["first_and_second"]),
        ("the first of them and the shipped model, `data/scenes/model`", content["first_and_shipped"]),
    ]
    lines = [
        "# Reproducibility",
        "",
        f"Written by `{content['command']}`. Weights are compared by the bytes of `model.safetensors`.",
        "",
        "| compared | weights, byte for byte | tensors that differ | largest difference | `config.json` differs in |",
        "|---|---|---:|---:|---|",
    ]
    for name, found in rows:
        keys = ", ".join(f"`{key}`" for key in found["config_keys_apart"]) or "nothing"
        lines.append(
            f"| {name} | {'the same' if found['same_bytes'] else 'not the same'} | {found['tensors_apart']} of "
            f"{found['tensors']} | {found['largest_difference']:.1e} | {keys} |"
        )
    first, shipped = content["figures"]["first"], content["figures"]["shipped"]
    lines += ["", "| on 2,000 test scenes | the first run | shipped |", "|---|---:|---:|"]
    lines += [f"| {name} | {first[name]:.2f} | {shipped[name]:.2f} |" for name in first]
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    lines += [
        "",
        f"SHA-256 of the weights: `{content['first_and_second']['sha256'][0]}` (first), "
        f"`{content['first_and_shipped']['sha256'][1]}` (shipped).",
        "",
        f"{content['machine']['processor']}; {versions}. Another processor, number of threads or torch adds up "
        "in another order, and gives other weights.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
