// What-if inside the report: clips as codes of 8 bits, bounds in steps. Classic script, nothing is fetched.
import { clock, drawHistogram, redraw } from "./histogram.js";

const told = JSON.parse(document.getElementById("report-data").textContent);

async function columns() {
  const packed = Uint8Array.from(atob(told.clips), (char) => char.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const buffer = await new Response(stream).arrayBuffer();
  const num = told.num_clips;
  let at = 2 * num;
  const next = () => new Uint8Array(buffer, (at += num) - num, num);
  return {
    us: Float64Array.from(new Uint16Array(buffer, 0, num), (length) => length * 10000),
    state: next(),
    bins: Object.fromEntries(told.measures.map((path) => [path, next()])),
    codes: told.moved.map(() => next()),
  };
}

function place(gate) {
  return Math.round((gate.now - gate.low) / gate.step);
}

function answered(clips, gates) {
  const sums = Object.fromEntries(told.measures.map((path) => [path, new Float64Array(told.axes[0].edges.length)]));
  let [low, high, count] = [0, 0, 0];
  const steps = gates.map(place);
  for (let row = 0; row < told.num_clips; row += 1) {
    if (clips.state[row] & 2) continue;
    const isKept = gates.every((gate, at) => {
      if (gate.off) return true;
      const code = clips.codes[at][row];
      return code !== 255 && (gate.operator === "min" ? code >= steps[at] : code <= steps[at]);
    });
    if (!isKept) continue;
    high += clips.us[row];
    if (clips.state[row] & 1) continue;
    low += clips.us[row];
    count += 1;
    for (const path of told.measures) sums[path][clips.bins[path][row]] += clips.us[row];
  }
  return { low, high, count, sums };
}

async function start() {
  const clips = await columns();
  const gates = told.moved.map((gate) => ({ ...gate, now: gate.bound, off: false }));
  const scale = told.num_all / Math.max(1, told.num_clips);
  const first = answered(clips, gates);
  const views = new Map();
  for (const axis of told.axes) {
    const card = document.querySelector(`[data-path="${CSS.escape(axis.path)}"]`);
    const chart = card.querySelector(".chart");
    chart.replaceChildren();
    const kept = Array.from(first.sums[axis.path], (us) => us * scale);
    views.set(axis.path, [axis, await drawHistogram(chart, told.spec, axis, kept.map((us, at) => Math.min(us, axis.all_us[at])), boundsOn(axis.path, gates))]);
  }

  function show() {
    const answer = answered(clips, gates);
    const isMoved = gates.some((gate) => gate.off || gate.now !== gate.bound);
    const then = isMoved ? Math.max(0, told.kept_now.us + (answer.low - first.low) * scale) : told.kept_now.us;
    const spread = (answer.high - answer.low) * scale;
    document.getElementById("then").textContent = spread > 0 && isMoved ? `${clock(then)} – ${clock(then + spread)}` : clock(then);
    document.getElementById("delta").textContent = (then > told.kept_now.us ? "+" : "") + clock(then - told.kept_now.us);
    for (const [path, [axis, view]] of views) {
      const kept = Array.from(answer.sums[path], (us, at) => Math.min(us * scale, axis.all_us[at]));
      redraw(view, axis, kept, boundsOn(path, gates));
    }
  }

  for (const [at, gate] of gates.entries()) {
    const row = document.querySelector(`[data-gate="${CSS.escape(gate.name)}"]`);
    const slider = row.querySelector("input[type=range]");
    Object.assign(slider, { min: 0, max: 253, step: 1, value: place(gate), disabled: false });
    const said = row.querySelector("output");
    const tell = () => { said.textContent = gate.off ? "dropped" : String(Number(gate.now.toPrecision(4))); };
    slider.addEventListener("input", () => {
      const step = Number(slider.value);
      gates[at].now = step === Math.round((gate.bound - gate.low) / gate.step) ? gate.bound : gate.low + step * gate.step;
      tell();
      requestAnimationFrame(show);
    });
    row.querySelector("input[type=checkbox]").addEventListener("change", (event) => {
      gate.off = event.target.checked;
      tell();
      show();
    });
    tell();
  }
  show();
}

function boundsOn(path, gates) {
  return gates.filter((gate) => !gate.off && gate.name.startsWith(`${path}.`)).flatMap((gate) => (gate.operator === "abs_max" ? [-gate.now, gate.now] : [gate.now]));
}

start();
