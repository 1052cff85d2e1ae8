// A form that makes a job: what it asks for is checked by the API, and shown as code for the client.

import { field, form, get, h, once, post, select } from "./api.js";

const GRADER = {
  type: "string_check",
  name: "exact",
  operation: "eq",
  input: "{{sample.output_text}}",
  reference: "{{item.answer}}",
};

export async function page(main, _, signal) {
  const [models, files] = await Promise.all([get("/v1/models", signal), get("/v1/files?limit=1000&purpose=fine-tune", signal)]);
  const model = select(models.data.map((each) => each.id), { required: true });
  const choices = files.data.map((file) => [file.id, `${file.filename} (${file.id})`]);
  const training = select(choices, { required: true });
  const validation = select([["", "none"], ...choices]);
  const method = select(["reinforcement", "supervised"]);
  const grader = h("textarea", { rows: 9, spellcheck: false }, JSON.stringify(GRADER, null, 2));
  const settings = h("textarea", { rows: 6, spellcheck: false }, JSON.stringify({ n_steps: 20 }, null, 2));
  const suffix = h("input", { maxLength: 64 });
  const item = h("textarea", { rows: 2, spellcheck: false }, '{"answer": "46"}');
  const sample = h("textarea", { rows: 2 }, "46");
  const told = h("p", { class: "error", role: "alert" });
  const tried = h("p", { role: "status" });
  const code = h("pre", { tabIndex: 0 });
  const graderBox = h("fieldset", {}, h("legend", {}, "Grader"), field("Definition, as JSON", grader), field("A row to try it on, as JSON", item), field("An answer to it", sample), h("button", { type: "button", onclick: once(() => attempt(tryGrader)) }, "Try the grader"), tried);

  const read = (text, what) => {
    try {
      return JSON.parse(text);
    } catch (error) {
      throw new Error(`${what} is not JSON: ${error.message}`);
    }
  };
  const body = () => {
    const inner = { hyperparameters: read(settings.value || "{}", "Settings") };
    if (method.value === "reinforcement") inner.grader = read(grader.value, "The grader");
    return {
      model: model.value,
      training_file: training.value,
      ...(validation.value && { validation_file: validation.value }),
      ...(suffix.value && { suffix: suffix.value }),
      method: { type: method.value, [method.value]: inner },
    };
  };
  const attempt = async (work) => {
    told.textContent = "";
    try {
      await work();
    } catch (error) {
      told.textContent = error.message;
    }
  };
  const tryGrader = async () => {
    tried.textContent = "…";
    const answer = await post("/v1/fine_tuning/alpha/graders/run", {
      grader: read(grader.value, "The grader"),
      item: read(item.value, "The row"),
      model_sample: sample.value,
    }).finally(() => (tried.textContent = ""));
    const errors = Object.entries(answer.metadata?.errors ?? {}).filter(([, happened]) => happened === true);
    tried.textContent = `Reward ${answer.reward}${errors.length ? `, with ${errors.map(([name]) => name).join(", ")}` : ""}`;
  };
  const show = () => {
    graderBox.hidden = method.value !== "reinforcement";
    try {
      code.textContent = `from openai import OpenAI\n\nclient = OpenAI()\njob = client.fine_tuning.jobs.create(\n${Object.entries(body()).map(([name, value]) => `    ${name}=${python(value, 1)},`).join("\n")}\n)\nprint(job.id)\n`;
    } catch (error) {
      code.textContent = error.message;
    }
  };
  const submit = () =>
    attempt(async () => {
      const job = await post("/v1/fine_tuning/jobs", body());
      location.hash = `#/job/${job.id}`;
    });
  main.append(
    h("h1", {}, "New job"),
    files.data.length ? "" : h("p", {}, "There is no file for training yet: ", h("a", { href: "#/files" }, "upload one"), " first."),
    form({ oninput: show }, submit, field("Base model", model), field("Training file", training), field("Validation file", validation), field("Method", method), graderBox, field("Settings, as JSON", settings), field("Name of the result", suffix), told, h("button", { class: "main" }, "Create the job")),
    h("h2", {}, "The same with the client"),
    code,
  );
  show();
}

function python(value, depth) {
  const pad = "    ".repeat(depth);
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map((each) => python(each, depth)).join(", ")}]`;
  if (typeof value === "object") {
    const lines = Object.entries(value).map(([key, inner]) => `${pad}    ${JSON.stringify(key)}: ${python(inner, depth + 1)},\n`);
    return lines.length ? `{\n${lines.join("")}${pad}}` : "{}";
  }
  return JSON.stringify(value);
}
