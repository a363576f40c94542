# SPDX-License-Identifier: Apache-2.0
"""The pages' only style sheet. Colours are variables, so that dark mode is a second set of values and nothing else."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fcfbf9; --raised: #ffffff; --ink: #201e1b; --soft: #67625a; --hair: #e5e1d9; --tile: #ffffff;
  --right: #0a6b4c; --right-wash: #e9f4ee; --c0: #27598c; --c1: #a4511f; --c2: #5d4a99; --c3: #3c6f3a;
  --serif: ui-serif, "Iowan Old Style", Charter, "Bitstream Charter", "Palatino Linotype", Palatino, Georgia, serif;
  --sans: ui-sans-serif, -apple-system, "Segoe UI", "Helvetica Neue", "Liberation Sans", system-ui, sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "Liberation Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #161513; --raised: #1d1c19; --ink: #ebe7df; --soft: #a09a8f; --hair: #34312c; --tile: #f4f2ee;
    --right: #77cfa8; --right-wash: #17291f; --c0: #8bb8e4; --c1: #e0a070; --c2: #b5a4ea; --c3: #94c48d;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body {
  margin: 0 auto; max-width: 70rem; padding: clamp(1.5rem, 5vw, 4.5rem) clamp(1rem, 4vw, 2.5rem);
  background: var(--paper); color: var(--ink); font: 1rem/1.55 var(--serif); font-variant-numeric: lining-nums;
}
header { max-width: 44rem; }
.eyebrow, .remark, .note, .small, figcaption, table, .facts, footer, .where, .legend, .chance {
  font-family: var(--sans); font-size: .8125rem; line-height: 1.45;
}
.eyebrow { margin: 0; color: var(--soft); letter-spacing: .02em; }
h1 { margin: .25rem 0 .75rem; font-size: clamp(1.8rem, 5vw, 2.6rem); line-height: 1.12; font-weight: 500;
  letter-spacing: -.012em; overflow-wrap: anywhere; }
.lead { margin: 0; font-size: 1.0625rem; color: var(--ink); }
.lead, .remark { text-wrap: pretty; }
section { margin-top: clamp(2.5rem, 6vw, 4.25rem); }
h2 { margin: 0 0 .25rem; font-size: 1.375rem; line-height: 1.25; font-weight: 500; letter-spacing: -.006em; }
h3 { margin: 1.9rem 0 .2rem; font: 600 .875rem/1.4 var(--sans); }
.remark { margin: 0 0 1rem; max-width: 44rem; color: var(--soft); }
.headline { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 1.5rem 2.5rem;
  margin: clamp(1.75rem, 4vw, 2.75rem) 0 0; padding: 0; list-style: none; }
.headline li { border-top: 1px solid var(--ink); padding-top: .65rem; }
.headline .value { display: block; font-size: clamp(2.5rem, 7vw, 3.4rem); line-height: 1.1; letter-spacing: -.025em; }
.headline .value small { font-size: .5em; letter-spacing: 0; color: var(--soft); margin-left: .12em; }
.headline .says { display: block; max-width: 22rem; }
.chance { display: block; margin-top: .35rem; color: var(--soft); }
.scroll { overflow-x: auto; }
table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums lining-nums; }
.said { margin-bottom: .4rem; } .scroll + .said { margin-top: 1.75rem; }
th, td { padding: .42rem .75rem .42rem 0; text-align: right; border-bottom: 1px solid var(--hair); white-space: nowrap;
  font-weight: 400; }
thead th { color: var(--soft); vertical-align: bottom; }
th[scope=row], th.text, td.text { text-align: left; }
td b { font-weight: 600; }
.loose { min-width: 42rem; } .loose td { white-space: normal; overflow-wrap: anywhere; vertical-align: top; }
.faint { color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 2rem 2.25rem;
  margin-top: 1.1rem; }
.chart { margin: 0; min-width: 0; }
.chart figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: .1rem 1rem; }
.chart .name { font-weight: 600; }
.chart .last { font-variant-numeric: tabular-nums; }
.legend { flex-basis: 100%; display: flex; flex-wrap: wrap; gap: .05rem 1rem; margin: 0; padding: 0; list-style: none;
  color: var(--soft); font-size: .75rem; }
.legend b { font-weight: 600; color: var(--ink); font-variant-numeric: tabular-nums; }
.key { width: 22px; height: 8px; margin-right: .35rem; vertical-align: middle; }
.chart > svg { display: block; width: 100%; height: auto; margin-top: .35rem; overflow: visible; }
.chart text { font: 11px var(--sans); fill: var(--soft); font-variant-numeric: tabular-nums; }
.grid { stroke: var(--hair); stroke-width: 1; }
.reference { stroke: var(--soft); stroke-width: 1; stroke-dasharray: 1.5 3; }
.line { fill: none; stroke-width: 1.6; stroke-linejoin: round; stroke-linecap: round; }
.line.s0 { stroke: var(--c0); } .line.s1 { stroke: var(--c1); stroke-dasharray: 5 3; }
.line.s2 { stroke: var(--c2); stroke-dasharray: 1.5 3.2; } .line.s3 { stroke: var(--c3); stroke-dasharray: 8 3 1.5 3; }
.dot { stroke: none; } .dot.s0 { fill: var(--c0); } .dot.s1 { fill: var(--c1); } .dot.s2 { fill: var(--c2); }
.dot.s3 { fill: var(--c3); }
.band { stroke: none; opacity: .16; } .band.s0 { fill: var(--c0); } .band.s1 { fill: var(--c1); }
.band.s2 { fill: var(--c2); } .band.s3 { fill: var(--c3); }
img { display: block; background: var(--tile); border-radius: 6px; object-fit: contain; max-width: 100%; }
.sharp { image-rendering: pixelated; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: 1.6rem 2.25rem;
  margin: 1.1rem 0 0; padding: 0; list-style: none; }
.card { border-top: 1px solid var(--hair); padding-top: .8rem; min-width: 0; }
.asked { display: flex; justify-content: space-between; align-items: baseline; gap: .15rem 1rem; margin: 0 0 .3rem;
  line-height: 1.3; overflow-wrap: anywhere; }
.place { flex: none; color: var(--soft); font: .75rem/1.3 var(--sans); font-variant-numeric: tabular-nums; }
.words { min-width: 0; }
.words img { display: inline-block; width: 22px; height: 22px; margin: 0 .45rem -5px 0; border-radius: 3px; }
.reading .asked { padding: 0 .4rem; }
.where { margin: .45rem 0 0; color: var(--soft); }
.reading { display: grid; grid-template-columns: 96px minmax(0, 1fr); gap: 0 1rem; align-items: start; }
.reading > img, .reading > figure img { width: 96px; height: 96px; }
.ranked { margin: 0; padding: 0; list-style: none; font-family: var(--sans); font-size: .8125rem; line-height: 1.3; }
.ranked li { display: flex; gap: .6rem; justify-content: space-between; padding: .19rem .4rem; border-radius: 4px; }
.ranked .text { overflow-wrap: anywhere; }
.ranked .score { color: var(--soft); font-variant-numeric: tabular-nums; flex: none; }
.right { color: var(--right); font-weight: 600; background: var(--right-wash); }
.right .score { color: inherit; font-weight: 400; }
.strip { display: grid; grid-template-columns: repeat(5, minmax(0, 1fr)); gap: .5rem; margin: .55rem 0 0; padding: 0;
  list-style: none; }
.strip li { padding: 3px; border-radius: 8px; background: none; font: .75rem/1.3 var(--sans); text-align: center; }
.strip img { width: 100%; height: auto; aspect-ratio: 1; }
.strip .score { display: block; margin-top: .2rem; color: var(--soft); font-variant-numeric: tabular-nums; }
.strip .right { background: none; box-shadow: 0 0 0 2px var(--right); }
.strip .right .score { color: var(--right); font-weight: 600; }
.results { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(10rem, 45%), 1fr)); gap: 1.5rem 1.25rem;
  margin: 1.1rem 0 0; padding: 0; list-style: none; }
.results img { width: 100%; height: auto; aspect-ratio: 1; }
.results p { margin: .45rem 0 0; line-height: 1.3; overflow-wrap: anywhere; }
.results .where { margin-top: .15rem; overflow-wrap: anywhere; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 19rem), 1fr)); gap: .1rem 2.25rem;
  margin: .75rem 0 0; }
.facts div { display: flex; justify-content: space-between; gap: 1rem; border-bottom: 1px solid var(--hair);
  padding: .4rem 0; }
.facts dt { color: var(--soft); flex: none; } .facts dd { margin: 0; text-align: right; overflow-wrap: anywhere; }
pre { margin: .75rem 0 0; padding: .9rem 1.1rem; overflow-x: auto; background: var(--raised);
  border: 1px solid var(--hair); border-radius: 6px; font: .8125rem/1.55 var(--mono); tab-size: 2; }
pre.wrap { white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin-top: .9rem; } summary { cursor: pointer; font: .8125rem/1.5 var(--sans); }
:focus-visible { outline: 2px solid var(--c0); outline-offset: 3px; border-radius: 2px; }
footer { margin-top: clamp(3rem, 7vw, 5rem); padding-top: .9rem; border-top: 1px solid var(--hair);
  color: var(--soft); }
footer p { margin: 0; }
.unseen { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media (max-width: 32rem) { table { font-size: .75rem; } th, td { padding-right: .6rem; } }
@media print { body { max-width: none; padding: 0; } .card, .chart { break-inside: avoid; } }
"""
