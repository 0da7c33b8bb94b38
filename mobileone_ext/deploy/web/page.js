// The page: photos and the camera in, names out. What the network is and takes stands in the element #info.
'use strict';

const $ = (id) => document.getElementById(id);
const info = JSON.parse($('info').textContent);
const GROUND = `rgb(${info.ground.join(' ')})`; // behind what is transparent
const THUMBNAIL = [320, 640]; // pixels of the longer side: at least, at most
const BEST = 5;
const ONE_FILE = $('network.onnx') !== null; // everything is in the page
const CHANNELS = info.channels === 'gray' ? 1 : 3;

let queue = Promise.resolve(); // one photo at a time goes through the network
const inTurn = (work) => (queue = queue.then(work, work));

// ---- the network ----

// The bytes of a file beside this page or, packed, in it.
async function asset(name) {
  if (!ONE_FILE) {
    const answer = await fetch(name);
    if (!answer.ok) throw new Error(`${name}: HTTP ${answer.status}`);
    return answer.arrayBuffer();
  }
  const text = atob($(name).textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  $(name).remove();
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('gzip'))).arrayBuffer();
}

async function openNetwork() {
  const [code, wasm, file] = await Promise.all(['runtime.js', 'runtime.wasm', 'network.onnx'].map(asset));
  const ort = await import(URL.createObjectURL(new Blob([code], { type: 'text/javascript' })));
  Object.assign(ort.env.wasm, { wasmBinary: wasm, numThreads: 1 }); // threads ask the host for headers
  ort.env.logLevel = 'error';
  const session = await ort.InferenceSession.create(new Uint8Array(file), { executionProviders: ['wasm'] });
  const run = (floats) =>
    session.run({ [session.inputNames[0]]: new ort.Tensor('float32', floats, [1, CHANNELS, ...info.size]) });
  await run(new Float32Array(CHANNELS * info.size[0] * info.size[1])); // the first time takes longer
  $('heat').hidden = session.outputNames.length < 2;
  return async (floats) => {
    const outputs = await run(floats);
    return session.outputNames.map((name) => outputs[name]);
  };
}

function scoresOf(output) {
  const logits = Array.from(output, (x) => (info.output === 'probabilities' ? Math.log(x) : x) / (info.temperature ?? 1));
  if (info.labels_of_an_image === 'several') return logits.map((x) => 1 / (1 + Math.exp(-x)));
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const powers = logits.map((x) => Math.exp(x - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((x) => x / sum);
}

// The best classes of an image as of pixels.js, first the best; where it looked; milliseconds in the network.
async function classify(image) {
  const { image: small, seen } = prepare(image, info.steps);
  const floats = planes(small, info);
  const run = await network;
  const start = performance.now();
  const [output, maps] = await run(floats);
  const ms = performance.now() - start;
  const scores = scoresOf(output.data);
  const order = scores.map((_, index) => index).sort((a, b) => scores[b] - scores[a] || a - b);
  const best = order.slice(0, BEST).map((index) => ({ index, label: info.labels[index], score: scores[index] }));
  return { best, ms, maps, seen };
}

// ---- photos ----

// An image as of pixels.js of what a canvas can draw; `canvas` is used again and again.
function drawable(source, width, height, canvas = document.createElement('canvas')) {
  const pen = canvas.getContext('2d', { willReadFrequently: true });
  return {
    width, height,
    rows(y, n) {
      Object.assign(canvas, { width, height: n });
      pen.fillStyle = GROUND;
      pen.fillRect(0, 0, width, n);
      pen.drawImage(source, 0, -y);
      const { data } = pen.getImageData(0, 0, width, n);
      return CHANNELS === 1 ? makeGray(data) : data;
    },
  };
}

const newCard = () => $('card').content.firstElementChild.cloneNode(true);

function element(tag, text, parent) {
  const made = document.createElement(tag);
  made.textContent = text;
  parent.append(made);
  return made;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;

function show(card, photo, { best, ms, maps, seen }) {
  const { label, score, index } = best[0];
  const least = Array.isArray(info.threshold) ? info.threshold[index] : info.threshold;
  const unknown = score < least; // never, where the file has no threshold
  card.classList.toggle('unknown', unknown);
  card.querySelector('h2').textContent = unknown ? 'unknown' : label;
  card.querySelector('ol').replaceChildren();
  for (const one of best) {
    const row = element('li', '', card.querySelector('ol'));
    row.style.setProperty('--share', one.score);
    Object.assign(element('span', one.label, row), { title: one.label, dir: 'auto' });
    element('span', percent(one.score), row);
  }
  card.querySelector('.time').textContent = `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
  if (maps) drawHeat(card.querySelector('.heat'), maps, index, seen);
  Object.assign(card.dataset, { photo, label: unknown ? 'unknown' : label, score, ms });
}

// The class's map (1, classes, h, w) over the part of the photo that the network saw; opaque where it is largest.
function drawHeat(canvas, { data, dims }, index, seen) {
  const [height, width] = dims.slice(-2);
  const map = data.subarray(index * height * width, (index + 1) * height * width);
  const largest = map.reduce((a, b) => Math.max(a, b), 1e-9);
  Object.assign(canvas, { width, height, hidden: false });
  const pen = canvas.getContext('2d');
  const pixels = pen.createImageData(width, height);
  map.forEach((value, i) => pixels.data.set([255, 90, 20, 190 * Math.max(value / largest, 0)], 4 * i));
  pen.putImageData(pixels, 0, 0);
  for (const side in seen) canvas.style[side] = `${100 * seen[side]}%`;
}

async function addPhoto(file, card) {
  const name = file.name || 'pasted photo';
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { colorSpaceConversion: 'none', imageOrientation: 'from-image' });
    const { width, height } = bitmap;
    const longer = Math.max(width, height);
    const scale = Math.min(Math.max(longer, THUMBNAIL[0]), THUMBNAIL[1]) / longer;
    const photo = card.querySelector('.photo');
    Object.assign(photo, { width: Math.max(1, width * scale), height: Math.max(1, height * scale) });
    photo.getContext('2d').drawImage(bitmap, 0, 0, photo.width, photo.height);
    show(card, name, await classify(drawable(bitmap, width, height)));
  } catch (error) {
    card.classList.add('unreadable');
    card.dataset.unreadable = name;
    card.querySelector('.picture').remove();
    card.querySelector('h2').textContent =
      bitmap ? `Not classified: ${error.message}` : 'Not a photo that this browser can read';
  } finally {
    bitmap?.close();
  }
}

let waiting = 0, done = 0;

function addPhotos(files) {
  const cards = Array.from(files, (file) => {
    const card = newCard();
    card.querySelector('.name').textContent = file.name || 'pasted photo';
    inTurn(async () => {
      await addPhoto(file, card);
      done++;
      progress();
    });
    return card;
  });
  if (!cards.length) return;
  waiting += cards.length;
  progress();
  $('results').prepend(...cards);
  $('tools').hidden = false;
}

function progress() {
  if (['loading', 'failed'].includes(document.body.dataset.state)) return;
  const busy = done < waiting;
  setState(busy ? 'busy' : 'ready', busy ? `${done} of ${waiting} photos` : '');
  if (!busy) waiting = done = 0;
}

function setState(state, text) {
  document.body.dataset.state = state;
  $('status').textContent = text;
}

// ---- the camera ----

let stream = null;

const NO_CAMERA = {
  NotFoundError: 'No camera was found.',
  NotAllowedError: 'The browser does not let this page use the camera.',
  NotReadableError: 'The camera is in use by another program.',
};

async function startCamera() {
  if (!navigator.mediaDevices) throw new Error('A browser gives the camera to pages from https or localhost alone.');
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' } });
  } catch (error) {
    throw new Error(NO_CAMERA[error.name] ?? `No camera: ${error.message}`);
  }
  const card = newCard(), video = document.createElement('video'), canvas = document.createElement('canvas');
  Object.assign(video, { srcObject: stream, muted: true, playsInline: true });
  card.querySelector('.photo').replaceWith(video);
  card.querySelector('.name').textContent = 'camera';
  $('results').prepend(card);
  stream.getVideoTracks()[0].addEventListener('ended', stopCamera); // unplugged
  await video.play();
  $('camera').textContent = 'Stop the camera';
  watch(card, video, canvas);
}

async function watch(card, video, canvas) {
  while (stream) {
    await inTurn(async () => {
      if (!stream) return;
      show(card, 'camera', await classify(drawable(video, video.videoWidth, video.videoHeight, canvas)));
    });
    await new Promise(requestAnimationFrame);
  }
  card.remove();
}

function stopCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $('camera').textContent = 'Use the camera';
}

// ---- what the user does ----

$('photos').addEventListener('change', ({ target }) => {
  addPhotos(target.files);
  target.value = ''; // the same photo may be chosen again
});
document.addEventListener('paste', (event) => addPhotos(event.clipboardData.files));
for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    document.body.classList.toggle('over', kind === 'dragenter' || kind === 'dragover');
    if (kind === 'drop') addPhotos(event.dataTransfer.files);
  });
}
$('camera').addEventListener('click', () =>
  (stream ? stopCamera() : startCamera().catch((error) => { $('status').textContent = error.message; })));
$('clear').addEventListener('click', () => {
  stopCamera();
  $('results').replaceChildren();
  $('tools').hidden = true;
});
$('heat').addEventListener('change', ({ target }) => document.body.classList.toggle('plain', !target.checked));

// ---- the beginning ----

$('about').textContent = `Recognizes ${info.labels.length.toLocaleString('en')} classes.`;
const FACTS = {
  Network: info.source,
  sha256: info.source_sha256,
  Photos: `${info.size[1]} × ${info.size[0]} pixels`,
  Numbers: info.precision,
  Runtime: info.runtime,
  Classes: info.labels.join(' · '),
};
for (const [term, text] of Object.entries(FACTS)) {
  if (!text) continue;
  element('dt', term, $('facts'));
  element('dd', text, $('facts'));
}
const network = openNetwork();
network.then(
  () => {
    setState('ready', '');
    progress();
  },
  (error) => setState('failed', location.protocol === 'file:' && !ONE_FILE
    ? 'A folder like this one opens through a web server; a page for a double click is made with --single-file.'
    : `The network could not be loaded: ${error.message}`),
);
if (!ONE_FILE && isSecureContext && location.protocol !== 'file:') navigator.serviceWorker?.register('offline.js');
