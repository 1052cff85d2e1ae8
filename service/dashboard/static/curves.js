// Curves of one job or of several, on axes that move together.

import { h, number } from "./api.js";

/** What is drawn together: a title, names of metrics with what they are called here, and a bound that some jobs have. */
export const CHARTS = [
  { title: "Reward", lines: { train_mean_reward: "training", full_valid_mean_reward: "validation" } },
  {
    title: "KL divergence to the sampling policy, nats",
    lines: { "troll.kl_before": "before projection", "troll.kl_after": "after" },
    bound: "kl_bound",
  },
  { title: "Share of tokens held back", lines: { "troll.fraction_projected": "projected", "troll.fraction_clipped": "clipped" } },
  { title: "Entropy, nats", lines: { "troll.entropy": "entropy" } },
  { title: "Probability ratio", lines: { "troll.ratio": "mean", "troll.ratio_max": "largest" } },
  {
    title: "Tokens of an answer",
    lines: { completion_tokens_mean: "training", valid_completion_tokens_mean: "validation" },
  },
  { title: "Share of answers cut short", lines: { "completions.clipped_ratio": "cut" } },
  { title: "Share of prompts without a difference in reward", lines: { frac_reward_zero_std: "share" } },
  { title: "Loss", lines: { train_loss: "training", valid_loss: "validation", "troll.policy_loss": "policy" } },
  {
    title: "Accuracy of tokens",
    lines: { train_mean_token_accuracy: "training", valid_mean_token_accuracy: "validation" },
  },
  { title: "Gradient norm", lines: { "troll.grad_norm": "mean", "troll.grad_norm_max": "largest" } },
  { title: "Value function", lines: { "troll.value_loss": "loss", "troll.explained_variance": "explained variance" } },
  { title: "KL divergence to the reference", lines: { "troll.reference_kl": "reference" } },
  { title: "Mismatch of sampler and trainer, KL", lines: { "troll.mismatch_kl_k3": "k3" } },
  {
    title: "Seconds of a step",
    lines: {
      "timing.step.sampling": "sampling",
      "timing.step.grading": "grading",
      "timing.step.training": "training",
      "timing.step.sync": "sync",
      "timing.step.eval": "evaluation",
    },
  },
];
/** Charts of validation sets of these names, one line for each. */
export function chartsOfSets(names) {
  if (!names.length) return [];
  const lines = (metric) => Object.fromEntries(names.map((name) => [`validation_sets.${name}.${metric}`, name]));
  return [
    { title: "Validation sets: mean reward", lines: lines("mean_at_k") },
    { title: "Validation sets: reward of the most frequent answer", lines: lines("majority_at_k") },
    { title: "Validation sets: reward of the best answer", lines: lines("best_at_k") },
  ];
}
export const namesOf = (charts) => charts.flatMap((chart) => Object.keys(chart.lines));
export const AXES = { step: "step", seconds: "seconds since the first step", tokens: "tokens learned from" };

/** Where a job's metrics of these `names` are, of the steps `between` two or of all. */
export function metricsPath(job, names, { points = 400, between } = {}) {
  const query = names.map((name) => `names[]=${encodeURIComponent(name)}`);
  if (between) query.push(`start_step=${between[0]}`, `end_step=${between[1]}`);
  return `/v1/fine_tuning/jobs/${encodeURIComponent(job)}/metrics?points=${points}&${query.join("&")}`;
}

export const isNumber = (value) => value !== null && value !== undefined;

/** The names of which there is a number. */
export const present = (columns) => Object.keys(columns.values).filter((name) => columns.values[name].some(isNumber));

/** `whole` with the points of `part`, which are closer together, in the place of its own. */
export function merged(whole, part) {
  if (!part?.step.length) return whole;
  const [first, last] = [part.step[0], part.step.at(-1)];
  const before = whole.step.findIndex((step) => step >= first);
  const behind = whole.step.findIndex((step) => step > last);
  const join = (own, finer) => [
    ...own.slice(0, before < 0 ? own.length : before),
    ...(finer ?? part.step.map(() => null)),
    ...(behind < 0 ? [] : own.slice(behind)),
  ];
  const axes = Object.keys(AXES).map((axis) => [axis, join(whole[axis], part[axis])]);
  const values = Object.entries(whole.values).map(([name, own]) => [name, join(own, part.values[name])]);
  return { ...Object.fromEntries(axes), values: Object.fromEntries(values) };
}

/** A number of an event's data under a dotted name. */
export function dig(data, name) {
  const value = name.split(".").reduce((inner, key) => inner?.[key], data);
  return typeof value === "number" ? value : null;
}

const colour = (n) => getComputedStyle(document.documentElement).getPropertyValue(`--c${n % 8}`).trim();
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const SETTLE_MS = 120;
const ZOOM = 1.5;

/** The part of a run that charts show. The one at hand moves at once, the others and `settled` when it has come to rest. */
export class View {
  constructor(settled) {
    Object.assign(this, { settled, charts: new Set(), extent: [0, 1], range: null });
    this.told = h("span", { class: "faint", role: "status" });
    const button = (text, label, move) => h("button", { type: "button", "aria-label": label, title: label, onclick: move }, text);
    this.toolbar = h(
      "div",
      { class: "row", role: "group", "aria-label": "Part of the run that is shown" },
      button("+", "Zoom in", () => this.zoom(1 / ZOOM)),
      button("−", "Zoom out", () => this.zoom(ZOOM)),
      button("←", "Earlier", () => this.shift(-0.25)),
      button("→", "Later", () => this.shift(0.25)),
      button("All", "All of the run", () => this.move(null)),
      this.told,
      h("span", { class: "faint hint" }, "Drag over a chart to zoom in, with Shift to move; Ctrl and the wheel zoom, a double click shows all."),
    );
  }

  get shown() {
    return this.range ?? this.extent;
  }

  zoom(by, at = 0.5, chart = undefined) {
    const [low, high] = this.shown;
    const centre = low + at * (high - low);
    this.move([centre - at * (high - low) * by, centre + (1 - at) * (high - low) * by], chart);
  }

  shift(share, chart = undefined) {
    const [low, high] = this.shown;
    const by = share * (high - low);
    this.move([low + by, high + by], chart);
  }

  move(range, chart = undefined) {
    const [first, last] = this.extent;
    if (range) {
      const width = Math.min(Math.max(range[1] - range[0], (last - first) / 1e5), last - first);
      const low = Math.min(Math.max(range[0], first), last - width);
      range = width >= last - first ? null : [low, low + width];
    }
    this.range = range;
    chart?.show();
    clearTimeout(this.rest);
    this.rest = setTimeout(() => this.#settle(chart), chart ? SETTLE_MS : 0);
  }

  #settle(chart) {
    for (const each of this.charts) if (each !== chart) each.show();
    this.told.textContent = this.range ? `${number(this.range[0], 6)} to ${number(this.range[1], 6)}` : "";
    this.settled(this.range);
  }
}

const FRAME_MS = 8;
const waiting = new Set();

/** Draws charts one after the other, so that the first one is seen and the page answers before the last one is drawn. */
function drawWaiting() {
  const began = performance.now();
  for (const chart of waiting) {
    waiting.delete(chart);
    chart.draw();
    if (performance.now() - began > FRAME_MS) break;
  }
  if (waiting.size) requestAnimationFrame(drawWaiting);
}

function drawSoon(chart) {
  if (!waiting.size) requestAnimationFrame(drawWaiting);
  waiting.add(chart);
}

const nearby = new IntersectionObserver((entries) => entries.forEach(({ target, isIntersecting }) => target.chart.near(isIntersecting)), {
  rootMargin: "200px",
});

/** One chart of a `view`; `series` are labels. It is drawn while it is near what can be seen of the page. */
export class Chart {
  constructor(title, series, group, view, { axis = "step", latest = true } = {}) {
    this.now = h("span", { class: "now" });
    this.place = h("div", { class: "plot" });
    this.figure = h("figure", { class: "chart", role: "img", hidden: true }, h("figcaption", {}, title, this.now), this.place);
    this.figure.chart = this;
    Object.assign(this, { title, series, group, view, axis, latest, drawn: "" });
    view.charts.add(this);
    nearby.observe(this.figure);
    new ResizeObserver(() => this.place.clientWidth && this.plot?.setSize(this.#size())).observe(this.place);
  }

  /**
   * `lines` are the values of each series, for what is said of it; `columns` gives `[x, y…]` of those in its list: of
   * series that have numbers, or of `all`.
   */
  set(lines, columns, all = false) {
    const known = lines.map((_, n) => n).filter((n) => lines[n]?.some(isNumber));
    this.figure.hidden = !known.length;
    if (!known.length) return;
    const shown = all ? this.series.map((_, n) => n) : known;
    const last = known.map((n) => `${this.series[n]} ${number(lines[n].findLast(isNumber))}`);
    this.now.textContent = this.latest && known.length <= 3 ? last.join(", ") : "";
    this.figure.setAttribute("aria-label", `${this.title}, at the end: ${last.join(", ")}`);
    Object.assign(this, { shown, columns });
    if (this.isNear) drawSoon(this);
  }

  near(isNear) {
    this.isNear = isNear;
    if (!isNear) {
      // Its place stays as high as it was, so that the page does not jump.
      if (this.plot) this.place.style.minHeight = `${this.place.clientHeight}px`;
      this.plot?.destroy();
      Object.assign(this, { plot: undefined, drawn: "" });
    } else if (this.columns) drawSoon(this);
  }

  /** Shows the part of the view that is to be seen. */
  show() {
    const [min, max] = this.view.shown;
    this.plot?.setScale("x", { min, max });
  }

  draw() {
    if (!this.isNear) return;
    const columns = this.columns(this.shown);
    if (this.drawn === String(this.shown)) {
      this.plot.batch(() => {
        this.plot.setData(columns, !this.view.range);
        if (this.view.range) this.show();
      });
      return;
    }
    this.plot?.destroy();
    this.drawn = String(this.shown);
    this.plot = new uPlot(this.#options(this.shown, columns[0].length), columns, this.place);
    this.place.style.minHeight = "";
    if (this.view.range) this.show();
  }

  #size() {
    return { width: this.place.clientWidth || 320, height: 190 };
  }

  #options(shown, points) {
    const grid = { stroke: style("--line"), width: 1 };
    const axis = { stroke: style("--faint"), grid, ticks: grid, font: "12px system-ui" };
    const ticks = (_, values) => values.map((value) => number(value));
    const flat = (low, high) => (low === high ? [Math.min(low, 0), Math.max(high, 0) || Number(low === 0)] : uPlot.rangeNum(low, high, 0.1, true));
    return {
      ...this.#size(),
      cursor: {
        sync: { key: this.group, filters: { pub: (type) => type === "mousemove" || type === "mouseleave" } },
        drag: { x: true, y: false, setScale: false },
        bind: {
          mousedown: (plot, _, zoom) => (event) => (event.shiftKey ? this.#pan(plot, event) : zoom(event)),
          dblclick: () => () => this.view.move(null),
        },
      },
      hooks: {
        ready: [(plot) => plot.over.addEventListener("wheel", (event) => this.#wheel(plot, event), { passive: false })],
        setSelect: [(plot) => this.#select(plot)],
      },
      scales: { x: { time: false }, y: { range: (_, low, high) => flat(low, high) } },
      axes: [{ ...axis, size: 30 }, { ...axis, size: 56, values: ticks }],
      series: [
        { label: AXES[this.axis].split(" ")[0], value: (_, value) => number(value ?? null, 6) },
        ...shown.map((n) => ({
          label: this.series[n],
          stroke: colour(n),
          width: 1.5,
          spanGaps: true,
          points: { show: points < 30 },
          value: (_, value) => number(value ?? null, 4),
        })),
      ],
    };
  }

  #select(plot) {
    const { left, width } = plot.select;
    if (width < 3) return;
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.view.move([plot.posToVal(left, "x"), plot.posToVal(left + width, "x")], this);
  }

  #wheel(plot, event) {
    if (!event.ctrlKey) return;
    event.preventDefault();
    const at = (event.clientX - plot.over.getBoundingClientRect().left) / plot.over.clientWidth;
    this.view.zoom(ZOOM ** (event.deltaY / 100), at, this);
  }

  #pan(plot, { clientX }) {
    const [low, high] = this.view.shown;
    const perPixel = (high - low) / plot.over.clientWidth;
    let due = 0;
    const move = (event) => {
      cancelAnimationFrame(due);
      const by = (clientX - event.clientX) * perPixel;
      due = requestAnimationFrame(() => this.view.move([low + by, high + by], this));
    };
    document.addEventListener("mousemove", move);
    document.addEventListener("mouseup", () => document.removeEventListener("mousemove", move), { once: true });
  }
}

/** A small picture of how a number went. */
export function spark(values) {
  const known = values.filter((value) => value !== null);
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 100 20");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("class", "spark");
  svg.setAttribute("role", "img");
  const last = known.at(-1);
  svg.setAttribute("aria-label", known.length ? `reward, now ${number(last)}` : "no reward yet");
  if (known.length > 1) {
    const [low, high] = [Math.min(...known), Math.max(...known)];
    const at = (value, n) => `${(n / (known.length - 1)) * 100},${19 - ((value - low) / (high - low || 1)) * 18}`;
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
    path.setAttribute("d", `M${known.map(at).join("L")}`);
    svg.append(path);
  }
  return svg;
}
