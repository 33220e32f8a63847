"""Scores of a dataset: they arrive in batches, in any order, from one process or many, and become one matrix."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from zsmld.datasets import Dataset
from zsmld.datasets.loader import Batch, load_batches
from zsmld.model import ZeroShotClassifier
from zsmld.processes import from_all, rank_and_world, tensors_from_all


class ScoreMatrix:
    """An (M,N) matrix that is filled row by row.

    It allocates the matrix once, so that all of it never takes more memory than the scores themselves and one batch.

    Args:
        num_images: M.
        num_words: N.

    Attributes:
        values: (M,N) fp32; rows that never came are zero.
        filled: (M,) bool, the rows that came.

    Example:
        >>> matrix = ScoreMatrix(3, 2)
        >>> matrix.add(np.array([2, 0]), np.array([[1.0, 2.0], [3.0, 4.0]]))
        >>> matrix.add(np.array([0, -1]), np.array([[9.0, 9.0], [0.0, 0.0]]))  # a sampler's duplicate, and padding
        >>> matrix.values.tolist(), matrix.filled.tolist()
        ([[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]], [True, False, True])
    """

    def __init__(self, num_images: int, num_words: int) -> None:
        self.values = np.zeros((num_images, num_words), np.float32)
        self.filled = np.zeros(num_images, bool)

    def add(self, rows: np.ndarray | Tensor, scores: np.ndarray | Tensor) -> None:
        """Put a batch in its place.

        Args:
            rows: (B,) positions in the dataset, in any order; −1 is padding and is ignored. A row that came before, as
                samplers repeat some to fill the last batch, is ignored too.
            scores: (B,N) real.

        Raises:
            ValueError: if shapes do not fit, a row is out of range, or a score is NaN.
        """
        rows, scores = np.asarray(rows), np.asarray(scores, np.float32)
        num_images, num_words = self.values.shape
        if scores.shape != (len(rows), num_words):
            raise ValueError(
                f"scores must be (B, {num_words}), one row for each of {len(rows)} rows, got {scores.shape}; "
                f"score the whole vocabulary"
            )
        if len(rows) and not (rows.min() >= -1 and rows.max() < num_images):
            raise ValueError(
                f"rows must be positions among {num_images} images, or -1, got {rows.min()} to {rows.max()}; "
                f"count them from 0"
            )
        if np.isnan(scores).any():
            row = rows[int(np.isnan(scores).any(1).argmax())]
            raise ValueError(f"scores must be numbers, got NaN first in row {row}; check the model")
        new = np.flatnonzero(rows >= 0)
        new = new[~self.filled[rows[new]]]
        new = new[np.unique(rows[new], return_index=True)[1]]  # the first of equal rows in one batch
        self.values[rows[new]] = scores[new]
        self.filled[rows[new]] = True

    def add_from_all(self, rows: Tensor, scores: Tensor) -> None:
        """`add` a batch of every process: each calls this together, with as many rows (pad with −1).

        Without `torch.distributed` it is `add`.
        """
        for part_rows, part_scores in zip(tensors_from_all(rows), tensors_from_all(scores), strict=True):
            self.add(part_rows.cpu(), part_scores.float().cpu())

    def compact(self) -> tuple[np.ndarray, np.ndarray]:
        """The rows that came, (M',N), and their positions (M',). Works in place: afterwards the matrix is used up."""
        rows = np.flatnonzero(self.filled)
        if len(rows) < len(self.filled):  # rows move up one by one: a second matrix would not fit twice
            for target, row in enumerate(rows):
                self.values[target] = self.values[row]
        return self.values[: len(rows)], rows


@dataclass
class ScoredDataset:
    """Logits of a dataset.

    Attributes:
        logits: (M',N) fp32, of the images that could be read, in the dataset's order.
        rows: (M',) their positions in the dataset.
        ids: M' image ids.
        unreadable: (id, error) of the others.
    """

    logits: np.ndarray
    rows: np.ndarray
    ids: list[str]
    unreadable: list[tuple[str, str]]


@torch.no_grad()
def score_dataset(
    model: ZeroShotClassifier,
    dataset: Dataset,
    words: Tensor | None,
    device: torch.device,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = False,
) -> ScoredDataset:
    """Logits of every image of a dataset, shared among the processes of `torch.distributed` if there are several.

    The batches are those of one process, dealt out in turn, so that the logits are the same to the last bit however
    many processes there are, if each has as many threads (torchrun gives each one: OMP_NUM_THREADS=1). No image is
    dropped and none counts twice. Every process gets the whole result.

    Args:
        model: in eval mode, on the device.
        dataset: of images or spatial embeddings.
        words: (N,T) on the device, of the dataset's words or of any; None in class mode.
        device: where batches go.
        batch_size: images a batch.
        num_workers: processes that decode.
        progress: show a progress bar.

    Raises:
        ValueError: if a logit is NaN, or no image can be read.
    """
    rank, world = rank_and_world()
    starts = range(0, len(dataset), max(1, batch_size))  # load_batches refuses other sizes
    own = [row for start in starts[rank::world] for row in range(start, min(start + batch_size, len(dataset)))]
    num_words = len(dataset.vocabulary) if words is None else len(words)
    matrix = ScoreMatrix(len(dataset), num_words)
    found: list[tuple[int, str]] = []
    unreadable: list[tuple[str, str]] = []
    batches: Iterator[Batch] = iter(
        load_batches(dataset, model.image_encoder.transform, batch_size, own, num_workers=num_workers)
    )
    with tqdm(total=len(dataset), disable=None if progress else True, desc="evaluate", unit="image") as bar:
        for _ in range(-(-len(starts) // world)):  # as many rounds for each process, or the others would wait for ever
            batch = next(batches, None)
            rows = torch.full((batch_size,), -1, dtype=torch.int64, device=device)
            logits = torch.zeros(batch_size, num_words, device=device)
            if batch is not None:
                unreadable += batch.unreadable
                if len(batch):
                    rows[: len(batch)] = batch.rows.to(device)
                    logits[: len(batch)] = torch.from_numpy(score_batch(model, batch, words, device)).to(device)
                    found += zip(batch.rows.tolist(), batch.ids, strict=True)
            matrix.add_from_all(rows, logits)
            bar.update(min(world * batch_size, len(dataset) - bar.n))
    ids = dict(pair for part in from_all(found) for pair in part)
    unreadable = sorted(pair for part in from_all(unreadable) for pair in part)  # whoever found them
    if not ids:
        raise ValueError(
            f"dataset must have readable images, none of {len(dataset)} could be read; first: {unreadable[0][1]}"
        )
    scores, rows_found = matrix.compact()
    return ScoredDataset(scores, rows_found, [ids[int(row)] for row in rows_found], unreadable)


@torch.no_grad()
def score_batch(model: ZeroShotClassifier, batch: Batch, words: Tensor | None, device: torch.device) -> np.ndarray:
    """Logits (B,N) fp32 of one batch of images or spatial embeddings.

    Raises:
        ValueError: if a logit is NaN; the message names the image.
    """
    inputs = batch.inputs.to(device)
    spatial = model.image_encoder(inputs) if inputs.ndim == 4 else inputs.float()  # (B,S,C)
    logits = model.decoder(spatial, words).float().cpu().numpy()  # (B,N)
    if np.isnan(logits).any():
        first = batch.ids[int(np.isnan(logits).any(1).argmax())]
        raise ValueError(f"logits must be numbers, got NaN first for image {first}; check the checkpoint's weights")
    return logits
