// Who belongs to the organization, and what they and programs are in each of its projects.

import { all, ask, attempts, button, field, form, h, latest, options, post, replace, secret, select, table, time } from "./api.js";

const USERS = "/v1/organization/users";

export async function page(main, [project], signal) {
  const people = h("div");
  const inProject = h("div");
  const programs = h("div");
  const made = h("p", { role: "status" });
  const projects = (await all("/v1/organization/projects", signal)).reverse();
  const choose = () => {
    offer(null);
    replace(inProject);
    replace(programs);
    attempt();
  };
  const chosen = select(projects.map((each) => [each.id, each.name]), { onchange: choose }, project);
  const base = () => `/v1/organization/projects/${chosen.value}`;
  const draw = latest(signal, async (signal) => {
    const of = base();
    const paths = [USERS, ...(projects.length ? [`${of}/users`, `${of}/service_accounts`] : [])];
    const [users, inside, accounts] = await Promise.all(paths.map((path) => all(path, signal)));
    replace(people, organization(users, attempt));
    if (!projects.length) return;
    replace(inProject, members(of, inside, attempt));
    replace(programs, serviceAccounts(of, accounts, attempt));
    offer(users.filter((user) => user.role !== "owner" && !inside.some((each) => each.id === user.id)));
  });
  const [told, attempt] = attempts(draw);
  const [memberForm, offer] = addMember(base, attempt);
  main.append(
    h("h1", {}, "Members"),
    addUser(attempt),
    told,
    people,
    h("h2", {}, "In a project"),
    ...(projects.length
      ? [
          field("Project", chosen),
          memberForm,
          inProject,
          h("h2", {}, "Service accounts"),
          addAccount(base, made, attempt),
          made,
          programs,
        ]
      : [h("p", { class: "faint" }, "There is no project.")]),
  );
  await draw();
}

function addUser(attempt) {
  const email = h("input", { type: "email", required: true, name: "email" });
  const name = h("input", { required: true, maxLength: 255, name: "name" });
  const role = select(["reader", "owner"]);
  const add = () =>
    attempt(async () => {
      await post(USERS, { email: email.value, name: name.value, role: role.value });
      email.value = name.value = "";
    });
  return form(
    { class: "row" },
    add,
    field("E-mail", email),
    field("Name", name),
    field("Role", role),
    h("button", { class: "main" }, "Add a member"),
  );
}

function organization(users, attempt) {
  const url = (user) => `${USERS}/${user.id}`;
  const removeUser = (user) => () =>
    confirm(`Remove ${user.email}? Their keys end at once.`) && attempt(() => ask("DELETE", url(user)));
  if (!users.length) return h("p", { class: "faint" }, "Nobody yet: keys work without members.");
  return table("Members of the organization", [
    { title: "Name", of: (user) => user.name },
    { title: "E-mail", of: (user) => user.email },
    { title: "Role", of: (user) => roles(["owner", "reader"], user, change(url(user), attempt), "") },
    { title: "Added", whole: true, of: (user) => time(user.added_at) },
    { title: "Key last used", whole: true, of: (user) => time(user.api_key_last_used_at) },
    { title: "", of: (user) => button("Remove", user.email, removeUser(user)) },
  ], users);
}

const roles = (choices, who, onchange, where) =>
  select(choices, { onchange, "aria-label": `Role of ${who.email ?? who.name}${where}`, "data-key": `role ${who.id}${where}` }, who.role);

const change = (url, attempt) => (event) => attempt(() => post(url, { role: event.target.value }));
const remove = (url, name, attempt) => () =>
  confirm(`Remove ${name}? Their keys in this project end at once.`) && attempt(() => ask("DELETE", url));

function members(base, users, attempt) {
  if (!users.length) return h("p", { class: "faint" }, "Nobody but the owners of the organization, who are owners of every project.");
  const url = (user) => `${base}/users/${user.id}`;
  return table("Members of the project", [
    { title: "Name", of: (user) => user.name },
    { title: "E-mail", of: (user) => user.email },
    { title: "Role", of: (user) => roles(["owner", "member", "reader"], user, change(url(user), attempt), " in the project") },
    { title: "Added", whole: true, of: (user) => time(user.added_at) },
    { title: "", of: (user) => button("Remove", `${user.email} from the project`, remove(url(user), user.email, attempt)) },
  ], users);
}

function serviceAccounts(base, accounts, attempt) {
  if (!accounts.length) return h("p", { class: "faint" }, "None. Programs that work in a project may have an account of their own.");
  const url = (account) => `${base}/service_accounts/${account.id}`;
  return table("Service accounts of the project", [
    { title: "Name", of: (account) => account.name },
    { title: "Role", of: (account) => roles(["owner", "member"], account, change(url(account), attempt), "") },
    { title: "Made", whole: true, of: (account) => time(account.created_at) },
    { title: "", of: (account) => button("Remove", account.name, remove(url(account), account.name, attempt)) },
  ], accounts);
}

/** A form, and a function that says who may be let in: null until it is known. */
function addMember(base, attempt) {
  const user = select([], { required: true });
  const role = select(["member", "reader", "owner"]);
  const everyone = h("p", { class: "faint", hidden: true }, "Every member of the organization has a role here.");
  const add = () => attempt(() => post(`${base()}/users`, { user_id: user.value, role: role.value }));
  const inputs = [field("Member", user), field("Role in the project", role), h("button", {}, "Let them in")];
  const made = form({ class: "row" }, add, inputs);
  const offer = (outside) => {
    options(user, (outside ?? []).map((each) => [each.id, `${each.name} (${each.email})`]));
    made.hidden = outside?.length === 0;
    everyone.hidden = !made.hidden;
  };
  return [h("div", {}, made, everyone), offer];
}

function addAccount(base, made, attempt) {
  const name = h("input", { required: true, maxLength: 255 });
  const add = () =>
    attempt(async () => {
      secret(made, (await post(`${base()}/service_accounts`, { name: name.value })).api_key.value);
      name.value = "";
    });
  return form({ class: "row" }, add, field("Name of the program", name), h("button", {}, "Make an account with a key"));
}
