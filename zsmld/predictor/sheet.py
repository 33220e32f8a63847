"""The HTML of a contact sheet's page around its cards: style, and the few lines of script that filter by word."""

from string import Template

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>$title</title>
<style>
:root { --paper: #fff; --ink: #222; --faint: #595959; --card: #f5f6f8; --blank: #e4e4e4; --track: #e8ecf1;
  --bar: #bcd3ea; --line: #d5d9de; --link: #2f5d8c }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --ink: #e6e6e6; --faint: #a3a8ae; --card: #202327; --blank: #33373c; --track: #2b3036;
    --bar: #34567a; --line: #3a3f45; --link: #8fb8e0 }
}
* { box-sizing: border-box }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0; padding: 0 1rem }
header { position: sticky; top: 0; background: var(--paper); padding: .6rem 0; border-bottom: 1px solid var(--line);
  display: flex; flex-wrap: wrap; gap: .3rem 1.2rem; align-items: baseline; z-index: 1 }
h1 { font-size: 1.15rem; margin: 0; overflow-wrap: anywhere }
.facts, nav span { color: var(--faint); font-size: .85rem }
input { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 4px;
  padding: .1rem .4rem; width: 14rem; max-width: 60vw }
nav { display: flex; gap: .8rem; align-items: baseline }
header nav { margin-left: auto }
footer { padding: 1rem 0 2rem }
a { color: var(--link) }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); gap: 1rem;
  padding: 1rem 0; align-items: start }
figure { margin: 0; background: var(--card); border-radius: 6px; overflow: hidden; content-visibility: auto;
  contain-intrinsic-size: auto 24rem }
figure[hidden] { display: none }
.photo, .blank { display: flex; height: 14rem; align-items: center; justify-content: center; background: var(--blank) }
.photo img { max-width: 100%; max-height: 100%; width: auto; height: auto }
.blank { color: var(--faint); font-size: .85rem; padding: .8rem; overflow: auto; overflow-wrap: anywhere }
figcaption { padding: .5rem .6rem .6rem }
.path { margin: 0 0 .4rem; font-size: .75rem; color: var(--faint); overflow-wrap: anywhere; white-space: pre-wrap }
ol { list-style: none; margin: 0; padding: 0; font-size: .85rem }
li { position: relative; display: flex; gap: .6rem; justify-content: space-between; padding: 0 .4rem;
  margin-bottom: 2px; background: var(--track); border-radius: 3px; overflow: hidden; z-index: 0 }
li span { position: absolute; inset: 0 auto 0 0; background: var(--bar); z-index: -1 }
li bdi { overflow-wrap: anywhere; min-width: 0 }
li b { font-weight: normal; font-variant-numeric: tabular-nums }
li.found { outline: 2px solid var(--link); outline-offset: -2px }
.more { background: none; color: var(--faint) }
</style></head><body>
<header><h1><bdi>$title</bdi></h1><span class="facts">$facts</span>
<label>Show images with <input type="search" id="filter" list="words" placeholder="a word" autocomplete="off"></label>
<span class="facts" role="status" id="shown"></span>$turns
<datalist id="words">$words</datalist></header>
<main>
$cards</main>
<footer>$turns</footer>
<script>
"use strict";
const box = document.getElementById("filter");
const cards = Array.from(document.querySelectorAll("figure"), (card) => ({
  card, lines: Array.from(card.querySelectorAll("li bdi"), (word) => ({
    line: word.parentElement, text: word.textContent.toLowerCase() })) }));
function show() {
  const wanted = box.value.trim().toLowerCase();
  let shown = 0;
  for (const { card, lines } of cards) {
    let found = wanted === "";
    for (const { line, text } of lines) {
      const matches = wanted !== "" && text.includes(wanted);
      line.classList.toggle("found", matches);
      found = found || matches;
    }
    card.hidden = !found;
    shown += found ? 1 : 0;
  }
  document.getElementById("shown").textContent = wanted ? shown + " of " + cards.length + " on this page" : "";
  for (const turn of document.querySelectorAll("a.turn")) turn.hash = encodeURIComponent(box.value.trim());
}
try { box.value = decodeURIComponent(location.hash.slice(1)); } catch { box.value = ""; }
box.addEventListener("input", show);
show();
</script>
</body></html>
""")
