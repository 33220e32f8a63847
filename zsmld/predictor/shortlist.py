"""Shortlist: for very large vocabularies, which words of an image are worth decoding.

The logits of many words over many images have low rank: those of a few *anchor words* tell those of all others well
enough to say which are worth a look. Anchors and weights are learnt from the logits of some sample images; then an
image is decoded for its anchors, all words are predicted from these by one product, and the best of them are decoded.

Letters used in the shapes: M sample images, N words, K anchor words.
"""

import numpy as np
import torch
from torch import Tensor

from zsmld.decoder.inference import Shortlist

NUM_SAMPLES = 256  # sample images
_NUM_ANCHORS = 192
_RIDGE = 1e-3  # of the anchors' mean variance: they are nearly dependent, and their noise must not be amplified


def learn_shortlist(logits: Tensor, size: int = 512, num_anchors: int = _NUM_ANCHORS) -> Shortlist:
    """Choose anchor words, and how they predict the others.

    Anchors are the pivots of a QR decomposition, each the word that those before it say least of (an interpolative
    decomposition); the weights are a ridge regression on them.

    Args:
        logits: (M,N) of sample images, M ≥ 2; as the images to come as possible, 256 are plenty.
        size: words to decode for each image.
        num_anchors: K; fewer where M or N allow no more.

    Raises:
        ValueError: on fewer than two sample images, or a size or number below 1.

    Source: Halko, Martinsson, Tropp 2011, arXiv 0909.4061, section 3.2.3, for the decomposition.

    Example:
        >>> images, words = torch.randn(50, 3), torch.randn(3, 200)  # rank 3
        >>> shortlist = learn_shortlist(images @ words, size=10, num_anchors=8)
        >>> more = torch.randn(4, 3) @ words
        >>> predicted = shortlist.predict(more[:, shortlist.anchors])
        >>> bool((predicted - more).abs().max() < 0.1 * more.abs().max())
        True
    """
    from scipy.linalg import qr

    if logits.ndim != 2 or len(logits) < 2 or size < 1 or num_anchors < 1:
        raise ValueError(
            f"logits must be (M, N) of M ≥ 2 sample images, and size and num_anchors ≥ 1, got {tuple(logits.shape)}, "
            f"{size} and {num_anchors}; give more images"
        )
    mean = logits.mean(0)  # (N)
    centered = (logits - mean).cpu().numpy()  # (M,N)
    pivots = qr(centered, mode="r", pivoting=True, check_finite=False)[1][: min(num_anchors, len(logits) - 1)]
    own = centered[:, pivots].astype(np.float64)  # (M,K)
    gram = own.T @ own  # (K,K)
    gram[np.diag_indices_from(gram)] += _RIDGE * max(np.trace(gram) / len(gram), 1e-12)
    weights = np.linalg.solve(gram, own.T @ centered).T.astype(np.float32)  # (N,K)
    device = logits.device
    anchors = torch.from_numpy(pivots.astype(np.int64)).to(device)
    return Shortlist(size, anchors, torch.from_numpy(np.ascontiguousarray(weights)).to(device), mean)
