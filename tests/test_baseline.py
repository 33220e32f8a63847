"""Training-free scorers by name: against open_clip's and timm's own logits, and on real photos."""

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from zsmld import Evaluator, ImageEncoder, Predictor, TextEncoder, Vocabulary, ZeroShotClassifier, build_dataset
from zsmld.baseline import (
    build_prior,
    class_embeddings,
    compound_prompts,
    create_scorer,
    fit_standardization,
    read_class_names,
    read_classifier,
)
from zsmld.images import load_image
from zsmld.metrics import average_precision, mean_average_precision
from zsmld.vocabulary import named_templates

ROOT = Path(__file__).parent.parent
WORDS = ["dog", "red car", "beach", "zebra"]
CLASSES = [f"{word}, thing {number % 7}" for number, word in enumerate(["cat", "boat", "tree", "lamp", "cup"] * 200)]
SMALL = {"image_size": 64, "patch_size": 16, "width": 32, "layers": 2, "head_width": 16}
TOWERS = {
    "vit": SMALL,
    "resnet": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16},
    "convnext": {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "mlp", "image_size": 64},
}


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A local CLIP with random weights: `clip_folder("vit", siglip=False)`."""

    def make(tower: str = "vit", siglip: bool = False) -> Path:
        folder = tmp_path_factory.mktemp("clip")
        config: dict[str, Any] = {
            "embed_dim": 24,
            "vision_cfg": TOWERS[tower],
            "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
        }
        if siglip:
            config |= {"init_logit_bias": -7.0, "init_logit_scale": 2.0, "custom_text": True}
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
        return folder

    return make


@pytest.fixture
def inputs() -> torch.Tensor:
    return torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


# ----------------------------------------------------------------------------------------------------------------- CLIP


@pytest.mark.parametrize("siglip", [False, True])
@pytest.mark.parametrize("tower", sorted(TOWERS))
@torch.no_grad()
def test_the_global_view_is_open_clips_own_classification(
    tower: str, siglip: bool, clip_folder: Any, inputs: torch.Tensor
) -> None:
    folder = clip_folder(tower, siglip)
    model = create_scorer(f"clip:{folder}", views="global")
    found = model(inputs, model.encode_words(WORDS))
    own = open_clip.create_model(f"local-dir:{folder}").eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")([f"a photo of a {word}." for word in WORDS])
    image, text = F.normalize(own.encode_image(inputs), dim=1), F.normalize(own.encode_text(tokens), dim=1)
    scale = own.logit_scale.exp()
    bias = own.logit_bias if siglip else -0.25 * scale
    torch.testing.assert_close(found, scale * image @ text.T + bias, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_local_views_are_the_towers_positions(clip_folder: Any, inputs: torch.Tensor) -> None:
    folder = clip_folder()
    words = create_scorer(f"clip:{folder}").encode_words(WORDS)
    local = create_scorer(f"clip:{folder}", views="local", top_positions=2, scale=1.0, bias=0.0)
    encoder = ImageEncoder(f"open_clip:{folder}", projected=True, value_path=True).eval()
    similarity = F.normalize(encoder(inputs), dim=2) @ words.T  # (B,S,N)
    torch.testing.assert_close(local(inputs, words), similarity.topk(2, dim=1).values.mean(1))
    whole = create_scorer(f"clip:{folder}", views="global", scale=1.0, bias=0.0)
    both = create_scorer(f"clip:{folder}", top_positions=2, scale=1.0, bias=0.0)
    torch.testing.assert_close(both(inputs, words), local(inputs, words) + whole(inputs, words))
    halved = create_scorer(f"clip:{folder}", top_positions=2)  # by default the mean of both, at CLIP's own scale
    expected = (local(inputs, words) + whole(inputs, words)) / 2 / 0.07 - 0.25 / 0.07
    torch.testing.assert_close(halved(inputs, words), expected, rtol=1e-4, atol=1e-4)


def test_the_value_path_is_on_where_there_are_attention_blocks(clip_folder: Any) -> None:
    assert create_scorer(f"clip:{clip_folder('vit')}").image_encoder.value_path
    assert not create_scorer(f"clip:{clip_folder('convnext')}").image_encoder.value_path
    assert not create_scorer(f"clip:{clip_folder()}", image_encoder={"value_path": False}).image_encoder.value_path


@torch.no_grad()
def test_descriptions_of_compound_prompts(clip_folder: Any, images: list[Image.Image]) -> None:
    model = create_scorer(f"clip:{clip_folder()}", descriptions="second", scale=1.0, bias=0.0, views="global")
    given = compound_prompts(["dog", "beach"], {"dog": ["cat", "ball"], "beach": ["umbrella"]})
    predictor = Predictor(model, ["dog", "beach", "zebra"], descriptions=given, device="cpu")
    scores, _ = predictor.score(images[:2])
    text = TextEncoder(model.text_encoder)
    views = model.image_encoder(torch.stack([model.image_encoder.transform(image) for image in images[:2]]))[:, 0]
    for label, sentences in enumerate([given["dog"], given["beach"], ("a photo of a zebra.",)]):
        cosines = F.normalize(views, dim=1) @ F.normalize(text.encode(sentences), dim=1).T  # (B,K)
        second = cosines.sort(1, descending=True).values[:, min(1, len(sentences) - 1)]
        np.testing.assert_allclose(scores[:, label], second.sigmoid().numpy(), atol=1e-5)


def test_a_clip_is_saved_and_loaded(clip_folder: Any, images: list[Image.Image], tmp_path: Path) -> None:
    folder = clip_folder()
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "tiny_stored_clip.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny_stored_clip.json")  # a checkpoint names its architecture
    model = create_scorer(f"clip:{folder}", standardization="both", top_positions=3)
    fit_standardization(model, images, WORDS, device="cpu")
    scores, _ = Predictor(model, WORDS, device="cpu").score(images)
    model.save_pretrained(tmp_path / "model")
    again = ZeroShotClassifier.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(Predictor(again, WORDS, device="cpu").score(images)[0], scores)
    assert again.training_record == model.training_record and again.image_encoder.value_path


# ---------------------------------------------------------------------------------------------------------------- ConSE


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet", "test_byobnet"])
@torch.no_grad()
def test_the_classifiers_logits_are_timms_own(name: str) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    weight, bias = read_classifier(f"timm:{name}", pretrained=False)
    assert torch.equal(torch.get_rng_state(), before)  # the caller's random numbers are untouched
    own = timm.create_model(name).eval()  # the same seed, so the same weights
    images = torch.rand(2, 3, 160, 160)
    torch.testing.assert_close(
        own.forward_head(own.forward_features(images), pre_logits=True) @ weight.T + bias, own(images)
    )


@torch.no_grad()
def test_conse_sees_with_the_classifier(tmp_path: Path) -> None:
    """From one weights file: the scorer's opinion of the whole image is the probabilities of timm's model."""
    torch.manual_seed(0)
    own = timm.create_model("test_resnet").eval()
    save_file(own.state_dict(), tmp_path / "weights.safetensors")
    model = create_scorer(
        "conse:timm:test_resnet",
        class_names=CLASSES,
        image_encoder={"checkpoint_path": tmp_path / "weights.safetensors"},
    )
    images = torch.rand(2, 3, 160, 160)
    probabilities = model.decoder.class_probabilities(model.image_encoder(images), temperature=1.0)  # (B,V,K)
    torch.testing.assert_close(probabilities[:, 0], own(images).softmax(1), rtol=1e-4, atol=1e-6)
    assert float(model.decoder.temperature) == 3 and model.decoder.views == "both"
    prior = build_prior(model.image_encoder, TextEncoder("minilm"), "conse", CLASSES, tmp_path / "weights.safetensors")
    words = model.encode_words(WORDS)
    torch.testing.assert_close(prior(model.image_encoder(images), words), model(images, words))
    assert prior.num_global_tokens == 1
    with pytest.raises(ValueError, match="checkpoint_path must be that of the image encoder"):
        save_file({k: v + 1 for k, v in own.state_dict().items()}, tmp_path / "other.safetensors")
        build_prior(model.image_encoder, TextEncoder("minilm"), "conse", CLASSES, tmp_path / "other.safetensors")


def test_a_convolution_of_one_pixel_is_a_linear_layer() -> None:
    weight, bias = read_classifier("timm:mobilenetv3_small_050", pretrained=False)
    assert weight.shape == (1000, 1024) and bias.shape == (1000,)
    weight, _ = read_classifier("timm:resnetv2_18", pretrained=False)
    assert weight.shape == (1000, 512)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deit_tiny_distilled_patch16_224", {}, "must be one linear layer, got Linear and Linear"),
        ("test_resnet", {"num_classes": 0}, "must be one linear layer, got Identity"),
        ("resnett50", {}, "must be one timm knows, got 'timm:resnett50'; similar names: ["),
    ],
)
def test_what_is_no_classifier_is_refused(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="classifier must be") as caught:
        read_classifier(f"timm:{name}", model_kwargs=options, pretrained=False)
    assert message in str(caught.value)


def test_more_than_a_linear_layer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import timm.models.resnet

    forward = timm.models.resnet.ResNet.forward_head

    def scaled(self: Any, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        return forward(self, x, pre_logits) * (1 if pre_logits else 2)

    monkeypatch.setattr(timm.models.resnet.ResNet, "forward_head", scaled)
    with pytest.raises(ValueError, match="must be all that follows the pooled embedding, got more than Linear"):
        read_classifier("timm:test_resnet", pretrained=False)


def test_a_checkpoint_of_other_classes_is_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("test_resnet", num_classes=7).state_dict(), tmp_path / "seven.safetensors")
    with pytest.raises(
        ValueError, match="checkpoint_path must hold the weights of timm:test_resnet with its classifier"
    ):
        read_classifier("timm:test_resnet", tmp_path / "seven.safetensors")
    weight, _ = read_classifier("timm:test_resnet", tmp_path / "seven.safetensors", {"num_classes": 7})
    assert len(weight) == 7
    with pytest.raises(FileNotFoundError, match="checkpoint_path must be an existing file, not found: none"):
        read_classifier("timm:test_resnet", "none.safetensors")


# ---------------------------------------------------------------------------------------------------------- class names


@pytest.mark.parametrize(("number", "first"), [(1000, ("tench", "Tinca tinca")), (11821, ("benthos",))])
def test_names_of_imagenet_by_their_number(number: int, first: tuple[str, ...]) -> None:
    names = read_class_names(num_classes=number)
    assert len(names) == number and names[0] == first


def test_names_from_a_file_and_a_list(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("background\ntabby, tabby cat\nhare,hare\n\n")
    assert read_class_names(path, 2) == (("tabby", "tabby cat"), ("hare",))
    assert read_class_names(path, 3) == (("background",), ("tabby", "tabby cat"), ("hare",))
    assert read_class_names(["tabby, tabby cat", ["hare"]], 2) == read_class_names(path, 2)


def test_wrong_class_names_are_refused(tmp_path: Path) -> None:
    for source, number, kind, message in (
        (
            None,
            7,
            ValueError,
            "class_names must be given for a classifier that is not one of ImageNet's, got None for 7",
        ),
        ("none.txt", 7, FileNotFoundError, "class_names must be an existing text file, not found: none.txt"),
        (["a", "b"], 3, ValueError, "one name or more for each of 3 classes, got 2 classes from class_names; take"),
        (["a", " , ", "b"], 3, ValueError, "got 3 classes from class_names, the first without a name at position 1"),
        ([], None, ValueError, "got 0 classes from class_names"),
    ):
        with pytest.raises(kind) as caught:
            read_class_names(source, number)
        assert message in str(caught.value)


def test_a_class_is_the_mean_of_its_synonyms() -> None:
    encoder = TextEncoder("minilm", device="cpu")
    found = class_embeddings([("tabby", "tabby cat"), ("hare",)], encoder, "simple")
    tabby, cat, hare = encoder.encode_words(["tabby", "tabby cat", "hare"], named_templates("simple"))
    torch.testing.assert_close(found, torch.stack([F.normalize(tabby + cat, dim=0), hare]))


# ----------------------------------------------------------------------------------------------------- compound prompts


def test_compound_prompts() -> None:
    found = compound_prompts(["dog", "bus"], {"dog": ["cat", "cat"]})
    assert found == {"dog": ("a photo of a dog.", "a photo of a dog and a cat."), "bus": ("a photo of a bus.",)}
    found = compound_prompts(["dog", "bus"], iter(["bus", "dog"]), "{} with {}", include_single=False)
    assert found == {"dog": ("dog with bus",), "bus": ("bus with dog",)}
    assert Vocabulary(["dog", "bus"], descriptions=found).prompts("bus") == ("bus with dog",)
    with pytest.raises(ValueError, match=re.escape("template must have two {}, the word and its partner, got '{}'")):
        compound_prompts(["dog"], ["cat"], "{}")
    with pytest.raises(ValueError, match="partners must be given for 'dog' without include_single"):
        compound_prompts(["dog"], ["dog"], include_single=False)


# ------------------------------------------------------------------------------------------------------ standardisation


@torch.no_grad()
def test_standardisation_from_images_and_from_a_dataset(clip_folder: Any, photos: Path, images: list[Any]) -> None:
    folder = clip_folder()
    model = create_scorer(f"clip:{folder}", standardization="per_word", views="global")
    dataset = build_dataset("table", path=photos / "photos.csv", partition=photos / "partition.json", split="train")
    fit_standardization(model, dataset, WORDS, device="cpu", batch_size=5)
    transform, words = model.image_encoder.transform, model.encode_words(WORDS)

    def cosines(pictures: list[Any]) -> torch.Tensor:
        views = model.image_encoder(torch.stack([transform(picture) for picture in pictures]))[:, 0]
        return F.normalize(views, dim=1) @ words.T

    seen = cosines([dataset[row]["image"] for row in range(len(dataset))])
    expected = (cosines(images) - seen.mean(0)) / seen.std(0) - 2
    found = model(torch.stack([transform(image) for image in images]), words)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)  # deviations of random weights are tiny
    (photos / "broken.png").write_bytes(b"broken")
    fit_standardization(model, [photos / "broken.png", *images], WORDS, device="cpu", num_images=5)


def test_standardisation_refuses(clip_folder: Any, photos: Path, images: list[Any]) -> None:
    model = create_scorer(f"clip:{clip_folder()}", standardization="both")
    dataset = build_dataset("table", path=photos / "photos.csv", partition=photos / "partition.json", split="all")
    with pytest.raises(ValueError, match="images must be the split 'train' or 'val', got 'all', whose test images"):
        fit_standardization(model, dataset, WORDS, device="cpu")
    fit_standardization(model, dataset, WORDS, device="cpu", use_test_images=True)
    with pytest.raises(ValueError, match="calibration must have at least 2 images and 2 reference words, got 1 and 4"):
        fit_standardization(model, images[:1], WORDS, device="cpu")
    with pytest.raises(ValueError, match="model must be a training-free scorer with standardization"):
        fit_standardization(create_scorer(f"clip:{clip_folder()}"), images, WORDS)


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        ("ViT-B-16/openai", {}, "scorer must be clip:ARCH/PRETRAINED or conse:timm:NAME, got 'ViT-B-16/openai'"),
        ("conse:open_clip:ViT-B-16/openai", {}, "scorer must be clip:ARCH/PRETRAINED or conse:timm:NAME"),
        ("clip:ViT-B-61/openai", {}, "must name a known architecture, got 'ViT-B-61'"),
        ("conse:timm:test_resnet", {"image_encoder": {"projected": True}}, "image_encoder must not have ['projected']"),
        ("clip:RN50/openai", {"image_encoder": {"checkpoint_path": "x"}}, "name the file, as clip:ARCH/FILE"),
        ("conse:timm:test_resnet", {"class_names": ["a"]}, "for each of 1000 classes, got 1 classes"),
    ],
)
def test_wrong_scorers_are_refused(spec: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="must") as caught:
        create_scorer(spec, pretrained=False, **options)
    assert message in str(caught.value)


def test_parts_that_do_not_belong_together_are_refused(clip_folder: Any) -> None:
    folder = clip_folder()
    spec, minilm = f"open_clip:{folder}", TextEncoder("minilm", device="cpu")
    for call, message in (
        (
            lambda: build_prior(ImageEncoder(spec), minilm, "clip"),
            "image_encoder must be an open_clip model with projected",
        ),
        (
            lambda: build_prior(ImageEncoder(spec, projected=True), minilm, "clip"),
            "text_encoder must be that of the same",
        ),
        (
            lambda: build_prior(ImageEncoder(spec, projected=True), minilm, "conse"),
            "image_encoder must be a timm classif",
        ),
        (lambda: build_prior(ImageEncoder(spec), minilm, "clap"), "kind must be 'clip' or 'conse', got 'clap'"),
        (lambda: build_prior(ImageEncoder(spec), minilm, "clip", temperature=3.0), "temperature must be left out with"),
        (lambda: create_scorer(f"clip:{folder}", class_names=["a"]), "class_names must be None with clip:"),
        (lambda: create_scorer(f"clip:{folder}", text_encoder=minilm), "text_encoder must be that of the same CLIP"),
        (
            lambda: build_prior(_timm("mobilenetv3_small_050"), minilm, "conse", CLASSES, pretrained=False),
            "projected=True",
        ),
        (lambda: build_prior(_timm("test_resnet"), minilm, "conse", CLASSES, pretrained=False), "set projected=True"),
    ):
        with pytest.raises(ValueError, match="must") as caught:
            call()
        assert message in str(caught.value)


def _timm(name: str) -> ImageEncoder:
    return ImageEncoder(f"timm:{name}", pretrained=False)


@pytest.mark.parametrize(
    ("spec", "options", "hint"),
    [
        (
            "clip:ViT-B-32/openai",
            {},
            "give a weights file, ViT-B-32-quickgelu/FILE, or a local folder, open_clip:FOLDER",
        ),
        ("clip:ViT-B-32/laion2b_s34b_b79k", {}, "give a weights file, ViT-B-32/FILE, or"),
        ("clip:hf-hub:timm/ViT-B-16-SigLIP", {}, "weights of open_clip:hf-hub:timm/ViT-B-16-SigLIP must be on this"),
        (
            "conse:timm:resnet18.a1_in1k",
            {},
            "give a weights file, image_encoder.checkpoint_path=FILE, or a local folder",
        ),
    ],
)
def test_weights_that_cannot_be_downloaded(spec: str, options: dict[str, Any], hint: str) -> None:
    with pytest.raises(FileNotFoundError, match="must be on this machine or be downloaded") as caught:
        create_scorer(spec, **options)
    assert hint in str(caught.value) and "connect to the network" in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- for real


@torch.no_grad()
def test_conse_on_real_photos(real: Path) -> None:
    """MobileNetV2 of ImageNet on forty COCO photos: every form of ConSE is far above chance (4%)."""
    rows = list(csv.reader((real / "coco_photos" / "labels.csv").open()))[1:41]
    words = sorted({word for _, labels in rows for word in labels.split("|")})
    targets = np.array([[word in labels.split("|") for word in words] for _, labels in rows], np.int8)
    paths = [real / "coco_photos" / "images" / name for name, _ in rows]
    names, weights = (
        real / "weights" / name for name in ("imagenet_labels.txt", "mobilenetv2_100_tf2_ptq.safetensors")
    )
    own = {"checkpoint_path": weights, "model_kwargs": {"pad_type": "same"}, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    model = create_scorer("conse:timm:mobilenetv2_100", class_names=names, image_encoder=own)
    scores, failed = Predictor(model, words, device="cpu").score(paths)
    assert not failed
    found = {"both": scores}
    encoder, embeddings = model.image_encoder, model.encode_words(words)
    spatial = encoder(torch.stack([encoder.transform(load_image(path)) for path in paths]))  # (M,1+S,C)
    forms: dict[str, dict[str, Any]] = {
        "global": {"views": "global"},
        "local": {"views": "local"},
        "published": {"temperature": 1.0, "top_classes": 10, "centered": False, "views": "global"},
    }
    for form, options in forms.items():
        scorer = build_prior(encoder, TextEncoder("minilm"), "conse", names, weights, **options)
        found[form] = scorer(spatial, embeddings).sigmoid().numpy()
    quality = {form: mean_average_precision(average_precision(s, targets), "skip") for form, s in found.items()}
    assert min(quality.values()) > 0.35 and targets.mean() < 0.07, quality


def test_the_evaluator_takes_a_scorer(photos: Path) -> None:
    model = create_scorer("conse:timm:test_resnet", class_names=CLASSES, pretrained=False)
    dataset = build_dataset("table", path=photos / "photos.csv", partition=photos / "partition.json", split="all")
    report = Evaluator("gzsl", device="cpu").evaluate(model, dataset)
    assert report.protocols["zsl"]["num_words"] == 2 and report.model["output"] == "conse"


def test_the_guide_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / "docs" / "training_free.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "docs/training_free.md", "exec"), {})
    assert "a photo of a dog and a ball." in capsys.readouterr().out
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if not link.startswith("http")]
    assert links and all((ROOT / "docs" / link).exists() for link in links)


def test_word_vectors_that_lack_a_class_name_say_what_to_do(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", words=np.array(["dog", "cat"]), embeddings=np.eye(2, dtype=np.float32))
    encoder = TextEncoder(f"vectors:{tmp_path / 'v.npz'}")
    message = (
        r"text_encoder must embed every class name of the classifier: .*\['tench'\].* prior=null decoder.word_reach=0"
    )
    with pytest.raises(ValueError, match=message):
        class_embeddings([("dog",), ("tench",)], encoder)
    assert class_embeddings([("dog",), ("dog", "cat")], encoder).shape == (2, 2)
