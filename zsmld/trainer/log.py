"""What a training tells: a progress bar, two CSV files of every figure, and the trackers that were asked for."""

import csv
import json
import math
import time
from pathlib import Path
from typing import Any, Literal

from tqdm.auto import tqdm

from zsmld.writing import written_whole


class Log:
    """Figures of steps and epochs, on the screen, in `steps.csv` and `log.csv`, and in TensorBoard or W&B.

    Args:
        output: folder of the files; None writes none. Only the main process has one.
        total_steps: of the whole training.
        every: steps between two rows of `steps.csv`.
        shown: show a progress bar, where the output is a terminal.
        track: called with figures and step, for trackers.
    """

    def __init__(self, output: Path | None, total_steps: int, every: int, shown: bool, track: Any) -> None:
        self.output, self.every, self._track, self._shown = output, every, track, shown
        self._bar = tqdm(total=total_steps, disable=None if shown else True, desc="train", unit="step")
        self._begin()

    @property
    def row(self) -> tuple[float, int]:
        """Summed loss and images of the row of `steps.csv` that has begun."""
        return self._loss, self._num_images

    def start(
        self, step: int, history: list[dict[str, float]], row: tuple[float, int], datasets: dict[str, Any]
    ) -> None:
        """Begin, or go on after a step: rows of later steps and epochs are those of a lost continuation.

        `row` is what the one had that was begun.

        `data.json` says which images are trained and validated on, and what the datasets' policies took away.
        """
        self._bar.update(step - self._bar.n)
        if self.output is not None:
            self.output.mkdir(parents=True, exist_ok=True)
            steps = self.output / "steps.csv"
            rows: list[dict[str, str]] = []
            if step and steps.is_file():
                with steps.open(newline="", encoding="utf-8") as file:
                    rows = [row for row in csv.DictReader(file) if _before(row, step)]
            _write(steps, rows, "w")
            _write(self.output / "log.csv", history, "w")
            described = {
                split: {"dataset": repr(dataset), "manifest": getattr(dataset, "manifest", {})}
                for split, dataset in datasets.items()
                if dataset is not None
            }
            text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
            with written_whole(self.output / "data.json") as path:
                path.write_text(text, encoding="utf-8")
        self._begin()
        self._loss, self._num_images = row

    def count(self, loss: float, num_images: int) -> None:
        """Add the summed loss of some images, of this process."""
        self._loss, self._num_images = self._loss + loss, self._num_images + num_images
        self._timed_images += num_images

    def step(self, step: int, epoch: int, lr: float) -> None:
        """One step is done; `step` counts from 1."""
        self._bar.update()
        if step % self.every or not self._num_images:
            return
        rate = self._timed_images / max(time.perf_counter() - self._started, 1e-9)
        figures = {"loss": self._loss / self._num_images, "lr": lr, "images_per_second": rate}
        self._begin()
        self._bar.set_postfix(loss=f"{figures['loss']:.3f}", lr=f"{lr:.1e}", images=f"{rate:.0f}/s")
        if self.output is not None:
            _write(self.output / "steps.csv", [{"step": step, "epoch": epoch, **figures}], "a")
        self._track({f"train/{name}": value for name, value in figures.items()}, step)

    def _begin(self) -> None:
        self._started, self._timed_images, self._num_images, self._loss = time.perf_counter(), 0, 0, 0.0

    def epoch(self, record: dict[str, float], first: bool) -> None:
        """One epoch is done, and measured."""
        self._begin()  # the time of the evaluation is not the training's
        if self.output is not None:
            _write(self.output / "log.csv", [record], "w" if first else "a")
        figures = {f"epoch/{name}": value for name, value in record.items() if not math.isnan(value)}
        self._track(figures, int(record["step"]))
        if self._shown:
            tqdm.write(_one_line(record))

    def write_unreadable(self, unreadable: dict[str, str]) -> None:
        """`unreadable.csv`: the images that could not be read, with their errors."""
        if self.output is not None and unreadable:
            rows = [{"id": image_id, "error": error} for image_id, error in unreadable.items()]
            _write(self.output / "unreadable.csv", rows, "w")

    def close(self) -> None:
        """End the progress bar."""
        self._bar.close()


def _before(row: dict[str, str], step: int) -> bool:
    return None not in row.values() and row.get("step", "").isdigit() and int(row["step"]) <= step


def _write(path: Path, rows: list[Any], mode: Literal["a", "w"]) -> None:
    """Append rows, or put them in the place of a file, which stays if that fails."""
    written = path if mode == "a" else path.with_name(f".{path.name}.part")
    try:
        with written.open(mode, newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else [])
            if rows and file.tell() == 0:
                writer.writeheader()
            writer.writerows(rows)
        written.replace(path)
    except OSError:
        if written != path:
            written.unlink(missing_ok=True)
        raise


def _one_line(record: dict[str, float]) -> str:
    names = {
        "loss": "loss {:.3f}",
        "seen_mean_average_precision": "seen mAP {:.3f}",
        "top_1_accuracy": "top-1 {:.3f}",
        "heldout_mean_average_precision": "held-out mAP {:.3f}",
        "unseen_mean_average_precision": "unseen mAP {:.3f}",
        "images_per_second": "{:.0f} images/s",
    }
    return f"epoch {int(record['epoch']):>3}  " + "  ".join(
        text.format(record[name]) for name, text in names.items() if name in record
    )
