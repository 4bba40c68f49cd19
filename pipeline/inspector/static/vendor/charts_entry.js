// What of Vega the pages use, as one classic script: `navaCharts.draw(element, spec)` resolves to a view.
// Expressions are interpreted, never compiled, so that no page needs `unsafe-eval`.
import { parse, View } from "vega";
import { expressionInterpreter } from "vega-interpreter";
import { compile } from "vega-lite";

async function draw(element, spec, config) {
  const runtime = parse(compile(spec, { config }).spec, undefined, { ast: true });
  const view = new View(runtime, { expr: expressionInterpreter, container: element, renderer: "svg", hover: true });
  return view.runAsync();
}

globalThis.navaCharts = { draw };
