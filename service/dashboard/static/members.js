// Who belongs to the organization, and what they and programs are in each of its projects.

import { all, ask, attempts, button, field, h, post, replace, secret, select, table, time } from "./api.js";

const USERS = "/v1/organization/users";

export async function page(main, [project], signal) {
  const people = h("div");
  const inProject = h("div");
  const projects = (await all("/v1/organization/projects", signal)).reverse();
  const chosen = select(projects.map((each) => [each.id, each.name]), { onchange: () => attempt(async () => {}) }, project);
  const draw = async () => {
    const users = await all(USERS, signal);
    replace(people, organization(users, attempt));
    replace(inProject, ...(await members(chosen.value, users, attempt, signal)));
  };
  const [told, attempt] = attempts(draw);
  main.append(
    h("h1", {}, "Members"),
    addUser(attempt),
    told,
    people,
    h("h2", {}, "In a project"),
    field("Project", chosen),
    inProject,
  );
  await draw();
}

function addUser(attempt) {
  const email = h("input", { type: "email", required: true, name: "email" });
  const name = h("input", { required: true, maxLength: 255, name: "name" });
  const role = select(["reader", "owner"]);
  const add = (event) => {
    event.preventDefault();
    attempt(async () => {
      await post(USERS, { email: email.value, name: name.value, role: role.value });
      email.value = name.value = "";
    });
  };
  return h(
    "form",
    { class: "row", onsubmit: add },
    field("E-mail", email),
    field("Name", name),
    field("Role", role),
    h("button", { class: "main" }, "Add a member"),
  );
}

function organization(users, attempt) {
  const change = (user) => (event) => attempt(() => post(`${USERS}/${user.id}`, { role: event.target.value }));
  const remove = (user) => () =>
    confirm(`Remove ${user.email}? Their keys end at once.`) && attempt(() => ask("DELETE", `${USERS}/${user.id}`));
  if (!users.length) return h("p", { class: "faint" }, "Nobody yet: keys work without members.");
  return table("Members of the organization", [
    { title: "Name", of: (user) => user.name },
    { title: "E-mail", of: (user) => user.email },
    { title: "Role", of: (user) => roles(["owner", "reader"], user, change(user), "") },
    { title: "Added", whole: true, of: (user) => time(user.added_at) },
    { title: "Key last used", whole: true, of: (user) => time(user.api_key_last_used_at) },
    { title: "", of: (user) => button("Remove", user.email, remove(user)) },
  ], users);
}

const roles = (choices, who, onchange, where) =>
  select(choices, { onchange, "aria-label": `Role of ${who.email ?? who.name}${where}`, "data-key": `role ${who.id}${where}` }, who.role);

async function members(project, users, attempt, signal) {
  if (!project) return [h("p", { class: "faint" }, "There is no project.")];
  const base = `/v1/organization/projects/${project}`;
  const [inside, accounts] = await Promise.all([all(`${base}/users`, signal), all(`${base}/service_accounts`, signal)]);
  const outside = users.filter((user) => user.role !== "owner" && !inside.some((each) => each.id === user.id));
  const change = (kind, who) => (event) => attempt(() => post(`${base}/${kind}/${who.id}`, { role: event.target.value }));
  const remove = (kind, who) => () =>
    confirm(`Remove ${who.email ?? who.name}? Their keys in this project end at once.`) &&
    attempt(() => ask("DELETE", `${base}/${kind}/${who.id}`));
  return [
    addMember(base, outside, attempt),
    inside.length
      ? table("Members of the project", [
          { title: "Name", of: (user) => user.name },
          { title: "E-mail", of: (user) => user.email },
          { title: "Role", of: (user) => roles(["owner", "member", "reader"], user, change("users", user), " in the project") },
          { title: "Added", whole: true, of: (user) => time(user.added_at) },
          { title: "", of: (user) => button("Remove", `${user.email} from the project`, remove("users", user)) },
        ], inside)
      : h("p", { class: "faint" }, "Nobody but the owners of the organization, who are owners of every project."),
    h("h2", {}, "Service accounts"),
    addAccount(base, attempt),
    accounts.length
      ? table("Service accounts of the project", [
          { title: "Name", of: (account) => account.name },
          { title: "Role", of: (account) => roles(["owner", "member"], account, change("service_accounts", account), "") },
          { title: "Made", whole: true, of: (account) => time(account.created_at) },
          { title: "", of: (account) => button("Remove", account.name, remove("service_accounts", account)) },
        ], accounts)
      : h("p", { class: "faint" }, "None. Programs that work in a project may have an account of their own."),
  ];
}

function addMember(base, outside, attempt) {
  if (!outside.length) return h("p", { class: "faint" }, "Every member of the organization has a role here.");
  const user = select(outside.map((each) => [each.id, `${each.name} (${each.email})`]));
  const role = select(["member", "reader", "owner"]);
  const add = (event) => {
    event.preventDefault();
    attempt(() => post(`${base}/users`, { user_id: user.value, role: role.value }));
  };
  return h("form", { class: "row", onsubmit: add }, field("Member", user), field("Role in the project", role), h("button", {}, "Let them in"));
}

function addAccount(base, attempt) {
  const name = h("input", { required: true, maxLength: 255 });
  const told = h("p", { role: "status" });
  const add = async (event) => {
    event.preventDefault();
    const made = await attempt(() => post(`${base}/service_accounts`, { name: name.value }));
    // What stands here was drawn anew meanwhile.
    if (made) secret(document.getElementById("made"), made.api_key.value);
  };
  told.id = "made";
  return h("form", { class: "row", onsubmit: add }, field("Name of the program", name), h("button", {}, "Make an account with a key"), told);
}
