"""The script that stands in an exported folder, as text: it must run where zsmld and torch are not."""

SCRIPT = '''"""python score.py PHOTO ...: the ten best words of each photo. Needs numpy, pillow and onnxruntime."""
import json, sys
from pathlib import Path
import numpy as np
import onnxruntime
from PIL import Image, ImageOps

here = Path(__file__).resolve().parent
how, words = (json.loads((here / f"{name}.json").read_text("utf-8")) for name in ("preprocessing", "words"))
session = onnxruntime.InferenceSession(str(here / "model.onnx"), providers=onnxruntime.get_available_providers())
size, method = (how["image_size"],) * 2, Image.Resampling[how["interpolation"].upper()]
inputs = {}
if (here / "word_embeddings.npy").exists():  # an input; replace both files for others, of this script alone
    inputs["word_embeddings"] = np.load(here / "word_embeddings.npy")
    if inputs["word_embeddings"].ndim == 3:
        inputs["mask"] = (inputs["word_embeddings"] != 0).any(2)
for path in sys.argv[1:]:
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode.startswith("I"):  # 16-bit grey
        image = Image.fromarray((np.asarray(image, np.float32) / 256).clip(0, 255).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image = image.convert("RGB")
    pixels = np.asarray(image.resize(size, method) if how["resize"] == "squash" else ImageOps.fit(image, size, method))
    if not how["inside_model"]:
        pixels = (pixels / np.float32(255) - np.float32(how["mean"])) / np.float32(how["std"])
    scores = session.run(["scores"], {"images": pixels.transpose(2, 0, 1)[None], **inputs})[0][0]
    if len(scores) != len(words["words"]):
        sys.exit(f"words.json must hold the {len(scores)} words of the model, got {len(words['words'])}; export again")
    print(path, *(f"{words['words'][label]} {scores[label]:.4f}" for label in np.argsort(-scores)[:10]), sep="\\t")
'''
