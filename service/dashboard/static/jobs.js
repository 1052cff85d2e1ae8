// The list of jobs, one job as it goes, and several on the same axes.

import { duration, every, failed, get, h, notice, number, post, table, time } from "./api.js";
import { AXES, CHARTS, Chart, chartsOfSets, dig, metricsPath, namesOf, spark } from "./curves.js";

const TERMINAL = ["succeeded", "failed", "cancelled"];
const MOST_COMPARED = 8;
const MOST_LIVE_POINTS = 2000;
const LOG_ROWS = 300;
const SPARK_POINTS = 60;

const path = (id) => `/v1/fine_tuning/jobs/${encodeURIComponent(id)}`;
const status = (job) => h("span", { class: `status ${job.status}` }, job.status.replaceAll("_", " "));
const link = (id) => h("a", { href: `#/job/${id}` }, id);
const typeOf = (job) => job.method?.type ?? "–";
const partsOf = (job) => job.method?.[job.method.type] ?? {};
const settingsOf = (job) => partsOf(job).hyperparameters ?? {};
/** What is drawn of these jobs. */
const chartsOf = (jobs) => {
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
  const reward = async (job) => {
    const known = curves.get(job.id);
    // Drawn again when there is a point more to draw, and at the end.
    const moved = job.progress.step - (known?.step ?? 0);
    const due = TERMINAL.includes(job.status) ? moved > 0 : moved >= Math.max(1, job.progress.total_steps / SPARK_POINTS);
    if (!due) return;
    const name = typeOf(job) === "supervised" ? "train_loss" : "train_mean_reward";
    const found = await get(`${path(job.id)}/metrics?points=${SPARK_POINTS}&names[]=${name}`, signal);
    curves.set(job.id, { step: job.progress.step, values: found.values[name] });
  };
  const draw = async () => {
    const page = await get(`/v1/fine_tuning/jobs?limit=${shown}`, signal);
    await Promise.all(page.data.map(reward));
    older.hidden = !page.has_more;
    const focused = document.activeElement?.dataset?.job;
    place.replaceChildren(
      page.data.length
        ? table("Jobs", [
            {
              title: "",
              of: (job) => {
                const box = h("input", { type: "checkbox", checked: chosen.has(job.id), "aria-label": `Compare ${job.id}` });
                box.dataset.job = job.id;
                box.addEventListener("change", () => choose(job.id, box));
                return box;
              },
            },
            { title: "Job", of: (job) => link(job.id) },
            { title: "Status", of: status },
            { title: "Model", of: (job) => job.model },
            { title: "Name", of: (job) => job.user_provided_suffix ?? "" },
            { title: "Progress", of: (job) => progress(job) },
            { title: "Reward or loss", of: (job) => spark(curves.get(job.id)?.values ?? []) },
            { title: "Made", of: (job) => time(job.created_at) },
          ], page.data)
        : h("p", {}, "No jobs yet. ", h("a", { href: "#/new" }, "Make one"), ", or POST one with the client."),
    );
    if (focused) place.querySelector(`[data-job="${CSS.escape(focused)}"]`)?.focus();
  };
  main.append(h("h1", {}, "Jobs"), h("div", { class: "row" }, compareLink), place, older);
  await every(3, signal, draw);
}

function progress(job) {
  const { step, total_steps, queue_position, waits_for } = job.progress;
  if (job.status === "queued") return waits_for ?? (queue_position ? `number ${queue_position} in the queue` : "waits");
  return h("span", {}, h("progress", { max: total_steps, value: step, "aria-label": `Steps of ${job.id}` }), ` ${step}/${total_steps}`);
}

export async function one(main, [id], signal) {
  let job = await get(path(id), signal);
  const head = h("div");
  const told = h("p", { class: "error", role: "alert" });
  const declared = chartsOf([job]);
  const all = namesOf(declared);
  const charts = declared.map((chart) => {
    const bound = chart.bound ? settingsOf(job)[chart.bound] : undefined;
    const labels = [...Object.values(chart.lines), ...(bound ? ["bound"] : [])];
    return { ...chart, bound, drawn: new Chart(chart.title, labels, id) };
  });
  const log = h("tbody");
  const samples = h("div", { class: "answers" });
  const checkpoints = h("div");
  main.append(
    h("h1", {}, id),
    head,
    told,
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

  const act = (verb) => async () => {
    told.textContent = "";
    try {
      job = await post(`${path(id)}/${verb}`);
      drawHead();
    } catch (error) {
      told.textContent = error.message;
    }
  };
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
    head.replaceChildren(
      h("dl", { class: "facts" }, Object.entries(facts).filter(([, value]) => value).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
      h("div", { class: "row" }, Object.entries(can).filter(([, may]) => may).map(([verb]) => h("button", { type: "button", onclick: act(verb) }, verb[0].toUpperCase() + verb.slice(1)))),
      job.error ? h("p", { class: "error" }, `${job.error.code}: ${job.error.message}`) : "",
    );
  };

  const columns = { step: [], values: Object.fromEntries(all.map((name) => [name, []])) };
  let last = 0;
  let due = false;
  const drawCharts = () => {
    due = false;
    for (const chart of charts) {
      const lines = Object.keys(chart.lines).map((name) => columns.values[name]);
      if (chart.bound) lines.push(columns.step.map(() => chart.bound));
      const any = lines.slice(0, Object.keys(chart.lines).length).some((line) => line.some((v) => v !== null));
      chart.drawn.set([columns.step, ...(any ? lines : [])]);
    }
  };
  const redraw = () => {
    if (!due) requestAnimationFrame(drawCharts);
    due = true;
  };
  const load = async () => {
    const found = await get(metricsPath(id, declared), signal);
    Object.assign(columns, { step: found.step, values: found.values });
    last = Math.max(last, found.last_seq);
    drawCharts();
  };
  const history = new Map();
  const addSamples = (data) => {
    for (const each of data.samples ?? []) {
      if (!history.has(each.prompt)) history.set(each.prompt, []);
      history.get(each.prompt).push({ step: data.step, ...each });
    }
    samples.replaceChildren(
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
    checkpoints.replaceChildren(
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
  await load();
  const recent = await get(`${path(id)}/events?limit=200`, signal);
  for (const event of recent.data.toReversed()) {
    event.type === "metrics" ? addSamples(event.data) : addLog(event);
    last = Math.max(last, event.seq);
  }
  await drawCheckpoints();
  if (TERMINAL.includes(job.status)) return;

  const hear = (event) => {
    last = event.seq;
    if (event.type !== "metrics") {
      addLog(event);
      Promise.all([get(path(id), signal).then((found) => ((job = found), drawHead())), drawCheckpoints()]).catch((e) => failed(e, signal));
      return;
    }
    columns.step.push(event.data.step);
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
        get(path(id), signal).then((found) => ((job = found), drawHead())).catch((e) => failed(e, signal));
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

export async function compare(main, ids, signal) {
  const jobs = await Promise.all(ids.slice(0, MOST_COMPARED).map((id) => get(path(id), signal)));
  const charts = chartsOf(jobs);
  // Of each job what it has: all names of all jobs may be more than may be asked for at once.
  const curves = await Promise.all(jobs.map((job) => get(metricsPath(job.id, chartsOf([job])), signal)));
  const names = jobs.map((job) => job.user_provided_suffix ? `${job.user_provided_suffix} ${job.id.slice(-6)}` : job.id.slice(-6));
  const place = h("div", { class: "charts" });
  const axis = h("select", { onchange: () => draw() }, Object.entries(AXES).map(([value, text]) => h("option", { value }, text)));
  const draw = () => {
    place.replaceChildren();
    for (const chart of charts) {
      for (const [name, label] of Object.entries(chart.lines)) {
        const drawn = new Chart(`${chart.title}: ${label}`, names, "compare", { axis: axis.value, latest: false });
        place.append(drawn.figure);
        drawn.set(uPlot.join(curves.map((each) => [each[axis.value], each.values[name] ?? each.step.map(() => null)])));
      }
    }
  };
  const settings = jobs.map((job) => flat({ model: job.model, training_file: job.training_file, seed: job.seed, ...job.method }));
  const keys = [...new Set(settings.flatMap(Object.keys))].sort();
  const differing = keys.filter((key) => new Set(settings.map((each) => each[key])).size > 1);
  main.append(
    h("h1", {}, `${jobs.length} jobs`),
    h("label", {}, h("span", {}, "Drawn over"), axis),
    place,
    h("h2", {}, "Settings that differ"),
    differing.length
      ? table("Settings that differ", [{ title: "Setting", of: (key) => key }, ...jobs.map((job, n) => ({ title: h("a", { href: `#/job/${job.id}` }, names[n]), of: (key) => settings[n][key] ?? "–" }))], differing)
      : h("p", { class: "faint" }, "None."),
  );
  draw();
}

function flat(value, prefix = "") {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return { [prefix]: JSON.stringify(value) };
  return Object.assign({}, ...Object.entries(value).map(([key, inner]) => flat(inner, prefix ? `${prefix}.${key}` : key)));
}
