// A photo's way into the network, as the test pipeline in Python has it: the same pixels as Pillow's resizing gives.
//
// An image is {width, height, rows(y, n)}: rows gives n of its rows from y as bytes, four a pixel (RGBA, alpha ignored).
'use strict';

const BITS = 22; // of a weight's fraction: Pillow adds up 8-bit pixels in 32-bit integers
const ROWS = 256; // of a photo that are unpacked at a time; phones have no memory for all of a large one

// Each filter's reach in pixels, and its weight at distance x >= 0; OpenCV's cubic is steeper than Pillow's.
const FILTERS = {
  bilinear: { reach: 1, weight: (x) => (x < 1 ? 1 - x : 0) },
  bicubic: {
    reach: 2,
    weight: (x, a) =>
      x < 1 ? ((a + 2) * x - (a + 3)) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0,
  },
};

// For each of `to` pixels along one side the first of `from` that it is made of, and their integer weights.
function weightsOf(from, to, { interpolation, backend }) {
  const { reach, weight } = FILTERS[interpolation];
  const pillow = backend === 'pillow';
  const scale = from / to;
  const stretch = pillow ? Math.max(scale, 1) : 1; // OpenCV does not antialias
  return Array.from({ length: to }, (_, i) => {
    const center = (i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - reach * stretch + 0.5), 0);
    const end = Math.min(Math.trunc(center + reach * stretch + 0.5), from);
    const raw = Array.from({ length: end - first }, (_, k) =>
      weight(Math.abs((first + k - center + 0.5) * (1 / stretch)), pillow ? -0.5 : -0.75));
    const sum = raw.reduce((a, b) => a + b, 0);
    const fixed = raw.map((w) => Math.trunc((w / sum) * (1 << BITS) + (w < 0 ? -0.5 : 0.5)));
    return { first, weights: Int32Array.from(fixed) };
  });
}

// Adds up pixels of `source`, `step` bytes apart, into `target`; the array rounds nothing and clips to 0 .. 255.
function mix(source, start, step, weights, target, place) {
  let red = 1 << (BITS - 1), green = red, blue = red;
  for (let k = 0, at = start; k < weights.length; k++, at += step) {
    const weight = weights[k];
    red += weight * source[at];
    green += weight * source[at + 1];
    blue += weight * source[at + 2];
  }
  target[place] = red >> BITS;
  target[place + 1] = green >> BITS;
  target[place + 2] = blue >> BITS;
}

function across(image, width, how) {
  const pixels = new Uint8ClampedArray(4 * width * image.height);
  const columns = weightsOf(image.width, width, how);
  for (let y = 0; y < image.height; y += ROWS) {
    const count = Math.min(ROWS, image.height - y);
    const rows = image.rows(y, count);
    for (let row = 0; row < count; row++) {
      columns.forEach(({ first, weights }, x) =>
        mix(rows, 4 * (row * image.width + first), 4, weights, pixels, 4 * ((y + row) * width + x)));
    }
  }
  return fromPixels(pixels, width, image.height);
}

function down(image, height, how) {
  const { width } = image;
  const pixels = new Uint8ClampedArray(4 * width * height);
  weightsOf(image.height, height, how).forEach(({ first, weights }, y) => {
    const rows = image.rows(first, weights.length);
    for (let x = 0; x < width; x++) mix(rows, 4 * x, 4 * width, weights, pixels, 4 * (y * width + x));
  });
  return fromPixels(pixels, width, height);
}

// Pillow rounds between the two directions, and begins with the one that shrinks a tall image fastest.
function resize(image, width, height, how) {
  const tall = image.height > height && image.height - height > 2 * (image.width - width);
  return tall ? across(down(image, height, how), width, how) : down(across(image, width, how), height, how);
}

function crop(image, left, top, width, height) {
  const pixels = new Uint8ClampedArray(4 * width * height);
  const rows = image.rows(top, height);
  for (let y = 0; y < height; y++) {
    const start = 4 * (y * image.width + left);
    pixels.set(rows.subarray(start, start + 4 * width), 4 * y * width);
  }
  return fromPixels(pixels, width, height);
}

// The image with its upper left corner at left, top, and the color `fill` around it.
function pad(image, left, top, width, height, fill) {
  const pixels = new Uint8ClampedArray(4 * width * height);
  for (let i = 0; i < pixels.length; i += 4) pixels.set(fill, i);
  const rows = image.rows(0, image.height);
  for (let y = 0; y < image.height; y++) {
    pixels.set(rows.subarray(4 * y * image.width, 4 * (y + 1) * image.width), 4 * ((top + y) * width + left));
  }
  return fromPixels(pixels, width, height);
}

const fromPixels = (pixels, width, height) => ({
  width, height, rows: (y, n) => pixels.subarray(4 * y * width, 4 * (y + n) * width),
});

// Python's round: halves go to the even neighbor.
const roundHalfEven = (x) => (x % 1 === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

const pair = (value) => (Array.isArray(value) ? value : [value, value]);

// The steps of a test pipeline; each returns the image and where it lies in the one before, in shares of its sides.
const WHOLE = { left: 0, top: 0, width: 1, height: 1 };
const STEPS = {
  ResizeEdge(image, step) {
    const { width: w, height: h } = image;
    const edge = step.edge ?? 'short';
    const byWidth = (edge === 'short' && w < h) || (edge === 'long' && w > h) || edge === 'width';
    const size = byWidth
      ? [step.scale, Math.trunc((step.scale * h) / w)]
      : [Math.trunc((step.scale * w) / h), step.scale];
    return [resize(image, ...size, step), WHOLE];
  },
  Resize: (image, step) => [resize(image, ...pair(step.scale), step), WHOLE],
  'mobileone_ext.ResizePad'(image, step) {
    const [width, height] = pair(step.scale);
    const ratio = Math.max(image.height / height, image.width / width);
    const [w, h] = [image.width, image.height].map((side) => Math.max(1, roundHalfEven(side / ratio)));
    const left = Math.floor((width - w) / 2), top = Math.floor((height - h) / 2);
    const share = { left: -left / w, top: -top / h, width: width / w, height: height / h };
    return [pad(resize(image, w, h, step), left, top, width, height, step.fill), share];
  },
  CenterCrop(image, step) {
    const [w, h] = pair(step.crop_size);
    const width = Math.min(w, image.width), height = Math.min(h, image.height);
    const left = roundHalfEven((image.width - width) / 2), top = roundHalfEven((image.height - height) / 2);
    const share = { left: left / image.width, top: top / image.height,
      width: width / image.width, height: height / image.height };
    return [crop(image, left, top, width, height), share];
  },
};

// What the network sees of a photo: the image, and where that lies in the photo, in shares of its sides.
function prepare(image, steps) {
  let seen = WHOLE;
  for (const step of steps) {
    let share;
    [image, share] = STEPS[step.type](image, step);
    seen = {
      left: seen.left + share.left * seen.width, top: seen.top + share.top * seen.height,
      width: share.width * seen.width, height: share.height * seen.height,
    };
  }
  return { image, seen };
}

// The network's input (C, H, W) of an image: pixels or normalized ones, channels in its order; a gray one's are alike.
function planes(image, { channels, input, mean, std }) {
  const order = { RGB: [0, 1, 2], BGR: [2, 1, 0], gray: [0] }[channels];
  const area = image.width * image.height;
  const pixels = image.rows(0, image.height);
  const floats = new Float32Array(order.length * area);
  order.forEach((from, c) => {
    const [shift, scale] = input.startsWith('pixels') ? [0, 1] : [mean[c] ?? mean[0], std[c] ?? std[0]];
    for (let i = 0; i < area; i++) floats[c * area + i] = (pixels[4 * i + from] - shift) / scale;
  });
  return floats;
}

// Pixels (RGBA) in place as Pillow makes them gray.
function makeGray(pixels) {
  for (let i = 0; i < pixels.length; i += 4) {
    pixels.fill((19595 * pixels[i] + 38470 * pixels[i + 1] + 7471 * pixels[i + 2] + (1 << 15)) >> 16, i, i + 3);
  }
  return pixels;
}
