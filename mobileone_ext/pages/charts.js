// Charts as SVG: lines and dots over two axes. A chart is {title, x, series: [{name, x, y, color, dots, mark}], rows}:
// colors are numbers, a mark is a value of x; with `rows`, names, the y of a point is the number of its row, from above.
'use strict';

const COLORS = ['#0a7ca5', '#d9622b', '#3c9d4e', '#a8569c', '#b08a00', '#5b6bd6', '#c43c5e', '#4d8a8a'];
const SVG = 'http://www.w3.org/2000/svg';

function shape(kind, attributes, parent, text) {
  const made = document.createElementNS(SVG, kind);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

// Some round numbers that span `low` .. `high`.
function ticks(low, high) {
  const rough = (high - low || Math.abs(high) || 1) / 5;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.floor(low / step + 1e-9), last = Math.ceil(high / step - 1e-9);
  return Array.from({ length: Math.max(last, first + 1) - first + 1 }, (_, i) => +((first + i) * step).toPrecision(10));
}

const spanOf = (values) => [values.reduce((a, b) => Math.min(a, b), Infinity), values.reduce((a, b) => Math.max(a, b), -Infinity)];

function draw(place, { title, x, series, rows }) {
  const figure = document.createElement('figure');
  figure.className = 'chart';
  figure.dataset.chart = title;
  place.append(figure);
  const left = rows ? 150 : 56, right = 14, top = 8, width = 480, height = rows ? 44 + 26 * rows.length : 260, bottom = 36;
  const svg = shape('svg', { viewBox: `0 0 ${width} ${height}`, role: 'img', 'aria-label': title }, figure);
  const across = ticks(...spanOf(series.flatMap((one) => one.x)));
  const up = rows ? rows.map((_, i) => i) : ticks(...spanOf(series.flatMap((one) => one.y)));
  const along = (value, marks, from, to) => from + (value - marks[0]) / (marks.at(-1) - marks[0]) * (to - from);
  const toX = (value) => along(value, across, left, width - right);
  const toY = (value) => rows ? top + 26 * (value + .5) : along(value, up, height - bottom, top);
  for (const value of across) {
    shape('line', { class: 'grid', x1: toX(value), x2: toX(value), y1: top, y2: height - bottom }, svg);
    shape('text', { x: toX(value), y: height - bottom + 16, 'text-anchor': 'middle' }, svg, value);
  }
  for (const value of up) {
    shape('line', { class: 'grid', x1: left, x2: width - right, y1: toY(value), y2: toY(value) }, svg);
    const name = rows ? rows[value] : String(value);
    const text = shape('text', { x: left - 6, y: toY(value) + 4, 'text-anchor': 'end' }, svg, name.length > 22 ? `${name.slice(0, 21)}…` : name);
    shape('title', {}, text, name);
  }
  shape('text', { x: (left + width - right) / 2, y: height - 4, 'text-anchor': 'middle' }, svg, x);
  const caption = document.createElement('figcaption');
  figure.prepend(caption);
  caption.append(Object.assign(document.createElement('b'), { textContent: title }));
  series.forEach((one, number) => {
    const color = COLORS[(one.color ?? number) % COLORS.length];
    const group = shape('g', { 'data-series': one.name, fill: color, stroke: color }, svg);
    const points = one.x.map((value, i) => [toX(value), toY(one.y[i])]);
    if (!one.dots) shape('polyline', { points: points.join(' '), fill: 'none', 'stroke-width': 1.8 }, group);
    if (one.dots || points.length <= 40) {
      points.forEach(([cx, cy], i) => {
        const dot = shape('circle', { cx, cy, r: one.dots ? 4.5 : 2.5, 'fill-opacity': .7, stroke: 'none' }, group);
        shape('title', {}, dot, `${one.name} ${+one.x[i].toPrecision(4)}: ${rows ? '' : +one.y[i].toPrecision(4)}`);
      });
    }
    if (one.mark !== undefined) shape('line', { x1: toX(one.mark), x2: toX(one.mark), y1: toY(one.y[0]) - 9, y2: toY(one.y[0]) + 9, 'stroke-width': 3 }, group);
    if (series.length === 1 || rows || series.findIndex((other) => other.name === one.name) < number) return;
    const name = Object.assign(document.createElement('span'), { textContent: `● ${one.name}` });
    name.style.color = color;
    caption.append(name);
  });
}
