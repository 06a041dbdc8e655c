/* Supporting evidence: Stage 1 against transfer, predictions, luck, a comparison, every trial, provenance. */
const measured = complete.filter((t) => t.components.stage1_mae !== null);
/* In a second pass all trials share their Stage 1, so there is nothing to plot. */
if (new Set(measured.map((t) => t.components.stage1_mae)).size > 1) {
  const insight = contents.insight,
    body = [
      chart(
        "Objective without its Stage 1 term against Stage 1 loss, a point per trial",
        330,
        { domain: extent(measured.map((t) => t.components.stage1_mae)), label: contents.components.stage1_mae },
        { domain: extent(measured.map((t) => t.transfer)), label: contents.transfer_title },
        (svg, sx, sy) =>
          ordered
            .filter((t) => measured.includes(t))
            .forEach((t) => svg.append(dot(t, sx(t.components.stage1_mae), sy(t.transfer)))),
      ),
    ];
  if (insight)
    body.push(
      words(insight.sentences),
      table(
        ["parameter", "ρ with Stage 1 MAE", "ρ with transfer"],
        insight.effects.map((e) => [e.name, e.on_stage1.toFixed(2), e.on_transfer.toFixed(2)]),
      ),
      el("p", { class: "note" }, "Negative: larger values of the parameter lower that loss."),
    );
  page.append(
    section(
      "Stage 1 loss against transfer",
      "The guide's Key Insight on these data: would tuning Stage 1 for itself have found the same?",
      ...body,
    ),
  );
}
if (contents.objectives.length) {
  const [a, b] = contents.objectives,
    front = new Set(contents.pareto);
  page.append(
    section(
      "Pareto front",
      `No trial beats these on all of ${contents.objectives.map((n) => contents.components[n]).join(", ")}.`,
      chart(
        `Pareto front: ${contents.components[b]} against ${contents.components[a]}`,
        330,
        { domain: extent(complete.map((t) => t.components[a])), label: contents.components[a] },
        { domain: extent(complete.map((t) => t.components[b])), label: contents.components[b] },
        (svg, sx, sy) =>
          complete.forEach((t) => {
            const node = dot(t, sx(t.components[a]), sy(t.components[b]));
            node.setAttribute("fill", front.has(t.number) ? css("best") : css("trial"));
            svg.append(node);
          }),
      ),
      table(
        ["trial", ...contents.objectives.map((n) => contents.components[n]), "objective"],
        complete
          .filter((t) => front.has(t.number))
          .map((t) => [String(t.number), ...contents.objectives.map((n) => fmt(t.components[n])), fmt(t.value)]),
      ),
    ),
  );
}
const fold = contents.out_of_fold,
  blocks = [];
if (fold.chi) {
  const range = extent([...fold.chi.measured, ...fold.chi.predicted], 0.04);
  blocks.push(
    section(
      "Measured against predicted χ",
      `Trial ${contents.chosen}, out of fold, mean over repeats; ${fold.chi.measured.length} rows.`,
      chart(
        "Predicted against measured χ, a point per row",
        380,
        { domain: range, label: "measured χ" },
        { domain: range, label: "predicted χ" },
        (svg, sx, sy) => {
          svg.append(
            el("line", {
              x1: sx(range[0]),
              x2: sx(range[1]),
              y1: sy(range[0]),
              y2: sy(range[1]),
              stroke: css("trivial"),
              "stroke-dasharray": "4 4",
            }),
          );
          fold.chi.measured.forEach((v, i) =>
            svg.append(
              hint(
                el("circle", {
                  class: "dot",
                  cx: sx(v),
                  cy: sy(fold.chi.predicted[i]),
                  r: 3.2,
                  fill: css("trial"),
                  "fill-opacity": 0.45,
                }),
                `${fold.chi.label[i]}\nmeasured ${fmt(v, 3)}, predicted ${fmt(fold.chi.predicted[i], 3)}`,
              ),
            ),
          );
        },
      ),
    ),
  );
}
if (fold.roc)
  blocks.push(
    section(
      "ROC of solubility",
      `Trial ${contents.chosen}, out of fold, a curve per repeat; positive: ${fold.roc.positive}; ` +
        `AUC ${fmt(best.components.sol_auc, 3)}.`,
      chart(
        "ROC curves of solubility, one per repeat",
        380,
        { domain: [0, 1], label: "false positive rate" },
        { domain: [0, 1], label: "true positive rate" },
        (svg, sx, sy) => {
          svg.append(
            el("line", {
              x1: sx(0),
              x2: sx(1),
              y1: sy(0),
              y2: sy(1),
              stroke: css("trivial"),
              "stroke-dasharray": "4 4",
            }),
          );
          fold.roc.curves.forEach((c) =>
            svg.append(
              el("polyline", {
                points: c.map((p) => `${sx(p[0])},${sy(p[1])}`).join(" "),
                fill: "none",
                stroke: css("best"),
                "stroke-width": 1.8,
                "stroke-opacity": 0.75,
              }),
            ),
          );
        },
      ),
    ),
  );
if (blocks.length) page.append(el("div", { class: "two row" }, blocks));

if (contents.guard) {
  const g = contents.guard,
    by = new Map(g.fresh.map((f) => [f.number, f])),
    body = [words(g.sentences)];
  const rows = [
    ["objective", corrected.value, g.corrected],
    ...Object.entries(g.corrected_components).map(([k, v]) => [contents.components[k] || k, corrected.components[k], v]),
  ];
  body.push(
    el("h3", {}, "Raw and corrected"),
    table(
      [
        "metric",
        `trial ${corrected.number}${correctedIsChosen ? "" : ", the best of the search"}, raw`,
        "corrected",
        "95 % interval",
      ],
      rows.map(([t, raw, c]) => [t, fmt(raw), fmt(c.value), `${fmt(c.low, 3)} to ${fmt(c.high, 3)}`]),
    ),
  );
  if (g.fresh.length)
    body.push(
      el("h3", {}, "Again, on fresh seeds and folds"),
      table(
        ["trial", "in the search", "fresh mean", "fresh runs"],
        g.fresh.map((f) => [
          `${f.number}${f.is_default ? ` (${contents.names.column})` : ""}`,
          fmt(complete.find((t) => t.number === f.number).value),
          fmt(f.value),
          Object.entries(f.runs)
            .filter(([n]) => g.fresh.every((other) => n in other.runs))
            .map(([, v]) => v.toFixed(4))
            .join(", "),
        ]),
      ),
    );
  page.append(
    section(
      "How much of it is luck",
      `The best of many noisy trials looks better than it is. Corrected: ${g.n_draws} bootstrap draws over ` +
        `${g.n_polymers} polymers; the trial is chosen on the polymers drawn and scored on those left out ` +
        "(BBC-CV, doi 10.1007/s10994-018-5714-4).",
      ...body,
    ),
  );
}
if (contents.comparison) {
  const c = contents.comparison,
    columns = Object.keys(c.columns),
    body = [words(c.verdict)];
  for (const protocol of new Set(c.rows.map((r) => r.protocol))) {
    const own = c.rows.filter((r) => r.protocol === protocol),
      top = Object.fromEntries(
        columns.map((k) => {
          const v = own.map((r) => r[k]).filter((x) => x !== null);
          return [k, c.lower.includes(k) ? Math.min(...v) : Math.max(...v)];
        }),
      );
    body.push(
      el("h3", {}, protocol),
      table(
        ["row", ...columns.map((k) => c.columns[k])],
        own.map((r) => [
          r.title,
          ...columns.map((k) => el("td", { class: r[k] === top[k] ? "win" : null }, fmt(r[k], 3))),
        ]),
        "scroll wide",
      ),
    );
  }
  page.append(
    section(
      "On polymers no search ever saw",
      "Outer folds of whole polymers; the best of each column in bold.",
      ...body,
    ),
  );
}
const shownComponents = Object.keys(contents.components).filter(
    (k) =>
      ["exp_mae", "sol_f1", "sol_recall", "stage1_mae"].includes(k) && complete.some((t) => t.components[k] !== null),
  ),
  names = contents.axes.map((a) => a.name);
page.append(
  section(
    "All trials",
    null,
    el(
      "details",
      {},
      el("summary", {}, `${contents.trials.length} trials as a table`),
      table(
        ["trial", "state", "objective", ...shownComponents.map((k) => contents.components[k]), ...names],
        contents.trials.map((t) => [
          `${t.number}${t.number === contents.chosen ? " (chosen)" : ""}${t.is_default ? ` (${contents.names.column})` : ""}`,
          t.state.toLowerCase(),
          fmt(t.value),
          ...shownComponents.map((k) => fmt(t.components[k])),
          ...names.map((n) => short(t.params[n])),
        ]),
      ),
    ),
  ),
);
const failed = contents.trials.filter((t) => t.state === "FAIL");
if (failed.length)
  page.append(
    section("Failed trials", null, words(failed.map((t) => `trial ${t.number}: ${t.reason || "no reason given"}`))),
  );
const entries = { ...contents.sources, ...contents.environment };
page.append(
  section(
    "Where it comes from",
    null,
    el(
      "dl",
      {},
      Object.entries(entries)
        .filter(([, v]) => v)
        .flatMap(([k, v]) => [el("dt", {}, k), el("dd", {}, v)]),
    ),
  ),
);
const redraw = () => draws.forEach((draw) => draw());
let width = innerWidth;
addEventListener("resize", () => {
  if (innerWidth !== width) {
    width = innerWidth;
    redraw();
  }
});
redraw();
