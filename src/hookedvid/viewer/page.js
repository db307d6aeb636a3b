// What is shown, where it is kept (the address), and how it is changed: by pointer, by keyboard, by a link.

const $ = (id) => document.getElementById(id);
const make = (tag, text, attributes = {}) => {
  const element = Object.assign(document.createElement(tag), attributes);
  if (text !== undefined) element.textContent = text;
  return element;
};
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
// Three digits, and none below what they are read to: a hundredth of a percent, a thousandth of a nat or point.
const digits = (x, least) => (Math.abs(x) < least ? (x === 0 ? "0" : `< ${least}`) : Number(x.toPrecision(3)).toString());
// A share of the mass; where numbers were given, one of them.
const given = () => values.queries[state.query].numbers;
const amount = (x) => (given() ? digits(x, 0.001) : percent(x));
const percent = (x) => `${digits(100 * x, 0.01)} %`;
const signed = (x, unit) => (Math.abs(x) < 0.001 ? `± ${digits(Math.abs(x), 0.001)}${unit}` : `${x < 0 ? "−" : "+"}${digits(Math.abs(x), 0.001)}${unit}`);
// Axes end here at least, so that rounding is not drawn as if it were something.
const LEAST = { mass: 0.001, nats: 0.01, margin: 0.01, points: 0.1 };

const state = {
  frame: 0, layer: about.n_layers - 1, head: "mean", query: 0, sinks: "shown", scale: "map", curve: "linear",
  cut: 0, target: 0, measure: "margin", token: -1,
};
let maps = null; // of the chosen query
let cut = null; // of the chosen destination
let hover = -1; // a token under the pointer

// ---- the address ---------------------------------------------------------------------------------------

function toAddress() {
  const said = {
    frame: state.frame, layer: state.layer + 1, head: state.head, query: values.queries[state.query].name,
    sinks: state.sinks, scale: state.scale, curve: state.curve, cut: values.cuts[state.cut] ?? "",
    answer: state.target, measure: state.measure, token: state.token < 0 ? "" : tokens.position[state.token],
  };
  const text = new URLSearchParams(Object.entries(said).filter(([, v]) => v !== "")).toString();
  try {
    history.replaceState(null, "", `#${text}`);
  } catch { /* a page inside another one has no address of its own */ }
}

function fromAddress() {
  const said = new URLSearchParams(location.hash.slice(1));
  const number = (name) => (/^\d+$/.test(said.get(name) ?? "") ? Number(said.get(name)) : undefined);
  const known = (name, all) => (all.includes(said.get(name)) ? said.get(name) : undefined);
  const index = (name, all) => (all.includes(said.get(name)) ? all.indexOf(said.get(name)) : undefined);
  const found = {
    frame: number("frame"), layer: number("layer") - 1, head: said.get("head") === "mean" ? "mean" : number("head"),
    query: index("query", values.queries.map((q) => q.name)), sinks: known("sinks", ["shown", "hidden"]),
    scale: known("scale", ["map", "query"]), curve: known("curve", ["linear", "root"]), cut: index("cut", values.cuts),
    target: number("answer"), measure: known("measure", ["nats", "points", "margin"]),
    token: tokens.index.get(number("token")),
  };
  return Object.fromEntries(Object.entries(found).filter(([, v]) => v !== undefined && !Number.isNaN(v)));
}

// ---- changing what is shown ----------------------------------------------------------------------------

async function change(changes) {
  Object.assign(state, changes);
  state.frame = clamp(state.frame, 0, frames.length - 1);
  state.layer = clamp(state.layer, 0, about.n_layers - 1);
  state.target = clamp(state.target, 0, values.candidates.length - 1);
  if (state.head !== "mean") state.head = clamp(state.head, 0, about.n_heads - 1);
  if (!values.queries[state.query].apart) state.head = "mean";
  if (state.token >= 0 && !tokens.on[state.frame].includes(state.token)) {
    state.token = "token" in changes ? state.token : sameCell(state.token, state.frame);
    if ("token" in changes && tokens.frames[2 * state.token] >= 0) state.frame = tokens.frames[2 * state.token];
  }
  if ("query" in changes || !maps) maps = await readQuery(state.query);
  if (values.cuts.length && ("cut" in changes || !cut)) cut = await readCut(state.cut);
  draw();
  toAddress();
}

// The token of another frame in the same place, -1 where there is none.
function sameCell(token, frame) {
  if (tokens.row[token] < 0) return -1;
  return tokens.on[frame].find((i) => tokens.row[i] === tokens.row[token] && tokens.column[i] === tokens.column[token]) ?? -1;
}

function moveToken(down, right) {
  const here = tokens.on[state.frame].filter((i) => tokens.row[i] >= 0);
  if (!here.length) return stepToken(down + right);
  if (state.token < 0 || tokens.row[state.token] < 0) return change({ token: here[0] });
  const [r, c] = [tokens.row[state.token] + down, tokens.column[state.token] + right];
  const next = here.find((i) => tokens.row[i] === r && tokens.column[i] === c);
  if (next !== undefined) change({ token: next });
}

function stepToken(by) {
  const here = tokens.on[state.frame];
  const at = here.indexOf(state.token);
  change({ token: here[at < 0 ? 0 : clamp(at + by, 0, here.length - 1)] });
}

// ---- drawing -------------------------------------------------------------------------------------------

function draw() {
  const { frame, layer, head, sinks, curve } = state;
  const mass = maps.videoAt(layer, head);
  const found = new Set(tokens.sinksOf[layer]);
  const hidden = sinks === "hidden" ? found : new Set();
  const layers = [...Array(about.n_layers).keys()];
  const most = state.scale === "map" ? maps.most(layer, head, sinks) : Math.max(...layers.map((l) => maps.most(l, head, sinks)));
  const look = { most, curve, hidden };
  drawWatch(mass, look, found);
  drawTime(layers);
  drawControls(found);
  drawAnswers();
  drawPrompt();
  drawToken(mass);
  const wide = clamp(Math.round($("strip").clientWidth / frames.length), 16, 96);
  frames.forEach((_, f) => drawThumb($("strip").children[f].lastChild, f, mass, look, wide));
}

function drawWatch(mass, look, found) {
  const [{ frame }, { most, curve, hidden }] = [state, look];
  if ($("frame").dataset.at !== String(frame)) {
    [$("frame").src, $("frame").dataset.at] = [frames[frame], frame];
    $("frame").alt = `frame ${frame}`;
  }
  drawHeat($("heat"), frame, mass, look);
  drawMarks($("mark"), frame, found, hidden, hover >= 0 ? hover : state.token);
  if ($("ramp").dataset.curve !== curve) drawRamp($("ramp"), ($("ramp").dataset.curve = curve));
  $("most").textContent = given() ? `${Number(most.toPrecision(3))}` : `${Number((100 * most).toPrecision(3))} % of the mass`;
  const [step, seconds] = [values.steps[stepOf(frame)], values.times[frame]];
  const when = seconds === undefined ? "" : ` · ${seconds.toFixed(2)} s`;
  const shared = step && step.to - step.from > 1 ? ` · shares its tokens in ${step.name}` : "";
  $("where").textContent = `frame ${frame} of 0–${frames.length - 1}${when}${shared}`;
  $("at").textContent = `frame ${frame}${when}`;
  [$("scrub").value, $("scrub").ariaValueText] = [frame, `frame ${frame}${when}`];
  const loose = tokens.on[frame].filter((i) => !tokens.placed.has(i));
  $("loose").replaceChildren(...loose.map((i) => {
    const name = `${tokenName(i)}: ${amount(mass[i])}`;
    const chip = make("button", hidden.has(i) ? "×" : "", { title: name, ariaLabel: name, tabIndex: -1 });
    chip.style.background = `linear-gradient(${css(heatColour(hidden.has(i) ? 0 : shareOf(mass[i], most, curve)))} 0 0), #777`;
    chip.classList.toggle("chosen", i === (hover >= 0 ? hover : state.token));
    chip.classList.toggle("sink", found.has(i));
    chip.onclick = () => change({ token: i });
    chip.onpointerenter = () => { hover = i; drawToken(mass); };
    chip.onpointerleave = () => { hover = -1; drawToken(mass); };
    return chip;
  }));
}

function drawTime(layers) {
  const { frame, layer, head, sinks } = state;
  const step = stepOf(frame);
  const looks = { up: theme("--mass"), down: theme("--mass"), chosen: step, layer };
  const rows = layers.map((l) => [...maps.stepsAt(l, head, sinks)]);
  const most = Math.max(LEAST.mass, ...rows[layer]);
  drawBars($("mass"), rows[layer], { ...looks, most });
  const ofAll = Math.max(LEAST.mass, ...rows.flat());
  drawLayers($("mass-by-layer"), rows, { ...looks, most: ofAll });
  $("mass-most").textContent = `up to ${amount(most)}`;
  $("mass-layer-most").textContent = `0 to ${amount(ofAll)}`;
  [...$("strip").children].forEach((b, f) => b.setAttribute("aria-current", f === frame));
  const q = values.queries[state.query];
  const who = `${q.name} (${q.label}), ${head === "mean" ? "mean of heads" : `head ${head}`}`;
  const said = given()
    ? [`Layer ${layer + 1}: ${q.name} sums to ${amount(rows[layer][step])} on frame ${frame}.`]
    : [`Layer ${layer + 1}: ${who} puts ${percent(rows[layer][step])} of its attention on frame ${frame}.`];
  if (cut) said.push(drawEffects(layers, step));
  $("summary").textContent = said.join(" ");
}

function drawEffects(layers, step) {
  const { target, measure, layer } = state;
  const looks = { up: theme("--effect"), down: theme("--against"), chosen: step, layer };
  const of = (p) => effect(p, target, measure);
  const all = values.steps.map((_, k) => of(cut.everywhere(k)));
  const rows = layers.map((l) => values.steps.map((_, k) => of(cut.at(l, k))));
  const size = (xs) => Math.max(LEAST[measure], ...xs.map(Math.abs));
  drawBars($("effect"), all, { ...looks, most: size(all) });
  drawLayers($("effect-by-layer"), rows, { ...looks, most: size(rows.flat()) });
  const unit = measure === "points" ? " points" : " nats";
  $("effect-most").textContent = `up to ± ${digits(size(all), 0.001)}${unit}`;
  $("effect-layer-most").textContent = `− to + ${digits(size(rows.flat()), 0.001)}${unit}`;
  const change = (x) => signed(-x, unit);
  return `Hidden from ${values.cuts[state.cut]} in all layers, it changes “${values.candidates[target]}” by ${change(all[step])}; `
    + `in layer ${layer + 1} alone by ${change(rows[layer][step])}.`;
}

function drawControls(found) {
  for (const name of ["query", "scale", "curve", "cut", "target", "measure"]) $(name).value = state[name];
  $("layer").value = state.layer + 1;
  $("layer-at").textContent = `${state.layer + 1} of ${about.n_layers}`;
  document.querySelector(`input[name=sinks][value=${state.sinks}]`).checked = true;
  $("n-sinks").textContent = `${found.size} in this layer`;
  const apart = given() ? "none" : values.queries[state.query].apart;
  if ($("head").dataset.apart !== String(apart)) {
    const heads = apart === true ? [...Array(about.n_heads).keys()].map((h) => make("option", `head ${h}`, { value: h })) : [];
    const mean = apart === "none" ? "no heads" : apart ? `mean of ${about.n_heads}` : `mean of ${about.n_heads} (of this query no head is kept apart)`;
    $("head").replaceChildren(make("option", mean, { value: "mean" }), ...heads);
    $("head").dataset.apart = apart;
  }
  $("head").value = state.head;
}

function drawAnswers() {
  const rows = Object.entries(values.conditions).map(([name, p]) => [name, p, ""]);
  if (cut) {
    const [step, dst] = [stepOf(state.frame), values.cuts[state.cut]];
    rows.push([`${values.steps[step].name} hidden from ${dst}`, cut.everywhere(step), "frame-row"]);
    rows.push([`… in layer ${state.layer + 1} alone`, cut.at(state.layer, step), "frame-row"]);
  }
  const head = make("tr");
  head.append(make("th", "p(answer)"), ...values.candidates.map((c, i) => make("th", c + (i === about.answer ? " ✓" : ""))));
  const body = rows.map(([name, p, kind]) => {
    const [row, best] = [make("tr", undefined, { className: kind }), Math.max(...p)];
    row.append(make("th", name));
    for (const x of p) {
      const cell = make("td", (x === best ? "● " : "") + Math.exp(x).toFixed(3), { className: x === best ? "best" : "" });
      cell.style.backgroundImage = `linear-gradient(to right, var(--mass) ${100 * Math.exp(x)}%, transparent 0)`;
      row.append(cell);
    }
    return row;
  });
  const [top, rest] = [make("thead"), make("tbody")];
  top.append(head);
  rest.append(...body);
  $("table").replaceChildren(top, rest);
}

function drawPrompt() {
  for (const element of document.querySelectorAll("#tokens [data-position]")) {
    const share = maps.textAt(state.layer, state.head, tokens.textIndex.get(Number(element.dataset.position)));
    element.style.setProperty("--share", `${100 * share}%`);
    element.title = `position ${element.dataset.position}${given() ? "" : `: ${percent(share)} of the mass`}`;
  }
  for (const element of document.querySelectorAll("#tokens [data-query]")) {
    const chosen = Number(element.dataset.query) === state.query;
    element.classList.toggle("chosen", chosen);
    element.setAttribute("aria-pressed", chosen);
  }
  const sums = maps.columnsAt(state.layer, state.head);
  const video = sums.subarray(0, values.steps.length).reduce((a, b) => a + b, 0);
  for (const element of document.querySelectorAll("#tokens [data-role]")) {
    const column = values.columns.indexOf(element.dataset.role);
    const share = element.dataset.role === "video" ? video : column < 0 ? undefined : sums[column];
    element.textContent = share === undefined || (given() && element.dataset.role !== "video") ? "" : amount(share);
  }
}

const tokenName = (i) => {
  const kind = values.segments.find((s) => s.start <= tokens.position[i] && tokens.position[i] < s.stop).role;
  const [from, to] = tokens.frames.subarray(2 * i, 2 * i + 2);
  const of = from < 0 ? "of the whole video" : to - from > 1 ? `frames ${from} to ${to - 1}` : `frame ${from}`;
  const cell = tokens.row[i] < 0 ? (kind === "video" ? "merged, no cell" : kind) : `row ${tokens.row[i]}, column ${tokens.column[i]}`;
  return `${cell} · ${of}`;
};

function drawToken(mass) {
  const i = hover >= 0 ? hover : state.token;
  drawMarks($("mark"), state.frame, new Set(tokens.sinksOf[state.layer]), new Set(state.sinks === "hidden" ? tokens.sinksOf[state.layer] : []), i);
  if (i < 0) {
    $("token").textContent = "Point at a patch, or move with w a s d: its mass, and what a logit lens reads there in each layer.";
    $("lens").replaceChildren();
    return;
  }
  const boxes = tokens.pieces[state.frame].filter(([token]) => token === i).map(([, box]) => box);
  const pixels = boxes.length && values.decoded ? ` · pixels ${boxes.slice(0, 3).map(boxText).join("; ")}${boxes.length > 3 ? `; … ${boxes.length} pieces` : ""}` : "";
  const sink = tokens.sinksOf[state.layer].includes(i) ? " · a sink" : "";
  $("token").textContent = `${tokenName(i)} · position ${tokens.position[i]}${pixels} · ${amount(mass[i])}${given() ? "" : " of the mass"}${sink}`;
  const rows = values.arrays.lens.shape[2] ? [...Array(about.n_layers).keys()].reverse() : [];
  $("lens").replaceChildren(...rows.map((l) => {
    const row = make("tr", undefined, { className: l === state.layer ? "now" : "" });
    row.append(make("th", l + 1), ...lensAt(l, tokens.position[i]).map(([word, p]) => make("td", `${word} ${p.toFixed(2)}`)));
    return row;
  }));
}

const round = (x) => Math.round(10 * x) / 10;
const boxText = ([x0, y0, x1, y1]) => `x ${round(x0)}–${round(x1)}, y ${round(y0)}–${round(y1)}`;

// ---- what is made once ---------------------------------------------------------------------------------

function build() {
  about.options.forEach((o, i) => {
    const p = values.conditions.baseline;
    const said = p[i] === Math.max(...p);
    const mark = about.answer === null ? "" : i === about.answer ? " right" : said ? " wrong" : "";
    const note = (said ? " ← baseline’s answer" : "") + (i === about.answer ? " ✓" : "");
    $("options").append(make("li", values.candidates[i] + note, { className: (said ? "said" : "") + mark }));
  });
  $("facts").textContent = `${about.model} · ${about.n_frames} frames · ${about.dtype}, ${about.kernel} · ${about.n_layers} layers, `
    + `${about.n_heads} heads · ${about.n_tokens} tokens · n = 1 question`;
  document.documentElement.style.setProperty("--aspect", values.size[0] / values.size[1]);
  $("picture").style.aspectRatio = `${values.size[0]} / ${values.size[1]}`;
  $("frame").classList.toggle("small", values.size[0] < 300);
  frames.forEach((source, f) => {
    const button = make("button", undefined, { ariaLabel: `frame ${f}`, tabIndex: -1, onclick: () => change({ frame: f }) });
    const [image, canvas] = [make("img", undefined, { src: source, alt: "" }), make("canvas")];
    button.append(image, canvas);
    $("strip").append(button);
  });
  const choices = (id, texts) => $(id).replaceChildren(...texts.map((t, i) => make("option", t, { value: i })));
  choices("query", values.queries.map((q) => `${q.name} · ${q.label}${q.apart || q.numbers ? "" : " · heads averaged"}`));
  choices("cut", values.cuts);
  choices("target", values.candidates);
  $("last-frame").textContent = `frame ${frames.length - 1}`;
  [$("scrub").max, $("layer").max] = [frames.length - 1, about.n_layers];
  $("reading").textContent = "Mass is where the query looks. Effect is what the answer loses when the frame is hidden (below the line: gains). They need not agree.";
  buildPrompt();
  buildNotes();
}

function buildPrompt() {
  const queryOf = new Map(values.queries.map((q, i) => [q.name, i]));
  const chip = (text, query, attributes) => {
    const element = make(query === undefined ? "span" : "button", text, attributes);
    if (query !== undefined) [element.dataset.query, element.onclick] = [query, () => change({ query })];
    return element;
  };
  let run = null;
  for (const s of values.segments) {
    const video = ["video", "cls", "newline", "marker"].includes(s.role);
    if (video && run) continue;
    const line = make("div", undefined, { className: "segment" });
    run = video ? line : null;
    const name = s.role === "options" && s.index !== null && about.options.length > 1 ? `option[${s.index}]` : s.role;
    line.append(chip(video ? "video" : name, queryOf.get(name), { className: "role" }));
    const share = make("span", "", { className: "dim" });
    if (video) {
      line.append(make("span", `${frames.length} frames, ${tokens.n} tokens `, { className: "token" }), share);
      share.dataset.role = "video";
    } else {
      for (let p = s.start; p < s.stop; p++) {
        const token = chip(values.tokens[p] ?? "", queryOf.get(`@${p}`), { className: "token" });
        token.dataset.position = p;
        line.append(token);
      }
      if (s.role !== "options" && !document.querySelector(`#tokens [data-role=${s.role}]`)) {
        share.dataset.role = s.role;
        line.append(share);
      }
    }
    $("tokens").append(line);
  }
  const last = chip("last", queryOf.get("last"), { className: "role" });
  const line = make("div", undefined, { className: "segment" });
  line.append(last, make("span", "the position that the answer is read at", { className: "dim" }));
  $("tokens").append(line);
}

function buildNotes() {
  const own = values.queries.filter((q) => !q.numbers);
  const [n, apart] = [own.length, own.filter((q) => q.apart).map((q) => q.name)];
  const notes = [
    `Attention is of one run of the prompt, exact in ${about.dtype}; a map of several positions is their mean. Maps are kept in 256 steps, mass = largest x (step / 255)², the largest of each map and sinks as they are. Mass by frame is exact, newlines of the frame with it.`,
    apart.length === n ? "Each head is kept apart for every query." : `To keep the page under ${(about.budget / 1e6).toFixed(0)} MB, heads are averaged for ${n - apart.length} of ${n} queries; apart for ${apart.join(", ") || "none"}.`,
    "A sink is a video token whose residual stream, where it enters the layer, is more than 5 times as long as the median. Ringed where shown, crossed where left out; the rest of the mass is not scaled up.",
  ];
  if (own.length < values.queries.length) notes.push("Numbers that were given of each video token are kept in 256 steps as well; a frame has their sum.");
  if (values.left_out.length) notes.push(`There was no room for maps of ${values.left_out.length} other queries, of single tokens mostly.`);
  if (values.cuts.length) notes.push("An effect is the baseline’s value less the value when the query’s side cannot look at the frame, from an exact sweep. What later frames took up of a frame before stays: an effect of 0 does not show that a frame was not used, and mass does not show that it was.");
  if (values.arrays.lens.shape[2]) notes.push("The lens reads each layer’s output by the final norm and unembedding; probabilities in 256 steps of their root.");
  if (!values.decoded) notes.push("These are the frames as the tower reads them; which pixels of a video a token is made of is not known, and cells share the picture evenly.");
  if (values.blend > 1) notes.push(`Each token mixes ${values.blend} frames, so what is said of one frame is of its neighbours too.`);
  $("about-page").replaceChildren(...notes.map((t) => make("li", t)));
}

// ---- pointer and keyboard ------------------------------------------------------------------------------

function tokenAt(event) {
  const at = $("mark").getBoundingClientRect();
  const [x, y] = [event.clientX - at.left, event.clientY - at.top];
  let [best, nearest] = [-1, Infinity];
  for (const [token, box] of tokens.pieces[state.frame]) {
    const [x0, y0, x1, y1] = boxOn(box, at.width, at.height);
    const far = ((x0 + x1) / 2 - x) ** 2 + ((y0 + y1) / 2 - y) ** 2;
    if (x >= x0 && x < x1 && y >= y0 && y < y1 && far < nearest) [best, nearest] = [token, far];
  }
  return best;
}

function place(event, layered) {
  const at = event.currentTarget.getBoundingClientRect();
  const frame = Math.floor(((event.clientX - at.left) / at.width) * frames.length);
  const layer = Math.floor((1 - (event.clientY - at.top) / at.height) * about.n_layers);
  change(layered ? { frame, layer } : { frame });
}

const cycle = (x, by, n) => (x + by + n) % n;
const turn = (by) => {
  const heads = ["mean", ...Array(about.n_heads).keys()];
  change({ head: heads[cycle(heads.indexOf(state.head), by, heads.length)] });
};
const KEYS = {
  ArrowLeft: () => change({ frame: state.frame - 1 }), ArrowRight: () => change({ frame: state.frame + 1 }),
  ArrowUp: () => change({ layer: state.layer + 1 }), ArrowDown: () => change({ layer: state.layer - 1 }),
  Home: () => change({ frame: 0 }), End: () => change({ frame: frames.length - 1 }),
  "[": () => turn(-1), "]": () => turn(1), m: () => change({ head: "mean" }),
  q: () => change({ query: cycle(state.query, 1, values.queries.length) }),
  Q: () => change({ query: cycle(state.query, -1, values.queries.length) }),
  w: () => moveToken(-1, 0), s: () => moveToken(1, 0), a: () => moveToken(0, -1), d: () => moveToken(0, 1),
  ",": () => stepToken(-1), ".": () => stepToken(1), Escape: () => change({ token: -1 }),
  x: () => change({ sinks: state.sinks === "shown" ? "hidden" : "shown" }), " ": () => play(),
};

let playing = null;
function play() {
  $("play").setAttribute("aria-pressed", !playing);
  $("play").textContent = playing ? "Play" : "Stop";
  if (playing) return (playing = clearInterval(playing) ?? null);
  playing = setInterval(() => change({ frame: cycle(state.frame, 1, frames.length) }), 400);
}

function listen() {
  for (const name of ["query", "cut", "target"]) $(name).onchange = () => change({ [name]: Number($(name).value) });
  for (const name of ["scale", "curve", "measure"]) $(name).onchange = () => change({ [name]: $(name).value });
  $("head").onchange = () => change({ head: $("head").value === "mean" ? "mean" : Number($("head").value) });
  $("layer").oninput = () => change({ layer: Number($("layer").value) - 1 });
  $("scrub").oninput = () => change({ frame: Number($("scrub").value) });
  $("play").onclick = play;
  for (const choice of document.querySelectorAll("input[name=sinks]")) choice.onchange = () => change({ sinks: choice.value });
  $("mark").onpointermove = (e) => { hover = tokenAt(e); drawToken(maps.videoAt(state.layer, state.head)); };
  $("mark").onpointerleave = () => { hover = -1; drawToken(maps.videoAt(state.layer, state.head)); };
  $("mark").onclick = (e) => change({ token: tokenAt(e) });
  for (const id of ["mass", "effect"]) $(id).onclick = (e) => place(e, false);
  for (const id of ["mass-by-layer", "effect-by-layer"]) $(id).onclick = (e) => place(e, true);
  window.addEventListener("hashchange", () => change(fromAddress()));
  window.addEventListener("resize", () => draw());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
  document.addEventListener("keydown", (e) => {
    if (e.ctrlKey || e.metaKey || e.altKey || !KEYS[e.key]) return;
    const own = e.target.matches("select") || (e.target.matches("input") && /Arrow|Home|End| /.test(e.key));
    if (own || (e.key === " " && e.target.matches("button"))) return;
    e.preventDefault();
    KEYS[e.key]();
  });
}

// Without an address: the layer, the frame and its token with most mass.
async function lookWhereMuchIs() {
  maps = await readQuery(state.query);
  const rows = [...Array(about.n_layers).keys()].map((l) => [...maps.stepsAt(l, "mean", "shown")]);
  const sums = rows.map((row) => row.reduce((a, b) => a + b, 0));
  state.layer = sums.indexOf(Math.max(...sums));
  const steps = rows[state.layer];
  state.frame = values.steps[steps.indexOf(Math.max(...steps))].from;
  const mass = maps.videoAt(state.layer, "mean");
  state.token = tokens.on[state.frame].reduce((best, i) => (mass[i] > mass[best] ? i : best));
}

async function start() {
  await readTokens();
  const base = values.conditions.baseline;
  state.target = base.indexOf(Math.max(...base));
  await lookWhereMuchIs();
  build();
  listen();
  if (!values.cuts.length) document.body.classList.add("no-cuts");
  await change(fromAddress());
  document.body.dataset.ready = "yes";
}
start();
