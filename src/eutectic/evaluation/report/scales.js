// Axes: round ticks, linear or logarithmic.
function extent(values, room) {
  const low = Math.min(...values), high = Math.max(...values);
  const margin = (high - low) * room || Math.abs(high) * 0.1 || 1;
  return [low - margin, high + margin];
}
function ticksOf(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((size) => size >= raw * 0.72) || 10 * power;
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) found.push(Number((at * step).toPrecision(12)));
  return found;
}
function scale(values, from, to, { room = 0.06, log = false, count = 5, zero = false, at = null } = {}) {
  const positive = values.every((v) => v > 0);
  if (log && positive && Math.max(...values) / Math.min(...values) > 20) {
    const [low, high] = extent(values.map(Math.log10), room);
    const place = (v) => from + ((Math.log10(v) - low) / (high - low)) * (to - from);
    const every = Math.max(1, Math.ceil((high - low) / count));
    const ticks = [];
    for (let power = Math.ceil(low); power <= high; power += every) ticks.push(10 ** power);
    if (ticks.length < 2)
      for (let power = Math.floor(low); power <= high; power += 1)
        for (const m of [2, 5]) if (Math.log10(m * 10 ** power) >= low && Math.log10(m * 10 ** power) <= high) ticks.push(m * 10 ** power);
    return { place, ticks: ticks.sort((a, b) => a - b), low: 10 ** low, high: 10 ** high, log: true };
  }
  let [low, high] = extent(values, room);
  if (positive && low < 0) low = 0;
  if (zero) [low, high] = [Math.min(0, low), Math.max(0, high)];
  return { place: (v) => from + ((v - low) / (high - low)) * (to - from), ticks: at || ticksOf(low, high, count), low, high, log: false };
}
// A frame with both axes; gives the scales and the parts drawn.
function frame(width, height, xs, ys, { x = {}, y = {}, xFormat = number, yFormat = number, xTitle = "", yTitle = "" }) {
  const margin = { left: 46, right: 14, top: 24, bottom: 40 };
  const xScale = scale(xs, margin.left + 8, width - margin.right, { count: Math.max(2, Math.floor(width / 95)), ...x });
  const yScale = scale(ys, height - margin.bottom, margin.top, { count: 5, ...y });
  const bottom = height - margin.bottom;
  const parts = [
    yScale.ticks.map((v) => [
      s("line", { class: "rule", x1: margin.left, x2: width - margin.right, y1: yScale.place(v), y2: yScale.place(v) }),
      s("text", { x: margin.left - 7, y: yScale.place(v) + 4, "text-anchor": "end" }, short(yFormat)(v)),
    ]),
    s("line", { class: "axis", x1: margin.left, x2: width - margin.right, y1: bottom, y2: bottom }),
    xScale.ticks.map((v) => [
      s("line", { class: "axis", x1: xScale.place(v), x2: xScale.place(v), y1: bottom, y2: bottom + 4 }),
      s("text", { x: xScale.place(v), y: bottom + 17, "text-anchor": "middle" }, short(xFormat)(v)),
    ]),
    s("text", { x: (margin.left + width - margin.right) / 2, y: height - 5, "text-anchor": "middle" }, cut(xTitle, width / 8) + (xScale.log ? " (logarithmic)" : "")),
    s("text", { x: 0, y: 11 }, cut(yTitle, width / 7)),
  ].flat(Infinity);
  return { xScale, yScale, parts, bottom, margin };
}
