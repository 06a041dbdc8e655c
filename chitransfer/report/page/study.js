/* The study: a summary of its trials in words, tables and charts of the objective. */
const complete = contents.trials.filter((t) => t.state === "COMPLETE");
const colour = (t) =>
  css(t.number === contents.chosen ? "best" : t.number === contents.default ? "default" : "trial");
const describe = (t) =>
  [
    `trial ${t.number}${t.number === contents.chosen ? " (chosen)" : ""}${t.is_default ? ` (${contents.names.default})` : ""}`,
    `objective ${fmt(t.value)}`,
    ...Object.entries(t.components)
      .filter(([k, v]) => v !== null && ["exp_mae", "sol_f1", "sol_recall", "stage1_mae"].includes(k))
      .map(([k, v]) => `${contents.components[k]} ${fmt(v)}`),
    ...Object.entries(t.params).map(([k, v]) => `${k} = ${short(v)}`),
  ].join("\n");
const ordered = [...complete].sort(
  (a, b) =>
    (a.number === contents.chosen) - (b.number === contents.chosen) ||
    (a.number === contents.default) - (b.number === contents.default),
);
const dot = (t, cx, cy) =>
  hint(
    el("circle", {
      class: "dot",
      cx,
      cy,
      r: t.number === contents.chosen || t.number === contents.default ? 7 : 4.5,
      fill: colour(t),
      "fill-opacity": t.number === contents.chosen || t.number === contents.default ? 1 : 0.7,
    }),
    describe(t),
  );
const legend = (...items) =>
  el(
    "div",
    { class: "legend" },
    items.map(([c, text]) => el("span", {}, el("i", { style: `background:${c}` }), text)),
  );
const words = (lines) =>
  el(
    "ul",
    { class: "words" },
    lines.map((line) =>
      el(
        "li",
        { class: /^WARNING|ABOVE CHANCE|the search hurt|Stage 1 hurts|made things worse/.test(line) ? "warn" : null },
        line,
      ),
    ),
  );
const values = complete.map((t) => t.value),
  best = complete.find((t) => t.number === contents.chosen),
  usual = complete.find((t) => t.number === contents.default);
/* The guard corrects the search's best trial, which search.select does not necessarily choose. */
const corrected = contents.guard && complete.find((t) => t.number === contents.guard.best_trial),
  correctedIsChosen = corrected === best;

page.append(el("header", {}, el("h1", {}, contents.name), el("p", {}, `${contents.subtitle} · chitransfer`)));
const cards = [[fmt(best.value), `objective of trial ${best.number}, chosen`]];
if (contents.guard)
  cards.push([
    fmt(contents.guard.corrected.value),
    correctedIsChosen
      ? "the same, corrected for selection bias"
      : `${fmt(corrected.value)} of trial ${corrected.number}, the best of the search, ` +
        "corrected for selection bias",
  ]);
if (usual) cards.push([fmt(usual.value), contents.names.default]);
if (contents.forest !== null) cards.push([fmt(contents.forest), "random forest"]);
if (contents.trivial !== null) cards.push([fmt(contents.trivial), "trivial predictor"]);
cards.push([String(complete.length), `trials complete of ${contents.trials.length}`]);
page.append(
  el(
    "div",
    { class: "cards" },
    cards.map(([n, what]) => el("div", { class: "card" }, el("b", {}, n), el("span", {}, what))),
  ),
);
page.append(section("In words", null, words(contents.summary)));

const scoreTable = table(
  ["metric", "chosen", "± spread", contents.names.column, "random forest", "trivial"],
  contents.scores.map((r) => [r.title, ...[r.chosen, r.spread, r.default, r.forest, r.trivial].map((v) => fmt(v))]),
);
const paramTable = table(
  ["parameter", "chosen", contents.names.column],
  contents.parameters.map((r) => [el("span", { title: r.key }, r.name), short(r.chosen), short(r.default)]),
);
page.append(
  el(
    "div",
    { class: "two row scores" },
    section(
      "Scores",
      "Out-of-fold on whole polymers left out; the spread is that of fold shuffles and Stage 1 runs of the one trial. " +
        "What the choice is worth is below, under “How much of it is luck”.",
      scoreTable,
    ),
    section("Best parameters", `Of the chosen trial, beside the ${contents.names.default}.`, paramTable),
  ),
);

const isNear = (level) =>
  level !== null && level < Math.max(...values) + 0.6 * (Math.max(...values) - Math.min(...values));
const levels = [];
if (usual) levels.push({ value: usual.value, color: "default", label: contents.names.default });
if (isNear(contents.forest)) levels.push({ value: contents.forest, color: "forest", label: "random forest" });
if (isNear(contents.trivial)) levels.push({ value: contents.trivial, color: "trivial", label: "trivial predictor" });
if (contents.guard)
  levels.push({
    value: contents.guard.corrected.value,
    color: "good",
    label: correctedIsChosen ? "corrected value" : `corrected value of trial ${corrected.number}`,
  });
const running = [];
complete.forEach((t) => running.push(Math.min(t.value, running.length ? running[running.length - 1] : Infinity)));
page.append(
  section(
    "History",
    "Every complete trial; touch or point at one for its numbers, which are also in the table of all trials below.",
    chart(
      "History: objective of every complete trial, and the best so far",
      320,
      {
        domain: extent(
          complete.map((t) => t.number),
          0.02,
        ),
        label: "trial",
        whole: true,
      },
      { domain: extent([...values, ...levels.map((l) => l.value)]), label: "objective (lower is better)" },
      (svg, sx, sy, { w, m }) => {
        levels.forEach((l) =>
          svg.append(
            el("line", {
              x1: m.l,
              x2: w - m.r,
              y1: sy(l.value),
              y2: sy(l.value),
              stroke: css(l.color),
              "stroke-dasharray": "5 4",
            }),
          ),
        );
        let path = "";
        complete.forEach((t, i) => {
          path += i ? `H${sx(t.number)}V${sy(running[i])}` : `M${sx(t.number)},${sy(running[i])}`;
        });
        svg.append(el("path", { d: path, fill: "none", stroke: css("best"), "stroke-width": 2 }));
        ordered.forEach((t) => svg.append(dot(t, sx(t.number), sy(t.value))));
      },
    ),
    legend(
      [css("trial"), "trial"],
      [css("best"), "chosen; best so far"],
      ...levels.map((l) => [css(l.color), l.label]),
    ),
  ),
);

const importanceBlocks = Object.entries(contents.importances).map(([method, shares]) => {
  const names = Object.keys(shares),
    top = Math.max(...Object.values(shares));
  return el(
    "div",
    {},
    el("h3", {}, method),
    chart(
      `Importance by ${method}: ${names.map((n) => `${n} ${shares[n].toFixed(2)}`).join(", ")}`,
      34 * names.length + 54,
      { domain: [0, top * 1.12], label: "share" },
      { domain: [names.length - 0.5, -0.5], ticks: [] },
      (svg, sx, sy, { m }) =>
        names.forEach((n, i) =>
          svg.append(
            el("rect", {
              x: m.l,
              y: sy(i) - 9,
              width: Math.max(1, sx(shares[n]) - m.l),
              height: 18,
              rx: 4,
              fill: css("trial"),
              "fill-opacity": 0.55,
            }),
            el("text", { x: m.l + 6, y: sy(i) + 4, class: "title" }, `${n}  ${shares[n].toFixed(2)}`),
          ),
        ),
    ),
  );
});
page.append(
  section(
    "Which hyperparameters matter",
    importanceBlocks.length
      ? "Two estimates of each parameter's share in the objective; where they disagree, the trials do not settle it."
      : "Not enough different trials to tell.",
    el("div", { class: "two" }, importanceBlocks),
  ),
);

const unit = (axis, p) => {
  const f = axis.is_log ? Math.log : (v) => v,
    t = axis.ticks.map(f),
    low = Math.min(...t),
    high = Math.max(...t);
  return high > low ? (f(p) - low) / (high - low) : 0.5;
};
/* A line through points, with a gap for missing ones: trials older than a parameter that was added to the space. */
const broken = (points) =>
  points
    .map((p, i) => p && (i && points[i - 1] ? "L" : "M") + p.join(","))
    .filter((p) => p)
    .join("");
const parallel = el("div");
draws.push(() => {
  const w = Math.max(300, parallel.clientWidth),
    narrow = w < 620,
    wide = narrow ? Math.max(w, 110 * (contents.axes.length + 1)) : w,
    h = 320,
    bottom = 22,
    n = contents.axes.length + 1,
    X = (i) => 42 + (i * (wide - 130)) / (n - 1),
    crowded = Math.max(...contents.axes.map((a) => a.name.length)) * 7.5 > X(1) - X(0),
    top = crowded ? 50 : 34,
    Y = (u) => h - bottom - u * (h - top - bottom);
  const [low, high] = [Math.min(...values), Math.max(...values)],
    svg = el("svg", {
      viewBox: `0 0 ${wide} ${h}`,
      role: "img",
      "aria-label": "Parallel coordinates: objective and hyperparameters of every complete trial",
      style: narrow ? `width:${wide}px` : null,
    });
  [...complete.map((t, i) => [t, i])]
    .sort((a, b) => b[0].value - a[0].value)
    .sort(
      (a, b) =>
        (a[0].number === contents.default) - (b[0].number === contents.default) ||
        (a[0].number === contents.chosen) - (b[0].number === contents.chosen),
    )
    .forEach(([t, i]) => {
      const u = high > low ? (t.value - low) / (high - low) : 0.5,
        special = t.number === contents.chosen || t.number === contents.default;
      svg.append(
        hint(
          el("path", {
            d: broken([
              [X(0), Y(u)],
              ...contents.axes.map((a, k) => (a.position[i] === null ? null : [X(k + 1), Y(unit(a, a.position[i]))])),
            ]),
            fill: "none",
            stroke: colour(t),
            "stroke-width": special ? 3 : 1.4,
            "stroke-opacity": special ? 1 : 0.12 + 0.6 * (1 - u),
          }),
          describe(t),
        ),
      );
    });
  for (let i = 0; i < n; i++)
    svg.append(
      el("line", { class: "axis", x1: X(i), x2: X(i), y1: Y(0), y2: Y(1) }),
      el(
        "text",
        {
          class: "title",
          x: X(i),
          y: crowded && i % 2 ? 32 : 16,
          "text-anchor": i ? "middle" : "start",
          dx: i ? 0 : -30,
        },
        i ? contents.axes[i - 1].name : "objective",
      ),
    );
  svg.append(
    el("text", { x: X(0) - 5, y: Y(0) + 4, "text-anchor": "end" }, low.toFixed(3)),
    el("text", { x: X(0) - 5, y: Y(1) + 4, "text-anchor": "end" }, high.toFixed(3)),
  );
  contents.axes.forEach((a, k) =>
    a.ticks.forEach((t, i) => svg.append(el("text", { x: X(k + 1) + 5, y: Y(unit(a, t)) + 4 }, a.labels[i]))),
  );
  parallel.replaceChildren(el("div", { class: "scroll" }, svg));
});
page.append(
  section(
    "Parallel coordinates",
    "A line per trial; the stronger the line, the lower its objective.",
    parallel,
    legend([css("best"), "chosen"], [css("default"), contents.names.default]),
  ),
);
page.append(
  section(
    "Slices",
    "Objective against each hyperparameter.",
    el(
      "div",
      { class: "slices" },
      contents.axes.map((a) =>
        chart(
          `Objective against ${a.name}`,
          230,
          {
            domain: a.is_log ? [Math.min(...a.ticks) * 0.93, Math.max(...a.ticks) * 1.07] : extent(a.ticks, 0.08),
            ticks: a.ticks,
            labels: a.labels,
            log: a.is_log,
            label: a.name,
          },
          { domain: extent(values), label: "objective" },
          (svg, sx, sy) =>
            ordered.forEach((t) => {
              const p = a.position[complete.indexOf(t)];
              if (p !== null) svg.append(dot(t, sx(p), sy(t.value)));
            }),
        ),
      ),
    ),
  ),
);
