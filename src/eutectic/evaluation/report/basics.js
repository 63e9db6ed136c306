// Elements, numbers, tooltip, copying. All text from the data reaches the page through text nodes and attributes.
const data = JSON.parse(document.getElementById("data").textContent);
const { results, sections, recipes } = data;
const rows = new Map(results.rows.map((row) => [row.id, row]));
const tasks = new Map(results.tasks.map((task) => [task.name, task]));

// Control characters, and those that turn or hide the text around them, are shown as escapes.
const visible = (text) =>
  String(text).replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g,
    (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name.startsWith("--")) element.style.setProperty(name, value);
    else element.setAttribute(name, value === true ? "" : visible(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : visible(child));
  }
  return element;
}
const h = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);

// ---- numbers: three significant digits, a true minus sign
const known = (x) => x !== null && x !== undefined;
function number(x) {
  if (!known(x)) return "–";
  const size = Math.abs(x);
  if (size === 0) return "0";
  if (size >= 1e6 || size < 1e-4) {
    const [digits, power] = x.toExponential(2).split("e");
    return `${digits} × 10^${Number(power)}`.replaceAll("-", "−");
  }
  const decimals = Math.max(0, 2 - Math.floor(Math.log10(Number(size.toPrecision(3)))));
  return fixed(x, decimals);
}
const fixed = (x, decimals) =>
  x.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals }).replace("-", "−");
const percent = (x) => (known(x) ? fixed(100 * x, Math.abs(x) >= 10 ? 0 : 1) : "–");
const brief = (x) => (Number.isInteger(x) ? x.toLocaleString("en-US") : known(x) ? String(Number(x.toPrecision(3))) : "–").replace("-", "−");
// On an axis 5.00 MB is 5 MB.
const short = (format) => (x) => format(x).replace(/(\.\d*?)0+(?!\d)/, "$1").replace(/\.(?!\d)/, "");
const signed = (x, format) => {
  const size = format(Math.abs(x));
  return (!/[1-9]/.test(size) ? "" : x > 0 ? "+" : "−") + size;
};
function bytes(x) {
  if (!known(x)) return "–";
  if (x < 1000) return `${x} B`;
  const step = Math.min(5, Math.floor(Math.log10(x) / 3));
  return `${number(Number((x / 1000 ** step).toPrecision(3)))} ${" kMGTP"[step]}B`;
}
function seconds(x) {
  if (!known(x)) return "–";
  if (x === 0) return "0 s";
  if (x < 1e-3) return `${number(x * 1e6)} µs`;
  if (x < 1) return `${number(x * 1e3)} ms`;
  return x < 120 ? `${number(x)} s` : x < 7200 ? `${number(x / 60)} min` : `${number(x / 3600)} h`;
}
// Scores that are shares are shown in percent; others, bits per byte for one, as they are.
const isShare = (task) => /accuracy|recall|precision|match|share|rate|\bf1\b|refusal|abstention/i.test(task.unit);
const scoreText = (task, x) => (isShare(task) ? percent(x) : number(x));
const unitText = (task) => (isShare(task) ? `${task.unit}, %` : task.unit) + (task.higher ? "" : ", lower is better");
const range = (low, high, format) => (known(low) && known(high) ? `${format(low)} to ${format(high)}` : "");
const cut = (text, room) => (text.length > room ? `${text.slice(0, Math.max(1, room - 1))}…` : text);
const plural = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
const read = (row, path) => path.split(".").reduce((at, key) => (known(at) ? at[key] : null), row);
const kindOf = (row) => (row.group === "merged" ? row.needs : row.group);

// ---- marks: a shape for each kind, so that colour is never alone
const KINDS = {
  nothing: "merged, needs no data", unlabelled: "merged, needs unlabelled data", labelled: "merged, needs labelled data",
  baseline: "baseline", expert: "single expert",
};
function mark(kind, x, y, r) {
  const shapes = {
    unlabelled: [[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]],
    labelled: [[0, -1.15], [1.1, 0.85], [-1.1, 0.85]],
    baseline: [[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]],
    expert: [[0, 1.15], [1.1, -0.85], [-1.1, -0.85]],
  };
  if (!shapes[kind]) return s("circle", { class: "mark", cx: x, cy: y, r });
  return s("polygon", { class: "mark", points: shapes[kind].map(([a, b]) => `${x + a * r},${y + b * r}`).join(" ") });
}
const icon = (kind) =>
  s("svg", { width: 12, height: 12, class: kind, role: "img", "aria-label": KINDS[kind] }, mark(kind, 6, 6, 5));
const legend = (kinds, extra) =>
  h("div", { class: "key" }, kinds.map((kind) => h("span", {}, icon(kind), KINDS[kind])), extra);

// A coloured cell: the ink changes where the colour has become strong.
const heat = (share) => ({ class: `heat${share < 0 ? " minus" : ""}${Math.abs(share) > 0.66 ? " strong" : ""}`, "--p": `${Math.round(100 * Math.abs(share))}%` });

// ---- tooltip
const tip = document.getElementById("tip");
function showTip(event, content) {
  tip.replaceChildren(...[content()].flat().filter(Boolean));
  tip.hidden = false;
  const box = event.currentTarget.getBoundingClientRect();
  const [x, y] = event.type === "focus" ? [box.right, box.top] : [event.clientX, event.clientY];
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 14 + width < innerWidth - 8 ? x + 14 : Math.max(8, x - 14 - width);
  tip.style.left = `${left}px`;
  tip.style.top = `${Math.max(8, Math.min(y + 14, innerHeight - height - 8))}px`;
}
const hideTip = () => { tip.hidden = true; };
function withTip(element, content) {
  for (const name of ["pointerenter", "pointermove", "focus"])
    element.addEventListener(name, (event) => showTip(event, content));
  for (const name of ["pointerleave", "blur"]) element.addEventListener(name, hideTip);
  return element;
}
addEventListener("keydown", (event) => { if (event.key === "Escape") hideTip(); });
addEventListener("scroll", hideTip, { passive: true });

// ---- copying
let toastTimer = 0;
function toast(text) {
  const place = document.getElementById("toast");
  place.textContent = visible(text);
  place.classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => place.classList.remove("shown"), 1800);
}
async function copyRecipe(row) {
  const recipe = recipes[row.id];
  if (!recipe) { toast(`${row.label} has no recipe`); return; }
  const done = await copyText(recipe.text);
  toast(done ? `Recipe of ${row.label} copied` : "The browser does not let this page copy; see Provenance");
}
async function copyText(text) {
  if (navigator.clipboard) {
    try { await navigator.clipboard.writeText(text); return true; } catch { /* not allowed here: the older way below */ }
  }
  const area = h("textarea", {});
  area.value = text;
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}
function recipeTip(row, ...lines) {
  const recipe = recipes[row.id];
  const text = recipe ? recipe.text.trimEnd().split("\n") : [];
  const shown = text.length > 16 ? [...text.slice(0, 15), "…"] : text;
  return [
    h("strong", {}, row.label),
    ...lines.filter(Boolean).map((line) => h("div", {}, line)),
    recipe && h("pre", {}, shown.join("\n")),
    h("em", {}, recipe ? "Click copies the recipe." : "No recipe: nothing was merged."),
  ];
}
const meanLine = (row) => row.mean &&
  `Score ${percent(row.mean.value)}%${known(row.mean.low) && known(row.mean.high) ? `, 95%: ${range(row.mean.low, row.mean.high, percent)}` : ""}`;

// ---- sections of the page
const page = h("main", {});
const navigation = h("nav", { "aria-label": "Sections" });
function section(id, title, lead, ...content) {
  navigation.append(h("a", { href: `#${id}` }, title));
  page.append(h("section", { id, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, title),
    lead && h("p", { class: "lead" }, lead), content));
}
function asTable(title, head, body) {
  return h("details", {}, h("summary", {}, "As a table"), h("div", { class: "scroll" },
    h("table", { class: "plain" }, h("caption", { hidden: true }, title),
      h("thead", {}, h("tr", {}, head.map((cell, i) => h("th", { scope: "col", class: i ? null : "text" }, cell)))),
      h("tbody", {}, body.map((cells) => h("tr", {}, cells.map((cell, i) => i ? h("td", {}, cell) : h("th", { scope: "row", class: "text" }, cell))))))));
}
// A picture is drawn to the width that it gets, and again when that changes.
const pictures = [];
function picture(label, draw) {
  const place = h("div", { class: "picture" });
  pictures.push({ place, label, draw, width: 0 });
  return place;
}
function drawPictures() {
  for (const item of pictures) {
    const width = Math.floor(item.place.clientWidth);
    if (!width || width === item.width) continue;
    item.width = width;
    const { height, parts, wide } = item.draw(width);
    const across = wide || width;
    item.place.replaceChildren(s("svg", { width: across, height, viewBox: `0 0 ${across} ${height}`, role: "group", "aria-label": item.label }, parts));
  }
}
