"""Which images a step sees: a pure function of seed and step, so that a resumed run and many processes see the same."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Order:
    """An endless sequence of seeded permutations of the images, cut into steps: no image comes twice before all others.

    Args:
        rows: (M,) positions of the images in their dataset.
        batch_size: images a step.
        seed: of all permutations.

    Example:
        >>> order = Order(np.arange(5), batch_size=2, seed=0)
        >>> rows, seeds = order.steps(0, 5)  # two passes
        >>> rows.shape, np.bincount(rows.ravel()).tolist(), len(set(seeds.ravel().tolist()))
        ((5, 2), [2, 2, 2, 2, 2], 10)
    """

    rows: np.ndarray
    batch_size: int
    seed: int

    def steps(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows of the steps from start to stop, and a seed for each visit, both (stop − start, batch_size) int64."""
        places = np.arange(start * self.batch_size, stop * self.batch_size)
        passes, within = np.divmod(places, len(self.rows))
        rows = np.empty(len(places), np.int64)
        for one_pass in np.unique(passes):
            permutation = np.random.default_rng([self.seed, one_pass]).permutation(self.rows)
            rows[passes == one_pass] = permutation[within[passes == one_pass]]
        seeds = self.seed * 2**40 + places
        return rows.reshape(-1, self.batch_size), seeds.reshape(-1, self.batch_size)

    def share(
        self, start: int, stop: int, process: int, num_processes: int, num_parts: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and seeds of one process: `num_parts` micro-batches a step, one after the other."""
        for rows, seeds in zip(*self.steps(start, stop), strict=True):
            divided = rows.reshape(num_parts, num_processes, -1), seeds.reshape(num_parts, num_processes, -1)
            yield from zip(divided[0][:, process], divided[1][:, process], strict=True)


def share_of(batch_size: int, num_processes: int, gradient_accumulation: int) -> int:
    """Images of a step that one process computes at once.

    Raises:
        ValueError: if the step cannot be divided equally.
    """
    part, rest = divmod(batch_size, num_processes * gradient_accumulation)
    if rest or not part:
        raise ValueError(
            f"batch_size must be a multiple of {num_processes} processes times gradient_accumulation="
            f"{gradient_accumulation}, got {batch_size}; change one of them"
        )
    return part
