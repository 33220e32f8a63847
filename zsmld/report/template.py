"""The HTML of a report's page around its content: style, and the few lines of script that sort and filter."""

from string import Template

PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>$title</title>
<style>
body { font: 15px/1.45 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 1.5rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .3rem }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .3rem }
h3 { font-size: .95rem; margin: 1rem 0 .2rem }
.facts { color: #595959; font-size: .85rem; overflow-wrap: anywhere }
.wide { overflow-x: auto }
.tall { max-height: 40rem; overflow: auto; border-bottom: 1px solid #ddd }
.tall thead th { position: sticky; top: 0; background: #fff }
table { border-collapse: collapse; margin: .6rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .15rem .6rem; text-align: right; white-space: pre }
th:first-child, td:first-child, .text { text-align: left }
th { border-bottom: 1px solid #999 }
tbody tr:hover td { background: #f3f3f3 }
.seen { color: #2f5d8c }
.unseen { color: #a84c0c }
button { font: inherit; font-weight: bold; border: 0; background: none; padding: 0; cursor: pointer; color: inherit }
button::after { content: " \\2195"; color: #999 }
[aria-sort=ascending] button::after { content: " \\2191"; color: #222 }
[aria-sort=descending] button::after { content: " \\2193"; color: #222 }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: .5rem 2rem }
.columns > * { min-width: 0 }
img.plots { width: 100%; max-width: 34rem }
.beside { display: flex; flex-wrap: wrap; gap: .5rem 2rem }
.beside > * { max-width: 100% }
caption { text-align: left }
.heat th { font-weight: normal; border: 0; font-size: .8rem }
.heat thead th { writing-mode: vertical-rl; transform: rotate(180deg); padding: .3rem .15rem; text-align: left }
.heat td { font-size: .75rem; padding: .2rem .3rem; text-align: center; min-width: 1.9rem }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(31rem, 100%), 1fr)); gap: 1.2rem }
.sample { display: flex; flex-wrap: wrap; gap: .5rem; align-items: flex-start }
figure { margin: 0 }
.sample figure img { width: 7.2rem; display: block }
figcaption { font-size: .7rem; color: #595959; width: 7.2rem; overflow-wrap: anywhere }
.words { font-size: .85rem; min-width: 8rem; flex: 1; overflow-wrap: anywhere }
.words p { color: #595959; font-size: .75rem; margin: .3rem }
.bar { position: relative; padding: 0 .3rem; margin-bottom: .2rem; z-index: 0 }
.bar span { position: absolute; inset: 0 auto 0 0; z-index: -1; border-radius: 3px }
.right { background: #bfe3c0 }
.wrong { background: #f1c6bd }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem }
</style></head><body>
<h1>$title</h1>
<p class="facts">$facts</p>
$head
<h2>Plots</h2>
<p class="facts">$sampling</p>
<div class="columns">$plots</div>
<h2>Best and worst words</h2>
<div class="beside">$extremes</div>
<h2>Errors that come together</h2>
$errors
$samples
<h2>Every word</h2>
<p class="facts"><label>Show words with <input type="search" id="filter"></label> <span role="status"
 id="shown"></span> A click on a heading sorts.</p>
<div class="tall">$words</div>
<h2>Policies</h2>
<div class="wide">$policies</div>
<h2>What was evaluated</h2>
<div class="wide">$origin</div>
$unreadable
<script>
"use strict";
const table = document.getElementById("words"), body = table.tBodies[0], rows = Array.from(body.rows);
for (const button of table.tHead.querySelectorAll("button")) {
  button.addEventListener("click", () => {
    const head = button.closest("th"), column = head.cellIndex, before = head.getAttribute("aria-sort");
    const numeric = rows.length > 0 && rows[0].cells[column].dataset.value !== undefined;
    const descending = before ? before === "ascending" : numeric;
    const value = (row) => numeric ? Number(row.cells[column].dataset.value) : row.cells[column].textContent;
    const order = (a, b) => numeric ? value(a) - value(b) : value(a).localeCompare(value(b));
    rows.sort((a, b) => descending ? order(b, a) : order(a, b));
    body.append(...rows);
    for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
  });
}
document.getElementById("filter").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  let shown = 0;
  for (const row of rows) {
    row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    shown += row.hidden ? 0 : 1;
  }
  document.getElementById("shown").textContent = wanted ? shown + " of " + rows.length + " words." : "";
});
</script>
</body></html>
""")
