// The organization's projects.

import { all, attempts, button, bytes, field, form, get, h, latest, post, replace, table, time } from "./api.js";

const PROJECTS = "/v1/organization/projects";

export async function page(main, _, signal) {
  const place = h("div");
  const name = h("input", { required: true, maxLength: 255, name: "name" });
  const archived = h("input", { type: "checkbox", onchange: () => attempt() });
  const draw = latest(signal, async (signal) => {
    const query = archived.checked ? "?include_archived=true" : "";
    const [projects, storage] = await Promise.all([all(PROJECTS + query, signal), get("/v1/organization/usage/storage", signal)]);
    const stored = Object.fromEntries(storage.data.map((each) => [each.project_id, each.bytes]));
    replace(place, shown(projects, stored, attempt));
  });
  const [told, attempt] = attempts(draw);
  const add = () =>
    attempt(async () => {
      await post(PROJECTS, { name: name.value });
      name.value = "";
    });
  main.append(
    h("h1", {}, "Projects"),
    h("p", { class: "faint" }, "Files, jobs, models and keys belong to one project, and are seen by nobody outside of it."),
    form({ class: "row" }, add, field("Name", name), h("button", { class: "main" }, "Make a project")),
    told,
    h("label", {}, archived, " Show those that are archived, too"),
    place,
  );
  await draw();
}

function shown(projects, stored, attempt) {
  const rename = (project) => () => {
    const name = prompt("Another name for the project", project.name);
    if (name) attempt(() => post(`${PROJECTS}/${project.id}`, { name }));
  };
  const archive = (project) => () =>
    confirm(`Archive ${project.name}? Its keys end at once, and its jobs are cancelled. It cannot be undone.`) &&
    attempt(() => post(`${PROJECTS}/${project.id}/archive`));
  const active = (project) => project.status === "active";
  return table("Projects", [
    { title: "Name", of: (project) => project.name },
    { title: "Status", of: (project) => project.status },
    { title: "Made", whole: true, of: (project) => time(project.created_at) },
    { title: "Stored", number: true, of: (project) => bytes(stored[project.id] ?? 0) },
    { title: "Id", of: (project) => h("code", {}, project.id) },
    { title: "", of: (project) => (active(project) ? h("a", { href: `#/members/${project.id}`, "aria-label": `Members of ${project.name}` }, "members") : "") },
    { title: "", of: (project) => (active(project) ? h("a", { href: `#/keys/${project.id}`, "aria-label": `Keys of ${project.name}` }, "keys") : "") },
    { title: "", of: (project) => (active(project) ? button("Rename", project.name, rename(project)) : "") },
    { title: "", of: (project) => (active(project) ? button("Archive", project.name, archive(project)) : "") },
  ], projects);
}
