// The page: charts, tables that sort, and photos with what the network said of them. What they are stands in #data.
'use strict';

const $ = (id) => document.getElementById(id);
const data = JSON.parse($('data').textContent);
const STEP = 60; // photos that are shown at a time

for (const one of document.querySelectorAll('[data-share]')) one.style.setProperty('--share', one.dataset.share);

// ---- charts ----

// Draws charts in the element `id`; its section stands where there are some.
function drawAll(id, charts) {
  $(id).closest('section').hidden = !charts.length;
  for (const chart of charts) draw($(id), chart);
}

if ($('runs')) {
  const mean = (values) => values.reduce((a, b) => a + b) / values.length;
  const runs = data.runs.map((run) => ({ name: run.variant, color: data.variants.indexOf(run.variant), ...run }));
  const spread = data.variants.flatMap((name, color) => {
    const x = runs.filter((run) => run.color === color).map((run) => run.top1);
    return x.length ? [{ name, color, x, y: x.map(() => color), dots: true, mark: mean(x) }] : [];
  });
  const curves = [...new Set(runs.flatMap((run) => Object.keys(run.curves)))].map((title) => ({
    title, x: 'epoch',
    series: runs.filter((run) => run.curves[title]).map(({ name, color, curves: { [title]: [x, y] } }) => ({ name, color, x, y })),
  }));
  const dots = { title: 'Dots are seeds, lines means', x: 'top-1 in %', rows: data.variants, series: spread };
  drawAll('runs', spread.length ? [dots, ...curves] : []);
}

if ($('curves')) {
  drawAll('curves', Object.entries(data.curves).map(([title, [x, y]]) => ({ title, x: 'epoch', series: [{ name: title, x, y }] })));
}

if ($('calibration')) {
  const { reliability = [], reject = [] } = data.calibration ?? {};
  const column = (rows, number) => rows.map((row) => row[number]);
  drawAll('calibration', reliability.length ? [{
    title: 'Reliability: share that is right', x: 'score',
    series: [{ name: 'measured', x: column(reliability, 0), y: column(reliability, 1) }, { name: 'as it should be', x: [0, 1], y: [0, 1] }],
  }, {
    title: 'With a threshold: share of answers right', x: 'share of photos answered',
    series: [{ name: 'precision', x: column(reject, 1), y: column(reject, 2) }],
  }] : []);
}

// ---- tables ----

for (const table of document.querySelectorAll('.sortable')) {
  const headings = [...table.querySelectorAll('th')];
  headings.forEach((heading, column) => heading.addEventListener('click', () => {
    const down = heading.ariaSort !== 'descending';
    headings.forEach((one) => one.removeAttribute('aria-sort'));
    heading.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const value = (row) => row.cells[column].textContent.trim();
    const number = (text) => parseFloat(text.replaceAll(',', ''));
    const compare = (a, b) => (number(a) - number(b)) || a.localeCompare(b);
    const rows = [...table.tBodies[0].rows].sort((a, b) => compare(value(a), value(b)) * (down ? -1 : 1));
    table.tBodies[0].append(...rows);
  }));
}

// ---- copying and saving ----

for (const button of document.querySelectorAll('.copy')) {
  button.addEventListener('click', async () => {
    const code = button.previousElementSibling;
    try {
      await navigator.clipboard.writeText(code.textContent);
    } catch {
      getSelection().selectAllChildren(code);
      document.execCommand('copy');
    }
    button.textContent = 'Copied';
  });
}

function save(name, text) {
  const link = document.createElement('a');
  Object.assign(link, { download: name, href: URL.createObjectURL(new Blob([text], { type: 'text/csv' })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// ---- photos ----

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const names = (indices) => indices.map((index) => data.classes[index]).join(', ') || 'nothing';

// The part of a photo that the network saw, as shares of its sides; as mobileone_ext.deploy.explain has it.
function seenPart({ fit, crop, size: [tall, wide] }, width, height) {
  const scale = { crop: Math.round(Math.min(tall, wide) / crop) / Math.min(width, height), pad: Math.min(wide / width, tall / height) }[fit];
  const [w, h] = scale ? [wide / width / scale, tall / height / scale] : [1, 1];
  return { left: (1 - w) / 2, top: (1 - h) / 2, width: w, height: h };
}

function drawMap(canvas, levels, img) {
  const [height, width] = data.map;
  const bytes = atob(levels);
  Object.assign(canvas, { width, height });
  const pen = canvas.getContext('2d'), pixels = pen.createImageData(width, height);
  for (let i = 0; i < bytes.length; i++) pixels.data.set([255, 90, 20, bytes.charCodeAt(i) * 190 / 255], 4 * i);
  pen.putImageData(pixels, 0, 0);
  const part = seenPart(data.view, img.naturalWidth, img.naturalHeight);
  for (const side in part) canvas.style[side] = `${100 * part[side]}%`;
}

function cardOf(photo, doubt) {
  const card = $('card').content.firstElementChild.cloneNode(true);
  const [img, canvas] = [card.querySelector('img'), card.querySelector('canvas')];
  const frame = card.querySelector('.frame'), seen = document.createElement('div');
  seen.className = 'seen';
  seen.append(img, canvas);
  frame.append(seen);
  if (photo.thumb) img.src = `data:image/jpeg;base64,${photo.thumb}`;
  else frame.classList.add('gone');
  if (photo.map) {
    const ready = () => {
      drawMap(canvas, photo.map, img);
      canvas.hidden = !heat.checked;
    };
    img.complete && img.naturalWidth ? ready() : img.addEventListener('load', ready);
  }
  const text = (name, value) => { card.querySelector(`.${name}`).textContent = value; };
  if (photo.guess) {
    text('said', `${names(photo.guess)} ${percent(photo.score)}`);
    if (photo.wrong) text('is', `is ${names(photo.label)}${'own' in photo ? ` ${percent(photo.own)}` : ''}`);
    card.classList.toggle('wrong', photo.wrong);
    card.dataset.guess = names(photo.guess);
    card.dataset.score = photo.score;
  } else text('said', names(photo.label));
  if (doubt !== undefined) text('is', `is it ${data.classes[doubt]}?`);
  const name = card.querySelector('.name');
  Object.assign(name, { textContent: photo.path, title: data.root + photo.path });
  Object.assign(card.dataset, { photo: photo.path, label: names(photo.label) });
  return card;
}

const heat = document.querySelector('#heat input');

function startGallery() {
  const photos = data.photos.slice(0, data.measured);
  const doubts = new Map(data.doubts);
  photos.forEach((photo, index) => { photo.index = index; });
  const WHICH = {
    'mistakes': (photo) => photo.wrong,
    'right': (photo) => !photo.wrong,
    'all': () => true,
    'labels in doubt': (photo) => doubts.has(photo.index),
  };
  const ORDER = {
    'surest mistake first': (a, b) => b.wrong - a.wrong || b.error - a.error,
    'highest score first': (a, b) => b.score - a.score,
    'lowest score first': (a, b) => a.score - b.score,
    'by name': (a, b) => (a.path < b.path ? -1 : 1),
  };
  const fill = (select, options) => options.forEach(([value, text]) => select.append(new Option(text, value)));
  const counted = Object.entries(WHICH).map(([name, take]) => [name, `${name} (${photos.filter(take).length})`]);
  fill($('which'), counted);
  fill($('order'), Object.keys(ORDER).map((name) => [name, name]));
  for (const id of ['label', 'guess']) fill($(id), [['', 'any'], ...data.classes.map((name, index) => [index, name])]);
  if (!photos.some((photo) => photo.wrong)) $('which').value = 'all';

  let chosen = [], shown = 0;
  const more = () => {
    const next = chosen.slice(shown, shown + STEP);
    const inDoubt = $('which').value === 'labels in doubt';
    $('gallery').append(...next.map((photo) => cardOf(photo, inDoubt ? doubts.get(photo.index) : undefined)));
    shown += next.length;
    $('more').hidden = shown === chosen.length;
    $('more').textContent = `Show ${Math.min(STEP, chosen.length - shown)} more`;
  };
  const update = () => {
    const take = WHICH[$('which').value], [label, guess] = [$('label').value, $('guess').value];
    const fits = (indices, wanted) => wanted === '' || indices.includes(+wanted);
    chosen = photos.filter((photo) => take(photo) && fits(photo.label, label) && fits(photo.guess, guess));
    chosen.sort(ORDER[$('order').value]);
    $('gallery').replaceChildren();
    shown = 0;
    $('count').textContent = `${chosen.length.toLocaleString('en')} of ${photos.length.toLocaleString('en')} photos`;
    for (const button of document.querySelectorAll('[data-guess][type=button]')) {
      button.classList.toggle('chosen', button.dataset.label === label && button.dataset.guess === guess);
    }
    more();
  };
  for (const id of ['which', 'label', 'guess', 'order']) $(id).addEventListener('change', update);
  $('more').addEventListener('click', more);
  for (const button of document.querySelectorAll('[data-guess][type=button]')) {
    button.addEventListener('click', () => {
      $('which').value = 'all';
      $('label').value = button.dataset.label;
      $('guess').value = button.dataset.guess;
      update();
      $('photos').scrollIntoView({ behavior: 'smooth' });
    });
  }
  $('heat').hidden = !photos.some((photo) => photo.map);
  heat.addEventListener('change', () => {
    for (const canvas of document.querySelectorAll('.map')) canvas.hidden = !heat.checked || !canvas.style.width;
  });
  $('save').addEventListener('click', () => {
    const quoted = (text) => `"${String(text).replaceAll('"', '""')}"`;
    const row = (photo) => [data.root + photo.path, photo.label.map((i) => data.classes[i]).join(';'), photo.guess.map((i) => data.classes[i]).join(';'), photo.score];
    save('photos.csv', [['file', 'label', 'guess', 'score'], ...photos.map(row)].map((line) => line.map(quoted).join(',')).join('\n') + '\n');
  });
  update();
}

function startPairs() {
  for (const [first, second, similarity] of data.pairs) {
    const pair = document.createElement('div');
    const both = [first, second].map((index) => data.photos[index]);
    const differ = names(both[0].label) === names(both[1].label) ? '' : ', with different labels';
    const where = both.map((photo) => photo.part).join(' and ');
    pair.append(Object.assign(document.createElement('p'), { textContent: `${where}${differ}; cosine ${similarity.toFixed(3)}` }));
    pair.append(...both.map((photo) => cardOf(photo)));
    pair.className = 'pair';
    Object.assign(pair.dataset, { pair: where, similarity });
    $('pairs').append(pair);
  }
}

if ($('gallery')) startGallery();
if ($('pairs')) startPairs();
document.body.dataset.state = 'ready';
