"""How a run over a collection begins: what it is about, whether it may, and the work folder it has to itself."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from zsmld.features.hashing import weights_hash
from zsmld.predictor import Predictor
from zsmld.predictor.archives import list_collection, printable
from zsmld.predictor.outputs import Outputs, check_outputs
from zsmld.predictor.parts import PartsFolder


def begin_run(
    outputs: Outputs,
    identity: Mapping[str, Any],
    images: str | Path | Sequence[str | Path],
    pictures: Path | None,
    shard: tuple[int, int] | None,
    overwrite: bool,
    restart: bool,
    held: ExitStack,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Make the work folder, or check that the one there is of this run and that no other run is at work in it.

    Args:
        outputs: the files.
        identity: what the run is about.
        images: as in `list_collection`.
        pictures: their folder.
        shard: K and N.
        overwrite: replace outputs that are there.
        restart: throw away what is done, once it is sure that the run can begin.
        held: keeps other runs away until it is closed.

    Returns:
        Paths of images that came and that went since the run began.

    Raises:
        FileExistsError: if an output is there that is not to be replaced, or another run is at work, or a file is in
            the place of a folder.
        PermissionError: if an output may not be written.
        ValueError: if the run that was interrupted is another one, or its shards were written anew.
    """
    PartsFolder.remove_leftovers(outputs.parts)
    pictures_are_there = pictures is not None and pictures.is_dir() and any(pictures.iterdir())
    begun = PartsFolder.exists(outputs.parts)  # looked at last: a shard that began meanwhile may have made pictures
    check_outputs(outputs, overwrite, pictures)
    if not begun or restart:
        if pictures_are_there and not (overwrite or (begun and _pictures_of(outputs.parts) == identity["pictures"])):
            raise FileExistsError(
                f"--pictures must be a new or an empty folder, {pictures} holds files; choose another one, or add to "
                f"it with overwrite=True (--overwrite)"
            )
        with ExitStack() as old:
            if begun:
                old.enter_context(PartsFolder.alone(outputs.parts))
            folder = PartsFolder.begin(outputs.parts, identity, list_collection(images), replace=begun)
    else:
        folder = PartsFolder(outputs.parts)
    held.enter_context(folder.at_work(shard))
    folder.check_current()
    different = folder.differences(identity)
    if different:
        raise ValueError(
            f"options must be those of the interrupted run in {outputs.parts}, got another {', '.join(different)}; "
            f"repeat it as it was, or throw its work away with restart=True (--restart)"
        )
    if not begun or restart:
        return (), ()
    changed = folder.changed_shards()
    if changed:
        raise ValueError(
            f"tar shards must stay as they are while a run is not finished, {printable(changed[0])} was written anew "
            f"since; start over with restart=True (--restart)"
        )
    before = set(folder.images["path"].to_pylist())
    now = {image.path for image in list_collection(images)}
    return tuple(sorted(now - before)), tuple(sorted(before - now))


def _pictures_of(parts: Path) -> Any:
    """The folder of pictures of the run that is thrown away; None if it is of another version."""
    try:
        return PartsFolder(parts).identity["pictures"]
    except ValueError:
        return None


def identity_of(
    predictor: Predictor, images: str | Path | Sequence[str | Path], predict: Mapping[str, Any], pictures: Path | None
) -> dict[str, Any]:
    """All that the parts depend on, as JSON has it; the names are for people.

    Args:
        predictor: with the words.
        images: as `tag_collection` got them, none of them a generator.
        predict: the options of `Predictor.predict`.
        pictures: their folder.
    """
    model = predictor.model
    calibration = None if predictor.calibration is None else predictor.calibration.to_dict()
    given = [printable(str(path)) for path in ([images] if isinstance(images, (str, Path)) else images)]
    return {
        "images": given if len(given) <= 20 else [f"{len(given)} paths", _digest(given)],
        "words": list(predictor.vocabulary.words),
        "templates and descriptions": predictor.vocabulary.digest(),
        "synonyms": {word: list(texts) for word, texts in predictor.synonyms.items()},
        "model": weights_hash(model),
        "configuration of the model": _digest([model.image_encoder.config(), model.decoder.config(), model.scores]),
        "text encoder": model.text_encoder_identity,
        "calibration": None if calibration is None else _digest(calibration),
        "stored thresholds": _digest([predictor.thresholds, predictor.default_threshold]),
        "batch size": predictor.batch_size,
        "precision": predictor.precision,
        "pictures": None if pictures is None else printable(pictures),
        **{name: _plain(value) for name, value in predict.items()},
    }


def _plain(value: Any) -> Any:
    """Without numpy's types and those of mappings, which JSON does not know."""
    if isinstance(value, Mapping):
        return {word: _plain(one) for word, one in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=repr).encode()).hexdigest()
