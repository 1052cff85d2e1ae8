// Who is signed in: their projects, and API keys of their own.

import { ask, get, h, post, table, time } from "./api.js";

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
  main.append(
    h("h1", {}, "Account"),
    h("p", {}, `${person.name}, ${person.email}, of ${person.organization}`),
    projects(person),
    h("h2", {}, "Your API keys in this project"),
    h("p", { class: "faint" }, "They do no more than you may, and end when you leave the project."),
    form(person, () => show(keys, signal)),
    keys,
  );
  await show(keys, signal);
}

function projects(person) {
  const choice = h(
    "select",
    { onchange: () => go(choice.value) },
    person.projects.map((each) => h("option", { value: each.id, selected: each.id === person.project_id }, `${each.name} (${each.role})`)),
  );
  const go = async (id) => {
    await post("/dashboard/session/project", { project_id: id });
    location.reload();
  };
  return h("label", {}, h("span", {}, "Project"), choice);
}

function form(person, changed) {
  const name = h("input", { required: true, maxLength: 255, name: "name" });
  const scopes = SCOPES.map((each) => h("input", { type: "checkbox", value: each, checked: true }));
  const days = h("input", { type: "number", min: 1, max: 3650, value: 90 });
  const told = h("p", { role: "status" });
  const make = async (event) => {
    event.preventDefault();
    told.className = "";
    try {
      const chosen = scopes.filter((each) => each.checked).map((each) => each.value);
      const lifetime = { expires_in_seconds: Number(days.value) * 86400 };
      const body = { name: name.value, ...(chosen.length < SCOPES.length ? { scopes: chosen } : {}), ...lifetime };
      const key = await post("/dashboard/keys", body);
      told.replaceChildren("This is the only time that it is shown: ", h("code", {}, key.value));
      await changed();
    } catch (error) {
      told.className = "error";
      told.textContent = error.message;
    }
  };
  return h(
    "form",
    { class: "row", onsubmit: make },
    h("label", {}, h("span", {}, "What it is for"), name),
    h("label", {}, h("span", {}, "Days that it is good"), days),
    scopes.map((each) => h("label", {}, each, ` ${each.value}`)),
    h("button", { class: "main" }, "Make a key"),
    told,
  );
}

async function show(place, signal) {
  const { data } = await get("/dashboard/keys", signal);
  const end = async (key) => {
    await ask("DELETE", `/dashboard/keys/${key.id}`);
    await show(place, signal);
  };
  place.replaceChildren(
    data.length
      ? table("Your API keys", [
          { title: "Name", of: (key) => key.name },
          { title: "Key", of: (key) => h("code", {}, key.redacted_value) },
          { title: "May", of: (key) => (key.scopes ?? ["all that you may"]).join(", ") },
          { title: "Last used", whole: true, of: (key) => time(key.last_used_at) },
          { title: "Good until", whole: true, of: (key) => (key.expires_at ? time(key.expires_at) : "it is ended") },
          { title: "", of: (key) => h("button", { type: "button", onclick: () => end(key) }, "End") },
        ], data)
      : h("p", { class: "faint" }, "None."),
  );
}
