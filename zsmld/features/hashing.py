"""What an image and an encoder are known by in a cache: hashes of their content."""

import hashlib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from zsmld.datasets import Dataset, IndexedDataset
from zsmld.datasets.loader import load_batches
from zsmld.processes import from_all, rank_and_world


def hash_images(
    dataset: Dataset, num_workers: int = 0, progress: bool = False
) -> tuple[dict[int, tuple[bytes, str]], dict[int, tuple[str, str]]]:
    """Hash every image of a dataset; the processes of `torch.distributed` share the work.

    The file is hashed where the dataset is of files, an `IndexedDataset`, and nothing is decoded. Of any other dataset
    the decoded image is: nobody says that its item is a whole file and not, say, a part of one.

    Returns:
        row -> (hash of 32 bytes, image id), and row -> (image id, error) of those that could not be read. A file that
        can be read and not decoded is among the first.
    """
    rank, world = rank_and_world()
    rows = range(rank, len(dataset), world)
    found: dict[int, tuple[bytes, str]] = {}
    errors: list[tuple[str, str]] = []
    with tqdm(total=len(rows), disable=None if progress else True, desc="image hashes", unit="image") as bar:
        for batch in load_batches(_Hashes(dataset), None, 64, rows, num_workers):
            for row, digest, image_id in zip(batch.rows.tolist(), batch.inputs, batch.ids, strict=True):
                found[row] = digest.numpy().tobytes(), image_id
            errors += batch.unreadable
            bar.update(len(batch) + len(batch.unreadable))
    unreadable = dict(zip((row for row in rows if row not in found), errors, strict=True))
    for others_found, others_unreadable in from_all((found, unreadable)):
        found |= others_found
        unreadable |= others_unreadable
    return found, unreadable


class _Hashes:
    """A dataset with the hash of each image in place of the image, so that `load_batches` can do all the rest."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        if hasattr(dataset, "ids"):
            self.ids = dataset.ids

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, row: int) -> dict[str, Any]:
        if isinstance(self.dataset, IndexedDataset):
            image_id = str(self.dataset.ids[row])
            try:
                with (self.dataset.root / str(self.dataset.paths[row])).open("rb") as file:
                    digest = hashlib.file_digest(file, _blake2b).digest()
            except OSError:
                self.dataset[row]  # says what is wrong in the words it always uses
                raise
        else:
            item = self.dataset[row]
            image_id, digest = item["id"], image_hash(item["image"])
        embedded = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        return {"image": embedded, "targets": np.empty(0, np.int8), "id": image_id}


def image_hash(image: Any) -> bytes:
    """Hash of a decoded image, PIL or tensor: 32 bytes.

    Example:
        >>> from PIL import Image
        >>> red, blue = (Image.new("RGB", (4, 3), colour) for colour in ("red", "blue"))
        >>> image_hash(red) == image_hash(red.copy()) != image_hash(blue), len(image_hash(red))
        (True, 32)
    """
    digest = _blake2b()
    if isinstance(image, Tensor):
        _add_tensor(digest, "tensor", image)
    else:
        image = image.convert("RGB")  # as the transform does: a palette or transparency would not be among the pixels
        digest.update(f"RGB {image.size}\n".encode())
        digest.update(image.tobytes())
    return digest.digest()


def weights_hash(network: nn.Module) -> str:
    """Hash of a network's parameters and buffers, 64 hexadecimal digits."""
    digest = _blake2b()
    for name, tensor in sorted(network.state_dict().items()):
        _add_tensor(digest, name, tensor)
    return digest.hexdigest()


def _blake2b() -> Any:
    return hashlib.blake2b(digest_size=32)


def _add_tensor(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
