// What pages share: asking the API, and making elements. Text is set as text, never as HTML.

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
    throw new ApiError(0, "The server cannot be reached. This page tries again by itself.");
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
      h("tbody", {}, rows.map((row) => h("tr", {}, cells(row)))),
    ),
  );
}

/** A label with its input. */
export const field = (text, input) => h("label", {}, h("span", {}, text), input);

/** A choice of `[value, text]`s, or of values that are shown as they are. */
export function select(options, properties = {}, chosen = undefined) {
  const made = options.map((each) => (Array.isArray(each) ? each : [each, each]));
  return h("select", properties, made.map(([value, text]) => h("option", { value, selected: value === chosen }, text)));
}

/** A button in a row of a table: `what` says which row it is for those who do not see it. */
export const button = (text, what, onclick, more = {}) =>
  h("button", { type: "button", onclick, "aria-label": `${text} ${what}`, "data-key": `${text} ${what}`, ...more }, text);

/** Puts `nodes` in the place of what `place` has, and the focus back on what bears the same `data-key`. */
export function replace(place, ...nodes) {
  const key = place.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  place.replaceChildren(...nodes);
  if (key !== undefined) place.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

/** Where a page says what did not work, and a function that runs something and says so there. */
export function attempts(after = async () => {}) {
  const told = h("p", { class: "error", role: "alert" });
  const attempt = async (work) => {
    told.textContent = "";
    try {
      const result = await work();
      await after();
      return result;
    } catch (error) {
      if (error.name !== "AbortError") told.textContent = error.message;
    }
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
      if (error.name === "AbortError") return;
      if (error.status >= 400 && error.status < 500 && error.status !== 429) throw error;
      notice(error.message);
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
