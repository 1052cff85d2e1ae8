// Who is signed in: their projects, and API keys of their own.

import { ask, attempts, button, failed, form, get, h, latest, post, replace, secret, table, time } from "./api.js";

const SCOPES = ["read", "submit", "manage"];

export async function page(main, _, signal, access) {
  let person;
  try {
    person = await get("/dashboard/person", signal);
  } catch (error) {
    if (error.status !== 404) throw error;
    main.append(h("h1", {}, "Account"), h("p", {}, `You signed in with an API key of ${access.organization}. What it may do was decided by whoever made it: ${access.administers ? "it administers the organization" : access.scopes.join(", ") || "nothing"}.`));
    return;
  }
  const keys = h("div");
  const made = h("p", { role: "status" });
  const draw = latest(signal, async (signal) => {
    const { data } = await get("/dashboard/keys", signal);
    replace(keys, shown(data, (key) => attempt(() => ask("DELETE", `/dashboard/keys/${key.id}`))));
  });
  const [told, attempt] = attempts(draw);
  main.append(
    h("h1", {}, "Account"),
    h("p", {}, `${person.name}, ${person.email}, of ${person.organization}`),
    projects(person, signal),
    h("h2", {}, "Your API keys in this project"),
    h("p", { class: "faint" }, "They do no more than you may, and end when you leave the project."),
    addKey(made, attempt),
    told,
    made,
    keys,
  );
  await draw();
}

function projects(person, signal) {
  const choice = h(
    "select",
    { onchange: () => go(choice.value).catch((error) => failed(error, signal)) },
    person.projects.map((each) => h("option", { value: each.id, selected: each.id === person.project_id }, `${each.name} (${each.role})`)),
  );
  const go = async (id) => {
    await post("/dashboard/session/project", { project_id: id });
    location.reload();
  };
  return h("label", {}, h("span", {}, "Project"), choice);
}

function addKey(made, attempt) {
  const name = h("input", { required: true, maxLength: 255, name: "name" });
  const scopes = SCOPES.map((each) => h("input", { type: "checkbox", value: each, checked: true }));
  const days = h("input", { type: "number", min: 1, max: 3650, value: 90 });
  const add = () =>
    attempt(async () => {
      const chosen = scopes.filter((each) => each.checked).map((each) => each.value);
      const lifetime = { expires_in_seconds: Number(days.value) * 86400 };
      const body = { name: name.value, ...(chosen.length < SCOPES.length ? { scopes: chosen } : {}), ...lifetime };
      secret(made, (await post("/dashboard/keys", body)).value);
      name.value = "";
    });
  return form(
    { class: "row" },
    add,
    h("label", {}, h("span", {}, "What it is for"), name),
    h("label", {}, h("span", {}, "Days that it is good"), days),
    scopes.map((each) => h("label", {}, each, ` ${each.value}`)),
    h("button", { class: "main" }, "Make a key"),
  );
}

function shown(keys, end) {
  if (!keys.length) return h("p", { class: "faint" }, "None.");
  return table("Your API keys", [
    { title: "Name", of: (key) => key.name },
    { title: "Key", of: (key) => h("code", {}, key.redacted_value) },
    { title: "May", of: (key) => (key.scopes ?? ["all that you may"]).join(", ") },
    { title: "Last used", whole: true, of: (key) => time(key.last_used_at) },
    { title: "Good until", whole: true, of: (key) => (key.expires_at ? time(key.expires_at) : "it is ended") },
    { title: "", of: (key) => button("End", `${key.name} ${key.redacted_value}`, () => end(key)) },
  ], keys);
}
