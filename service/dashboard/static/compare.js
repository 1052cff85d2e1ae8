// Several jobs on the same axes.

import { failed, get, h, table } from "./api.js";
import { AXES, CHARTS, Chart, View, merged, metricsPath, namesOf, present } from "./curves.js";
import { MOST_COMPARED, chartsOf, path } from "./jobs.js";

const TOGETHER_MS = 100;
/** So many curves of each run are asked for at once: more than fit on a screen. The others come behind them. */
const FIRST = 9;
/** Of each curve, of several in a chart: one for every other pixel of a chart that has others beside it. */
const POINTS = 200;

const curvesOf = (id, names, signal, between) => get(metricsPath(id, names, { points: POINTS, between }), signal);

export async function page(main, ids, signal) {
  const compared = ids.slice(0, MOST_COMPARED);
  const first = compared.map((id) => curvesOf(id, namesOf(CHARTS).slice(0, FIRST), signal));
  // What fails is told by whoever waits for it.
  first.forEach((found) => found.catch(() => {}));
  const jobs = await Promise.all(compared.map((id) => get(path(id), signal)));
  const charts = chartsOf(jobs);
  const whole = jobs.map(() => ({ step: [], seconds: [], tokens: [], values: {} }));
  let curves = whole;
  const names = jobs.map((job) => job.user_provided_suffix ? `${job.user_provided_suffix} ${job.id.slice(-6)}` : job.id.slice(-6));
  const place = h("div", { class: "charts" });
  const axis = h("select", { onchange: () => draw() }, Object.entries(AXES).map(([value, text]) => h("option", { value }, text)));
  const view = new View((range) => zoomed(range).catch((error) => failed(error, signal)));
  /** The steps of a run that are in a part of the axis, and the next one on either side. */
  const stepsIn = ({ step, ...columns }, [low, high]) => {
    const at = { step, ...columns }[axis.value];
    const first = at.findLastIndex((value) => value < low);
    const behind = at.findIndex((value) => value > high);
    return [step[Math.max(first, 0)], step.at(behind < 0 ? -1 : behind)];
  };
  const zoomed = async (range) => {
    const look = (run, n) => {
      const names = present(run);
      return names.length ? curvesOf(jobs[n].id, names, signal, stepsIn(run, range)) : null;
    };
    const parts = range ? await Promise.all(whole.map(look)) : [];
    if (view.range !== range) return;
    curves = whole.map((run, n) => merged(run, parts[n]));
    fill();
  };
  const fill = () => {
    for (const { figure } of view.charts) {
      const { chart, metric } = figure;
      const lines = curves.map((each) => each.values[metric] ?? each.step.map(() => null));
      chart.set(lines, () => uPlot.join(curves.map((each, n) => [each[axis.value], lines[n]])), true);
    }
  };
  const measure = () => {
    const ends = whole.flatMap((each) => [each[axis.value][0], each[axis.value].at(-1)]).filter((value) => value !== undefined);
    if (ends.length) view.extent = [Math.min(...ends), Math.max(...ends)];
  };
  let due;
  // What comes shortly after one another is drawn together.
  const soon = () => {
    measure();
    due ??= setTimeout(() => {
      due = undefined;
      if (!view.range) fill();
    }, TOGETHER_MS);
  };
  const load = async (job, n) => {
    whole[n] = await first[n];
    soon();
    // Of each job what it has: all names of all jobs may be more than may be asked for at once.
    const metrics = namesOf(chartsOf([job]));
    const rest = await curvesOf(job.id, metrics.slice(FIRST), signal);
    // A job that is at work may have come further meanwhile.
    const same = String(rest.step) === String(whole[n].step);
    if (same) Object.assign(whole[n].values, rest.values);
    else whole[n] = await curvesOf(job.id, metrics, signal);
    soon();
  };
  const draw = () => {
    for (const { figure } of view.charts) figure.remove();
    view.charts.clear();
    view.range = null;
    curves = whole;
    measure();
    for (const chart of charts) {
      for (const [metric, label] of Object.entries(chart.lines)) {
        const drawn = new Chart(`${chart.title}: ${label}`, names, "compare", view, { axis: axis.value, latest: false });
        drawn.figure.metric = metric;
        place.append(drawn.figure);
      }
    }
    fill();
  };
  const settings = jobs.map((job) => flat({ model: job.model, training_file: job.training_file, seed: job.seed, ...job.method }));
  const keys = [...new Set(settings.flatMap(Object.keys))].sort();
  const differing = keys.filter((key) => new Set(settings.map((each) => each[key])).size > 1);
  main.append(
    h("h1", {}, `${jobs.length} jobs`),
    h("label", {}, h("span", {}, "Drawn over"), axis),
    view.toolbar,
    place,
    h("h2", {}, "Settings that differ"),
    differing.length
      ? table("Settings that differ", [{ title: "Setting", of: (key) => key }, ...jobs.map((job, n) => ({ title: h("a", { href: `#/job/${job.id}` }, names[n]), of: (key) => settings[n][key] ?? "–" }))], differing)
      : h("p", { class: "faint" }, "None."),
  );
  draw();
  await Promise.all(jobs.map(load));
}

function flat(value, prefix = "") {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return { [prefix]: JSON.stringify(value) };
  return Object.assign({}, ...Object.entries(value).map(([key, inner]) => flat(inner, prefix ? `${prefix}.${key}` : key)));
}
