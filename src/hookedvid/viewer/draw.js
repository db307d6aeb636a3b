// Pictures of numbers. Colours rise evenly in lightness (inferno), and tell apart without red against green.

const INFERNO = [
  [0, 0, 4], [27, 12, 65], [74, 12, 107], [120, 28, 109], [165, 44, 96],
  [207, 68, 70], [237, 105, 37], [251, 155, 6], [247, 209, 61], [252, 255, 164],
];

// Of a share of the largest mass, 0 to 1: none is clear, more is lighter and hides more of the frame.
function heatColour(t) {
  const x = (0.25 + 0.75 * t) * (INFERNO.length - 1);
  const [i, part] = [Math.min(INFERNO.length - 2, Math.floor(x)), x - Math.min(INFERNO.length - 2, Math.floor(x))];
  const rgb = INFERNO[i].map((c, k) => Math.round(c + part * (INFERNO[i + 1][k] - c)));
  return [...rgb, 0.85 * t ** 0.6];
}

const shareOf = (mass, most, curve) => {
  const t = most > 0 ? Math.min(1, mass / most) : 0;
  return curve === "root" ? Math.sqrt(t) : t;
};
const css = ([r, g, b, a]) => `rgba(${r},${g},${b},${a.toFixed(3)})`;
const PALETTE = [...Array(256).keys()].map((i) => css(heatColour(i / 255)));
const theme = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

// A canvas's context, one unit a CSS pixel, cleared.
function fresh(canvas) {
  const [w, h, ratio] = [canvas.clientWidth, canvas.clientHeight, window.devicePixelRatio || 1];
  if (canvas.width !== Math.round(w * ratio)) canvas.width = Math.round(w * ratio);
  if (canvas.height !== Math.round(h * ratio)) canvas.height = Math.round(h * ratio);
  const pen = canvas.getContext("2d");
  pen.setTransform(canvas.width / (w || 1), 0, 0, canvas.height / (h || 1), 0, 0);
  pen.clearRect(0, 0, w, h);
  return [pen, w, h];
}

// A box of a frame's pixels on a canvas that covers the frame.
const boxOn = ([x0, y0, x1, y1], w, h) => {
  const [sx, sy] = [w / values.size[0], h / values.size[1]];
  return [x0 * sx, y0 * sy, x1 * sx, y1 * sy];
};

// Pieces of tokens in the colours of their mass, on a canvas of so many units.
function paint(pen, w, h, frame, mass, { most, curve, hidden }, small) {
  for (const [token, box] of tokens.pieces[frame]) {
    const colour = hidden.has(token) ? 0 : Math.round(255 * shareOf(mass[token], most, curve));
    if (!colour && small) continue;
    const [x0, y0, x1, y1] = boxOn(box, w, h).map(Math.round);
    if (!small) pen.clearRect(x0, y0, x1 - x0, y1 - y0); // neighbours that overlap are not painted twice
    if (!colour) continue;
    pen.fillStyle = PALETTE[colour];
    pen.fillRect(x0, y0, x1 - x0, y1 - y0);
  }
}

function drawHeat(canvas, frame, mass, look) {
  const [pen, w, h] = fresh(canvas);
  paint(pen, w, h, frame, mass, look);
}

// The same in small, so many pixels wide.
function drawThumb(canvas, frame, mass, look, wide) {
  [canvas.width, canvas.height] = [wide, Math.max(1, Math.round((wide * values.size[1]) / values.size[0]))];
  paint(canvas.getContext("2d"), canvas.width, canvas.height, frame, mass, look, true);
}

// Sinks are crossed out where they are left out and ringed where they are shown; the chosen token has a frame.
function drawMarks(canvas, frame, sinks, hidden, chosen) {
  const [pen, w, h] = fresh(canvas);
  const marked = tokens.pieces[frame].filter(([token]) => sinks.has(token) || token === chosen);
  for (const [width, colour] of [[3.5, "#000"], [1.5, "#fff"]]) {
    [pen.lineWidth, pen.strokeStyle] = [width, colour];
    for (const [token, box] of marked) {
      const [x0, y0, x1, y1] = boxOn(box, w, h);
      pen.beginPath();
      if (sinks.has(token) && !hidden.has(token)) pen.arc((x0 + x1) / 2, (y0 + y1) / 2, Math.min(x1 - x0, y1 - y0) / 4, 0, 7);
      if (hidden.has(token)) {
        pen.moveTo(x0 + 2, y0 + 2);
        pen.lineTo(x1 - 2, y1 - 2);
        pen.moveTo(x1 - 2, y0 + 2);
        pen.lineTo(x0 + 2, y1 - 2);
      }
      if (token === chosen) pen.rect(x0 + 1, y0 + 1, x1 - x0 - 2, y1 - y0 - 2);
      pen.stroke();
    }
  }
}

// Steps of the video from left to right, as wide as their frames.
const stepSpan = (step, width) => [step.from, step.to].map((f) => (f * width) / frames.length);

function drawBars(canvas, heights, { most, up, down, chosen }) {
  const [pen, w, h] = fresh(canvas);
  const signed = heights.some((x) => x < -most / h); // a bar of a pixel at least
  const zero = signed ? h / 2 : h - 1;
  const unit = (signed ? h / 2 - 1 : h - 2) / most;
  heights.forEach((x, k) => {
    const [a, b] = stepSpan(values.steps[k], w);
    if (k === chosen) {
      pen.fillStyle = theme("--chosen");
      pen.fillRect(a, 0, b - a, h);
    }
    pen.fillStyle = x < 0 ? down : up;
    const tall = Math.abs(x) * unit;
    pen.fillRect(a + 1, x < 0 ? zero : zero - tall, Math.max(1, b - a - 2), tall);
  });
  pen.fillStyle = theme("--line");
  pen.fillRect(0, zero, w, 1);
}

// One row a layer, the first at the bottom; colour is strength, another hue is below 0.
function drawLayers(canvas, rows, { most, up, down, chosen, layer }) {
  const [pen, w, h] = fresh(canvas);
  const tall = h / rows.length;
  rows.forEach((row, l) => {
    const [y0, y1] = [Math.round(h - (l + 1) * tall), Math.round(h - l * tall)];
    row.forEach((x, k) => {
      const [a, b] = stepSpan(values.steps[k], w).map(Math.round);
      pen.globalAlpha = Math.min(1, Math.abs(x) / most);
      pen.fillStyle = x < 0 ? down : up;
      pen.fillRect(a, y0, b - a, y1 - y0);
    });
  });
  pen.globalAlpha = 1;
  pen.strokeStyle = theme("--text");
  const [a, b] = stepSpan(values.steps[chosen], w);
  pen.strokeRect(a + 0.5, h - (layer + 1) * tall + 0.5, Math.max(1, b - a - 1), Math.max(1, tall - 1));
}

function drawRamp(canvas, curve) {
  const pen = canvas.getContext("2d");
  for (let x = 0; x < canvas.width; x++) {
    pen.fillStyle = "#777";
    pen.fillRect(x, 0, 1, canvas.height);
    pen.fillStyle = css(heatColour(shareOf((x + 1) / canvas.width, 1, curve)));
    pen.fillRect(x, 0, 1, canvas.height);
  }
}
