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

export function metricsPath(job, charts, points = 400) {
  const query = namesOf(charts).map((name) => `names[]=${encodeURIComponent(name)}`).join("&");
  return `/v1/fine_tuning/jobs/${encodeURIComponent(job)}/metrics?points=${points}&${query}`;
}

/** A number of an event's data under a dotted name. */
export function dig(data, name) {
  const value = name.split(".").reduce((inner, key) => inner?.[key], data);
  return typeof value === "number" ? value : null;
}

const colour = (n) => getComputedStyle(document.documentElement).getPropertyValue(`--c${n % 8}`).trim();
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/** One chart: `series` are labels; `set` draws columns `[x, y…]`, of which those without a number are left out. */
export class Chart {
  constructor(title, series, group, { axis = "step", latest = true } = {}) {
    this.now = h("span", { class: "now" });
    this.place = h("div");
    this.figure = h("figure", { class: "chart", role: "img", hidden: true }, h("figcaption", {}, title, this.now), this.place);
    Object.assign(this, { title, series, group, axis, latest, drawn: "" });
    new ResizeObserver(() => this.place.clientWidth && this.plot?.setSize(this.#size())).observe(this.place);
  }

  set([x, ...lines]) {
    const shown = lines.map((_, n) => n).filter((n) => lines[n].some((value) => value !== null && value !== undefined));
    this.figure.hidden = !shown.length;
    if (!shown.length) return;
    const last = shown.map((n) => `${this.series[n]} ${number(lines[n].findLast((v) => v !== null && v !== undefined))}`);
    this.now.textContent = this.latest && shown.length <= 3 ? last.join(", ") : "";
    this.figure.setAttribute("aria-label", `${this.title}, at the end: ${last.join(", ")}`);
    const columns = [x, ...shown.map((n) => lines[n])];
    if (this.drawn === String(shown)) {
      this.plot.setData(columns);
      return;
    }
    this.plot?.destroy();
    this.drawn = String(shown);
    this.plot = new uPlot(this.#options(shown, x.length), columns, this.place);
  }

  #size() {
    return { width: this.place.clientWidth || 320, height: 190 };
  }

  #options(shown, points) {
    const grid = { stroke: style("--line"), width: 1 };
    const axis = { stroke: style("--faint"), grid, ticks: grid, font: "12px system-ui" };
    const ticks = (_, values) => values.map((value) => number(value));
    const flat = (low, high) => (low === high ? [Math.min(low, 0), high || 1] : uPlot.rangeNum(low, high, 0.1, true));
    return {
      ...this.#size(),
      cursor: { sync: { key: this.group }, drag: { x: true, y: false } },
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
