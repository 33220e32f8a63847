"""The visible results as HTML, and the style and script that go with them. Whatever a visitor wrote is escaped."""

from collections.abc import Collection, Sequence

import numpy as np

from zsmld.display import escaped as escaped_html
from zsmld.display import jpeg_url
from zsmld.predictor import Prediction
from zsmld.web.limits import Limits
from zsmld.web.scoring import Board, Picture

_BEST, _MORE = 8, 100  # words shown of a picture, and those that open below them


def results_html(board: Board, threshold: float, trained: Collection[str] | None) -> str:
    """A card a picture: the picture, and its ranked words as bars that can be clicked.

    Args:
        board: scored.
        threshold: words with at least this score are marked.
        trained: words whose labels the model was trained on; None marks no words.

    Returns:
        HTML; each picture is an article with its key, and each of its words a button with its label.
    """
    if not board.pictures or board.vocabulary is None:
        return '<p class="empty">No pictures yet. Drop some above: each comes out with its words, best first.</p>'
    typed = {board.vocabulary.index(word) for word in board.typed}
    cards = (
        _card(picture, prediction, threshold, trained, typed)
        for picture, prediction in zip(board.pictures, board.predictions, strict=True)
    )
    key = "" if trained is None else '<span class="key"><i class="trained"></i> trained <i></i> not trained</span>'
    help_text = "Click a word to see where the model looked for it."
    return f'<p class="legend"><span>{help_text}</span>{key}</p>{"".join(cards)}'


def notes_html(sentences: Sequence[str]) -> str:
    """What the visitor should know, a sentence each."""
    return "".join(f'<p role="alert">{escaped(sentence)}</p>' for sentence in sentences)


def escaped(text: str) -> str:
    """For HTML, in text and in attributes; braces too, which gradio's page would read as a template.

    Example:
        >>> escaped("<b>${x}")
        '&lt;b&gt;&#36;&#123;x&#125;'
    """
    return escaped_html(text).replace("$", "&#36;").replace("{", "&#123;").replace("}", "&#125;")


def _card(
    picture: Picture,
    prediction: Prediction,
    threshold: float,
    trained: Collection[str] | None,
    typed: set[int],
) -> str:
    if prediction.error is not None:
        return f'<article class="unreadable"><p role="alert">{escaped(prediction.error)}</p></article>'
    best: list[int] = []
    more: list[int] = []
    for rank, label in enumerate(prediction.labels):
        # What was typed is always in view, however low its score.
        (best if rank < _BEST or label in typed else more).append(rank)
    rows = [
        _row(label, word, score, threshold, None if trained is None else word in trained)
        for label, word, score in zip(prediction.labels, prediction.words, prediction.scores, strict=True)
    ]
    rest = ""
    if more:
        left = len(more) - _MORE
        note = f'<li class="left">and {left:,} more; the download has all, at threshold 0</li>' if left > 0 else ""
        rest = (
            f"<details><summary>{len(more):,} more words</summary>"
            f"<ol>{''.join(rows[rank] for rank in more[:_MORE])}{note}</ol></details>"
        )
    name = escaped(picture.name)
    return (
        f'<article data-picture="{picture.key}"><figure><img src="{jpeg_url(picture.shown)}" alt="{name}">'
        f'<figcaption><bdi class="name">{name}</bdi><span class="shown" hidden></span>'
        f'<button type="button" class="back" hidden>show the picture</button></figcaption></figure>'
        f"<div><ol>{''.join(rows[rank] for rank in best)}</ol>{rest}</div></article>"
    )


def _row(label: int, word: str, score: float, threshold: float, is_trained: bool | None) -> str:
    mark = "" if is_trained is None else f"<i{' class=trained' if is_trained else ''}></i>"
    title = "" if is_trained is None else f' title="{"trained" if is_trained else "not trained"}"'
    reached = " class=reached" if np.float32(score) >= np.float32(threshold) else ""
    return (
        f'<li data-score="{score}"{reached}><button type="button" data-label="{label}"'
        f'{title} aria-pressed="false"><span class="bar" style="width:{100 * min(max(score, 0), 1):.1f}%"></span>'
        f"{mark}<bdi>{escaped(word)}</bdi><b>{score:.2f}</b></button></li>"
    )


# ------------------------------------------------------------------------------------------------------------- script

# In the results: a click on a word goes to the server, a click on the way back does not. The server's board may change
# before a click arrives, and the page before the answer does: so both name the picture by its key and the word by its
# text. And what is too much to be sent is refused here, in our words, before anything of it is on its way.
_ON_LOAD = """
const textOf = (word) => word.querySelector('bdi').textContent;
element.addEventListener('click', (event) => {
  const word = event.target.closest('button[data-label]');
  const back = event.target.closest('button.back');
  if (word) {
    word.setAttribute('aria-busy', 'true');
    trigger('select', {picture: word.closest('article').dataset.picture, word: textOf(word)});
  }
  if (back) {
    const card = back.closest('article');
    const image = card.querySelector('img');
    image.src = image.dataset.plain;
    card.querySelectorAll('button[data-label]').forEach((b) => b.setAttribute('aria-pressed', 'false'));
    card.querySelector('.shown').hidden = back.hidden = true;
  }
});
const refused = document.createElement('p');
refused.id = 'refused';
refused.setAttribute('role', 'alert');
refused.hidden = true;
const inMegabytes = (bytes) => Math.ceil(bytes / 1e6).toLocaleString('en');
const check = (event, files) => {
  const bytes = [...files].reduce((sum, file) => sum + file.size, 0);
  const most = files.length > maxFiles ? `${maxFiles.toLocaleString('en')} files`
    : bytes > maxBytes ? `${inMegabytes(maxBytes)} MB` : null;
  refused.hidden = most === null;
  if (most === null) return;
  const got = files.length > maxFiles ? files.length.toLocaleString('en') : `${inMegabytes(bytes)} MB`;
  const others = 'choose fewer, or score them with zsmld predict';
  refused.textContent = `At most ${most} can be sent at once, got ${got}; ${others}.`;
  document.querySelector('#results').before(refused);
  event.preventDefault();
  event.stopImmediatePropagation();
  if (event.type === 'change') event.target.value = '';
  else event.target.dispatchEvent(new DragEvent('dragleave', {bubbles: true}));
};
document.addEventListener('change', (event) => event.target.type === 'file' && check(event, event.target.files), true);
document.addEventListener('drop', (event) => event.dataTransfer && check(event, event.dataTransfer.files), true);
document.addEventListener('click', (event) => event.target.closest('button') && (refused.hidden = true), true);
"""


def on_load(limits: Limits) -> str:
    """The script of the results, for a page with these limits."""
    return f"const maxFiles = {limits.max_files}, maxBytes = {limits.max_files_bytes};{_ON_LOAD}"


# What came back for a click: an overlay, laid over one card; the other cards stay untouched. What the page no longer
# shows is dropped.
SHOW_ATTENTION = """
(found) => {
  document.querySelectorAll('#results [aria-busy]').forEach((b) => b.removeAttribute('aria-busy'));
  if (!found) return;
  const card = document.querySelector(`#results article[data-picture="${found.picture}"]`);
  const textOf = (button) => button.querySelector('bdi').textContent;
  const word = card && [...card.querySelectorAll('button[data-label]')].find((b) => textOf(b) === found.word);
  if (!word) return;
  const image = card.querySelector('img');
  image.dataset.plain = image.dataset.plain || image.src;
  image.src = found.uri;
  card.querySelectorAll('button[data-label]').forEach((b) => b.setAttribute('aria-pressed', String(b === word)));
  card.querySelector('.shown').textContent = `where it looked for “${found.word}”`;
  card.querySelector('.shown').hidden = card.querySelector('.back').hidden = false;
}
"""

# Scores and thresholds are compared as the fp32 numbers that they are.
MARK_REACHED = """
(threshold) => {
  document.querySelectorAll('#results li[data-score]').forEach((row) =>
    row.classList.toggle('reached', Math.fround(row.dataset.score) >= Math.fround(threshold)));
}
"""

SAVE_RECORDS = """
(records) => {
  if (!records) return;
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([records], {type: 'text/csv'}));
  link.download = 'words.csv';
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
"""

# -------------------------------------------------------------------------------------------------------------- style

STYLE = """
.gradio-container { max-width: 900px !important; margin: 0 auto !important;
  --faint: color-mix(in srgb, var(--body-text-color) 68%, var(--background-fill-primary)); }
#head, #notes, #results, #head .html-container, #results .html-container { padding: 0 !important; }
#head h1 { font-size: 1.6rem; margin: 0 0 4px; font-weight: 650; color: var(--body-text-color); }
#head p { margin: 0; color: var(--faint); line-height: 1.5; }
#words span, #drop span, #drop .wrap { color: var(--faint); }
#notes:not(:has(p)) { display: none; }
#notes p, #refused { margin: 0 0 6px; padding: 8px 12px; border-left: 4px solid #d97706; border-radius: 4px;
  color: var(--body-text-color); background: #f59e0b22; overflow-wrap: anywhere; }
#results { color: var(--body-text-color); min-height: 120px; }
#results p.empty { padding: 2rem 0; margin: 0; text-align: center; color: var(--faint); }
#results .legend { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 2px 16px; margin: 0 0 8px;
  font-size: 0.9rem; color: var(--faint); }
#results i { display: inline-block; flex: none; width: 9px; height: 9px; border-radius: 50%;
  border: 2px solid #d9480f; background: transparent; box-sizing: border-box; }
#results i.trained { border-color: #2563a8; background: #2563a8; }
#results .key i { margin-left: 8px; }
#results article { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 1fr); gap: 16px; padding: 14px;
  margin-bottom: 14px; border: 1px solid var(--border-color-primary); border-radius: 10px;
  background: var(--block-background-fill); }
#results article.unreadable { display: block; overflow-wrap: anywhere; border-left: 4px solid #d97706; }
#results article.unreadable p { margin: 0; }
#results figure { margin: 0; }
#results img { width: 100%; max-height: 480px; object-fit: contain; border-radius: 6px; display: block;
  background: var(--background-fill-secondary); }
#results figcaption { display: flex; flex-wrap: wrap; gap: 2px 12px; margin-top: 6px; font-size: 0.85rem;
  color: var(--faint); overflow-wrap: anywhere; }
#results button { font: inherit; margin: 0; border: 0; cursor: pointer; }
#results .back { padding: 0; background: none; text-decoration: underline; color: inherit; }
#results [hidden] { display: none; }
#results ol { list-style: none; margin: 0; padding: 0; }
#results li { margin: 0 0 4px; padding: 0; }
#results li.left { font-size: 0.85rem; color: var(--faint); }
#results li button { position: relative; display: flex; align-items: center; gap: 8px; width: 100%; min-height: 34px;
  padding: 4px 10px; border-radius: 5px; overflow: hidden; text-align: start; color: var(--faint);
  background: color-mix(in srgb, var(--body-text-color) 5%, transparent);
  outline: 1px solid transparent; outline-offset: -1px; }
#results li button > * { position: relative; }
#results li button .bar { position: absolute; left: 0; top: 0; bottom: 0; background: #8a8f9933; }
#results li.reached button { color: var(--body-text-color); font-weight: 600; }
#results li.reached .bar { background: #3b82c466; }
#results li button:hover, #results li button:focus-visible { outline-color: #2563a8; }
#results li button[aria-pressed="true"] { outline: 2px solid #2563a8; outline-offset: -2px; }
#results li button[aria-busy] { opacity: 0.6; cursor: progress; }
#results li bdi { flex: 1; min-width: 0; overflow-wrap: anywhere; }
#results li b { font-variant-numeric: tabular-nums; font-weight: inherit; }
#results summary { cursor: pointer; padding: 6px 2px; font-size: 0.9rem; color: var(--faint); }
@media (max-width: 640px) { #results article { grid-template-columns: minmax(0, 1fr); gap: 10px; padding: 10px; } }
"""
