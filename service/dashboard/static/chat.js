// The same message to several models, side by side.

import { form, get, h, post } from "./api.js";

export async function page(main, chosen, signal) {
  const models = (await get("/v1/models", signal)).data.map((model) => model.id);
  const picks = h("div", { class: "row" });
  const add = (id) => {
    const select = h("select", { "aria-label": "Model" }, h("option", { value: "" }, "no model"), models.map((each) => h("option", { value: each }, each)));
    if (id && !models.includes(id)) select.append(h("option", { value: id }, id));
    select.value = id ?? "";
    picks.append(select);
  };
  [...chosen, ...Array(Math.max(0, 2 - chosen.length))].slice(0, 4).forEach(add);
  if (!chosen.length && models.length) picks.firstChild.value = models[0];
  const message = h("textarea", { rows: 3, required: true });
  const system = h("input", { size: 60 });
  const temperature = h("input", { type: "number", min: 0, max: 2, step: 0.1, value: 0 });
  const longest = h("input", { type: "number", min: 1, max: 4096, value: 256 });
  const answers = h("div", { class: "answers", "aria-live": "polite" });
  // It is not waited for: another message may be sent before this one is answered.
  const send = async () => {
    const asked = [...new Set([...picks.children].map((select) => select.value).filter(Boolean))];
    answers.replaceChildren(
      ...asked.map((model) => {
        const place = h("pre", {}, "…");
        const messages = [...(system.value ? [{ role: "system", content: system.value }] : []), { role: "user", content: message.value }];
        post("/v1/chat/completions", { model, messages, temperature: Number(temperature.value), max_completion_tokens: Number(longest.value) })
          .then((answer) => (place.textContent = answer.choices[0].message.content ?? ""))
          .catch((error) => {
            place.textContent = error.message;
            place.className = "error";
          });
        return h("section", {}, h("h2", {}, model), place);
      }),
    );
  };
  main.append(
    h("h1", {}, "Chat"),
    form({}, send,
      h("fieldset", {}, h("legend", {}, "Models"), picks, h("button", { type: "button", onclick: () => picks.children.length < 4 && add() }, "One more")),
      h("label", {}, h("span", {}, "System message"), system),
      h("label", {}, h("span", {}, "Message"), message),
      h("div", { class: "row" }, h("label", {}, h("span", {}, "Temperature"), temperature), h("label", {}, h("span", {}, "Longest answer, tokens"), longest)),
      h("button", { class: "main" }, "Send")),
    answers,
  );
}
