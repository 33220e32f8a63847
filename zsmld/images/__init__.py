"""Images on their way to the head: loaded, transformed, in training augmented, and encoded.

`load_image` decodes to RGB, `ImageTransform` makes the tensor that an encoder was trained to see, `ImageAugmentation`
varies it in training, and `ImageEncoder` turns it into spatial embeddings.
"""

from zsmld.images.augmentation import ImageAugmentation
from zsmld.images.encoder import ImageEncoder, names_folder
from zsmld.images.loading import ImageSource, load_image
from zsmld.images.open_clip_tower import create_open_clip
from zsmld.images.transform import ImageTransform, Resize

__all__ = [
    "ImageAugmentation",
    "ImageEncoder",
    "ImageSource",
    "ImageTransform",
    "Resize",
    "create_open_clip",
    "load_image",
    "names_folder",
]
