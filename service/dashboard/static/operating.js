// Workers, for those who operate the installation, and the jobs that wait for one.

import { attempts, button, bytes, every, get, h, latest, post, replace, table, time } from "./api.js";

const PAGE = 20;
const MOST = 100;

export async function page(main, _, signal, access) {
  const workers = h("div");
  const queue = h("div");
  let shown = PAGE;
  const more = h("button", { type: "button", hidden: true, onclick: () => attempt(async () => (shown += PAGE)) }, "Show more");
  const rest = h("p", { class: "faint", hidden: true }, `More wait than these ${MOST}.`);
  const draw = latest(signal, async (signal) => {
    const [found, waiting] = await Promise.all([
      access.operates ? get("/v1/organization/workers", signal) : null,
      get(`/v1/organization/queue?limit=${Math.min(shown, MOST)}`, signal),
    ]);
    if (found) replace(workers, listed(found.data, attempt));
    replace(queue, inOrder(waiting.data, access));
    more.hidden = !waiting.has_more || shown >= MOST;
    rest.hidden = !waiting.has_more || shown < MOST;
  });
  const [told, attempt] = attempts(draw);
  main.append(
    h("h1", {}, "Workers and queue"),
    told,
    h("h2", {}, "Training workers"),
    access.operates
      ? workers
      : h("p", { class: "faint" }, "Those who operate this installation see its workers: ", h("code", {}, `troll admin operators add ${access.organization}`)),
    h("h2", {}, access.operates ? "Jobs that wait, of all organizations" : "Jobs that wait"),
    queue,
    more,
    rest,
  );
  await every(3, signal, draw);
}

function listed(workers, attempt) {
  const steer = (worker, verb) => () => attempt(() => post(`/v1/organization/workers/${encodeURIComponent(worker.id)}/${verb}`));
  if (!workers.length) return h("p", { class: "faint" }, "None has been heard of today.");
  return table("Training workers", [
    { title: "Worker", of: (worker) => worker.id },
    { title: "State", of: (worker) => h("span", { class: `status ${worker.state}` }, worker.state) },
    { title: "Runs", of: (worker) => runs(worker.job) },
    { title: "GPUs", number: true, of: (worker) => String(worker.gpus) },
    { title: "Memory", number: true, of: (worker) => (worker.gpu_bytes ? bytes(worker.gpu_bytes) : "–") },
    { title: "Engines", of: (worker) => worker.engines.join(", ") },
    { title: "Last heard of", whole: true, of: (worker) => time(worker.seen_at) },
    {
      title: "",
      of: (worker) =>
        worker.state === "draining" ? button("Resume", worker.id, steer(worker, "resume")) : button("Drain", worker.id, steer(worker, "drain")),
    },
  ], workers);
}

function runs(job) {
  if (!job) return "–";
  const ends = job.estimated_finish ? `, until about ${time(job.estimated_finish)}` : "";
  return h("span", {}, job.id, h("br"), h("span", { class: "faint" }, `${job.organization.name}, step ${job.step}/${job.total_steps}${ends}`));
}

function inOrder(jobs, access) {
  if (!jobs.length) return h("p", { class: "faint" }, "None.");
  const columns = [
    { title: "Turn", number: true, of: (job) => String(job.queue_position ?? "–") },
    { title: "Job", of: (job) => job.id },
    access.operates && { title: "Organization", of: (job) => job.organization.name },
    { title: "Project", of: (job) => h("code", {}, job.project_id) },
    { title: "Model", of: (job) => job.model },
    { title: "Priority", number: true, of: (job) => String(job.priority) },
    { title: "Made", whole: true, of: (job) => time(job.created_at) },
    { title: "Starts about", of: (job) => job.waits_for ?? time(job.estimated_start) },
  ];
  return table("Jobs that wait, the next one first", columns.filter(Boolean), jobs);
}
