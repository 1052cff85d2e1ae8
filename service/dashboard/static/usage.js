// What was used, by day and by project, and what may be.

import { all, bytes, day, get, h, number, replace, select, table } from "./api.js";

const DAYS = 31;
const DAY = 86_400;
const hours = (seconds) => number(seconds / 3600);
const count = (value) => value.toLocaleString("en");

export async function page(main, _, signal, access) {
  const start = Math.floor(Date.now() / 1000 / DAY) * DAY - (DAYS - 1) * DAY;
  const query = `start_time=${start}&bucket_width=1d&limit=${DAYS}&group_by[]=project_id`;
  const [standing, gpu, tokens, storage, projects] = await Promise.all([
    get("/v1/organization/limits", signal),
    get(`/v1/organization/usage/gpu_seconds?${query}`, signal),
    get(`/v1/organization/usage/completions?${query}`, signal),
    get("/v1/organization/usage/storage", signal),
    access.administers ? all("/v1/organization/projects?include_archived=true", signal) : [],
  ]);
  const names = Object.fromEntries(projects.map((each) => [each.id, each.name]));
  const ids = [...new Set([...storage.data.map((each) => each.project_id), ...Object.keys(names)])];
  const days = h("div");
  const of = (project) => replace(days, byDay(gpu.data, tokens.data, project));
  const choice = select([["", "all"], ...ids.map((id) => [id, names[id] ?? id])], { onchange: () => of(choice.value) });
  main.append(
    h("h1", {}, "Usage"),
    h("h2", {}, `Limits of ${access.organization}`),
    limits(standing),
    ...(access.administers
      ? [h("h2", {}, `By project, in ${DAYS} days`), byProject(ids, names, gpu.data, tokens.data, storage.data)]
      : []),
    h("h2", {}, "By day"),
    access.administers && ids.length > 1 ? h("label", {}, h("span", {}, "Project"), choice) : "",
    days,
  );
  of("");
}

function limits({ limits, used }) {
  const rows = [
    ["Storage", used.storage_bytes, limits.storage_bytes, bytes],
    ["GPU hours this month", used.gpu_seconds_this_month, limits.gpu_seconds_per_month, hours],
    ["Tokens of chats today", used.chat_tokens_today, limits.chat_tokens_per_day, count],
    ["Jobs that wait", used.queued_jobs, limits.queued_jobs, count],
    ["Jobs at work", used.running_jobs, limits.running_jobs, count],
    ["Size of a file", null, limits.upload_bytes, bytes],
    ["Requests a minute, of a key", null, limits.requests_per_minute_and_key, count],
    ["Streams at a time, of a key", null, limits.streams_per_key, count],
  ];
  const share = ([name, value, most]) =>
    value !== null && most ? h("meter", { min: 0, max: most, value, high: 0.9 * most, "aria-label": `${name}, used` }) : "";
  return table("Limits", [
    { title: "", of: ([name]) => name },
    { title: "Used", number: true, of: ([, value, , shown]) => (value === null ? "" : shown(value)) },
    { title: "Of", number: true, of: ([, , most, shown]) => (most === null ? "any number" : shown(most)) },
    { title: "", of: share },
  ], rows);
}

const within = (day, project) => (day?.results ?? []).filter((each) => !project || each.project_id === project);
const sum = (results, name) => results.reduce((total, each) => total + each[name], 0);
const TOKENS = [["Requests", "num_model_requests"], ["Input tokens", "input_tokens"], ["Output tokens", "output_tokens"]];

function byProject(ids, names, gpu, tokens, storage) {
  const everywhere = (days, project) => days.flatMap((each) => within(each, project));
  return table("Usage by project", [
    { title: "Project", of: (id) => names[id] ?? id },
    { title: "GPU hours", number: true, of: (id) => hours(sum(everywhere(gpu, id), "gpu_seconds")) },
    ...TOKENS.map(([title, name]) => ({ title, number: true, of: (id) => count(sum(everywhere(tokens, id), name)) })),
    { title: "Stored now", number: true, of: (id) => bytes(storage.find((each) => each.project_id === id)?.bytes ?? 0) },
  ], ids);
}

function byDay(gpu, tokens, project) {
  const days = gpu.map((each, n) => ({ at: each.start_time, gpu: within(each, project), tokens: within(tokens[n], project) }));
  const used = days.filter((each) => each.gpu.length || each.tokens.length).reverse();
  const most = Math.max(...used.map((each) => sum(each.gpu, "gpu_seconds")), 1);
  if (!used.length) return h("p", { class: "faint" }, `Nothing in ${DAYS} days.`);
  return table("Usage by day", [
    { title: "Day, in UTC", whole: true, of: (each) => day(each.at) },
    { title: "GPU hours", number: true, of: (each) => hours(sum(each.gpu, "gpu_seconds")) },
    { title: "", of: (each) => h("meter", { min: 0, max: most, value: sum(each.gpu, "gpu_seconds"), "aria-label": `GPU hours of ${day(each.at)}` }) },
    ...TOKENS.map(([title, name]) => ({ title, number: true, of: (each) => count(sum(each.tokens, name)) })),
  ], used);
}
