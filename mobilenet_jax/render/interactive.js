// Show the points of #data with Vega-Lite. `vegaEmbed` is bundled in. Names of runs become text, never HTML.
const {specs, points, curves, costs, first, refresh} = JSON.parse(document.getElementById("data").textContent);
const block = document.getElementById("interactive"), form = document.getElementById("controls");
const curvesPart = document.getElementById("curves-part"), fixed = document.querySelector(".lead > figure");
const {cost, knob, dataset, epochs} = form.elements;
const network = block.querySelector("[name=network]");
const KNOBS = {
  version: "version",
  alpha: "width multiplier α",
  rho: "resolution multiplier ρ",
  expansion: "expansion ratio t",
};
const LEAST_RANGE = 2;  // points of top-1, as in the fixed figure
const VERSIONS = {v1: ["#0072B2", "circle"], v2: ["#D55E00", "square"]};
const LAYERS = {published: "◇ published", official: "+ official weights"};
const distinct = (items, key) => [...new Set(items.map(item => item[key]))];
points.forEach((point, i) => { point.i = i; });

function fill(select, texts, chosen) {
  select.replaceChildren(...Object.entries(texts).map(([value, text]) => new Option(text, value)));
  if (chosen in texts) select.value = chosen;
}

const embedded = {};
async function embed(id, spec, datasets) {
  embedded[id]?.finalize();
  const options = {ast: true, actions: false, renderer: "svg"};
  return embedded[id] = await vegaEmbed(id, {...spec, config: specs.config, datasets}, options);
}

function fillEpochs(chosen) {
  const inSet = points.filter(p => p.layer === "runs" && p.dataset === dataset.value);
  const texts = {...Object.fromEntries(distinct(inSet, "epochs").map(n => [n, n])), all: "all"};
  fill(epochs, texts, chosen in texts ? chosen : "all");
}

function colour(shown) {
  const field = knob.value, values = distinct(shown, field), title = KNOBS[field];
  if (field === "version") return {field, title: null, type: "nominal", scale: versions(shown, 0)};
  const type = values.length > 8 ? "quantitative" : "ordinal";
  return {field, title, type, scale: {scheme: {name: "viridis", extent: [0, 0.9]}}};
}

// Return the scale of the versions that occur: to their colours (look 0), or to their shapes (look 1).
function versions(shown, look) {
  const domain = distinct(shown, "version").sort();
  return {domain, range: domain.map(version => VERSIONS[version][look])};
}

async function draw() {
  fillEpochs(epochs.value);
  const on = layer => form.elements[layer]?.checked ?? true;
  const inSet = points.filter(p => p.dataset === dataset.value && p[cost.value] != null && on(p.layer));
  const layer = name => inSet.filter(p => p.layer === name);
  const runs = layer("runs").filter(p => epochs.value === "all" || String(p.epochs) === epochs.value);
  const shown = runs.filter(p => p[knob.value] != null);
  const spec = structuredClone(specs.tradeoff);
  Object.assign(spec.encoding.x, {field: cost.value, title: costs[cost.value]});
  if (window.innerWidth < 700) spec.height = 250;
  for (const {mark} of spec.layer) if (runs.length > 100 && mark.filled) mark.size = 36;
  Object.assign(spec.layer.at(-1).encoding.color, colour(shown));
  spec.layer.at(-1).encoding.shape.scale = versions(shown, 1);
  let best = -1;  // the Pareto front: no cheaper network is as good
  const front = runs
    .toSorted((a, b) => a[cost.value] - b[cost.value] || b.top1 - a.top1)
    .filter(p => p.top1 > best && (best = p.top1));
  const datasets = {
    front,
    lines: shown.filter(p => knob.value in p.lines).map(p => ({...p, line: p.lines[knob.value]})),
    bars: [...runs, ...layer("official")].filter(p => p.sd).map(p => ({...p, low: p.top1 - p.sd, high: p.top1 + p.sd})),
    published: layer("published"),
    official: layer("official"),
    others: runs.filter(p => p[knob.value] == null),
    coloured: shown,
  };
  const heights = Object.values(datasets).flat().flatMap(p => [p.top1, p.low ?? p.top1, p.high ?? p.top1]);
  const low = Math.min(...heights), high = Math.max(...heights);
  if (high - low < LEAST_RANGE)
    spec.encoding.y.scale.domain = [-1, 1].map(side => (low + high + side * LEAST_RANGE) / 2);
  spec.layer = spec.layer.filter(({data}) => datasets[data.name].length);
  if (!spec.layer.length) spec.layer = [specs.tradeoff.layer[0]];
  if (!("ms" in costs)) spec.encoding.tooltip = spec.encoding.tooltip.filter(({field}) => field !== "time");
  document.getElementById("vg-tooltip-element")?.classList.remove("visible");
  const {view} = await embed("#chart", spec, datasets);
  view.addEventListener("click", (_, item) => {
    if (!curves[item?.datum?.i]?.length) return;
    drawCurves(network.value = item.datum.i);
    curvesPart.scrollIntoView({block: "nearest"});
  });
  const drawn = runs.filter(p => curves[p.i].length);
  const kept = drawn.some(p => String(p.i) === network.value);
  const chosen = kept ? network.value : front.findLast(p => curves[p.i].length)?.i;
  fill(network, Object.fromEntries(drawn.map(p => [p.i, p.name])), chosen);
  curvesPart.hidden = !drawn.length;
  if (drawn.length) await drawCurves(network.value);
}

// NOTE: the least step between ticks of epochs is 1.01 in interactive.json, because Vega allows one tick more than fit.
function drawCurves(i) {
  const rows = curves[i].flatMap(({run, epoch, ...images}) =>
    Object.entries(images).flatMap(([name, values]) =>
      values.map((accuracy, k) => ({run, epoch: epoch[k], accuracy, images: name === "train" ? "training" : name}))));
  return embed("#curves", specs.curves, {rows: rows.filter(row => row.accuracy != null)});
}

fill(cost, costs);
fill(knob, Object.fromEntries(Object.entries(KNOBS).filter(([key]) => points.some(p => p[key] != null))));
fill(dataset, Object.fromEntries(distinct(points, "dataset").map(name => [name, name])), first?.dataset);
fillEpochs(first?.epochs);

function addBox(name, text) {
  const label = document.createElement("label"), box = document.createElement("input");
  Object.assign(box, {type: "checkbox", name, checked: true});
  label.append(box, ` ${text}`);
  form.append(label);
}

distinct(points, "layer").filter(name => name in LAYERS).forEach(name => addBox(name, LAYERS[name]));
let drawing = Promise.resolve();
form.addEventListener("change", () => { drawing = drawing.then(draw, draw); });  // one after the other
network.addEventListener("change", () => drawCurves(network.value));
block.hidden = false;
try {
  if (refresh) keepUp();
  await draw();
  if (fixed) fixed.hidden = true;
} catch (error) {
  block.hidden = true;  // the fixed figure stays
  throw error;
}

// Load the page again every `refresh` seconds, with the same choices, until the reader switches that off.
function keepUp() {
  addBox("live", `renewed every ${refresh} s`);
  const all = [...form.elements];
  JSON.parse(sessionStorage.getItem("choices") ?? "[]").forEach(([name, value, checked]) => {
    const one = form.elements[name];
    if (name === "epochs") fillEpochs(value);
    else if (one?.type === "checkbox") one.checked = checked;
    else if (one && [...one.options].some(option => option.value === value)) one.value = value;
  });
  setInterval(() => {
    sessionStorage.setItem("choices", JSON.stringify(all.map(one => [one.name, one.value, one.checked])));
    if (form.elements.live.checked) location.reload();
  }, 1000 * refresh);
}
