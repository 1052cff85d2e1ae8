// Who changed what, when and from where.

import { all, attempts, field, form, get, h, latest, select, table, time } from "./api.js";

const PAGE = 50;

export async function page(main, _, signal) {
  const place = h("div");
  const projects = await all("/v1/organization/projects?include_archived=true", signal);
  const names = Object.fromEntries(projects.map((each) => [each.id, each.name]));
  const type = h("input", { placeholder: "api_key.created", name: "type" });
  const email = h("input", { type: "email", name: "email" });
  const project = select([["", "any"], ...projects.map((each) => [each.id, each.name])]);
  const since = h("input", { type: "date", name: "since" });
  const until = h("input", { type: "date", name: "until" });
  const more = h("button", { type: "button", hidden: true, onclick: () => attempt(() => draw(entries.at(-1).id)) }, "Show older entries");
  let entries = [];
  const draw = latest(signal, async (signal, after) => {
    const query = new URLSearchParams({ limit: PAGE });
    const filters = {
      "event_types[]": type.value.trim(),
      "actor_emails[]": email.value.trim(),
      "project_ids[]": project.value,
      "effective_at[gte]": since.value && Date.parse(since.value) / 1000,
      "effective_at[lt]": until.value && Date.parse(until.value) / 1000 + 86_400,
      after,
    };
    for (const [name, value] of Object.entries(filters)) if (value) query.set(name, value);
    const found = await get(`/v1/organization/audit_logs?${query}`, signal);
    entries = after ? [...entries, ...found.data] : found.data;
    more.hidden = !found.has_more;
    place.replaceChildren(entries.length ? shown(entries, names) : h("p", { class: "faint" }, "No entry."));
  });
  const [told, attempt] = attempts(async () => {});
  main.append(
    h("h1", {}, "Audit log"),
    form(
      { class: "row" },
      () => attempt(draw),
      field("What, by its type", type),
      field("Who, by e-mail", email),
      field("Project", project),
      field("From, in UTC", since),
      field("To", until),
      h("button", { class: "main" }, "Find"),
    ),
    told,
    place,
    more,
  );
  await draw();
}

function who({ type, api_key: key, session }) {
  const user = key?.user ?? session?.user;
  if (user) return user.email ?? user.id;
  return key?.service_account ? `service account ${key.service_account.id}` : key ? `key ${key.id}` : type;
}

function shown(entries, names) {
  const details = (entry) => {
    const { id: _, ...rest } = entry[entry.type] ?? {};
    return Object.keys(rest).length
      ? h("details", {}, h("summary", { "aria-label": `Details of ${entry.id}` }, "show"), h("pre", { tabIndex: 0 }, JSON.stringify(rest, null, 2)))
      : "";
  };
  return table("Audit log, newest first", [
    { title: "When", whole: true, of: (entry) => time(entry.effective_at) },
    { title: "What", of: (entry) => entry.type },
    { title: "Who", of: (entry) => who(entry.actor) },
    { title: "To what", of: (entry) => h("code", {}, entry[entry.type]?.id ?? "–") },
    { title: "Project", of: (entry) => (entry.project ? (names[entry.project.id] ?? entry.project.id) : "–") },
    { title: "From", of: (entry) => entry.address ?? "–" },
    { title: "Details", of: details },
  ], entries);
}
