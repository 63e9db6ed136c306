// The leaderboard: sections ranked apart, intervals on one scale, a coloured cell for each task.
const FOREST = 210;

// From the lowest merged model up. What is below, as single experts are, is an arrow at the edge: else it takes all the room.
function forestScale() {
  const scored = results.rows.filter((row) => row.mean);
  const ends = (shown) => shown.flatMap((row) => [row.mean.low, row.mean.value, row.mean.high]).filter(known);
  const merged = ends(scored.filter((row) => row.group === "merged")), floor = Math.min(...merged);
  const shown = merged.length > 3 ? scored.filter((row) => row.mean.value >= floor) : scored;
  return shown.length ? scale(ends(shown), 10, FOREST - 10, { room: 0.03, count: 4 }) : null;
}
function forestAxis(axis) {
  return s("svg", { width: FOREST, height: 18, "aria-hidden": "true" }, axis.ticks.map((v) => [
    s("line", { class: "axis", x1: axis.place(v), x2: axis.place(v), y1: 14, y2: 18 }),
    s("text", { x: axis.place(v), y: 10, "text-anchor": "middle" }, short(percent)(v)),
  ]));
}
function forest(row, axis, reference) {
  const { value, low, high } = row.mean, x = axis.place;
  return s("svg", { width: FOREST, height: 20, class: kindOf(row), role: "img", "aria-label": meanLine(row) },
    axis.ticks.map((v) => s("line", { class: "rule", x1: x(v), x2: x(v), y1: -7, y2: 27 })),
    known(reference) && reference >= axis.low && s("line", { class: "reference", x1: x(reference), x2: x(reference), y1: -7, y2: 27 }),
    value < axis.low ? s("path", { class: "beyond", d: "M9,5.5L4,10L9,14.5" }) : [
      known(low) && known(high) && s("line", { class: "whisker", x1: Math.max(0, x(low)), x2: x(high), y1: 10, y2: 10 }),
      mark(kindOf(row), x(value), 10, 3.8)]);
}

// How good each score is, from the worst merged model's (0) to the best of all (1): the baselines may be far below.
function goodness() {
  const found = new Map();
  for (const task of results.tasks) {
    const sign = task.higher ? 1 : -1;
    const values = (shown) => shown.map((row) => (row.scores[task.name] || {}).value).filter(known).map((v) => sign * v);
    const merged = values(results.rows.filter((row) => row.group === "merged")), all = values(results.rows);
    const low = Math.min(...(merged.length > 1 ? merged : all)), high = Math.max(...all);
    found.set(task.name, (value) => (high === low ? 0.5 : Math.max(0, (sign * value - low) / (high - low))));
  }
  return found;
}
function taskCell(row, task, good) {
  const score = row.scores[task.name];
  if (!score) return h("td", { class: "cell" }, h("span", { title: "not measured" }, "–"));
  if (known(score.error)) {
    const cell = h("td", { class: "cell hole" }, h("span", { tabindex: 0, "aria-label": `missing: ${score.error}` }, "none"));
    withTip(cell.firstChild, () => [h("strong", {}, `${row.label}, ${task.name}: missing`), score.error]);
    return cell;
  }
  const share = good.get(task.name)(score.value);
  const cell = h("td", { class: share === 1 ? "cell best" : "cell" },
    h("span", heat(0.03 + 0.87 * share ** 1.3), scoreText(task, score.value)));
  const error = known(score.stderr) ? ` ± ${scoreText(task, score.stderr)} (standard error)` : "";
  return withTip(cell, () => [
    h("strong", {}, `${row.label}, ${task.name}`),
    h("div", {}, `${unitText(task)}: ${scoreText(task, score.value)}${error}`),
    known(score.n) && h("em", {}, `${score.n.toLocaleString("en-US")} samples`),
  ]);
}
function tunedText(row) {
  const value = row.tuned.value;
  const shown = typeof value === "number" ? brief(value) : typeof value === "string" ? value
    : Object.entries(value).map(([k, v]) => `${k} ${typeof v === "number" ? brief(v) : v}`).join(", ");
  return `${row.tuned.knob} = ${shown}`;
}

function leaderboard() {
  const axis = forestScale(), good = goodness();
  const base = results.rows.find((row) => row.id === "base");
  const reference = base && base.mean ? base.mean.value : null;
  const units = new Set(results.tasks.map(unitText));
  const has = (path) => results.rows.some((row) => known(read(row, path)));
  const columns = [
    { title: "", class: "rank", cell: (row, at) => at.rank ? (at.tied ? `≈${at.rank}` : at.rank) : "" },
    { title: "model", class: "name", key: (row) => row.label.toLowerCase(), ascending: true, cell: (row) => nameCell(row) },
    axis && {
      title: "multi-task score", note: "% of the expert's; 95% interval", extra: () => forestAxis(axis), class: "wide",
      key: (row) => (row.mean ? row.mean.value : -Infinity),
      cell: (row) => row.mean ? h("span", { class: "score" }, h("b", {}, percent(row.mean.value)), forest(row, axis, reference)) : h("span", { class: "empty" }, "no score"),
    },
    ...results.tasks.map((task) => ({
      title: task.name, note: [units.size > 1 && unitText(task), task.role === "base" && "base's"].filter(Boolean).join(", "), td: (row) => taskCell(row, task, good), ascending: !task.higher,
      key: (row) => { const found = row.scores[task.name]; return found && known(found.value) ? found.value : task.higher ? -Infinity : Infinity; },
    })),
    has("seconds.merge") && { title: "merge", note: "time", key: (row) => row.seconds.merge ?? Infinity, ascending: true, cell: (row) => seconds(row.seconds.merge) },
    has("bytes.model") && { title: "size", note: "served", key: (row) => row.bytes.model ?? Infinity, ascending: true, cell: (row) => bytes(row.bytes.model) },
    Object.keys(recipes).length > 0 && {
      title: "", class: "copy",
      cell: (row) => recipes[row.id] && withTip(h("button", { type: "button", "aria-label": `Copy the recipe of ${row.label}`, onclick: () => copyRecipe(row) }, "recipe"), () => recipeTip(row)),
    },
  ].filter(Boolean);
  const table = h("table", { class: "board wide" });
  const bodies = sections.map((part) => {
    const lines = part.rows.map((at) => {
      const row = rows.get(at.id);
      const line = h("tr", { class: at.rank === 1 && !at.tied ? "first" : null }, columns.map((column) =>
        column.td ? column.td(row) : column.class === "name" ? h("th", { scope: "row", class: "name" }, column.cell(row, at)) : h("td", { class: column.class }, column.cell(row, at))));
      return { row, line };
    });
    const head = h("tr", { class: "head" }, h("th", { class: "part", scope: "rowgroup", colspan: columns.length }, h("span", {}, part.title, h("small", {}, part.note))));
    return { body: h("tbody", {}, head, lines.map(({ line }) => line)), lines };
  });
  const heads = columns.map((column) => {
    const cell = h("th", { scope: "col", title: typeof column.title === "string" && column.title.length > 16 ? column.title : null, class: column.class === "name" ? "name text" : column.class });
    const label = [cut(column.title, 24), column.note && h("small", {}, cut(column.note, 36))];
    if (!column.key) cell.append(...label.filter(Boolean));
    else cell.append(h("button", { type: "button", title: "Sort by this column", onclick: () => sort(column, cell) }, label));
    if (column.extra) cell.append(h("span", { class: "score axis-row" }, h("b", {}), column.extra()));
    return cell;
  });
  function sort(column, cell) {
    const before = cell.getAttribute("aria-sort");
    const up = before ? before === "descending" : Boolean(column.ascending);
    for (const other of heads) other.removeAttribute("aria-sort");
    cell.setAttribute("aria-sort", up ? "ascending" : "descending");
    for (const { body, lines } of bodies) {
      const order = [...lines].sort((a, b) => { const [x, y] = [column.key(a.row), column.key(b.row)]; return x < y ? -1 : x > y ? 1 : 0; });
      body.append(...(up ? order : order.reverse()).map(({ line }) => line));
    }
  }
  table.append(h("thead", {}, h("tr", {}, heads)), ...bodies.map(({ body }) => body));
  return h("div", { class: "panel flush" }, h("div", { class: "scroll" }, table));
}
function nameCell(row) {
  const edge = row.tuned && row.tuned.at_edge;
  return [
    icon(kindOf(row)), row.label,
    edge && withTip(h("span", { class: "tag", tabindex: 0 }, "edge"), () => [h("strong", {}, tunedText(row)), "The best value lies on the edge of the grid: a better one may lie beyond."]),
  ];
}
