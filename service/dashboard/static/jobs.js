// The list of jobs, and one job as it goes.

import { duration, every, failed, get, h, latest, notice, number, once, post, replace, table, time } from "./api.js";
import { CHARTS, Chart, View, chartsOfSets, dig, merged, metricsPath, namesOf, present, spark } from "./curves.js";

const TERMINAL = ["succeeded", "failed", "cancelled"];
export const MOST_COMPARED = 8;
const MOST_LIVE_POINTS = 2000;
const LOG_ROWS = 300;
const ANSWERS = 20;
const SPARK_POINTS = 60;

export const path = (id) => `/v1/fine_tuning/jobs/${encodeURIComponent(id)}`;
const status = (job) => h("span", { class: `status ${job.status}` }, job.status.replaceAll("_", " "));
const link = (id) => h("a", { href: `#/job/${id}` }, id);
const typeOf = (job) => job.method?.type ?? "–";
const partsOf = (job) => job.method?.[job.method.type] ?? {};
const settingsOf = (job) => partsOf(job).hyperparameters ?? {};
/** What is drawn of these jobs. */
export const chartsOf = (jobs) => {
  const names = jobs.flatMap((job) => (partsOf(job).validation_sets ?? []).map((set) => set.name));
  return [...CHARTS, ...chartsOfSets([...new Set(names)])];
};

export async function list(main, _, signal) {
  const chosen = new Set();
  const place = h("div");
  const compareLink = h("a", { hidden: true }, "Compare");
  const older = h("button", { type: "button", hidden: true, onclick: () => ((shown += 20), draw().catch((e) => failed(e, signal))) }, "Show older jobs");
  const curves = new Map();
  let shown = 20;

  const choose = (id, box) => {
    box.checked ? chosen.add(id) : chosen.delete(id);
    if (chosen.size > MOST_COMPARED) {
      chosen.delete(id);
      box.checked = false;
      notice(`At most ${MOST_COMPARED} jobs are compared.`);
    }
    compareLink.hidden = chosen.size < 2;
    compareLink.href = `#/compare/${[...chosen].join("/")}`;
    compareLink.textContent = `Compare ${chosen.size} jobs`;
  };
  const reward = async (job, signal) => {
    const known = curves.get(job.id);
    // Drawn again when there is a point more to draw, and at the end.
    const moved = job.progress.step - (known?.step ?? 0);
    const due = TERMINAL.includes(job.status) ? moved > 0 : moved >= Math.max(1, job.progress.total_steps / SPARK_POINTS);
    if (!due) return;
    const name = typeOf(job) === "supervised" ? "train_loss" : "train_mean_reward";
    const found = await get(`${path(job.id)}/metrics?points=${SPARK_POINTS}&names[]=${name}`, signal);
    curves.set(job.id, { step: job.progress.step, values: found.values[name] });
  };
  const draw = latest(signal, async (signal) => {
    const page = await get(`/v1/fine_tuning/jobs?limit=${shown}`, signal);
    await Promise.all(page.data.map((job) => reward(job, signal)));
    older.hidden = !page.has_more;
    replace(
      place,
      page.data.length
        ? table("Jobs", [
            {
              title: "",
              of: (job) => {
                const onchange = (event) => choose(job.id, event.target);
                const name = `Compare ${job.id}`;
                return h("input", { type: "checkbox", checked: chosen.has(job.id), onchange, "aria-label": name, "data-key": name });
              },
            },
            { title: "Job", of: (job) => link(job.id) },
            { title: "Status", of: status },
            { title: "Model", of: (job) => job.model },
            { title: "Name", of: (job) => job.user_provided_suffix ?? "" },
            { title: "Progress", of: (job) => progress(job) },
            { title: "Reward or loss", of: (job) => spark(curves.get(job.id)?.values ?? []) },
            { title: "Made", whole: true, of: (job) => time(job.created_at) },
          ], page.data)
        : h("p", {}, "No jobs yet. ", h("a", { href: "#/new" }, "Make one"), ", or POST one with the client."),
    );
  });
  main.append(h("h1", {}, "Jobs"), h("div", { class: "row" }, compareLink), place, older);
  await every(3, signal, draw);
}

function progress(job) {
  const { step, total_steps, queue_position, waits_for } = job.progress;
  if (job.status === "queued") {
    const start = job.progress.estimated_start ? `, about ${time(job.progress.estimated_start)}` : "";
    return waits_for ?? (queue_position ? `number ${queue_position} in the queue${start}` : "waits");
  }
  return h("span", {}, h("progress", { max: total_steps, value: step, "aria-label": `Steps of ${job.id}` }), ` ${step}/${total_steps}`);
}

export async function one(main, [id], signal) {
  let job = await get(path(id), signal);
  const head = h("div");
  const told = h("p", { class: "error", role: "alert" });
  const declared = chartsOf([job]);
  const all = namesOf(declared);
  const view = new View((range) => zoomed(range).catch((error) => failed(error, signal)));
  const charts = declared.map((chart) => {
    const bound = chart.bound ? settingsOf(job)[chart.bound] : undefined;
    const labels = [...Object.values(chart.lines), ...(bound ? ["bound"] : [])];
    return { ...chart, bound, drawn: new Chart(chart.title, labels, id, view) };
  });
  const log = h("tbody");
  const samples = h("div", { class: "answers" });
  const checkpoints = h("div");
  main.append(
    h("h1", {}, id),
    head,
    told,
    view.toolbar,
    h("div", { class: "charts" }, charts.map((chart) => chart.drawn.figure)),
    h("h2", {}, "Answers to validation rows"),
    samples,
    h("h2", {}, "Events"),
    h("div", { class: "log", tabIndex: 0, role: "region", "aria-label": "Events" }, h("table", {}, log)),
    h("h2", {}, "Checkpoints"),
    checkpoints,
    h("h2", {}, "Settings"),
    h("pre", { tabIndex: 0 }, JSON.stringify(job.method, null, 2)),
  );

  const act = (verb) => once(async () => {
    told.textContent = "";
    try {
      job = await post(`${path(id)}/${verb}`);
      drawHead();
    } catch (error) {
      told.textContent = error.message;
    }
  });
  const acts = { pause: act("pause"), resume: act("resume"), cancel: act("cancel") };
  const drawHead = () => {
    const p = job.progress;
    const can = {
      pause: ["validating_files", "queued", "running"].includes(job.status),
      resume: job.status === "paused",
      cancel: !TERMINAL.includes(job.status),
    };
    const facts = {
      Status: status(job),
      Step: progress(job),
      Model: job.model,
      Method: typeOf(job),
      Made: time(job.created_at),
      "Ends about": job.estimated_finish && !job.finished_at ? time(job.estimated_finish) : null,
      Ended: job.finished_at ? time(job.finished_at) : null,
      "GPU time": duration(p.gpu_seconds) + (p.estimated_gpu_seconds ? ` of about ${duration(p.estimated_gpu_seconds)}` : ""),
      "Tokens learned from": job.trained_tokens?.toLocaleString("en"),
      Result: job.fine_tuned_model
        ? h("span", {}, job.fine_tuned_model, " ", h("a", { href: `#/chat/${encodeURIComponent(job.model)}/${encodeURIComponent(job.fine_tuned_model)}` }, "chat"))
        : null,
      "Metrics file": job.result_files.length
        ? h("a", { href: `/v1/files/${job.result_files[0]}/content`, download: "" }, "CSV")
        : null,
    };
    replace(
      head,
      h("dl", { class: "facts" }, Object.entries(facts).filter(([, value]) => value).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
      h("div", { class: "row" }, Object.entries(can).filter(([, may]) => may).map(([verb]) => h("button", { type: "button", onclick: acts[verb] }, verb[0].toUpperCase() + verb.slice(1)))),
      job.error ? h("p", { class: "error" }, `${job.error.code}: ${job.error.message}`) : "",
    );
  };

  const empty = () => Object.fromEntries(all.map((name) => [name, []]));
  const columns = { step: [], seconds: [], tokens: [], values: empty() };
  let part = null;
  let last = 0;
  let due = false;
  const drawCharts = () => {
    due = false;
    const { step, values } = merged(columns, part);
    view.extent = [step[0] ?? 0, step.at(-1) ?? 1];
    for (const chart of charts) {
      const names = Object.keys(chart.lines);
      const any = names.some((name) => columns.values[name].some((value) => value !== null));
      const bound = chart.bound && any ? step.map(() => chart.bound) : null;
      const line = (n) => (n < names.length ? values[names[n]] : bound);
      chart.drawn.set(names.map((name) => columns.values[name]).concat(bound ? [bound] : []), (shown) => [step, ...shown.map(line)]);
    }
  };
  const redraw = () => {
    if (!due) requestAnimationFrame(drawCharts);
    due = true;
  };
  const load = async () => {
    const found = await get(metricsPath(id, all), signal);
    Object.assign(columns, { step: found.step, seconds: found.seconds, tokens: found.tokens, values: found.values });
    last = Math.max(last, found.last_seq);
    drawCharts();
  };
  /** What was told of the part that is looked at, in place of what stands for it in a picture of the whole. */
  const zoomed = async (range) => {
    const names = present(columns);
    const found = range && names.length ? await get(metricsPath(id, names, { between: range }), signal) : null;
    if (view.range !== range) return;
    part = found;
    drawCharts();
  };
  const history = new Map();
  const addSamples = (data) => {
    for (const each of data.samples ?? []) {
      if (!history.has(each.prompt)) history.set(each.prompt, []);
      history.get(each.prompt).push({ step: data.step, ...each });
    }
    replace(
      samples,
      ...[...history].slice(0, 12).map(([prompt, answers]) =>
        h("details", { open: history.size <= 3 }, h("summary", {}, prompt),
          table(`Answers to ${prompt}`, [
            { title: "Step", number: true, of: (a) => String(a.step) },
            { title: "Answer", of: (a) => h("code", {}, a.answer) },
            { title: "Reward", number: true, of: (a) => number(a.reward) },
          ], answers.slice(-20).reverse())),
      ),
    );
  };
  const addLog = (event) => {
    log.prepend(h("tr", { class: event.level }, h("td", { class: "faint" }, time(event.created_at)), h("td", {}, event.message)));
    while (log.rows.length > LOG_ROWS) log.deleteRow(-1);
  };
  const drawCheckpoints = async () => {
    const page = await get(`${path(id)}/checkpoints?limit=100`, signal);
    replace(
      checkpoints,
      page.data.length
        ? table("Checkpoints", [
            { title: "Step", number: true, of: (c) => String(c.step_number) },
            { title: "Model", of: (c) => c.fine_tuned_model_checkpoint },
            { title: "Validation", number: true, of: (c) => number(c.metrics.valid_reward_mean ?? c.metrics.full_valid_loss ?? null) },
            { title: "", of: (c) => h("a", { href: `#/chat/${encodeURIComponent(job.model)}/${encodeURIComponent(c.fine_tuned_model_checkpoint)}` }, "chat") },
            { title: "", of: (c) => h("a", { href: `/v1/models/${c.fine_tuned_model_checkpoint}/archive`, download: "" }, "download") },
          ], page.data)
        : h("p", { class: "faint" }, "None yet."),
    );
  };

  drawHead();
  const [messages, answers] = await Promise.all([
    get(`${path(id)}/events?only=message&limit=100`, signal),
    get(`${path(id)}/events?only=answers&limit=${ANSWERS}`, signal),
    load(),
    drawCheckpoints(),
  ]);
  // What came behind the curves is told again by whoever follows the job.
  const known = ({ seq }) => TERMINAL.includes(job.status) || seq <= last;
  messages.data.filter(known).toReversed().forEach(addLog);
  answers.data.filter(known).toReversed().forEach((event) => addSamples(event.data));
  if (TERMINAL.includes(job.status)) return;

  const refresh = async () => {
    job = await get(path(id), signal);
    drawHead();
  };
  // It may have begun since it was asked for, and what said so is behind the curves.
  if (last) await refresh();
  const hear = (event) => {
    last = event.seq;
    if (event.type !== "metrics") {
      addLog(event);
      Promise.all([refresh(), drawCheckpoints()]).catch((e) => failed(e, signal));
      return;
    }
    columns.step.push(event.data.step);
    columns.seconds.push(null);
    columns.tokens.push(null);
    for (const name of all) columns.values[name].push(dig(event.data, name));
    addSamples(event.data);
    job.progress.step = event.data.step;
    drawHead();
    // From so many points on the server draws them together again.
    columns.step.length > MOST_LIVE_POINTS ? load().catch((e) => failed(e, signal)) : redraw();
  };
  const follow = () => {
    if (signal.aborted) return;
    const source = new EventSource(`${path(id)}/events?stream=true&after=${last}`);
    const end = () => source.close();
    signal.addEventListener("abort", end, { once: true });
    source.onopen = () => notice("");
    source.onmessage = ({ data }) => {
      if (data === "[DONE]") {
        source.close();
        refresh().catch((e) => failed(e, signal));
        return;
      }
      const event = JSON.parse(data);
      if (event.error) return failed(new Error(event.error.message), signal);
      if (event.seq > last) hear(event);
    };
    source.onerror = () => {
      // It would come back by itself, but with the number that it began with.
      source.close();
      if (signal.aborted) return;
      notice("The connection was lost; trying again.");
      setTimeout(() => get(path(id), signal).then(follow).catch((e) => (e.status ? failed(e, signal) : setTimeout(follow, 2000))), 1000);
    };
  };
  follow();
}
