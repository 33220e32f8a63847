"""A network with our head becomes a model of ours: the same logits, saved, loaded, and with more words."""

import pytest
import timm
import torch
from torch import nn
from torch.testing import assert_close

from zsmld import TextEncoder, Vocabulary, ZeroShotClassifier
from zsmld.interop import add_ml_decoder_head, to_classifier

SMALL = {"decoder_dim": 32, "feedforward_dim": 48}


def trained(name, pixels, **options):
    """As after a training: no parameter and no statistic at its first value."""
    torch.manual_seed(0)
    model = add_ml_decoder_head(timm.create_model(name, pretrained=False), image_size=pixels, **SMALL, **options)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point() and key != "head.word_embeddings":
                tensor.add_(0.02 * torch.rand_like(tensor))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "pixels"),
    [
        ("test_resnet", 64),
        ("test_vit", None),
        ("test_vit3", None),
        ("test_convnext", 64),
        ("vit_tiny_patch16_224", None),
    ],
)
def test_the_model_scores_as_the_network_did(name, pixels, tmp_path):
    """Also where the network keeps tensors behind its map, which add_ml_decoder_head takes away."""
    model = trained(name, pixels, num_classes=3)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    to_classifier(model, words=["a", "b", "c"], image_size=pixels).save_pretrained(tmp_path)
    found = ZeroShotClassifier.from_pretrained(tmp_path)
    size = found.image_encoder.transform.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_close(found(images), model(images), atol=1e-5, rtol=1e-5)
    assert found.vocabulary.words == ("a", "b", "c")
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_words_go_along_and_others_can_be_scored(vectors_path, tmp_path):
    spec = f"vectors:{vectors_path}"
    model = trained("test_resnet", 64, words=["dog", "red car"], text_encoder=spec)
    to_classifier(model, image_size=64).save_pretrained(tmp_path)
    found = ZeroShotClassifier.from_pretrained(tmp_path)
    assert found.vocabulary.words == ("dog", "red car") and found.text_encoder == spec
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert_close(found(images, found.word_embeddings), model(images), atol=1e-5, rtol=1e-5)
        model.set_words(["zebra", "dog"])
        assert_close(found(images, found.encode_words(["zebra", "dog"])), model(images), atol=1e-5, rtol=1e-5)


def test_templates_of_the_words_go_along(vectors_path):
    words = Vocabulary(["dog", "zebra"], templates=["a drawing of a {}"])
    model = trained("test_resnet", 64, words=words, text_encoder=TextEncoder(f"vectors:{vectors_path}"))
    assert to_classifier(model, image_size=64).vocabulary.templates == words.templates


def test_the_transform_is_that_of_the_training():
    model = trained("test_resnet", 64, num_classes=2)
    made = to_classifier(model, image_size=96, mean=(0.5, 0.5, 0.5), resize="crop").image_encoder.transform
    assert (made.image_size, made.mean, made.resize) == (96, (0.5, 0.5, 0.5), "crop")
    own = to_classifier(model).image_encoder.transform
    assert own.image_size == 160 and own.std == tuple(model.pretrained_cfg["std"])


def test_a_transformer_of_another_size_keeps_its_grid():
    body = timm.create_model("test_vit", pretrained=False, img_size=96)
    model = add_ml_decoder_head(body, num_classes=2, **SMALL).eval()
    found = to_classifier(model)
    assert found.image_encoder.transform.image_size == 96
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        assert_close(found(images), model(images), atol=1e-5, rtol=1e-5)


def test_what_cannot_be_brought_back_is_refused():
    with pytest.raises(TypeError, match="model must be what add_ml_decoder_head made without replace, got Linear"):
        to_classifier(nn.Linear(2, 2))
    plain = nn.Sequential(nn.Conv2d(3, 8, 3))
    own = add_ml_decoder_head(plain, num_classes=2, map_of=lambda body, x: body(x), image_size=32, **SMALL)
    with pytest.raises(ValueError, match="model must be a network of timm, whose name brings it back, got Sequential"):
        to_classifier(own)
    model = trained("test_resnet", 64, num_classes=2)
    with pytest.raises(ValueError, match="the body's tensors must fit ResNet"):
        to_classifier(model, image_encoder="timm:resnet18")
    with pytest.raises(ValueError, match="vocabulary must have num_classes=2 words"):
        to_classifier(model, words=["a"], image_size=64)
