// What pages share: asking the API, and making elements. Text is set as text, never as HTML.

export const AGAIN = "This page tries again by itself.";
const HEADERS = { "x-troll-dashboard": "1" };

export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export async function ask(method, path, { body, signal } = {}) {
  const form = body instanceof FormData;
  const options = { method, signal, headers: { ...HEADERS }, cache: "no-cache", credentials: "same-origin" };
  if (body !== undefined) {
    options.body = form ? body : JSON.stringify(body);
    if (!form) options.headers["content-type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The server cannot be reached.");
  }
  const text = await answer.text();
  let read = null;
  try {
    read = text ? JSON.parse(text) : null;
  } catch {
    // What is between here and the server may answer in its own words.
  }
  if (!answer.ok) throw new ApiError(answer.status, read?.error?.message ?? `The server answered ${answer.status}.`);
  return read;
}

/** Everything of a list, as far as it is shown: `limit` at most. */
export async function all(path, signal, limit = 1000) {
  const found = [];
  const query = path.includes("?") ? "&" : "?";
  for (let after = null; found.length < limit; ) {
    const page = await ask("GET", `${path}${query}limit=100${after ? `&after=${encodeURIComponent(after)}` : ""}`, { signal });
    found.push(...page.data);
    if (!page.has_more) break;
    after = page.last_id;
  }
  return found;
}

export const get = (path, signal) => ask("GET", path, { signal });
export const post = (path, body) => ask("POST", path, { body });

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && name !== "list") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Columns have a `title`, what is shown `of` a row, and may be a `number` or stay `whole`, in one line. */
export function table(caption, columns, rows) {
  const cells = (row) =>
    columns.map((column) => h("td", { class: column.number ? "number" : column.whole ? "whole" : undefined }, column.of(row) ?? "–"));
  return h(
    "div",
    { class: "scroll", tabIndex: 0, role: "region", "aria-label": caption },
    h(
      "table",
      {},
      h("thead", {}, h("tr", {}, columns.map((c) => h("th", { scope: "col", class: c.number ? "number" : undefined }, c.title)))),
      h("tbody", {}, rows.map((row) => h("tr", { "data-row": row.id }, cells(row)))),
    ),
  );
}

/** A label with its input. */
export const field = (text, input) => h("label", {}, h("span", {}, text), input);

/** A choice of `[value, text]`s, or of values that are shown as they are. */
export function select(choices, properties = {}, chosen = undefined) {
  const made = h("select", properties);
  options(made, choices, chosen);
  return made;
}

/** Puts other choices into a select, which keeps what is `chosen` as far as there still is such a one. */
export function options(select, choices, chosen = select.value) {
  const pairs = choices.map((each) => (Array.isArray(each) ? each : [each, each]));
  select.replaceChildren(...pairs.map(([value, text]) => h("option", { value, selected: value === chosen }, text)));
}

/** `work`, which does not begin again before it has ended: what is pressed twice is done once. */
export function once(work) {
  let busy = false;
  return async () => {
    if (busy) return;
    busy = true;
    try {
      await work();
    } finally {
      busy = false;
    }
  };
}

/** A form whose `submit` is called once, however often its button is pressed until that has ended. */
export function form(properties, submit, ...children) {
  const send = once(submit);
  const onsubmit = (event) => {
    event.preventDefault();
    send();
  };
  return h("form", { ...properties, onsubmit }, ...children);
}

/** A button in a row of a table: `what` says which row it is for those who do not see it. */
export const button = (text, what, onclick) =>
  h("button", { type: "button", onclick: once(onclick), "aria-label": `${text} ${what}`, "data-key": `${text} ${what}` }, text);

/**
 * Makes `place` show `nodes`. What is the same already stays, and with it where it is scrolled to and what is selected in
 * it; the focus goes back to what bears the same `data-key`; details stay as open as they are. A row stays or goes as one:
 * what its buttons do belongs to what it tells.
 */
export function replace(place, ...nodes) {
  const key = place.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  const fresh = document.createDocumentFragment();
  fresh.append(...nodes);
  morph(place, [...fresh.childNodes]);
  if (key !== undefined && !place.contains(document.activeElement)) place.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus({ preventScroll: true });
}

function morph(place, nodes) {
  const there = [...place.childNodes];
  nodes.forEach((fresh, n) => {
    const old = there[n];
    if (!old) return place.append(fresh);
    if (fresh.nodeName === "DETAILS" && old.nodeName === "DETAILS") fresh.open = old.open;
    if (old.isEqualNode(fresh)) keepState(old, fresh);
    else if (old.nodeName !== "TR" && old.nodeType === Node.ELEMENT_NODE && old.cloneNode().isEqualNode(fresh.cloneNode())) {
      morph(old, [...fresh.childNodes]);
    } else old.replaceWith(fresh);
  });
  there.slice(nodes.length).forEach((old) => old.remove());
}

/** What is chosen in a select or a box is no part of what makes elements equal. */
function keepState(old, fresh) {
  const inputs = (node) => [...(node.querySelectorAll?.("select, input") ?? [])];
  const shown = inputs(fresh);
  inputs(old).forEach((input, n) => {
    // Whoever sets the value of a box gives it an attribute.
    if (input.nodeName === "SELECT") input.value = shown[n].value;
    else input.checked = shown[n].checked;
  });
}

/**
 * `draw`, of whose calls that overlap only the last one goes on: it is given a signal that ends where the page does and
 * where the next call begins.
 */
export function latest(signal, draw) {
  let ending = new AbortController();
  return (...given) => {
    ending.abort();
    ending = new AbortController();
    return draw(AbortSignal.any([signal, ending.signal]), ...given);
  };
}

/** Where a page says what did not work, and a function that does something, draws the page again, and says so there. */
export function attempts(draw) {
  const told = h("p", { class: "error", role: "alert" });
  const attempt = async (work = async () => {}) => {
    const tell = (error) => {
      if (error.name !== "AbortError") told.textContent = error.message;
    };
    told.textContent = "";
    await work().catch(tell);
    // Also where it was refused: what was chosen is shown as it is.
    await draw().catch(tell);
  };
  return [told, attempt];
}

/** A key that was made, which is shown this once. */
export function secret(place, value) {
  place.replaceChildren("This is the only time that it is shown: ", h("code", {}, value));
}

export function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && Math.abs(value) < 1e-3) return value.toExponential(digits - 1).replace(/\.?0+e/, "e");
  return Number(value.toPrecision(digits)).toLocaleString("en", { maximumFractionDigits: 6 });
}

export const day = (seconds) => new Date(seconds * 1000).toISOString().slice(0, 10);

export const time = (seconds) => (seconds ? new Date(seconds * 1000).toLocaleString() : "–");

export function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let power = 0;
  while (count >= 1000 && power < units.length - 1) [count, power] = [count / 1000, power + 1];
  return `${number(count)} ${units[power]}`;
}

export function duration(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export function notice(text) {
  const place = document.getElementById("notice");
  if (place.textContent !== text) place.textContent = text;
}

/** Calls `work` now and every so many seconds until `signal` ends; what fails for a while is told and tried again. */
export function every(seconds, signal, work) {
  const once = async () => {
    if (signal.aborted) return;
    let pause = seconds;
    try {
      if (!document.hidden) await work();
      notice("");
    } catch (error) {
      if (signal.aborted) return;
      if (error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
      // Where somebody had it drawn meanwhile, nothing went wrong.
      if (error.name !== "AbortError") notice(`${error.message} ${AGAIN}`);
      pause = Math.max(2, seconds);
    }
    if (!signal.aborted) setTimeout(() => once().catch((error) => failed(error, signal)), pause * 1000);
  };
  return once();
}

export function failed(error, signal) {
  if (signal.aborted || error.name === "AbortError") return;
  if (error.status === 401) location.hash = "#/sign-in";
  notice(error.message);
}
