// Quality against cost, forgetting, curves, paired tests.
const COSTS = [
  ["bytes.model", "Size of the model as served", "size", bytes], ["bytes.peak", "Peak memory of the merge", "peak memory", bytes],
  ["seconds.latency", "Latency of one sample", "latency", seconds], ["seconds.merge", "Time to merge", "merge time", seconds],
];

// What costs the same for all is said in a sentence.
function equalCosts() {
  return COSTS.map(([path, , short, format]) => {
    const found = new Set(results.rows.filter((row) => row.mean).map((row) => read(row, path)).filter((x) => x > 0));
    return found.size === 1 && results.rows.length > 1 ? ` ${short[0].toUpperCase()}${short.slice(1)}: ${format([...found][0])} for all.` : "";
  }).join("");
}
// What no other row beats in both: at most this cost, at least this score, and better in one.
function frontOf(points) {
  const sorted = [...points].sort((a, b) => a.x - b.x || b.y - a.y);
  let best = -Infinity;
  return sorted.filter((point) => { const kept = point.y > best; best = Math.max(best, point.y); return kept; });
}
function paretoChart([path, title, short, format]) {
  const points = results.rows.filter((row) => row.mean && read(row, path) > 0).map((row) => ({ row, x: read(row, path), y: row.mean.value }));
  if (points.length < 2 || new Set(points.map((p) => p.x)).size < 2) return null;
  const front = frontOf(points), label = `Score against ${short}`;
  const draw = (width) => {
    const height = Math.max(250, Math.min(330, width * 0.6));
    const ends = points.flatMap(({ row }) => [row.mean.low, row.mean.value, row.mean.high]).filter(known);
    const { xScale, yScale, parts, bottom, margin } = frame(width, height, points.map((p) => p.x), ends, {
      x: { log: true, room: 0.08 }, xFormat: format, yFormat: percent, xTitle: title, yTitle: "score, % of the expert's" });
    const steps = front.map((p, i) => `${i ? `H${xScale.place(p.x)}V${yScale.place(p.y)}` : `M${xScale.place(p.x)},${bottom}V${yScale.place(p.y)}`}`).join("");
    const taken = points.map((p) => ({ left: xScale.place(p.x) - 5, right: xScale.place(p.x) + 5, top: yScale.place(p.y) - 5, bottom: yScale.place(p.y) + 5 }));
    const labels = front.map((p) => placeLabel(p.row.label, xScale.place(p.x), yScale.place(p.y), taken, margin.left, width - margin.right)).filter(Boolean);
    const whiskers = points.map(({ row, x }) => known(row.mean.low) && known(row.mean.high) &&
      s("line", { class: `whisker faded ${kindOf(row)}`, x1: xScale.place(x), x2: xScale.place(x), y1: yScale.place(row.mean.low), y2: yScale.place(row.mean.high) }));
    const told = (element, { row, x }) => withTip(element, () => recipeTip(row, meanLine(row), `${title}: ${format(x)}`, row.tuned && tunedText(row)));
    const copies = (row) => ({ onclick: () => copyRecipe(row), onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); copyRecipe(row); } } });
    // Around each mark there is room to point at, below all the marks: they may lie close.
    const around = points.map((p) => told(s("circle", { class: "hit", cx: xScale.place(p.x), cy: yScale.place(p.y), r: 11, ...copies(p.row) }), p));
    const marks = points.map((p) => told(s("g", { class: `point ${kindOf(p.row)}`, tabindex: 0, role: "button", "data-row": p.row.id, ...copies(p.row),
      "aria-label": `${p.row.label}: score ${percent(p.y)}%, ${short} ${format(p.x)}. Enter copies the recipe.` }, mark(kindOf(p.row), xScale.place(p.x), yScale.place(p.y), 5)), p));
    return { height, parts: [parts, s("path", { class: "front", d: `${steps}H${width - margin.right}` }), whiskers, labels, around, marks] };
  };
  const body = [...points].sort((a, b) => b.y - a.y).map(({ row, x, y }) => [row.label, `${percent(y)}%`, format(x), front.some((p) => p.row === row) ? "yes" : ""]);
  return h("figure", { class: "panel" }, h("h3", {}, label), picture(label, draw), asTable(label, ["model", "score", short, "on the front"], body));
}
// A label beside its point where there is room, else none: the tooltip has it.
function placeLabel(text, x, y, taken, left, right) {
  const shown = cut(text, 24), wide = shown.length * 6.6;
  for (const [dx, dy, anchor] of [[8, -7, "start"], [-8, -7, "end"], [8, 15, "start"], [-8, 15, "end"]]) {
    const start = anchor === "start" ? x + dx : x + dx - wide;
    const box = { left: start, right: start + wide, top: y + dy - 11, bottom: y + dy + 3 };
    if (box.left < left || box.right > right || box.top < 14) continue;
    if (taken.some((o) => box.left < o.right && o.left < box.right && box.top < o.bottom && o.top < box.bottom)) continue;
    taken.push(box);
    return s("text", { class: "ink halo", x: x + dx, y: y + dy, "text-anchor": anchor }, shown);
  }
  return null;
}

function forgettingChart(task) {
  const shown = results.rows.filter((row) => row.forgetting[task.name]).map((row) => ({ row, ...row.forgetting[task.name] }));
  if (!shown.length) return null;
  shown.sort((a, b) => (task.higher ? b.value - a.value : a.value - b.value));
  const gain = (value) => (task.higher ? value : -value);
  const format = (v) => signed(v, (x) => scoreText(task, x));
  const draw = (width) => {
    const names = Math.min(170, width * 0.38), numbers = 52, step = 23, height = shown.length * step + 26;
    const x = scale(shown.flatMap((e) => [e.low, e.value, e.high]).filter(known), names + 8, width - numbers, { zero: true, count: Math.max(2, Math.floor((width - names) / 90)) });
    const chars = Math.floor(names / 6.7);
    const bars = shown.map(({ row, value, low, high }, i) => {
      const y = i * step + step / 2, kind = gain(value) < 0 ? "worse" : "better";
      const group = s("g", { class: kind },
        s("text", { class: "ink", x: names, y: y + 4, "text-anchor": "end" }, cut(row.label, chars)),
        s("rect", { class: "bar", x: Math.min(x.place(0), x.place(value)), width: Math.max(1, Math.abs(x.place(value) - x.place(0))), y: y - 7, height: 14, rx: 2 }),
        known(low) && known(high) && s("line", { class: "whisker", x1: x.place(low), x2: x.place(high), y1: y, y2: y }),
        s("text", { class: "ink", x: width, y: y + 4, "text-anchor": "end" }, format(value)));
      return withTip(group, () => [h("strong", {}, row.label), h("div", {}, `${task.name}: ${format(value)} ${task.unit} against the base`),
        known(low) && known(high) && h("div", {}, `95%: ${range(low, high, format)}`), h("em", {}, gain(value) < 0 ? "worse than the base" : "no worse than the base")]);
    });
    const bottom = shown.length * step;
    return { height, parts: [
      x.ticks.map((v) => [s("line", { class: v === 0 ? "axis" : "rule", x1: x.place(v), x2: x.place(v), y1: 0, y2: bottom }), s("text", { x: x.place(v), y: bottom + 17, "text-anchor": "middle" }, short(format)(v))]),
      bars] };
  };
  const label = `Change on ${task.name} against the base`;
  const better = `${unitText(task)}; ${task.higher ? "left" : "right"} of the line is worse than the base`;
  const body = shown.map(({ row, value, low, high }) => [row.label, format(value), range(low, high, format)]);
  return h("figure", { class: "panel" }, h("h3", {}, label), h("div", { class: "caption" }, better), picture(label, draw), asTable(label, ["model", "change", "95% interval"], body));
}

const DASHES = [null, "7 4", "2 3", "9 3 2 3", "1 4", "12 4"];
function curveCharts() {
  const groups = new Map();
  for (const curve of results.curves) {
    const title = curve.title || curve.y_title || curve.label;
    groups.set(title, [...(groups.get(title) || []), curve]);
  }
  return [...groups].map(([title, curves]) => {
    const style = (i) => ({ colour: `var(--line-${i % 6})`, dash: DASHES[Math.floor(i / 6) % 6] || DASHES[i % 6] });
    const ys = curves.flatMap((c) => [...c.y, ...(c.low || []), ...(c.high || [])]).filter(known);
    if (!ys.length) return h("figure", { class: "panel" }, h("h3", {}, title), h("p", { class: "empty" }, "No point of these curves could be measured."));
    const draw = (width) => {
      const height = Math.max(240, Math.min(330, width * 0.58)), xs = [...new Set(curves.flatMap((c) => c.x))];
      const every = xs.every(Number.isInteger) && (width - 60) / xs.length > 24 && Math.max(...xs) / Math.max(1, Math.min(...xs)) <= 20;
      const { xScale, yScale, parts } = frame(width, height, xs, ys, {
        x: { log: true, room: 0.03, at: every ? xs : null }, xTitle: curves[0].x_title, yTitle: curves[0].y_title });
      const lines = curves.map((curve, i) => {
        const at = curve.x.map((x, k) => ({ x: xScale.place(x), value: curve.y[k], low: curve.low && curve.low[k], high: curve.high && curve.high[k], raw: x }));
        const band = at.filter((p) => known(p.low) && known(p.high));
        const edge = [...band.map((p) => `${p.x},${yScale.place(p.high)}`), ...[...band].reverse().map((p) => `${p.x},${yScale.place(p.low)}`)];
        const runs = at.map((p, k) => known(p.value) ? `${k && known(at[k - 1].value) ? "L" : "M"}${p.x},${yScale.place(p.value)}` : "").join("");
        return s("g", { color: style(i).colour }, band.length > 1 && s("polygon", { class: "band", points: edge.join(" ") }), s("path", { class: "line", d: runs, "stroke-dasharray": style(i).dash }));
      });
      const points = curves.flatMap((curve, i) => curve.x.map((x, k) => ({ curve, i, x, y: curve.y[k], low: curve.low && curve.low[k], high: curve.high && curve.high[k] }))).filter((p) => known(p.y));
      const told = (element, { curve, x, y, low, high }) => withTip(element, () => [h("strong", {}, curve.label), h("div", {}, `${curve.x_title || "x"} ${brief(x)}: ${number(y)}`), known(low) && known(high) && h("em", {}, `95%: ${range(low, high, number)}`)]);
      const around = points.map((p) => told(s("circle", { class: "hit", cx: xScale.place(p.x), cy: yScale.place(p.y), r: 10 }), p));
      const marks = points.map((p) => told(s("g", { class: "point", color: style(p.i).colour, tabindex: 0, role: "img", "aria-label": `${p.curve.label}, ${brief(p.x)}: ${number(p.y)}` }, s("circle", { class: "mark", cx: xScale.place(p.x), cy: yScale.place(p.y), r: 3.6 })), p));
      return { height, parts: [parts, lines, around, marks] };
    };
    const swatches = curves.map((curve, i) => h("span", {}, s("svg", { width: 26, height: 10, color: style(i).colour, "aria-hidden": "true" }, s("path", { class: "line", d: "M0,5H26", "stroke-dasharray": style(i).dash })), curve.label));
    const body = curves.flatMap((c) => c.x.map((x, k) => [c.label, number(x), number(c.y[k]), c.low && c.high ? range(c.low[k], c.high[k], number) : ""]));
    return h("figure", { class: "panel" }, h("h3", {}, title), h("div", { class: "key" }, swatches), picture(title, draw), asTable(title, ["curve", curves[0].x_title || "x", curves[0].y_title || "y", "95% interval"], body));
  });
}

function pairTable() {
  const ends = results.pairs.flatMap((p) => [p.low, p.difference, p.high, 0]).filter(known);
  const axis = scale(ends, 6, FOREST - 6, { room: 0.05, count: 3, zero: true });
  const points = (v) => signed(v, percent);
  const lines = results.pairs.map((pair) => {
    const [a, b] = [rows.get(pair.a).label, rows.get(pair.b).label], sure = known(pair.low) && known(pair.high) && (pair.low > 0 || pair.high < 0);
    const words = sure ? `the ${pair.difference > 0 ? "first" : "second"} is better` : "not told apart";
    const drawing = s("svg", { width: FOREST, height: 18, class: sure ? "better" : "baseline", role: "img", "aria-label": `difference ${points(pair.difference)}` },
      s("line", { class: "axis", x1: axis.place(0), x2: axis.place(0), y1: -7, y2: 25 }),
      known(pair.low) && known(pair.high) && s("line", { class: "whisker", x1: axis.place(pair.low), x2: axis.place(pair.high), y1: 9, y2: 9 }), mark("nothing", axis.place(pair.difference), 9, 4));
    const p = !known(pair.p) ? "–" : pair.p < 0.001 ? "<0.001" : pair.p.toFixed(3);
    return h("tr", {}, h("th", { class: "text", scope: "row" }, `${a} − ${b}`), h("td", {}, points(pair.difference)), h("td", {}, drawing), h("td", {}, range(pair.low, pair.high, points) || "–"),
      h("td", {}, p), h("td", {}, known(pair.n) ? pair.n.toLocaleString("en-US") : "–"), h("td", { class: "text" }, words));
  });
  const head = ["difference", "points", "", "95% interval", "p", "samples"].map((t, i) => h("th", { scope: "col", class: i ? null : "text" }, t));
  return h("div", { class: "panel flush" }, h("div", { class: "scroll tall", tabindex: 0 }, h("table", { class: "wide" }, h("thead", {}, h("tr", {}, head, h("th", { scope: "col", class: "text" }, "verdict"))), h("tbody", {}, lines))));
}
