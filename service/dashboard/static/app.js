// Which page is shown: the part of the address behind "#". A page is a function of the place to fill, what is in the
// address, and a signal that ends it.

import { AGAIN, ask, failed, form, get, h, notice } from "./api.js";

const of = (module, name = "page") => async (...rest) => (await module())[name](...rest);
const jobs = () => import("./jobs.js");
const things = () => import("./things.js");

/** Of each page its function, and of what whoever sees it must be allowed one; the API refuses the rest anyway. */
const PAGES = {
  "sign-in": [signIn, []],
  jobs: [of(jobs, "list"), ["read"]],
  job: [of(jobs, "one"), ["read"]],
  compare: [of(() => import("./compare.js")), ["read"]],
  new: [of(() => import("./create.js")), ["submit"]],
  files: [of(things, "files"), ["read"]],
  models: [of(things, "models"), ["read"]],
  chat: [of(() => import("./chat.js")), ["submit"]],
  usage: [of(() => import("./usage.js")), ["read", "administers"]],
  account: [of(() => import("./account.js")), ["read", "administers"]],
  members: [of(() => import("./members.js")), ["administers"]],
  projects: [of(() => import("./projects.js")), ["administers"]],
  keys: [of(() => import("./keys.js")), ["administers"]],
  queue: [of(() => import("./operating.js")), ["administers"]],
  audit: [of(() => import("./audit.js")), ["administers"]],
};

const REASONS = {
  expired: "Signing in took too long, or was begun elsewhere. Begin again.",
  refused: "The provider did not confirm who you are. Try again, or ask whoever runs this service.",
  unverified: "The provider has not made sure of your e-mail address. Confirm it there, then sign in again.",
  not_allowed: "You may not sign in here. Ask whoever administers your organization for a role in a project.",
  not_invited: "You are not invited. Ask whoever administers your organization to add you.",
  unavailable: "The provider does not answer at the moment. Try again shortly, or sign in with an API key.",
  busy: "Too many people begin to sign in from your address. Try again in a minute.",
};

const AGAIN_MS = 2000;

let wanted = "";
let ending = new AbortController();

async function show() {
  ending.abort();
  ending = new AbortController();
  const { signal } = ending;
  const [, asked = "", ...rest] = location.hash.split("/");
  const main = document.getElementById("main");
  // At once: what is typed or pressed from here on is not meant for the page that was there.
  main.replaceChildren();
  notice("");
  try {
    const access = asked === "sign-in" ? null : await allowed(signal);
    if (signal.aborted) return;
    if (!access && asked !== "sign-in") {
      wanted = location.hash.slice(2);
      location.hash = "#/sign-in";
      return;
    }
    const name = asked in PAGES ? asked : access?.scopes.includes("read") ? "jobs" : "members";
    const [page, needs] = PAGES[name];
    navigate(access, name);
    if (needs.length && !allows(access, needs)) {
      main.append(h("h1", {}, "Not for you"), h("p", {}, "What you signed in with may not see this page."));
    } else {
      await page(main, rest.map(decodeURIComponent), signal, access);
    }
    document.title = `${main.querySelector("h1")?.textContent ?? "TROLL"} · TROLL`;
  } catch (error) {
    failed(error, signal);
    if (error.status !== 0 || signal.aborted) return;
    notice(`${error.message} ${AGAIN}`);
    setTimeout(() => signal.aborted || show(), AGAIN_MS);
  }
}

/** What whoever is signed in may do; null where nobody is. */
async function allowed(signal) {
  try {
    return await get("/dashboard/access", signal);
  } catch (error) {
    if (error.status !== 401) throw error;
    return null;
  }
}

const allows = (access, needs) => needs.some((each) => access[each] === true || access.scopes.includes(each));

/** Shows the links to what somebody may see, and which of them is open. */
function navigate(access, name) {
  document.getElementById("nav").hidden = !access;
  document.getElementById("administration").hidden = !access?.administers;
  if (!access) return;
  document.getElementById("organization").textContent = access.organization;
  for (const link of document.querySelectorAll("nav a")) {
    link.hidden = link.dataset.needs !== undefined && !allows(access, link.dataset.needs.split(" "));
    const here = link.getAttribute("href") === `#/${name}`;
    here ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
  }
}

async function signIn(main, [reason], signal) {
  const { single_sign_on: singleSignOn } = await get("/dashboard/session", signal);
  const key = h("input", { type: "password", autocomplete: "current-password", required: true, size: 60, name: "key" });
  const told = h("p", { class: "error", role: "alert" });
  const enter = async () => {
    told.textContent = "";
    try {
      await ask("POST", "/dashboard/session", { body: { key: key.value } });
      await get("/dashboard/access");
      location.hash = `#/${wanted}`;
    } catch (error) {
      if (error.status === 401) await ask("DELETE", "/dashboard/session");
      told.textContent = error.message;
      key.focus();
    }
  };
  const shown = [
    h("h1", {}, "Sign in"),
    reason && h("p", { class: "error", role: "alert" }, REASONS[reason] ?? REASONS.refused),
    singleSignOn &&
      h("p", {}, h("a", { class: "main", href: `/dashboard/oidc/start?next=${encodeURIComponent(wanted || "jobs")}` }, "Single sign-on")),
    h("p", {}, singleSignOn ? "Or with" : "With", " an API key of your project, as ", h("code", {}, "troll keys create"), " makes it, or an admin key."),
    form({}, enter, h("label", {}, h("span", {}, "API key"), key), told, h("button", { class: "main" }, "Sign in")),
  ];
  main.append(...shown.filter(Boolean));
  key.focus();
}

document.getElementById("sign-out").addEventListener("click", async () => {
  await ask("DELETE", "/dashboard/session").catch(() => {});
  location.hash = "#/sign-in";
});
window.addEventListener("hashchange", show);
show();
