// The experts' deltas (norms by layer, cosines, sign conflicts), and the map of regimes.
function matrix(title, caption, names, values, format, strength) {
  const head = h("tr", {}, h("td", {}), names.map((name) => h("th", { scope: "col", title: name }, name)));
  const lines = names.map((name, i) => h("tr", {}, h("th", { scope: "row", title: name }, name), values[i].map((value, j) => {
    const share = known(value) && i !== j ? strength(value) : 0;
    const cell = h("span", heat(0.95 * share), i === j ? "·" : known(value) ? format(value) : "–");
    return h("td", {}, i === j ? cell : withTip(cell, () => [h("strong", {}, `${name} and ${names[j]}`), `${title.toLowerCase()}: ${known(value) ? format(value) : "not defined, a delta is zero"}`]));
  })));
  return h("figure", { class: "panel" }, h("h3", {}, title), h("div", { class: "caption" }, caption), h("div", { class: "scroll" }, h("table", { class: "matrix" }, h("thead", {}, head), h("tbody", {}, lines))));
}

// What all layers' names begin with goes to the caption: model.layers.3 is 3.
function shortened(names) {
  const numbered = names.map((name) => name.match(/^(.*?)(\d+)$/));
  const stacks = new Set(numbered.filter(Boolean).map((m) => m[1]));
  return names.map((name, i) => (numbered[i] && stacks.size === 1 ? numbered[i][2] : name));
}
function layerHeat({ experts, layers, norms }) {
  const positive = norms.flat().filter((v) => v > 0);
  if (!positive.length) return h("p", { class: "empty panel" }, "No expert differs from the base.");
  const low = Math.min(...positive), high = Math.max(...positive), logarithmic = high / low > 30;
  const strength = (v) => !(v > 0) ? 0 : high === low ? 0.7 : logarithmic ? 0.08 + 0.92 * Math.log(v / low) / Math.log(high / low) : v / high;
  const short = shortened(layers), long = Math.max(...short.map((name) => name.length));
  const label = "Norm of the delta by layer";
  const draw = (width) => {
    const names = Math.min(130, Math.max(66, 10 + 7 * Math.max(...experts.map((e) => e.length)))), chars = Math.floor(names / 6.8);
    const cell = Math.max(9, Math.min(120, (width - names - 4) / layers.length)), step = 26, bottom = experts.length * step;
    const slanted = long * 6.8 > cell - 4, every = Math.max(1, Math.ceil((slanted ? 15 : long * 6.8 + 6) / cell));
    const reach = slanted ? Math.min(long, 22) * 5 + 14 : 20;
    const grid = experts.map((name, i) => [
      s("text", { class: "ink", x: names - 7, y: i * step + 17, "text-anchor": "end" }, cut(name, chars)),
      layers.map((layer, j) => withTip(s("rect", { ...heat(strength(norms[i][j])), x: names + j * cell, y: i * step, width: cell, height: step }),
        () => [h("strong", {}, `${name}, ${layer}`), known(norms[i][j]) ? `norm of the delta ${number(norms[i][j])}` : "not measured"])),
    ]);
    const below = short.map((name, j) => {
      if (j % every) return null;
      const x = names + (j + 0.5) * cell, cut = name.length > 22 ? `…${name.slice(-21)}` : name;
      return slanted ? s("text", { x, y: bottom + 12, "text-anchor": "end", transform: `rotate(-40 ${x} ${bottom + 12})` }, cut) : s("text", { x, y: bottom + 15, "text-anchor": "middle" }, cut);
    });
    return { height: bottom + reach, wide: Math.ceil(names + cell * layers.length + 4), parts: [grid, below] };
  };
  const prefix = layers.find((name, i) => short[i] !== name);
  const stack = prefix ? ` Number n stands for ${prefix.replace(/\d+$/, "")}n.` : "";
  const caption = `From ${number(low)} (pale) to ${number(high)} (strong), ${logarithmic ? "logarithmic" : "linear from zero"}.${stack}`;
  const body = layers.map((layer, j) => [layer, ...experts.map((_, i) => number(norms[i][j]))]);
  return h("figure", { class: "panel" }, h("h3", {}, label), h("div", { class: "caption" }, caption), h("div", { class: "scroll" }, picture(label, draw)), asTable(label, ["layer", ...experts], body));
}
function deltaSection(deltas) {
  const count = deltas.experts.length;
  const off = deltas.sign_conflict.flatMap((row, i) => row.filter((v, j) => i !== j && known(v)));
  const most = Math.max(0.5, ...off);
  return [layerHeat(deltas), count > 1 && h("div", { class: "grid stacked" },
    matrix("Cosine of deltas", "0: unrelated directions; 1: the same; below 0: opposed.", deltas.experts, deltas.cosine, (v) => fixed(v, 2), (v) => v),
    matrix("Sign conflicts", "Share, in percent, of the elements changed by both that move apart; 50 is chance.", deltas.experts, deltas.sign_conflict, percent, (v) => (v / most) ** 2))];
}

// Which method wins where: a row for each cell, coloured from its worst score to its best.
function regimeTable() {
  const methods = [...new Set(results.regimes.flatMap((cell) => Object.keys(cell.scores)))];
  const facts = ["regime", "experts", "overlap", "first delta", "cosine", "base", "winner"];
  const lines = results.regimes.map((cell) => {
    const values = Object.values(cell.scores).filter(known), low = Math.min(...values), high = Math.max(...values);
    const scores = methods.map((method) => {
      const value = cell.scores[method];
      if (!known(value)) return h("td", { class: "cell" }, h("span", { title: "not measured" }, "–"));
      const share = high > low ? (value - low) / (high - low) : 0.5;
      return withTip(h("td", { class: method === cell.winner ? "cell best" : "cell" }, h("span", heat(0.03 + 0.87 * share), percent(value))),
        () => [h("strong", {}, method), h("div", {}, `score ${percent(value)}%, the base ${percent(cell.base)}%`), h("em", {}, cell.experts.join(", "))]);
    });
    return h("tr", {}, h("th", { scope: "row", class: "text" }, [cell.family, cell.regime].filter(Boolean).join(", ")),
      withTip(h("td", { tabindex: 0 }, cell.experts.length), () => cell.experts.join(", ")), h("td", { class: "text" }, cell.overlap), h("td", {}, `× ${brief(cell.size)}`),
      h("td", {}, fixed(cell.cosine, 2)), h("td", {}, percent(cell.base)), h("td", { class: "text" }, cell.winner || "none"), scores);
  });
  const head = [...facts, ...methods].map((title, i) => h("th", { scope: "col", title, class: [0, 2, 6].includes(i) ? "text" : null }, cut(title, 24)));
  return h("div", { class: "panel flush" }, h("div", { class: "scroll" }, h("table", { class: "board wide regimes" }, h("thead", {}, h("tr", {}, head)), h("tbody", {}, lines))));
}
