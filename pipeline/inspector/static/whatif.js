// Sliders over histograms. While one moves, the server answers from a curve and a sample; when it rests, exactly.
import { copy } from "./app.js";
import { clock, drawHistogram, redraw } from "./histogram.js";

const data = JSON.parse(document.getElementById("measures-data").textContent);
const cards = new Map([...document.querySelectorAll("[data-path]")].map((card) => [card.dataset.path, card]));
const axes = new Map(data.axes.map((axis) => [axis.path, axis]));
const said = (name) => document.querySelector(`[data-said="${name}"]`);
let now = data;
let asked = 0;
let answered = 0;
let texts = { yaml: data.yaml, command: data.command };

function gates() {
  return [...document.querySelectorAll("[data-gate]")];
}

function boundOf(gate) {
  if (gate.querySelector("[data-off]").checked) return "off";
  return gate.querySelector("input[type=number]")?.value ?? gate.dataset.bound;
}

function changes() {
  const found = new URLSearchParams();
  for (const gate of gates()) {
    const bound = boundOf(gate);
    const isOwn = bound !== "off" && (bound === gate.dataset.bound || Number(bound) === Number(gate.dataset.bound));
    if (!isOwn && bound !== "") found.set(`gate.${gate.dataset.gate}`, bound);
    gate.closest(".measure").classList.toggle("changed", [...gate.parentElement.querySelectorAll("[data-gate]")].some((each) => {
      const value = boundOf(each);
      return value === "off" || (value !== each.dataset.bound && Number(value) !== Number(each.dataset.bound));
    }));
  }
  return found;
}

function boundsOn(path) {
  return gates().filter((gate) => gate.closest("[data-path]").dataset.path === path).flatMap((gate) => {
    const value = boundOf(gate);
    if (value === "off" || !["min", "max", "abs_max"].includes(gate.dataset.operator)) return [];
    return gate.dataset.operator === "abs_max" ? [-Number(value), Number(value)] : [Number(value)];
  });
}

function show(told) {
  now = told;
  const { kept, kept_now: before } = told;
  const isExact = told.is_exact ?? true;
  const range = (low, high, shown) => (low === high ? shown(low) : `${shown(low)} – ${shown(high)}`);
  const count = (value) => `${Math.abs(value).toLocaleString("en")} clip${Math.abs(value) === 1 ? "" : "s"}`;
  said("then").textContent = range(kept.low_us, kept.high_us, clock);
  said("then-clips").textContent = range(kept.low_clips, kept.high_clips, (value) => value.toLocaleString("en")) + (kept.high_clips === 1 ? " clip" : " clips");
  const signed = (us) => (us > 0 ? "+" : "") + clock(us);
  said("delta").textContent = range(kept.low_us - before.us, kept.high_us - before.us, signed);
  const difference = kept.low_clips - before.clips;
  said("delta-clips").textContent = difference ? `${difference > 0 ? "+" : "−"}${count(difference)}` : "";
  said("sure").textContent = told.sampled
    ? `hours exact, histograms from ${told.sampled[0].toLocaleString("en")} of ${told.sampled[1].toLocaleString("en")} clips`
    : isExact ? "exact: every clip concerned was measured"
    : `an interval: clips settled early were not measured to the end${told.estimate_us === null ? "" : `; estimate ${clock(told.estimate_us)} from the audit lane`}`;
  for (const gate of told.gates) {
    const place = document.querySelector(`[data-gate="${CSS.escape(gate.name)}"] [data-spent]`);
    if (place) place.textContent = gate.bound === null ? "dropped" : `fails ${clock(gate.gross_us)}, only this ${clock(gate.alone_us)}`;
  }
  for (const path of visible) draw(path);
  for (const [path, by] of Object.entries(told.labels)) {
    for (const [name, us] of Object.entries(by)) {
      const row = document.querySelector(`[data-label="${CSS.escape(path)}"] tr[data-name="${CSS.escape(name)}"] [data-then]`);
      if (row) row.textContent = clock(us[1]);
    }
  }
}

// --- charts: only those in view, made once, their data exchanged

const visible = new Set();
const views = new Map();

async function draw(path) {
  const axis = axes.get(path);
  const kept = now.histograms[path];
  if (!views.has(path)) {
    views.set(path, drawHistogram(cards.get(path).querySelector(".chart"), data.spec, axis, kept, boundsOn(path)));
    return;
  }
  redraw(await views.get(path), axis, kept, boundsOn(path));
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const path = entry.target.dataset.path;
    if (entry.isIntersecting) {
      visible.add(path);
      draw(path);
    } else {
      visible.delete(path);
    }
  }
}, { rootMargin: "200px" });
for (const card of cards.values()) seen.observe(card);
for (const card of cards.values()) {
  card.querySelector("details")?.addEventListener("toggle", (event) => {
    if (!event.target.open) return;
    const axis = axes.get(card.dataset.path);
    const kept = now.histograms[card.dataset.path];
    card.querySelectorAll("[data-kept]").forEach((cell, at) => { cell.textContent = clock(kept[at]); });
    card.querySelectorAll("[data-other]").forEach((cell, at) => { cell.textContent = clock(axis.all_us[at] - kept[at]); });
  });
}

// --- asking: one question at a time, the newest waiting, older answers dropped

let pending = null;
let isBusy = false;

async function ask(query, isFinal) {
  pending = [query, isFinal];
  if (isBusy) return;
  isBusy = true;
  while (pending) {
    const [wanted, isLast] = pending;
    pending = null;
    const number = (asked += 1);
    const answer = await fetch(`/measures.json?${wanted}`).catch(() => null);
    if (!answer?.ok || number < answered) continue;
    answered = number;
    const told = await answer.json();
    show(told);
    if (isLast) texts = { yaml: told.yaml, command: told.command };
  }
  isBusy = false;
}

function moved(gate, isFinal) {
  const query = changes();
  if (isFinal) {
    const address = query.size ? `?${query}` : location.pathname;
    history.replaceState(null, "", address);
    document.getElementById("save-recipe").href = `/measures/recipe${query.size ? `?${query}` : ""}`;
  } else {
    query.set("dragged", gate.dataset.gate);
  }
  ask(query, isFinal);
}

let waiting = 0;
for (const gate of gates()) {
  const slider = gate.querySelector("input[type=range]");
  const number = gate.querySelector("input[type=number]");
  const short = (value) => String(Number(Number(value).toPrecision(4)));
  slider?.addEventListener("input", () => {
    number.value = short(slider.value);
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => moved(gate, false));
  });
  slider?.addEventListener("change", () => { number.value = short(slider.value); moved(gate, true); });
  number?.addEventListener("change", () => { slider.value = number.value; moved(gate, true); });
  gate.querySelector("[data-off]").addEventListener("change", () => moved(gate, true));
}

document.getElementById("copy-yaml").addEventListener("click", () => copy(texts.yaml));
document.getElementById("copy-command").addEventListener("click", () => copy(texts.command));
show(data);
