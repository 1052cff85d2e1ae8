// API keys of projects, whoever has them, and those that administer the organization.

import { all, ask, attempts, button, field, form, h, latest, options, post, replace, secret, select, table, time } from "./api.js";

const SCOPES = ["read", "submit", "manage"];
const ADMIN_KEYS = "/v1/organization/admin_api_keys";
const DAY = 86_400;

export async function page(main, [project], signal) {
  const ofProject = h("div");
  const ofOrganization = h("div");
  const made = h("p", { role: "status" });
  const projects = (await all("/v1/organization/projects", signal)).reverse();
  const change = () => {
    offer([]);
    replace(ofProject);
    attempt();
  };
  const chosen = select(projects.map((each) => [each.id, each.name]), { onchange: change }, project);
  const base = () => `/v1/organization/projects/${chosen.value}`;
  const draw = latest(signal, async (signal) => {
    const of = base();
    const inside = projects.length ? ["/v1/organization/users", `${of}/users`, `${of}/service_accounts`, `${of}/api_keys`] : [];
    const [adminKeys, users, members, accounts, keys] = await Promise.all([ADMIN_KEYS, ...inside].map((path) => all(path, signal)));
    replace(ofOrganization, shown(adminKeys, "Admin keys", act(null)));
    if (!projects.length) return;
    replace(ofProject, shown(keys, "API keys of the project", act(of)));
    offer(owners(users, members, accounts));
  });
  const [told, attempt] = attempts(draw);
  const [keyForm, offer] = addKey(base, made, attempt);
  const act = (base) => ({
    end: (key) => () =>
      confirm(`End the key ${key.name}? Whatever uses it stops working at once.`) &&
      attempt(() => ask("DELETE", `${base ? `${base}/api_keys` : ADMIN_KEYS}/${key.id}`)),
    rotate: base && ((key) => () =>
      confirm(`Make another key in the place of ${key.name}? The old one is good for a day more.`) &&
      attempt(async () => secret(made, (await post(`${base}/api_keys/${key.id}/rotate`, {})).value))),
  });
  main.append(
    h("h1", {}, "Keys"),
    projects.length ? h("div", {}, field("Project", chosen), keyForm) : h("p", { class: "faint" }, "There is no project."),
    told,
    made,
    ofProject,
    h("h2", {}, "Admin keys"),
    h("p", { class: "faint" }, "They administer the organization, as its owners do here, and do nothing in projects."),
    addAdminKey(made, attempt),
    ofOrganization,
  );
  await draw();
}

function expiry() {
  const days = h("input", { type: "number", min: 1, max: 3650, value: 90, placeholder: "never" });
  return [field("Days that it is good; empty is for ever", days), () => (days.value ? { expires_in_seconds: Number(days.value) * DAY } : {})];
}

/** Who may have a key in a project: what it is called when it is asked for, and shown. */
function owners(users, members, accounts) {
  const role = (user) => (user.role === "owner" ? "owner" : members.find((each) => each.id === user.id)?.role);
  return [
    ["nobody", "nobody in particular"],
    ...users.filter(role).map((user) => [`user ${user.id}`, `${user.name}, ${role(user)}`]),
    ...accounts.map((account) => [`account ${account.id}`, `${account.name}, service account, ${account.role}`]),
  ];
}

/** A form, and a function that says who may have a key. */
function addKey(base, made, attempt) {
  const owner = select([], { required: true });
  const name = h("input", { required: true, maxLength: 255, name: "name" });
  const scopes = SCOPES.map((each) => h("input", { type: "checkbox", value: each, checked: true }));
  const [days, lifetime] = expiry();
  const create = () => {
    const chosen = scopes.filter((each) => each.checked).map((each) => each.value);
    const body = { name: name.value, ...(chosen.length < SCOPES.length ? { scopes: chosen } : {}), ...lifetime() };
    const [kind, id] = owner.value.split(" ");
    return attempt(async () => {
      const key =
        kind === "account"
          ? await post(`${base()}/service_accounts/${id}/api_keys`, body)
          : await post(`${base()}/api_keys`, { ...body, ...(kind === "user" ? { user_id: id } : {}) });
      secret(made, key.value);
      name.value = "";
    });
  };
  const inputs = [
    field("Whose it is; it does no more than they may", owner),
    field("What it is for", name),
    days,
    h("fieldset", { class: "inline" }, h("legend", {}, "What it may do"), scopes.map((each) => h("label", {}, each, ` ${each.value}`))),
    h("button", { class: "main" }, "Make a key"),
  ];
  return [form({ class: "row" }, create, inputs), (choices) => options(owner, choices)];
}

function addAdminKey(made, attempt) {
  const name = h("input", { required: true, maxLength: 255 });
  const [days, lifetime] = expiry();
  const create = () =>
    attempt(async () => {
      secret(made, (await post(ADMIN_KEYS, { name: name.value, ...lifetime() })).value);
      name.value = "";
    });
  return form({ class: "row" }, create, field("What the admin key is for", name), days, h("button", {}, "Make an admin key"));
}

const whose = (key) => key.owner?.user ?? key.owner?.service_account;

function shown(keys, caption, { end, rotate }) {
  if (!keys.length) return h("p", { class: "faint" }, "None.");
  const columns = [
    { title: "Name", of: (key) => key.name },
    { title: "Key", of: (key) => h("code", {}, key.redacted_value) },
    rotate && { title: "Whose", of: (key) => (whose(key) ? `${whose(key).name}, ${whose(key).role}` : "nobody's") },
    rotate && { title: "May", of: (key) => (key.scopes ? key.scopes.join(", ") || "nothing" : whose(key) ? "all that they may" : "everything") },
    { title: "Made", whole: true, of: (key) => time(key.created_at) },
    { title: "Last used", whole: true, of: (key) => (key.last_used_at ? time(key.last_used_at) : "never") },
    { title: "Good until", whole: true, of: (key) => (key.expires_at ? time(key.expires_at) : "it is ended") },
    rotate && { title: "", of: (key) => button("Rotate", `${key.name} ${key.redacted_value}`, rotate(key)) },
    { title: "", of: (key) => button("End", `${key.name} ${key.redacted_value}`, end(key)) },
  ];
  return table(caption, columns.filter(Boolean), keys);
}
