"""Recipe <-> YAML: every error at once, and nothing lost on the way."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from zsmld.protocols import Protocol
from zsmld.recipe import Recipe, protocol_from, reader_options, recipe_names
from zsmld.trainer import Trainer

NAMES = recipe_names()


def content(**changes: Any) -> dict[str, Any]:
    """A small recipe as nested mappings, with sections replaced."""
    return {
        "dataset": {"name": "scenes", "num_images": 12},
        "image_encoder": {"spec": "timm:test_resnet", "pretrained": False, "image_size": 64},
        "text_encoder": "minilm",
    } | changes


# ---------------------------------------------------------------------------------------------------------- overrides


@given(st.floats(1e-9, 10), st.integers(1, 10**6), st.booleans(), st.sampled_from(["one_cycle", "cosine"]))
def test_overrides_arrive_with_their_types(lr: float, epochs: int, frozen: bool, schedule: str) -> None:
    overrides = [f"trainer.lr={lr}", f"trainer.epochs={epochs}", f"trainer.schedule={schedule}"]
    overrides += [f"trainer.freeze_image_encoder={str(frozen).lower()}"]
    found = Recipe.from_dict(content(), overrides).trainer
    assert found == {"lr": lr, "epochs": epochs, "schedule": schedule, "freeze_image_encoder": frozen}
    assert type(found["epochs"]) is int and type(found["lr"]) is float


@pytest.mark.parametrize("text", ["2e-4", "2.0e-4", "0.0002", "'2e-4'"])
def test_every_way_to_write_a_number(text: str) -> None:
    assert Recipe.from_dict(content(), [f"trainer.lr={text}"]).trainer["lr"] == 2e-4
    assert Recipe.from_dict(content(trainer={"lr": yaml.safe_load(text)})).trainer["lr"] == 2e-4


def test_overrides_reach_sections_that_are_not_there() -> None:
    recipe = Recipe.from_dict(
        content(), ["decoder.output=shared", "augmentation.noise=0.1", "text_encoder=null", "protocol.top_k=[1, 2]"]
    )
    assert recipe.decoder == {"output": "shared"} and recipe.augmentation == {"noise": 0.1}
    assert recipe.text_encoder is None and tuple(recipe.protocol["top_k"]) == (1, 2)


def test_the_last_override_counts_and_the_input_stays() -> None:
    original = content(trainer={"lr": 1.0})
    assert Recipe.from_dict(original, ["trainer.lr=2", "trainer.lr=3"]).trainer["lr"] == 3
    assert original == content(trainer={"lr": 1.0})


def test_a_path_with_an_equals_sign(photos: Path) -> None:
    overrides = ["dataset.name=table", "dataset.path=a=b.csv", "dataset.num_images=null"]
    with pytest.raises(ValueError, match=r"dataset: unknown 'num_images'"):
        Recipe.from_dict(content(), overrides)
    recipe = Recipe.from_dict(content(dataset={"name": "table"}), overrides[1:2])
    assert str(recipe.dataset["path"]) == "a=b.csv"


# ------------------------------------------------------------------------------------------------------------- errors


def test_all_errors_come_at_once_with_the_nearest_names() -> None:
    wrong = {
        "dataset": {"name": "scene"},
        "image_encoder": {"spec": ["timm:resnet18"], "image_sise": 64},
        "text_encoder": 3,
        "decoder": {"output": "softmax", "text_dim": 5},
        "trianer": {},
        "trainer": {"lrr": 1, "epochs": "many", "device": 3},
        "augmentation": 3,
        "protocol": {"name": "gzls"},
    }
    with pytest.raises(ValueError, match="recipe must be valid, got:") as caught:
        Recipe.from_dict(wrong, ["trainer.freeze=1", "a.b.c=1", "nonsense"])
    lines = [line.removeprefix("  - ") for line in str(caught.value).splitlines()[1:]]
    for expected in (
        "section: unknown 'a'; it takes dataset, image_encoder, text_encoder, decoder, prior, augmentation, "
        "image_augmentation, features, trainer, protocol",
        "override must be section.key=value, got 'nonsense'",
        "section: unknown 'trianer'; did you mean 'trainer'?",
        "dataset.name: unknown 'scene'; did you mean 'scenes'?",
        "image_encoder: unknown 'image_sise'; did you mean 'image_size'?",
        "image_encoder.spec must be str, got ['timm:resnet18']",
        "text_encoder must be a text such as minilm, got 3",
        "trainer.epochs must be int, got 'many'",
        "trainer.device must be str, got 3",
        "augmentation must be a mapping, got 3",
        "protocol.name: unknown 'gzls'; did you mean 'gzsl'?",
    ):
        assert expected in lines
    assert any(line.startswith("decoder.output must be ") and "got 'softmax'" in line for line in lines)
    assert any(line.startswith("decoder: unknown 'text_dim'") for line in lines)  # it follows from the encoders
    assert any(line.startswith("trainer: unknown 'lrr'; did you mean 'lr'?") for line in lines)
    assert any(line.startswith("trainer: unknown 'freeze'") for line in lines)


@pytest.mark.parametrize("section", ["dataset", "image_encoder"])
def test_sections_that_must_be_there(section: str) -> None:
    with pytest.raises(ValueError, match=f"section {section} must be given"):
        Recipe.from_dict({key: value for key, value in content().items() if key != section})
    with pytest.raises(ValueError, match=r"image_encoder\.spec must be given"):
        Recipe.from_dict(content(image_encoder={}))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("trainer", "epochs", 2.5),
        ("trainer", "lr", "fast"),
        ("trainer", "fsdp", "perhaps"),
        ("features", "dtype", "fp8"),
        ("image_augmentation", "cutout", "half"),
        ("trainer", "schedule", "steps"),
        ("dataset", "num_images", [3]),
        ("image_encoder", "mean", "grey"),
        ("augmentation", "random_target", "both"),
        ("protocol", "empty_words", "drop"),
    ],
)
def test_wrong_types(section: str, key: str, value: Any) -> None:
    changed = content()
    changed[section] = {**changed.get(section, {"name": "gzsl"} if section == "protocol" else {}), key: value}
    with pytest.raises(ValueError, match=rf"{section}\.{key} must be .*, got "):
        Recipe.from_dict(changed)


def test_what_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"recipe must be a YAML file .*not found: custm; did you mean .*'custom'"
    ):
        Recipe.load("custm")
    with pytest.raises(FileNotFoundError, match=r"not found: none\.yaml"):
        Recipe.load("none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(ValueError, match="recipe must be a mapping of sections, got list"):
        Recipe.load(tmp_path / "list.yaml")
    (tmp_path / "empty.yaml").write_text("")
    with pytest.raises(ValueError, match="recipe must be a mapping of sections, got NoneType"):
        Recipe.load(tmp_path / "empty.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1, 2\nb: }")
    with pytest.raises(ValueError, match=r"recipe .*broken\.yaml must be YAML, it cannot be read"):
        Recipe.load(tmp_path / "broken.yaml")


@pytest.mark.parametrize("changes", [{"dataset": {"name": ["scenes"]}}, {"protocol": {"name": {"a": 1}}}])
def test_a_name_that_is_no_text(changes: dict) -> None:
    with pytest.raises(ValueError, match="recipe must be valid"):
        Recipe.from_dict(content(**changes))


# --------------------------------------------------------------------------------------------------------- round trip


def effective(recipe: Recipe) -> dict[str, Any]:
    return yaml.safe_load(recipe.to_yaml())


@pytest.mark.parametrize("source", [*NAMES, None])
def test_effective_yaml_loads_to_the_same_recipe(source: str | None, tmp_path: Path) -> None:
    recipe = Recipe.from_dict(content()) if source is None else Recipe.load(source)
    (tmp_path / "r.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    again = Recipe.load(tmp_path / "r.yaml")
    assert again.to_yaml() == recipe.to_yaml()
    found = effective(recipe)
    for section, options in recipe.to_dict().items():  # what was given is there, and nothing overrode it
        if isinstance(options, dict):
            assert {key: found[section][key] for key in options} == jsonable(options)
    for key in ("weight_decay", "lr", "schedule", "seed"):  # defaults are those of the class
        assert found["trainer"][key] == recipe.trainer.get(key, getattr(Trainer, key))


def jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: jsonable(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def test_effective_yaml_still_builds_its_protocol(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(content())
    vocabulary = recipe.build_dataset("test").vocabulary
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "r.yaml").build_protocol(vocabulary) == recipe.build_protocol(vocabulary)


def test_effective_yaml_has_the_policies_of_its_protocol() -> None:
    """A named protocol may have others than the class."""
    assert effective(Recipe.from_dict(content(protocol={"name": "single_label"})))["protocol"]["top_k"] == [1, 5]
    changed = content(protocol={"name": "single_label", "top_k": [2]})
    assert effective(Recipe.from_dict(changed))["protocol"]["top_k"] == [2]


def test_dict_round_trip() -> None:
    recipe = Recipe.from_dict(content(trainer={"lr": "2e-4"}, protocol={"name": "zsl", "top_k": [1]}))
    assert Recipe.from_dict(recipe.to_dict()) == recipe


# ----------------------------------------------------------------------------------------------------- what it builds


def test_built_parts_are_as_described(tmp_path: Path) -> None:
    recipe = Recipe.from_dict(
        content(
            decoder={"decoder_dim": 32, "num_heads": 4, "output": "cosine"},
            trainer={"epochs": 3, "device": "cpu", "seed": 7},
            augmentation={"noise": 0.2},
            protocol={"name": "scenes_zsl", "top_k": [2]},
        )
    )
    trainer = recipe.build_trainer(tmp_path)
    assert trainer.dataset.split == "train" and trainer.val_dataset.split == "val" and len(trainer.dataset) == 12
    assert (trainer.epochs, trainer.seed, trainer.augmentation.noise) == (3, 7, 0.2)
    model = trainer.model
    assert model.decoder.text_dim == 384 and model.decoder.output == "cosine" and model.text_encoder == "minilm"
    assert model.recipe == recipe.to_dict()
    protocol = recipe.build_protocol(trainer.dataset.vocabulary)
    assert isinstance(protocol, Protocol) and protocol.name == "scenes_zsl" and tuple(protocol.top_k) == (2,)
    other = recipe.build_model()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def test_without_text_encoder_it_trains_class_queries(photos: Path) -> None:
    recipe = Recipe.from_dict(
        content(
            text_encoder=None, dataset={"name": "table", "path": str(photos / "photos.csv")}, decoder={"num_groups": 2}
        )
    )
    assert recipe.build_model().decoder.num_classes == 6
    assert recipe.build_protocol(recipe.build_dataset("test").vocabulary).task == "supervised"


def test_a_protocol_that_does_not_fit_is_refused(photos: Path) -> None:
    recipe = Recipe.from_dict(content(protocol={"name": "nus_wide_gzsl"}))
    with pytest.raises(
        ValueError, match="protocol nus_wide_gzsl needs 925 seen and 81 unseen words, the dataset has 80 an"
    ):
        recipe.build_protocol(recipe.build_dataset("test").vocabulary)


def test_ranges_and_combinations_are_refused_all_at_once() -> None:
    wrong = {"decoder": {"num_heads": 7}, "augmentation": {"noise": -1.0}, "protocol": {"name": "gzsl", "top_k": [0]}}
    with pytest.raises(ValueError, match="recipe must be valid") as caught:
        Recipe.from_dict(content(**wrong))
    for part in ("num_heads must divide", "noise must not be negative", "top_k must be positive numbers"):
        assert part in str(caught.value)


def test_overrides_reach_inside_mappings_and_empty_sections() -> None:
    empty = content() | {"augmentation": None}
    recipe = Recipe.from_dict(empty, ["image_encoder.model_kwargs.stem_width=8", "augmentation.noise=0.5"])
    assert recipe.image_encoder["model_kwargs"] == {"stem_width": 8}
    assert recipe.augmentation == {"noise": 0.5}
    assert Recipe.from_dict(empty).augmentation == {}


@pytest.mark.parametrize("separator", ["|", ";", ",", ">", "/"])
def test_a_separator_may_be_given_as_it_is(separator: str) -> None:
    assert reader_options("table", [f"separator={separator}"]) == {"separator": separator}
    recipe = Recipe.load("custom", [f"dataset.separator={separator}"])
    assert recipe.dataset["separator"] == separator


def test_options_of_a_reader_are_checked_all_at_once() -> None:
    with pytest.raises(ValueError, match=r"(?s)options.year must be .*got 1999.*unknown 'crowds'; did you mean"):
        reader_options("coco", ["year=1999", "crowds=drop"])
    with pytest.raises(ValueError, match=r"dataset: unknown 'cocoa'; did you mean 'coco'"):
        reader_options("cocoa", [])
    with pytest.raises(ValueError, match=r"protocol: unknown 'topk'; did you mean 'top_k'"):
        protocol_from("zsl", ["protocol.topk=3"])


@pytest.mark.parametrize(
    "text, value", [("48_17", "48_17"), ("925_81", "925_81"), ("80", "80"), ("mine.json#a", "mine.json#a")]
)
def test_the_name_of_a_partition_is_a_text(text: str, value: str, tmp_path: Path) -> None:
    """YAML 1.1 reads 48_17 as the number 4817."""
    path = tmp_path / "r.yaml"
    dataset = f"{{name: prepared, path: p, partition: {text}}}"
    path.write_text(f"dataset: {dataset}\nimage_encoder: {{spec: timm:test_resnet}}\n")
    assert Recipe.load(path).dataset["partition"] == value
    again = tmp_path / "again.yaml"
    again.write_text(Recipe.load(path).to_yaml())
    assert Recipe.load(again).dataset["partition"] == value
    assert Recipe.load("custom", [f"dataset.partition={text}"]).dataset["partition"] == value


@pytest.mark.parametrize(
    "text, value", [("1e-3", 1e-3), ("2.0e-4", 2e-4), ("1", 1.0), (".5", 0.5), ("1E2", 100.0), ("5.", 5.0)]
)
def test_numbers_are_numbers(text: str, value: float) -> None:
    assert Recipe.load("custom", [f"trainer.lr={text}"]).trainer["lr"] == value
    assert Recipe.load("custom", ["trainer.epochs=12", "trainer.max_grad_norm=0"]).trainer["epochs"] == 12


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["prior.kind=clip"], "prior.kind=clip needs image_encoder.spec=open_clip:…, got timm:resnet50.a1_in1k"),
        (["prior.kind=clip"], "prior.kind=clip needs text_encoder=timm:resnet50.a1_in1k, the same CLIP, got minilm"),
        (["prior.kind=clip", "prior.top_classes=3"], "prior.kind=clip has no top_classes, which belong to conse"),
        (
            ["image_encoder.spec=open_clip:RN50/openai"],
            "prior.kind=conse needs image_encoder.spec=timm:…, got open_clip:",
        ),
        (["image_encoder.projected=false"], "prior needs image_encoder.projected=true"),
        (["trainer.freeze_image_encoder=false", "features=null"], "prior needs trainer.freeze_image_encoder=true"),
        (["prior=null", "decoder.word_reach=0", "trainer.teacher_words=8"], "trainer.teacher_words needs a prior"),
        (["prior=null"], "word_reach must be ≥ 0, and have a prior that decides beyond it"),
        (["prior.standardization=both"], "prior must have standardization='none' inside a head"),
        (["prior.kind=cllip"], "prior.kind must be"),
        (["prior.temprature=2"], "prior: unknown 'temprature'; did you mean 'temperature'?"),
    ],
)
def test_a_prior_that_does_not_fit_is_refused_before_anything_is_loaded(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        Recipe.load("custom", overrides)
    assert message in str(caught.value)


def test_the_custom_recipe_takes_a_clip_or_no_prior() -> None:
    clip = ["image_encoder.spec=open_clip:ViT-B-16/openai", "prior.kind=clip", "text_encoder=open_clip:ViT-B-16/openai"]
    assert Recipe.load("custom", clip).prior == {"kind": "clip"}
    assert Recipe.load("custom", ["prior=null", "decoder.word_reach=0", "text_encoder=vectors:a.txt"]).prior is None
