// The page from top to bottom. Sections without data are left out, and so are their links.
function head() {
  const families = results.family.map((f) => [f.name, f.variant, f.regime, known(f.seed) && `seed ${f.seed}`].filter(Boolean).join(", "));
  const kicker = ["Eutectic", results.study, `${results.split} data`, ...families.slice(0, 2), families.length > 2 && `and ${families.length - 2} more`];
  const button = h("button", { type: "button", id: "theme", onclick: () => setTheme(theme() === "dark" ? "light" : "dark", true) }, "");
  return h("header", {}, h("div", {}, h("div", { class: "kicker" }, kicker.filter(Boolean).join(" · ")), h("h1", {}, results.title), results.note && h("p", { class: "note" }, results.note)), button);
}
const theme = () => document.documentElement.dataset.theme;
let chosen = false;
function setTheme(name, byHand) {
  chosen = chosen || byHand;
  document.documentElement.dataset.theme = name;
  document.getElementById("theme").textContent = name === "dark" ? "Light" : "Dark";
}
function tiles() {
  const merged = results.rows.filter((row) => row.group === "merged");
  const firsts = sections.filter((part) => part.ranked && part.rows.length && part.rows[0].rank === 1);
  const tile = (title, value, small) => h("div", { class: "tile" }, h("dt", {}, title), h("dd", {}, value, small && h("small", {}, small)));
  const measured = results.rows.flatMap((row) => Object.values(row.scores)), holes = measured.filter((score) => known(score.error)).length;
  const judged = results.claims.filter((claim) => known(claim.holds)), held = judged.filter((claim) => claim.holds).length;
  return h("dl", { class: "tiles" },
    firsts.map((part) => { const row = rows.get(part.rows[0].id); return tile(part.short, row.label, `score ${percent(row.mean.value)}${known(row.mean.low) && known(row.mean.high) ? ` (${range(row.mean.low, row.mean.high, percent)})` : ""}`); }),
    tile("Measured", `${plural(results.rows.length, "model")} × ${plural(results.tasks.length, "task")}`, `${merged.length} merged; ${holes ? `${plural(holes, "score")} missing` : "no score missing"}`),
    results.claims.length > 0 && tile("Claims", judged.length ? `${held} of ${results.claims.length} held` : "none decided", `${judged.length - held} refuted, ${results.claims.length - judged.length} open`));
}
function claimList() {
  const verdict = (holds) => holds === true ? h("div", { class: "verdict better" }, "✓ held") : holds === false ? h("div", { class: "verdict worse" }, "✗ refuted") : h("div", { class: "verdict baseline" }, "○ open");
  return h("div", { class: "panel" }, results.claims.map((claim) => h("div", { class: "claim" }, verdict(claim.holds),
    h("div", {}, h("h3", {}, claim.claim), claim.result && h("p", {}, claim.result), claim.test && h("small", {}, `Test: ${claim.test}`)))));
}
function holeTable(holes) {
  return h("div", { class: "panel" }, h("div", { class: "scroll" }, h("table", { class: "wide" }, h("thead", {}, h("tr", {}, ["model", "task", "why"].map((t) => h("th", { scope: "col", class: "text" }, t)))),
    h("tbody", {}, holes.map(([row, task, error]) => h("tr", {}, h("th", { scope: "row", class: "text" }, row.label), h("td", { class: "text" }, task), h("td", { class: "text long" }, error)))))));
}
function plain(value) {
  return typeof value === "string" ? value : typeof value === "number" ? brief(value) : JSON.stringify(value);
}
function facts(title, entries) {
  return entries.length > 0 && h("div", { class: "panel" }, h("h3", {}, title), h("dl", { class: "facts" }, entries.map(([key, value]) => [h("dt", {}, key), h("dd", {}, value)])));
}
function provenance() {
  const families = results.family.map((f, i) => [`family ${results.family.length > 1 ? i + 1 : ""}`, [f.name, f.variant && `variant ${f.variant}`, f.regime, known(f.seed) && `seed ${f.seed}`].filter(Boolean).join(", ")]);
  const withRecipe = results.rows.filter((row) => recipes[row.id] || row.tuned);
  const lines = withRecipe.map((row) => {
    const recipe = recipes[row.id], tuned = row.tuned;
    return h("tr", {}, h("th", { scope: "row", class: "text" }, row.label), h("td", { class: "text" }, tuned ? tunedText(row) : "–"), h("td", {}, tuned && known(tuned.evaluations) ? tuned.evaluations : "–"),
      h("td", {}, seconds(row.seconds.tune)), h("td", { class: "text" }, recipe && recipe.hash ? h("code", { title: recipe.hash }, recipe.hash.slice(0, 16)) : "–"),
      h("td", { class: "copy" }, recipe && h("button", { class: "small", type: "button", "aria-label": `Copy the recipe of ${row.label}`, onclick: () => copyRecipe(row) }, "copy")));
  });
  const texts = withRecipe.filter((row) => recipes[row.id]).map((row) => h("details", {}, h("summary", {}, row.label), h("pre", { class: "recipe", tabindex: 0 }, recipes[row.id].text)));
  const head = ["model", "tuned", ">evaluations", ">time to tune", "recipe's fingerprint", ""].map((t) => h("th", { scope: "col", class: t.startsWith(">") ? null : "text" }, t.replace(">", "")));
  return [
    h("div", { class: "grid narrow" },
      facts("Study", [["study", results.study], ["split", results.split], ...families]),
      facts("Settings", Object.entries(results.settings).map(([k, v]) => [k, plain(v)])),
      facts("Versions", Object.entries(results.versions).map(([k, v]) => [k, known(v) ? v : "not installed"]))),
    lines.length > 0 && h("div", { class: "panel recipes" }, h("h3", {}, "Recipes"), h("div", { class: "scroll" }, h("table", { class: "wide" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, lines))),
      texts.length > 0 && h("details", {}, h("summary", {}, `The text of ${plural(texts.length, "recipe")}`), texts)),
  ];
}

function report() {
  const units = new Set(results.tasks.map(unitText));
  const holes = results.rows.flatMap((row) => Object.entries(row.scores).filter(([, score]) => known(score.error)).map(([task, score]) => [row, task, score.error]));
  const paretos = COSTS.map(paretoChart).filter(Boolean);
  const forgetting = results.tasks.map(forgettingChart).filter(Boolean);
  const kinds = Object.keys(KINDS).filter((kind) => results.rows.some((row) => kindOf(row) === kind));
  if (results.warnings.length) section("warnings", "Warnings", null, h("ul", { class: "panel warning" }, results.warnings.map((text) => h("li", {}, text))));
  section("leaderboard", "Leaderboard", [
    results.rows.some((row) => row.group === "merged") && "Methods are ranked apart by what they need.",
    results.rows.some((row) => row.mean) && "The multi-task score is the mean over tasks of the score divided by that of the task's expert; the dashed line is the base, an arrow what lies below the scale.",
    sections.some((part) => part.rows.some((at) => at.tied)) && "≈ marks a model that a paired test does not tell apart from the first of its section.",
    units.size === 1 && `Tasks: ${[...units][0]}.`].filter(Boolean).join(" "),
    results.rows.length ? [legend(kinds), leaderboard()] : h("p", { class: "panel empty" }, "No model was measured."));
  if (results.regimes.length) section("regimes", "Regime map", "Which method wins where. A row is one choice of experts, the delta of the first of them multiplied by a factor; scores are multi-task scores, in percent of the experts'.", regimeTable());
  if (results.claims.length) section("claims", "Claims", "Each with its test.", claimList());
  if (results.curves.length) section("curves", "Curves", null, h("div", { class: "grid" }, curveCharts()));
  if (paretos.length) section("cost", "Quality against cost", "The line joins what nothing else beats in both score and cost. Point at a mark for its recipe, click to copy it." + equalCosts(), legend(kinds), h("div", { class: "grid" }, paretos));
  if (forgetting.length) section("forgetting", "Forgetting", "What happened to the tasks that the base could do.", h("div", { class: "grid" }, forgetting));
  if (results.pairs.length) section("tests", "Paired tests", "Differences of multi-task scores, in percentage points, over the same samples.", pairTable());
  if (results.deltas && results.deltas.experts.length) section("deltas", "Deltas of the experts", "What training changed in each expert, against the base.", deltaSection(results.deltas));
  if (holes.length) section("holes", "Missing scores", "Not counted as zero, and in no mean.", holeTable(holes));
  section("provenance", "Provenance", null, provenance());
  document.getElementById("report").replaceChildren(head(), tiles(), navigation, page, h("footer", {}, `Made by Eutectic ${data.version} from results.json; this file needs no network.`));
  const dark = matchMedia("(prefers-color-scheme: dark)");
  setTheme(dark.matches ? "dark" : "light", false);
  dark.addEventListener("change", (event) => { if (!chosen) setTheme(event.matches ? "dark" : "light", false); });
  drawPictures();
  new ResizeObserver(drawPictures).observe(page);
  document.documentElement.dataset.drawn = "yes";
}
report();
