"""Tag a whole collection: resumable, shared out over processes and machines, and written when all of it is there."""

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from tqdm.auto import tqdm

from zsmld.predictor import Predictor
from zsmld.predictor.archives import CollectedImage, printable
from zsmld.predictor.outputs import Outputs, check_outputs, write_outputs
from zsmld.predictor.parts import PartsFolder, missing
from zsmld.predictor.pictures import annotate
from zsmld.predictor.prediction import DefaultThreshold, Prediction, Threshold
from zsmld.predictor.records import check_record_words, rows_a_chunk, table_of
from zsmld.predictor.runs import begin_run, identity_of
from zsmld.predictor.shortlist import NUM_SAMPLES
from zsmld.processes import from_all, rank_and_world
from zsmld.writing import written_whole

__all__ = ["Outputs", "Tagged", "join_processes", "merge_parts", "tag_collection"]

_SECONDS_A_PART = 10.0  # what a process that is killed loses at most, with the batch at hand
OF_MAIN = "raised by the main process"  # a note on errors that the main process shares with all others
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Tagged:
    """What came of a run.

    Attributes:
        num_images: of the collection, or of the shard.
        num_unreadable: of these, images that became an error record.
        num_resumed: images that an earlier run had done.
        is_written: whether the outputs are there; False where other shards are still to come.
        added, gone: paths that the folders have now and had not when the run began, and the reverse.
    """

    num_images: int
    num_unreadable: int
    num_resumed: int = 0
    is_written: bool = True
    added: tuple[str, ...] = ()
    gone: tuple[str, ...] = ()


def tag_collection(
    predictor: Predictor,
    images: str | Path | Iterable[str | Path],
    outputs: Outputs,
    top_k: int | None = 5,
    threshold: Threshold = None,
    default_threshold: DefaultThreshold = 0.5,
    pictures: str | Path | None = None,
    shortlist: int | None = None,
    shard: tuple[int, int] | None = None,
    overwrite: bool = False,
    restart: bool = False,
    progress: bool = False,
) -> Tagged:
    """Predict the words of every image and write them to files, once all are there.

    What is finished is kept in the work folder `OUTPUT.parts/`, every ten seconds or so. A run that ended in whatever
    way is called again, the same, and goes on: no image twice but those of the last seconds, none lost. The processes
    of `torch.distributed` share the images, and batches are the same whatever their number: on the same kind of
    device, with as many threads each, the files are those of one process, to the byte. Images that come into a folder
    after the run began are not among its images; see `Tagged.added`.

    Args:
        predictor: with the words.
        images: paths, folders, globs and tar shards, as `list_collection` takes them; of a generator a list is made.
        outputs: the files.
        top_k, threshold, default_threshold: as in `Predictor.predict`.
        pictures: a folder for a picture of each image with its words, `NUMBER_NAME.jpg`; empty when a run begins.
        shortlist: for very large vocabularies, decode this many words an image, see `Predictor.learn_shortlist`. It is
            learnt from images evenly spread over the collection, the same ones in every process and shard.
        shard: (K, N), K from 1: do the K-th of N shares alone, and write no outputs; `merge_parts` does when all
            shares are done, on whatever machine.
        overwrite: replace outputs that are there when a run begins.
        restart: throw away what an interrupted run has done.
        progress: show a progress bar, in the main process.

    Returns:
        `Tagged`, in every process.

    Raises:
        FileNotFoundError: if a folder or glob matches nothing.
        FileExistsError: if an output exists and is not to be overwritten, or another run is at work on it.
        OSError: if the disk is full.
        ValueError: if options make no sense, or are not those of the run that was interrupted. What it did stays.
    """
    if shard is not None and not 1 <= shard[0] <= shard[1]:
        raise ValueError(f"shard must be K/N with 1 ≤ K ≤ N, got {shard[0]}/{shard[1]}; number the shards from 1")
    check_record_words(Path(outputs.records).suffix, predictor.vocabulary.words)
    predict: dict[str, Any] = {
        "top_k": top_k,
        "threshold": threshold,
        "default_threshold": default_threshold,
        "full_scores": outputs.scores is not None,
    }
    for _ in predictor.predict([], **predict):  # refuses what makes no sense before anything is done
        pass
    if shortlist is not None and shortlist < 1:
        raise ValueError(f"shortlist must be at least 1, got {shortlist}; 512 words are plenty")
    listed = images if isinstance(images, (str, Path)) else list(images)
    folder_of_pictures = None if pictures is None else Path(pictures)
    identity = identity_of(predictor, listed, predict, folder_of_pictures) | {"shortlist": shortlist}
    with ExitStack() as held:
        added, gone = _on_main(
            lambda: begin_run(outputs, identity, listed, folder_of_pictures, shard, overwrite, restart, held)
        )
        if not PartsFolder.exists(outputs.parts):
            raise FileNotFoundError(
                f"--output must be on a disk that all processes share, {outputs.parts} of the main one is not here; "
                f"use shard=(K, N) (--shard K/N) on each machine, and merge"
            )
        folder = PartsFolder(outputs.parts)
        share = _share(len(folder), predictor.batch_size, shard)
        num_resumed = _score_share(predictor, folder, share, predict, shortlist, folder_of_pictures, progress)

        def finish() -> int:
            if shard is not None:
                return sum(len(rows) - rows["error"].null_count for rows in _rows_of(folder, share))
            folder.check_current()
            num_unreadable = write_outputs([folder], outputs, folder)
            PartsFolder.remove(outputs.parts)
            return num_unreadable

        return Tagged(len(share), _on_main(finish), num_resumed, shard is None, added, gone)


def merge_parts(folders: Iterable[str | Path], outputs: Outputs, overwrite: bool = False) -> Tagged:
    """Write the outputs of a collection whose shares were done apart, on machines without a disk in common.

    Args:
        folders: the work folders, `OUTPUT.parts`, of all shares; they stay.
        outputs: the files, the same as one process writes to the byte. Images on a contact sheet are read again.
        overwrite: replace outputs that are there.

    Raises:
        FileExistsError: if an output exists and is not to be overwritten.
        FileNotFoundError: if something is no work folder.
        ValueError: if the shares are not of one collection with the same options, or images are missing.
    """
    opened = [PartsFolder(Path(folder)) for folder in folders]
    first = opened[0]
    for other in opened[1:]:
        # Pictures may lie anywhere on each machine.
        different = first.differences(other.identity | {"pictures": first.identity["pictures"]})
        if not different and not first.images.equals(other.images):
            different = [f"images ({len(first)} and {len(other)}, or in another order)"]
        if different:
            raise ValueError(
                f"work folders must be of one collection and the same options, {other.folder} and {first.folder} "
                f"differ in {', '.join(different)}; merge those that belong together"
            )
    check_record_words(Path(outputs.records).suffix, first.identity["words"])
    if outputs.scores is not None and not first.identity["full_scores"]:
        raise ValueError(
            f"--scores-output must be given to every shard as well, the parts of {first.folder} have no full scores; "
            f"leave it out, or start over with it"
        )
    check_outputs(outputs, overwrite)
    return Tagged(len(first), write_outputs(opened, outputs))


def join_processes(device: str = "auto") -> str:
    """Meet the other processes that `torchrun` or `accelerate launch` started; alone, nothing happens.

    They exchange a few words only, and wait for each other however long it takes.

    Args:
        device: what was asked for.

    Returns:
        The device of this process: on a machine with GPUs, its own one of them.

    Example:
        >>> join_processes("cpu")
        'cpu'
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(days=365))
    if device in ("auto", "cuda") and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % torch.cuda.device_count()}"
    return device


def _score_share(
    predictor: Predictor,
    folder: PartsFolder,
    share: range,
    predict: dict[str, Any],
    shortlist: int | None,
    pictures: Path | None,
    progress: bool,
) -> int:
    """Predict what is missing of a share, all processes together; how many images were done."""
    rank, world = rank_and_world()
    size = predictor.batch_size
    done = _overlap(missing(folder.parts(), len(folder)), share)
    from_all(None)  # all have seen what is done before anyone does more
    num_resumed = len(share) - sum(map(len, done))
    batches = [row for rows in done for row in range(rows.start, rows.stop, size)]
    mine = np.array_split(np.array(batches, np.int64), world)[rank].tolist()
    if shortlist is not None and mine:
        rows = np.unique(np.linspace(0, len(folder) - 1, NUM_SAMPLES).round().astype(int))
        try:
            predictor.learn_shortlist((folder.image(int(row)).source() for row in rows), shortlist)
        except ValueError as error:
            raise ValueError(
                f"shortlist (--shortlist) must be learnt from two readable images or more, with a head that has word "
                f"queries; leave it out ({error})"
            ) from error
    with tqdm(
        total=len(share) if world == 1 else sum(min(size, len(folder) - row) for row in mine),
        initial=num_resumed if world == 1 else 0,
        unit="image",
        disable=None if progress and rank == 0 else True,
    ) as bar:
        _score(predictor, folder, mine, predict, pictures, bar)
    from_all(None)
    return num_resumed


def _score(
    predictor: Predictor,
    folder: PartsFolder,
    batches: Sequence[int],
    predict: dict[str, Any],
    pictures: Path | None,
    bar: Any,
) -> None:
    """Predict the batches that start at these rows; all that is finished is kept, whatever ends this."""
    num_words = len(predictor.vocabulary) if predict["full_scores"] else None
    size, limit = predictor.batch_size, max(rows_a_chunk(num_words), predictor.batch_size)
    held: list[Prediction] = []
    start, since = 0, time.monotonic()
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)

    def places() -> Iterator[tuple[int, CollectedImage]]:
        for first in batches:
            for row in range(first, min(first + size, len(folder))):
                yield row, folder.image(row)

    def keep() -> None:
        nonlocal held, since
        # Part of a batch is not kept: its other images would be scored in another batch than in one go.
        whole = len(held) if start + len(held) == len(folder) else len(held) // size * size
        if whole:
            folder.add(start, table_of(held[:whole], num_words))
        held, since = [], time.monotonic()

    try:
        predictions = predictor.predict((place.source() for _, place in places()), **predict)
        for (row, place), prediction in zip(places(), predictions, strict=True):
            if row != start + len(held):  # behind a gap, which is done
                keep()
            if not held:
                start = row
            named = _named(prediction, place)
            if pictures is not None:  # first: what is kept is not done again, and has its picture
                name = re.sub(r"[^\w.-]+", "_", Path(place.path).stem)[:50]
                with written_whole(pictures / f"{row:07d}_{name}.jpg") as path:
                    annotate(place.source(), named).save(path, "JPEG", quality=90)
            held.append(named)
            bar.update()
            at_end = (row + 1) % size == 0 or row + 1 == len(folder)
            if at_end and (len(held) >= limit or time.monotonic() - since > _SECONDS_A_PART):
                keep()
    finally:
        keep()


def _rows_of(folder: PartsFolder, share: range) -> Iterator[pa.Table]:
    """The records of a share."""
    reached = share.start
    for part in folder.parts():
        stop = min(part.stop, share.stop)
        if part.start <= reached < stop:
            yield part.table().slice(reached - part.start, stop - reached)
            reached = stop


def _share(num_images: int, batch_size: int, shard: tuple[int, int] | None) -> range:
    """The images of a shard: whole batches, next to each other.

    Example:
        >>> [_share(10, 4, (k, 2)) for k in (1, 2)], _share(10, 4, None)
        ([range(0, 8), range(8, 10)], range(0, 10))
    """
    number, of = shard or (1, 1)
    batches = np.array_split(np.arange(-(-num_images // batch_size)), of)[number - 1]
    if not len(batches):
        return range(0)
    return range(int(batches[0]) * batch_size, min((int(batches[-1]) + 1) * batch_size, num_images))


def _overlap(gaps: Iterable[tuple[int, int]], share: range) -> list[range]:
    cut = (range(max(start, share.start), min(stop, share.stop)) for start, stop in gaps)
    return [rows for rows in cut if len(rows)]


def _named(prediction: Prediction, place: CollectedImage) -> Prediction:
    """Under the path of its record; an image that was no file is called by it in its error as well."""
    p, error = prediction, prediction.error
    if error is not None:
        error = printable(re.sub(r"cannot decode image\b", lambda _: f"cannot decode {place.path}", error))
    return Prediction(place.path, p.words, p.scores, p.labels, error, p.full_scores)


def _on_main(work: Callable[[], _Answer]) -> _Answer:
    """What the main process answers, in every process; an error of it ends all of them."""
    answer: Any = None
    error: Exception | None = None
    if rank_and_world()[0] == 0:
        try:
            answer = work()
        except (OSError, ValueError, TypeError) as problem:
            error = problem
    answer, error = from_all((answer, error))[0]
    if error is not None:
        error.add_note(OF_MAIN)
        raise error
    return answer
