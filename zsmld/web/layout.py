"""The page itself: what stands where, and which event does what. Only this file knows gradio."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from zsmld.display import data_url
from zsmld.web import page
from zsmld.web.scoring import Board, Picture, Scorer

_QUEUE_SIZE = 64  # events that wait; those beyond are told to come back
_KEPT = 3600  # seconds that a board is kept
_MOST_BOARDS = 100  # of them; beyond, that of the page that was idle longest goes


def build_page(
    scorer: Scorer,
    title: str,
    about: str,
    words: str = "",
    examples: Sequence[Picture] = (),
    threshold: float = 0.5,
) -> gr.Blocks:
    """The page, ready to be mounted.

    Args:
        scorer: does the work.
        title: of the page and its window.
        about: a sentence on what scores here.
        words: that stand in the box at the beginning.
        examples: pictures that are there at the beginning.
        threshold: where the slider stands at the beginning.
    """
    limits, num_own = scorer.limits, len(scorer.predictor.vocabulary)
    whose = "of the model" if scorer.trained_words is not None else "given at the start"
    own_name = f"score the {num_own:,} {'words' if num_own > 1 else 'word'} {whose} as well"

    with gr.Blocks(title=title, analytics_enabled=False) as blocks:
        board = gr.State(Board(), time_to_live=_KEPT)
        found, records = gr.JSON(visible=False), gr.Textbox(visible=False)
        gr.HTML(f"<h1>{page.escaped(title)}</h1><p>{page.escaped(about)}</p>", elem_id="head", apply_default_css=False)
        with gr.Row():
            with gr.Column(min_width=280):
                drop = gr.File(
                    label=f"Pictures, up to {limits.max_upload_mb:g} MB each",
                    file_count="multiple",
                    height=170,
                    elem_id="drop",
                )
                folder = gr.UploadButton("A whole folder", file_count="directory", size="sm", elem_id="folder")
            with gr.Column(min_width=280):
                typed = gr.Textbox(
                    words,
                    label="Words",
                    placeholder="dog, red car, people at a beach" if scorer.takes_words else "",
                    info="Any, by commas or one a line; Shift+Enter scores."
                    if scorer.takes_words
                    else "This model's are fixed.",
                    lines=4,
                    max_lines=8,
                    interactive=scorer.takes_words,
                    elem_id="words",
                )
                own = gr.Checkbox(True, label=own_name, container=False, interactive=scorer.takes_words, elem_id="own")
                again = gr.Button("Score these words", variant="primary", visible=scorer.takes_words, elem_id="score")
        with gr.Row(equal_height=True):
            slider = gr.Slider(
                0, 1, threshold, step=0.01, label="Threshold: words with at least this score are marked",
                scale=3, min_width=280, elem_id="threshold",
            )  # fmt: skip
            with gr.Column(scale=1, min_width=160):
                download = gr.Button("Download CSV", size="sm", elem_id="download")
                clear = gr.Button("Remove all pictures", size="sm", elem_id="clear")
        notes = gr.HTML(elem_id="notes", apply_default_css=False)
        results = gr.HTML(elem_id="results", js_on_load=page.on_load(limits), apply_default_css=False)

        def shown(now: Board, threshold: float, sentences: Sequence[str] = ()) -> dict[Any, Any]:
            return {
                board: now,
                results: page.results_html(now, threshold, scorer.trained_words),
                notes: page.notes_html(sentences),
            }

        def scored(now: Board, text: str, with_own: bool, threshold: float, sentences: list[str]) -> dict[Any, Any]:
            try:
                now = scorer.score(now, scorer.words(text), with_own)
            except _REFUSALS as error:
                # What was dropped stays: it is scored as soon as the words can be.
                return {board: now, notes: page.notes_html([*sentences, str(error)])}
            return shown(now, threshold, sentences)

        def start(now: Board, text: str, with_own: bool, threshold: float) -> dict[Any, Any]:
            # Whoever sends the event once more finds its page as it is.
            return scored(now if now.pictures else scorer.add(now, examples), text, with_own, threshold, [])

        def taken(paths: list[str] | None, now: Board, is_folder: bool) -> tuple[Board, list[str]]:
            for files in (drop, folder):
                files.temp_files.clear()  # gradio's list of their paths would only grow
            return scorer.take(now, map(Path, paths or ()), is_folder)

        def dropped(paths: list[str] | None, now: Board, text: str, with_own: bool, threshold: float) -> dict[Any, Any]:
            now, said = taken(paths, now, is_folder=False)
            return {drop: None, **scored(now, text, with_own, threshold, said)}

        def folder_chosen(
            paths: list[str] | None, now: Board, text: str, with_own: bool, threshold: float
        ) -> dict[Any, Any]:
            now, said = taken(paths, now, is_folder=True)
            return scored(now, text, with_own, threshold, said)

        def rescored(now: Board, text: str, with_own: bool, threshold: float) -> dict[Any, Any]:
            return scored(now, text, with_own, threshold, [])

        def attended(now: Board, event: gr.EventData) -> dict[Any, Any]:
            key, word = getattr(event, "picture", None), getattr(event, "word", None)
            if type(key) is not str or type(word) is not str:  # whoever sends something else is not the page
                return {found: None}
            try:
                overlay = scorer.attention(now, key, word)
            except _REFUSALS as error:
                return {found: None, notes: page.notes_html([str(error)])}
            return {found: {"picture": key, "word": word, "uri": data_url(overlay, quality=85)}}

        def written(now: Board, threshold: float) -> dict[Any, Any]:
            try:
                return {records: scorer.records(now, threshold), notes: ""}
            except _REFUSALS as error:
                return {records: "", notes: page.notes_html([str(error)])}

        def removed(threshold: float) -> dict[Any, Any]:
            return shown(Board(), threshold)

        options: dict[str, Any] = {
            "api_visibility": "private",
            "concurrency_limit": 1,  # one at a time uses the model
            "concurrency_id": "model",
        }
        asked = [board, typed, own, slider]
        scoring = options | {"outputs": [board, results, notes], "show_progress_on": [results]}

        def on(event: Callable[..., Any], run: Callable[..., Any], inputs: list[Any], **more: Any) -> Any:
            return event(run, inputs, **(scoring | more))

        on(blocks.load, start, asked)
        on(drop.upload, dropped, [drop, *asked], outputs=[board, results, notes, drop])
        on(folder.upload, folder_chosen, [folder, *asked])
        on(again.click, rescored, asked)
        on(typed.submit, rescored, asked)
        on(own.input, rescored, asked)
        on(clear.click, removed, [slider])
        slider.change(None, [slider], js=page.MARK_REACHED, api_visibility="private")
        on(results.select, attended, [board], outputs=[found, notes], show_progress="hidden").then(
            None, [found], js=page.SHOW_ATTENTION, api_visibility="private"
        )
        on(download.click, written, [board, slider], outputs=[records, notes], show_progress="hidden").then(
            None, [records], js=page.SAVE_RECORDS, api_visibility="private"
        )
    blocks.state_session_capacity = _MOST_BOARDS
    return blocks.queue(max_size=_QUEUE_SIZE, api_open=False)


_REFUSALS = (ValueError, TypeError, OSError)  # each says in a sentence what to do
