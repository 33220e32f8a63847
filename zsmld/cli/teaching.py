"""What the command line says to someone who does not know what to write: where to begin, and the nearest name."""

import argparse
import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

_WELCOME = """zsmld scores images against any list of words.

  zsmld demo                                             see it work, in a minute, with no network
  zsmld serve                                            a page to play with, in the browser
  zsmld predict photos/ --model MODEL --words dog,beach  tag a folder
  zsmld recipes                                          trainings that come with zsmld
  zsmld train scenes_zsl                                 train one
  zsmld evaluate scenes                                  ZSL and GZSL figures of the model that is there
  zsmld compare runs/a/report runs/b/report              is b better than a, and how sure is that
  zsmld calibrate runs/custom/model                      thresholds of its words, by held-out seen words
  zsmld export runs/custom/model --output exported       ONNX or torch.export, checked against PyTorch
  zsmld prepare nus_wide --root NUS-WIDE --output FOLDER check a download of a dataset, and index it
  zsmld import-weights weights.pth --output MODEL        weights of other ML-Decoder implementations

`zsmld VERB --help` says more, with an example.
"""
_MODELS = "runs/*/model/config.json"  # where trainings leave them


class TeachingParser(argparse.ArgumentParser):
    """A parser whose refusals end in what to write instead."""

    def error(self, message: str) -> NoReturn:
        """Print the refusal, the nearest name or an example, and end with status 2."""
        self.exit(2, f"{self.prog}: {message}{self._advice()}\n")

    def refuse(self, unknown: Iterable[str]) -> NoReturn:
        """End because of arguments that nobody knows."""
        unknown = list(unknown)
        options = [option for action in self._actions for option in action.option_strings]
        similar = [*near(unknown[0].partition("=")[0], options)]
        self.error(f"unrecognized arguments: {' '.join(unknown)}{_meant(similar)}")

    def _advice(self) -> str:
        example = next((line for line in (self.epilog or "").splitlines() if line.startswith("  ")), "")
        shown = f"\nexample:\n{example}" if example else ""
        return f"{shown}\n`{self.prog} --help` says more"


def welcome() -> str:
    """What `zsmld` alone prints: every verb, and the next step from what is in this folder."""
    models = _models_here()
    if not models:
        return f"{_WELCOME}\nBegin with: zsmld demo\n"
    return f"{_WELCOME}\nYour newest model: zsmld predict photos/ --model {models[0]}\n"


def advice_after(error: BaseException, verb: str = "", model: str | None = None) -> str:
    """What to say after a refusal that the command line knows more about than the library, else nothing.

    Args:
        error: the refusal.
        verb: that was refused.
        model: what it was given as its model.

    Example:
        >>> advice_after(ValueError("top_k must be at least 1"))
        ''
        >>> missing = FileNotFoundError("model must be an existing folder")
        >>> advice_after(missing, "evaluate", "runs/scenes_zsl/model")
        '`zsmld train scenes_zsl` makes runs/scenes_zsl/model'
    """
    if verb == "prepare" and "missing_images=drop" in str(error):
        return "missing_images=drop is --missing-images drop here"
    if not (isinstance(error, FileNotFoundError) and str(error).startswith("model must be an existing folder")):
        return ""
    from zsmld.recipe import recipe_names

    found = re.fullmatch(r"runs/(\w+)/model/?", model or "")
    if found and found[1] in recipe_names():
        options = " dataset.path=FILE" if found[1] == "custom" else ""
        return f"`zsmld train {found[1]}{options}` makes runs/{found[1]}/model"
    if models := _models_here():
        return f"models in this folder: {', '.join(models[:5])}"
    training_free = {"predict": "--model clip:ViT-B-16/openai", "evaluate": "clip:ViT-B-16/openai"}
    free = f"; {training_free[verb]} needs no training" if verb in training_free else ""
    return f"`zsmld train custom dataset.path=FILE` makes runs/custom/model{free}"


def _models_here() -> list[str]:
    """Folders of trained models, the newest first."""
    found = sorted(Path().glob(_MODELS), key=lambda path: -path.stat().st_mtime)
    return [path.parent.as_posix() for path in found]


def unknown_verb(given: str, verbs: Iterable[str]) -> str:
    """The refusal of a verb that there is not."""
    begun = [verb for verb in verbs if verb.startswith(given)]
    return f"VERB must be one of {', '.join(verbs)}, got {given!r}{_meant(begun or near(given, verbs))}"


def near(name: str, known: Iterable[str]) -> list[str]:
    """The nearest of some names, if one is near.

    Example:
        >>> near("--wrds", ["--words", "--words-file", "--model"])
        ['--words']
    """
    return difflib.get_close_matches(name, list(known), 1)


def _meant(similar: list[str]) -> str:
    return f"; did you mean {similar[0]}?" if similar else ""
