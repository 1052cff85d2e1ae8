// Which page is shown: the part of the address behind "#". A page is a function of the place to fill, what is in the
// address, and a signal that ends it.

import { ask, failed, h, notice } from "./api.js";
import * as account from "./account.js";
import * as chat from "./chat.js";
import * as create from "./create.js";
import * as jobs from "./jobs.js";
import * as things from "./things.js";

const PAGES = {
  "sign-in": signIn,
  jobs: jobs.list,
  job: jobs.one,
  compare: jobs.compare,
  new: create.page,
  files: things.files,
  models: things.models,
  chat: chat.page,
  usage: things.usage,
  account: account.page,
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

let wanted = "jobs";

let ending = new AbortController();

async function show() {
  ending.abort();
  ending = new AbortController();
  const { signal } = ending;
  const [, name = "jobs", ...rest] = location.hash.split("/");
  const main = document.getElementById("main");
  const page = PAGES[name] ?? PAGES.jobs;
  notice("");
  try {
    const { signed_in, single_sign_on } = await ask("GET", "/dashboard/session");
    if (signal.aborted) return;
    if (!signed_in && page !== signIn) {
      wanted = location.hash.slice(2) || "jobs";
      location.hash = "#/sign-in";
      return;
    }
    document.getElementById("nav").hidden = !signed_in || page === signIn;
    for (const link of document.querySelectorAll("nav a")) {
      const here = link.getAttribute("href") === `#/${name || "jobs"}`;
      here ? link.setAttribute("aria-current", "page") : link.removeAttribute("aria-current");
    }
    main.replaceChildren();
    await page(main, rest.map(decodeURIComponent), signal, single_sign_on);
    document.title = `${main.querySelector("h1")?.textContent ?? "TROLL"} · TROLL`;
  } catch (error) {
    failed(error, signal);
  }
}

async function signIn(main, [reason], signal, singleSignOn) {
  const key = h("input", { type: "password", autocomplete: "current-password", required: true, size: 60, name: "key" });
  const told = h("p", { class: "error", role: "alert" });
  const enter = async (event) => {
    event.preventDefault();
    told.textContent = "";
    try {
      await ask("POST", "/dashboard/session", { body: { key: key.value } });
      await ask("GET", "/v1/models");
      location.hash = "#/jobs";
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
      h("p", {}, h("a", { class: "main", href: `/dashboard/oidc/start?next=${encodeURIComponent(wanted)}` }, "Single sign-on")),
    h("p", {}, singleSignOn ? "Or with" : "With", " an API key of your project, as ", h("code", {}, "troll keys create"), " makes it."),
    h("form", { onsubmit: enter }, h("label", {}, h("span", {}, "API key"), key), told, h("button", { class: "main" }, "Sign in")),
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
