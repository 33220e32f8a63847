"""Every bundled recipe: its header, its official settings, and two steps on a tiny download in the real layout."""

import json
import math
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from zsmld.cli import main
from zsmld.datasets import READERS, prepare
from zsmld.recipe import Recipe, recipe_header, recipe_names
from zsmld.resources import resource_path

NAMES = recipe_names()
COCO = resource_path("data", "coco", "classes.txt").read_text(encoding="utf-8").splitlines()
VOC = resource_path("data", "voc", "classes.txt").read_text(encoding="utf-8").splitlines()
NUS_WIDE = json.loads(resource_path("data", "nus_wide", "partition.json").read_text(encoding="utf-8"))
PARTITIONS = [
    json.loads(resource_path("data", "coco", f"partition_{name}.json").read_text(encoding="utf-8"))
    for name in ("48_17", "65_15")
]
COCO_SEEN = [word for word in COCO if all(word in partition["seen"] for partition in PARTITIONS)]
NUM_TRAIN, NUM_TEST = 60, 6
NUMBERS = {"train": range(NUM_TRAIN), "test": range(NUM_TRAIN, NUM_TRAIN + NUM_TEST)}

# ------------------------------------------------------------------------------------------------------ what they say


def test_those_that_are_promised_are_there() -> None:
    backbones = ("tresnet_m", "tresnet_l", "tresnet_xl", "resnet50", "resnet101", "lcnet_100", "hgnetv2_b0")
    backbones += ("hgnetv2_b4", "hgnetv2_b6", "repvgg_a0", "vit_base_patch16_clip")
    others = ("nus_wide_zsl", "nus_wide_zsl_clip", "coco_zsl_48_17", "coco_zsl_65_15", "open_images_zsl", "voc2007")
    others += ("imagenet_single_label", "scenes_zsl", "custom", "captions_clip")
    assert {*others, *(f"coco_supervised_{name}" for name in backbones)} <= set(NAMES) and sorted(NAMES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_header(name: str) -> None:
    header = recipe_header(name)
    assert list(header) == ["source", "cost", "expected result", "command"]
    assert all(text and "\n" not in text and "  " not in text for text in header.values())
    assert header["command"].startswith("zsmld ") and f"zsmld train {name}" in header["command"]
    # A figure of ours has its report; any other is somebody's, and ours is not known.
    result = header["expected result"]
    assert "evaluation/reports/" in result or result.endswith("not reproduced here")
    assert name in ("custom", "scenes_zsl") or "estimated, not measured" in header["cost"]


@pytest.mark.parametrize("name", NAMES)
def test_command_prepares_what_the_recipe_reads(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The index that `zsmld prepare` writes is the one the recipe opens, made with options that its reader takes."""
    first, *rest = recipe_header(name)["command"].split(" && ")
    recipe = Recipe.load(name)
    dataset = recipe.dataset.get("images", recipe.dataset)  # sentences are read as they are, images beside them are not
    if dataset["name"] != "prepared":
        assert not rest
        return
    words = first.split()
    assert words[:2] == ["zsmld", "prepare"] and words[2] in READERS
    assert words[words.index("--output") + 1] == str(dataset["path"])
    options = [word for word in words if "=" in word]
    assert main(["prepare", words[2], *options, "--options"]) == 0  # an option that it does not take is refused
    capsys.readouterr()


@pytest.mark.parametrize("name", NAMES)
def test_print_config_is_the_recipe(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", name, "--print-config"]) == 0
    (tmp_path / "again.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    assert main(["train", str(tmp_path / "again.yaml"), "--print-config"]) == 0
    assert capsys.readouterr().out == (tmp_path / "again.yaml").read_text(encoding="utf-8")
    assert Recipe.load(tmp_path / "again.yaml").to_yaml() == Recipe.load(name).to_yaml()


# ---------------------------------------------------------------------------------------------- the official settings

ASYMMETRIC = {"gamma_neg": 4.0, "gamma_pos": 0.0, "clip": 0.05, "reduction": "sum"}
ONE_CYCLE = ("one_cycle", 1e-4, 0.2)
COSINE = ("cosine", 1e-4, 5 / 40)
CLIP = "timm:vit_base_patch16_clip_quickgelu_224.openai"
# image encoder, pixels, (schedule, lr, warm-up), optimiser, weight decay, images a step
OFFICIAL = {
    "nus_wide_zsl": ("timm:tresnet_v2_l.miil_in21k", 224, ONE_CYCLE, "adam", 1e-4, 56),
    "coco_zsl_48_17": ("timm:tresnet_v2_l.miil_in21k", 448, ONE_CYCLE, "adam", 1e-4, 56),
    "coco_zsl_65_15": ("timm:tresnet_v2_l.miil_in21k", 448, ONE_CYCLE, "adam", 1e-4, 56),
    "voc2007": ("timm:tresnet_v2_l.miil_in21k", 448, ONE_CYCLE, "adam", 1e-4, 56),
    "coco_supervised_tresnet_m": ("timm:tresnet_m.miil_in21k", 224, ONE_CYCLE, "adam", 1e-4, 56),
    "coco_supervised_tresnet_l": ("timm:tresnet_v2_l.miil_in21k", 448, ONE_CYCLE, "adam", 1e-4, 56),
    "coco_supervised_tresnet_xl": ("timm:tresnet_xl.miil_in1k_448", 640, ONE_CYCLE, "adam", 1e-4, 56),
    "coco_supervised_resnet50": ("timm:resnet50.a1_in1k", 448, COSINE, "adamw", 1e-4, 64),
    "coco_supervised_resnet101": ("timm:resnet101.a1h_in1k", 448, ONE_CYCLE, "adamw", 1e-4, 56),
    "coco_supervised_lcnet_100": ("timm:lcnet_100.ra2_in1k", 448, COSINE, "adamw", 1e-4, 64),
    "coco_supervised_hgnetv2_b0": ("timm:hgnetv2_b0.ssld_stage2_ft_in1k", 448, COSINE, "adamw", 1e-4, 64),
    "coco_supervised_hgnetv2_b4": ("timm:hgnetv2_b4.ssld_stage2_ft_in1k", 448, COSINE, "adamw", 1e-4, 64),
    "coco_supervised_hgnetv2_b6": ("timm:hgnetv2_b6.ssld_stage2_ft_in1k", 448, COSINE, "adamw", 1e-4, 32),
    "coco_supervised_repvgg_a0": ("timm:repvgg_a0.rvgg_in1k", 448, COSINE, "adamw", 1e-4, 64),
    "coco_supervised_vit_base_patch16_clip": (CLIP, 448, ("cosine", 5e-5, 5 / 40), "adamw", 1e-4, 16),
}


def effective(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(Recipe.load(name).to_yaml())
    return found


def test_every_supervised_recipe_of_coco_is_in_the_table() -> None:
    assert {name for name in NAMES if name.startswith("coco_")} <= set(OFFICIAL)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_settings(name: str) -> None:
    recipe = effective(name)
    spec, pixels, rates, optimizer, weight_decay, batch_size = OFFICIAL[name]
    encoder, trainer = recipe["image_encoder"], recipe["trainer"]
    assert (encoder["spec"], encoder["image_size"], encoder["resize"]) == (spec, pixels, "squash")
    assert encoder["pretrained"] and trainer["freeze_image_encoder"] is False
    assert (trainer["schedule"], trainer["lr"], trainer["warmup"]) == rates
    assert (trainer["optimizer"], trainer["weight_decay"]) == (optimizer, weight_decay)
    assert trainer["batch_size"] == batch_size
    assert trainer["epochs"] == 40 and trainer["loss"] == "asymmetric" and trainer["loss_options"] == ASYMMETRIC
    assert trainer["ema_decay"] == (0.9997 if name != "voc2007" else 0.997)  # 80 steps an epoch
    given = Recipe.load(name).image_augmentation
    assert given == {"cutout": 0.5, "rand_augment_ops": 2}
    assert not Recipe.load(name).decoder and recipe["decoder"]["output"] == "shared"  # the paper's, by default


def test_weights_exist() -> None:
    """Each name with a tag is one that timm has weights of."""
    import timm

    specs = {Recipe.load(name).image_encoder["spec"].removeprefix("timm:") for name in NAMES}
    tagged = {spec for spec in specs if "." in spec}
    assert len(tagged) >= 11 and tagged <= set(timm.list_models(pretrained=True, include_tags=True))


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.startswith(("coco_", "nus_wide", "open_images", "voc"))]
)
def test_words_images_and_protocol(name: str) -> None:
    recipe = effective(name)
    zero_shot = "_zsl" in name
    assert (recipe["text_encoder"] is None) == (not zero_shot)
    assert recipe["protocol"]["name"] == {
        "nus_wide_zsl": "nus_wide_gzsl",
        "nus_wide_zsl_clip": "nus_wide_gzsl",
        "coco_zsl_48_17": "coco_gzsl_48_17",
        "coco_zsl_65_15": "coco_gzsl_65_15",
        "open_images_zsl": "open_images_gzsl",
        "voc2007": "voc2007_supervised",
    }.get(name, "coco_supervised")
    # The epoch is chosen on training images (or official validation images that are no test), and on seen words.
    trainer = recipe["trainer"]
    assert not trainer["select_on_test_images"] and not trainer["select_on_unseen_words"]
    assert trainer["holdout_words"] == 0.1
    assert recipe["dataset"]["val_fraction"] == (None if name == "open_images_zsl" else 0.1 if "voc" in name else 0.05)


def test_clip_is_frozen_and_its_features_are_kept() -> None:
    recipe = effective("nus_wide_zsl_clip")
    assert recipe["image_encoder"]["spec"] == recipe["text_encoder"] == "open_clip:ViT-B-16/openai"
    assert recipe["features"]["cache"] == "features" and recipe["features"]["dtype"] == "fp16"
    assert (
        recipe["trainer"]["freeze_image_encoder"] is True and Recipe.load("nus_wide_zsl_clip").image_augmentation == {}
    )
    assert recipe["trainer"]["loss_options"] == ASYMMETRIC


def test_captions_train_a_head_for_images() -> None:
    recipe, words = effective("captions_clip"), effective("coco_zsl_48_17")
    encoder = recipe["image_encoder"]
    assert encoder["spec"] == recipe["text_encoder"] == "open_clip:ViT-B-16/openai"
    assert encoder["projected"] and encoder["global_token"] and recipe["decoder"]["unit_positions"]
    assert recipe["trainer"]["freeze_image_encoder"] is True and recipe["trainer"]["text_noise"] > 0
    assert recipe["dataset"]["images"]["partition"] == words["dataset"]["partition"] == "48_17"
    assert recipe["dataset"]["exclude_unseen_sentences"] and recipe["dataset"]["images"]["exclude_unseen_images"]
    assert recipe["protocol"]["name"] == words["protocol"]["name"]


def test_imagenet_is_a2() -> None:
    """arXiv 2110.00476, as the README of ML-Decoder writes it."""
    recipe = effective("imagenet_single_label")
    assert recipe["image_encoder"]["spec"] == "timm:resnet50" and not recipe["image_encoder"]["pretrained"]
    assert recipe["text_encoder"] is None and recipe["protocol"]["name"] == "imagenet_single_label"
    assert recipe["protocol"]["top_k"] == [1, 5]
    trainer = recipe["trainer"]
    assert (trainer["optimizer"], trainer["lr"], trainer["weight_decay"]) == ("lamb", 4e-3, 0.02)
    assert (trainer["schedule"], trainer["epochs"], trainer["batch_size"]) == ("cosine", 300, 2048)
    assert trainer["warmup"] == pytest.approx(5 / 300, rel=0.01) and trainer["ema_decay"] == 0
    assert trainer["loss"] == "binary_cross_entropy" and trainer["loss_options"] == {}
    images = recipe["image_augmentation"]
    assert (images["mixup"], images["cutmix"], images["cutout"]) == (0.1, 1.0, 0)
    assert (images["min_crop_area"], images["horizontal_flip"]) == (0.08, 0.5)
    # timm counts strengths to 10, torchvision to 30.
    assert (images["rand_augment_ops"], images["rand_augment_magnitude"] / 30) == (2, 7 / 10)


# ------------------------------------------------------------------------------------- tiny downloads, and two steps


def write_image(path: Path, number: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_lines(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def download_coco(root: Path, year: int) -> None:
    """Two words an image, seen ones; in each tenth one of all 80, which may be unseen and take the image away."""
    for split, official in (("train", "train"), ("test", "val")):
        images, annotations = [], []
        for i in NUMBERS[split]:
            name = f"{i:012d}.jpg" if year == 2017 else f"COCO_{official}2014_{i:012d}.jpg"
            write_image(root / f"{official}{year}" / name, i)
            images.append({"id": i, "file_name": name})
            words = [COCO_SEEN[i % len(COCO_SEEN)], COCO[i] if i % 10 == 0 else COCO_SEEN[(i + 7) % len(COCO_SEEN)]]
            for word in dict.fromkeys(words):
                j = COCO.index(word)
                entry = {"id": 100 * i + j, "image_id": i, "category_id": j + 1, "iscrowd": 0, "area": 50.0}
                annotations.append(entry | {"bbox": [0, 0, 5, 10]})
        categories = [{"id": j + 1, "name": word} for j, word in enumerate(COCO)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_lines(root / "annotations" / f"instances_{official}{year}.json", [json.dumps(content)])


def download_nus_wide(root: Path) -> None:
    """All of its 1,000 tags and 81 concepts; image i has tags i, i + 1 and concept i."""
    tags = [*NUS_WIDE["seen"], *NUS_WIDE["unseen"][:75]]
    images = [f"actor\\{i:04d}_{i + 1000}.jpg" for split in NUMBERS.values() for i in split]
    write_lines(root / "NUS_WID_Tags" / "TagList1k.txt", tags)
    has_tags = np.eye(len(images), len(tags), dtype=int) + np.eye(len(images), len(tags), 1, dtype=int)
    write_lines(root / "NUS_WID_Tags" / "AllTags1k.txt", ["".join(f"{digit}\t" for digit in row) for row in has_tags])
    write_lines(root / "ConceptsList" / "Concepts81.txt", NUS_WIDE["unseen"])
    for j, word in enumerate(NUS_WIDE["unseen"]):
        digits = [str(int(i == j)) for i in range(len(images))]
        write_lines(root / "Groundtruth" / "AllLabels" / f"Labels_{word}.txt", digits)
    write_lines(root / "ImageList" / "Imagelist.txt", images)
    write_lines(root / "ImageList" / "TrainImagelist.txt", images[:NUM_TRAIN])
    write_lines(root / "ImageList" / "TestImagelist.txt", images[NUM_TRAIN:])
    for i, name in enumerate(images):
        write_image(root / "Flickr" / name.replace("\\", "/"), i)


def download_open_images(root: Path) -> None:
    """7,586 classes; in image i classes i and i + 1 are verified present, class i + 2 absent, the others unknown."""
    mids = [f"/m/{i:05d}" for i in range(7586)]
    write_lines(root / "class-descriptions.csv", [f"{mid},class {i}" for i, mid in enumerate(mids)])
    write_lines(root / "classes-trainable.txt", mids[:7186])
    write_lines(root / "unseen_400.txt", mids[7186:])
    for split, numbers in {"train": NUMBERS["train"], "validation": range(90, 96), "test": NUMBERS["test"]}.items():
        rows = ["ImageID,Source,LabelName,Confidence"]
        for i in numbers:
            write_image(root / split / f"{i:016x}.jpg", i)
            rows += [f"{i:016x},verification,{mids[i + j]},{int(j < 2)}" for j in range(3)]
        write_lines(root / f"{split}-annotations-human-imagelabels.csv", rows)


def download_voc(root: Path) -> None:
    devkit = root / "VOC2007"
    for image_set, split in (("trainval", "train"), ("test", "test")):
        write_lines(devkit / "ImageSets" / "Main" / f"{image_set}.txt", [f"{i:06d}" for i in NUMBERS[split]])
        for i in NUMBERS[split]:
            objects = "".join(
                f"<object><name>{VOC[j % 20]}</name><difficult>{int(j == i + 2)}</difficult></object>"
                for j in (i, i + 2, i + 5)
            )
            write_lines(devkit / "Annotations" / f"{i:06d}.xml", [f"<annotation>{objects}</annotation>"])
            write_image(devkit / "JPEGImages" / f"{i:06d}.jpg", i)


def download_imagenet(root: Path) -> None:
    """1,000 classes, of which twelve have images."""
    write_lines(root / "LOC_synset_mapping.txt", [f"n{i:08d} class {i}, another name" for i in range(1000)])
    for folder, split in (("train", "train"), ("val", "test")):
        for i in NUMBERS[split]:
            write_image(root / folder / f"n{i % 12:08d}" / f"{i}.jpg", i)


# What a recipe opens -> how a tiny download of it is made, its reader, and the options that the command gives it.
DOWNLOADS: dict[str, tuple[Callable[[Path], None], str, dict[str, Any]]] = {
    "coco2014": (lambda root: download_coco(root, 2014), "coco", {"check_counts": False}),
    "coco2017": (lambda root: download_coco(root, 2017), "coco", {"check_counts": False, "year": 2017}),
    "nus_wide": (download_nus_wide, "nus_wide", {"check_counts": False}),
    "open_images": (download_open_images, "open_images", {"check_counts": False}),
    "voc2007": (download_voc, "voc", {"check_counts": False}),
    "imagenet": (download_imagenet, "folder", {"class_names": "LOC_synset_mapping.txt", "val_as_test": True}),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The index of a tiny download, by the last part of the path in the recipe; made once."""
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            download, reader, options = DOWNLOADS[name]
            root = tmp_path_factory.mktemp(name)
            download(root)
            if "class_names" in options:
                options = options | {"class_names": root / options["class_names"]}
            made[name] = root / "prepared"
            prepare(reader, root, made[name], num_decoded=2, **options)
        return made[name]

    return find


def tiny_clip(folder: Path) -> str:
    """An open_clip model of few random weights, saved as others are."""
    text = {"context_length": 32, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 64, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    write_lines(folder / "open_clip_config.json", [json.dumps(config)])
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    weights = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return f"open_clip:{folder}"


def stand_in(recipe: Recipe, prepared: Callable[[str], Path], photos: Path, tmp_path: Path) -> list[str]:
    """Overrides for a machine without a GPU, weights and downloads. All else stays as the recipe has it."""
    overrides = ["trainer.epochs=1", "trainer.steps_per_epoch=2", "trainer.batch_size=2", "trainer.num_workers=0"]
    overrides += ["trainer.device=cpu", "trainer.precision=fp32"]
    overrides += ["image_encoder.pretrained=false", "image_encoder.image_size=64"]
    if recipe.trainer.get("gradient_accumulation", 1) > 1:
        overrides += ["trainer.gradient_accumulation=2", "trainer.batch_size=4"]
    if recipe.dataset["name"] == "prepared":
        overrides += [f"dataset.path={prepared(Path(recipe.dataset['path']).name)}"]
    elif recipe.dataset["name"] == "table":
        overrides += [f"dataset.path={photos / 'photos.csv'}", f"dataset.partition={photos / 'partition.json'}"]
    elif recipe.dataset["name"] == "captions":
        sentences = [f"a {word} and a {COCO_SEEN[i - 1]}" for i, word in enumerate(COCO_SEEN)]
        write_lines(tmp_path / "captions.json", [json.dumps({"annotations": [{"caption": s} for s in sentences]})])
        overrides += [f"dataset.path={tmp_path / 'captions.json'}"]
        overrides += [f"dataset.images.path={prepared(Path(recipe.dataset['images']['path']).name)}"]
        clip = tiny_clip(tmp_path / "clip")  # one space of images and texts, which word vectors are not
        overrides += [f"image_encoder.spec={clip}", f"text_encoder={clip}"]
    else:
        assert recipe.dataset["name"] == "scenes"
        overrides += ["dataset.num_images=12"]
    if recipe.dataset.get("partition") == "7186_400":  # so many queries are a minute's work at full width
        overrides += ["decoder.decoder_dim=64", "decoder.feedforward_dim=128"]
    if recipe.features and recipe.features["cache"] != "memory":
        overrides += [f"features.cache={tmp_path / 'features'}"]
    return overrides


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.parametrize("name", NAMES)
def test_two_steps(
    name: str, prepared: Callable[[str], Path], photos: Path, make_vectors: Callable[..., Path], tmp_path: Path
) -> None:
    original = Recipe.load(name)
    overrides = stand_in(original, prepared, photos, tmp_path)
    recipe = Recipe.load(name, overrides)
    words = recipe.build_dataset("train").vocabulary.words
    needs_vectors = recipe.text_encoder not in (None, "minilm") and recipe.dataset["name"] != "captions"
    if needs_vectors or len(words) > 1000:  # which would take a download, or a minute
        overrides += [f"text_encoder=vectors:{make_vectors(tmp_path / 'words.npz', words)}"]
        recipe = Recipe.load(name, overrides)
    trainer = recipe.build_trainer()  # writes nothing: a checkpoint has up to 1.3 GB
    assert trainer.steps_per_epoch == 2
    before = {key: value.clone() for key, value in trainer.model.decoder.state_dict().items()}
    # oneDNN of torch 2.15 crashes in the backward pass of a 1 x 1 convolution of stride 2 in channels_last.
    with torch.backends.mkldnn.flags(enabled=False) if "repvgg" in name else nullcontext():
        model = trainer.fit()

    (epoch,) = trainer.history
    assert epoch["step"] == 2 and math.isfinite(epoch["loss"]) and epoch["loss"] > 0
    after = model.decoder.state_dict()
    moved = [key for key in before if not torch.equal(before[key], after[key])]
    assert any("layers.0.linear1" in key or "cosine" in key for key in moved), moved
    assert all(torch.isfinite(value).all() for value in after.values())
    assert Recipe.from_dict(model.recipe) == recipe
    # The words are as many as the protocol of the recipe is about.
    protocol = recipe.build_protocol(recipe.build_dataset("test").vocabulary)
    assert protocol.parts and (trainer.heldout != ()) == (original.text_encoder is not None)
