// What the page holds: words and sizes at once, arrays when they are first asked for.

const about = JSON.parse(document.getElementById("about").textContent);
const values = JSON.parse(document.getElementById("values").textContent);
const TYPES = {
  uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, int32: Int32Array, float32: Float32Array,
};
const frames = [...document.querySelectorAll("script.frame")].map((s) => `data:image/webp;base64,${s.textContent}`);
const unpacked = new Map();

async function array(name) {
  if (!unpacked.has(name)) unpacked.set(name, unpack(name));
  return unpacked.get(name);
}

async function unpack(name) {
  const block = document.getElementById(`array ${name}`);
  const text = atob(block.textContent);
  block.remove();
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new TYPES[values.arrays[name].type](await new Response(stream).arrayBuffer());
}

// Tokens of the video: which are of a frame, and where on it.
const tokens = {};

async function readTokens() {
  for (const name of ["position", "frames", "row", "column", "piece", "piece_frames", "piece_box", "sinks", "lens", "probs"]) {
    tokens[name] = await array(name);
  }
  tokens.n = tokens.position.length;
  tokens.index = new Map([...tokens.position].map((p, i) => [p, i]));
  tokens.on = frames.map(() => []);
  for (let i = 0; i < tokens.n; i++) {
    for (let f = tokens.frames[2 * i]; f >= 0 && f < tokens.frames[2 * i + 1]; f++) tokens.on[f].push(i);
  }
  let start = 0;
  tokens.sinksOf = values.sinks.map((n) => [...tokens.sinks.subarray(start, (start += n))]);
  tokens.text = [];
  for (const s of values.segments) {
    for (let p = s.start; p < s.stop; p++) if (!tokens.index.has(p)) tokens.text.push(p);
  }
  // The step that each counts to: of merged tokens where they stand, whatever frames they are of.
  tokens.step = new Int32Array(tokens.n).fill(-1);
  for (const s of values.segments.filter((x) => x.frame !== null)) {
    for (let p = s.start; p < s.stop; p++) if (tokens.index.has(p)) tokens.step[tokens.index.get(p)] = stepOf(s.frame);
  }
  tokens.textIndex = new Map(tokens.text.map((p, i) => [p, i]));
  // Boxes of pixels that tokens are made of: most of one, merged ones of many.
  tokens.pieces = frames.map(() => []);
  tokens.placed = new Set(tokens.piece);
  tokens.piece.forEach((token, k) => {
    const box = [...tokens.piece_box.subarray(4 * k, 4 * k + 4)];
    for (let f = tokens.piece_frames[2 * k]; f < tokens.piece_frames[2 * k + 1]; f++) tokens.pieces[f].push([token, box]);
  });
}

// One query's maps. Row h of a layer is head h where heads are apart; the last row is their mean.
async function readQuery(number) {
  const q = values.queries[number];
  const maps = { rows: values.arrays[`q${number}.scale`].shape[1] };
  for (const name of ["video", "scale", "sinks", "text", "columns"]) maps[name] = await array(`q${number}.${name}`);
  maps.row = (head) => (q.apart && head !== "mean" ? head : maps.rows - 1);
  maps.columnsAt = (layer, head) => {
    const n = values.columns.length;
    const start = (layer * maps.rows + maps.row(head)) * n;
    return maps.columns.subarray(start, start + n);
  };
  maps.textAt = (layer, head, i) => (maps.text[(layer * maps.rows + maps.row(head)) * tokens.text.length + i] / 255) ** 2;
  maps.sinksAt = (layer, head) => {
    let start = 0;
    for (let l = 0; l < layer; l++) start += values.sinks[l] * maps.rows;
    const n = values.sinks[layer];
    return maps.sinks.subarray(start + maps.row(head) * n, start + (maps.row(head) + 1) * n);
  };
  // Mass on each token of the video.
  maps.videoAt = (layer, head) => {
    const at = layer * maps.rows + maps.row(head);
    const mass = new Float32Array(tokens.n);
    for (let i = 0; i < tokens.n; i++) mass[i] = maps.scale[at] * (maps.video[at * tokens.n + i] / 255) ** 2;
    const exact = maps.sinksAt(layer, head);
    tokens.sinksOf[layer].forEach((i, k) => (mass[i] = exact[k]));
    return mass;
  };
  // The largest mass that a map's colours show.
  maps.most = (layer, head, sinks) => {
    const ordinary = maps.scale[layer * maps.rows + maps.row(head)];
    return sinks === "shown" ? Math.max(ordinary, ...maps.sinksAt(layer, head)) : ordinary;
  };
  // Mass on each step of the video, without its sinks where they are left out.
  maps.stepsAt = (layer, head, sinks) => {
    const mass = Float32Array.from(maps.columnsAt(layer, head).subarray(0, values.steps.length));
    if (sinks === "shown") return mass;
    const exact = maps.sinksAt(layer, head);
    tokens.sinksOf[layer].forEach((i, k) => {
      const step = tokens.step[i];
      if (step >= 0) mass[step] = Math.max(0, mass[step] - exact[k]);
    });
    return mass;
  };
  return maps;
}

function stepOf(frame) {
  return values.steps.findIndex((s) => s.from <= frame && frame < s.to);
}

// Log-probabilities of the candidates while a step is not seen by `cut`, in all layers or in one.
async function readCut(number) {
  const [all, one] = [await array(`cut${number}.everywhere`), await array(`cut${number}.by_layer`)];
  const [n, k] = [values.candidates.length, values.steps.length];
  return {
    everywhere: (step) => all.subarray(step * n, (step + 1) * n),
    at: (layer, step) => one.subarray((layer * k + step) * n, (layer * k + step + 1) * n),
  };
}

// How much of an answer a condition takes: above 0 where the answer loses by it.
function effect(logProbs, target, measure) {
  const value = (p) => {
    if (measure === "points") return 100 * Math.exp(p[target]);
    if (measure === "nats") return p[target];
    let next = -Infinity;
    for (let i = 0; i < p.length; i++) if (i !== target) next = Math.max(next, p[i]);
    return p[target] - next;
  };
  return value(values.conditions.baseline) - value(logProbs);
}

// The lens's words of a position where it leaves a layer: [word, probability], the likeliest first.
function lensAt(layer, position) {
  const [, n, k] = values.arrays.lens.shape;
  const start = (layer * n + position) * k;
  return [...tokens.lens.subarray(start, start + k)].map((w, i) => [values.vocabulary[w], (tokens.probs[start + i] / 255) ** 2]);
}
