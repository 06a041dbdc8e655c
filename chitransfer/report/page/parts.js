"use strict";
/* Building blocks of the report: elements, formatted numbers, ticks and charts. */
const contents = JSON.parse(document.getElementById("data").textContent);
const page = document.getElementById("page"),
  tip = document.getElementById("tip");
const css = (name) => `var(--${name})`;
const draws = [];
const fmt = (v, n = 4) =>
  v === null || v === undefined
    ? "–"
    : typeof v === "number"
      ? Number.isInteger(v) && Math.abs(v) < 1e6
        ? String(v)
        : Math.abs(v) !== 0 && Math.abs(v) < 1e-3
          ? v.toExponential(2)
          : v.toFixed(n)
      : Array.isArray(v)
        ? v.join("_")
        : String(v);
const short = (v) => (typeof v === "number" ? String(Number(v.toPrecision(3))) : fmt(v));
function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "circle", "line", "path", "rect", "text", "polyline"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes))
    if (value !== null && value !== undefined) node.setAttribute(key, value);
  for (const child of children.flat()) if (child !== null && child !== undefined) node.append(child);
  return node;
}
function hint(node, text) {
  const show = (event) => {
    tip.textContent = text;
    tip.style.display = "block";
    const b = tip.getBoundingClientRect();
    tip.style.left = Math.max(6, Math.min(event.clientX + 14, innerWidth - b.width - 8)) + "px";
    tip.style.top =
      Math.max(6, event.clientY + 16 + b.height > innerHeight ? event.clientY - b.height - 10 : event.clientY + 16) +
      "px";
  };
  node.addEventListener("pointermove", show);
  node.addEventListener("pointerdown", show);
  node.addEventListener("pointerleave", () => {
    tip.style.display = "none";
  });
  return node;
}
const section = (title, note, ...children) =>
  el("section", {}, el("h2", {}, title), note ? el("p", { class: "note" }, note) : null, ...children);
function ticks({ domain: [low, high], whole }, n) {
  const span = high - low || 1,
    raw = Math.max(span / n, whole ? 1 : 0),
    power = 10 ** Math.floor(Math.log10(raw)),
    unit = raw / power;
  const step = power * (unit < 1.5 ? 1 : unit < 3.5 ? 2 : unit < 7.5 ? 5 : 10),
    found = [];
  for (let t = Math.ceil(low / step) * step; t <= high + step * 1e-9; t += step) found.push(Number(t.toPrecision(12)));
  return found;
}
/* Tick labels, all with the number of decimals that the most precise one needs. */
const named = (ticks) => {
  const decimals = Math.max(...ticks.map((t) => (String(t).split(".")[1] || "").length));
  return ticks.map((t) => (String(t).includes("e") ? String(t) : t.toFixed(decimals)));
};
/* Rows are lists of cells, each a text or a td; the first cell is the row's header. */
const table = (columns, rows, look = "scroll") =>
  el(
    "div",
    { class: look },
    el(
      "table",
      {},
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          columns.map((c) => el("th", { scope: "col" }, c)),
        ),
      ),
      el(
        "tbody",
        {},
        rows.map(([name, ...cells]) =>
          el(
            "tr",
            {},
            el("th", { scope: "row" }, name),
            cells.map((c) => (c instanceof Node ? c : el("td", {}, c))),
          ),
        ),
      ),
    ),
  );
const extent = (values, pad = 0.06) => {
  const low = Math.min(...values),
    high = Math.max(...values),
    room = (high - low || Math.abs(high) || 1) * pad;
  return [low - room, high + room];
};
/* A chart with axes, redrawn when its width changes; `title` is for screen readers; x and y are {domain, label, ticks?,
   labels?, log?, whole?}. */
function chart(title, height, x, y, paint) {
  const box = el("div");
  const draw = () => {
    const w = Math.max(240, box.clientWidth || 600),
      h = height,
      yt = y.ticks || ticks(y, 5),
      yl = y.labels || named(yt);
    /* Leave room for the axis label next to the longest tick label, at 7.5 pixels per letter. */
    const m = { l: Math.max(56, 30 + 7.5 * Math.max(...yl.map((label) => label.length))), r: 14, t: 10, b: 44 };
    const scale = (axis, from, to) => {
      const f = axis.log ? Math.log : (v) => v,
        [a, b] = axis.domain.map(f);
      return (v) => from + ((f(v) - a) / (b - a || 1)) * (to - from);
    };
    const sx = scale(x, m.l, w - m.r),
      sy = scale(y, h - m.b, m.t),
      svg = el("svg", { viewBox: `0 0 ${w} ${h}`, role: "img", "aria-label": title });
    const xt = x.ticks || ticks(x, Math.max(3, Math.min(8, Math.floor(w / 80)))),
      xl = x.labels || named(xt);
    xt.forEach((t, i) =>
      svg.append(
        el("line", { class: "grid", x1: sx(t), x2: sx(t), y1: m.t, y2: h - m.b }),
        el("text", { x: sx(t), y: h - m.b + 16, "text-anchor": "middle" }, xl[i]),
      ),
    );
    yt.forEach((t, i) =>
      svg.append(
        el("line", { class: "grid", x1: m.l, x2: w - m.r, y1: sy(t), y2: sy(t) }),
        el("text", { x: m.l - 7, y: sy(t) + 4, "text-anchor": "end" }, yl[i]),
      ),
    );
    svg.append(
      el("text", { x: (m.l + w - m.r) / 2, y: h - 6, "text-anchor": "middle" }, x.label || ""),
      el(
        "text",
        { x: 0, y: 0, transform: `translate(13 ${(m.t + h - m.b) / 2}) rotate(-90)`, "text-anchor": "middle" },
        y.label || "",
      ),
    );
    paint(svg, sx, sy, { w, h, m });
    box.replaceChildren(svg);
  };
  draws.push(draw);
  return box;
}
