// Histograms by Vega: what the page of measures and the report draw alike.
const units = [["h", 3.6e9], ["min", 6e7], ["s", 1e6]];

export function clock(us) {
  const total = Math.round(Math.abs(us) / 1e6);
  const part = (value) => String(value).padStart(2, "0");
  const text = `${Math.floor(total / 3600).toLocaleString("en")}:${part(Math.floor(total / 60) % 60)}:${part(total % 60)}`;
  return us < 0 && total ? `−${text}` : text;
}

function unitOf(axis) {
  const most = Math.max(...axis.all_us.slice(0, -1));
  return units.find(([, length]) => most >= length) ?? units[2];
}

export function barRows(axis, kept) {
  const [, per] = unitOf(axis);
  return axis.all_us.slice(0, -1).flatMap((all, at) => {
    const place = { low: axis.edges[at], high: axis.edges[at + 1] };
    return [{ ...place, side: "kept", layer: 0, amount: kept[at] / per }, { ...place, side: "not kept", layer: 1, amount: (all - kept[at]) / per }];
  });
}

function config() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = { labelColor: colour("--muted"), domainColor: colour("--line"), tickColor: colour("--line"), gridColor: colour("--line"), titleColor: colour("--muted"), labelFont: "system-ui", titleFont: "system-ui", titleFontWeight: "normal" };
  return { background: "transparent", view: { stroke: null }, axis, rule: { color: colour("--ink") }, font: "system-ui" };
}

function domainOf(axis, bounds) {
  const low = Math.min(axis.edges[0], ...bounds.filter((bound) => axis.edges[0] - bound < axis.edges.at(-1) - axis.edges[0]));
  const high = Math.max(axis.edges.at(-1), ...bounds.filter((bound) => bound - axis.edges.at(-1) < axis.edges.at(-1) - axis.edges[0]));
  return [low, high];
}

function inside(bounds, [low, high]) {
  return bounds.filter((bound) => bound >= low && bound <= high).map((at) => ({ at }));
}

export async function drawHistogram(element, spec, axis, kept, bounds) {
  const [name, per] = unitOf(axis);
  const domain = domainOf(axis, axis.gates.flatMap((gate) => (gate.operator === "abs_max" ? [-gate.bound, gate.bound] : typeof gate.bound === "number" ? [gate.bound] : [])));
  const values = { low: domain[0], high: domain[1], most: Math.max(...axis.all_us.slice(0, -1)) / per || 1 };
  const filled = structuredClone(spec);
  filled.width = Math.max(160, element.clientWidth - 46);
  filled.params = filled.params.map((param) => ({ ...param, value: values[param.name] }));
  filled.layer[0].encoding.y.axis.title = name;
  filled.datasets = { bins: barRows(axis, kept), bounds: inside(bounds, domain) };
  const view = await globalThis.navaCharts.draw(element, filled, config());
  element.querySelector("svg").setAttribute("aria-hidden", "true");
  return { view, domain };
}

export function redraw({ view, domain }, axis, kept, bounds) {
  view.data("bins", barRows(axis, kept)).data("bounds", inside(bounds, domain)).runAsync();
}
