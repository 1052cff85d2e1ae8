// Files and models.

import { ask, attempts, button, bytes, form, get, h, latest, replace, table, time } from "./api.js";

export async function files(main, _, signal) {
  const place = h("div");
  const chosen = h("input", { type: "file", accept: ".jsonl", required: true });
  const upload = () =>
    attempt(async () => {
      const body = new FormData();
      body.set("purpose", "fine-tune");
      body.set("file", chosen.files[0]);
      await ask("POST", "/v1/files", { body });
      chosen.value = "";
    });
  const remove = (file) => () =>
    confirm(`Delete ${file.filename}? Jobs that ended do not need it.`) && attempt(() => ask("DELETE", `/v1/files/${file.id}`));
  const preview = (file) => async () => {
    const answer = await fetch(`/v1/files/${file.id}/content`, { headers: { range: "bytes=0-4095" } });
    const lines = (await answer.text()).split("\n").slice(0, 5);
    shown.textContent = answer.ok ? lines.join("\n") : `The server answered ${answer.status}.`;
    shown.hidden = false;
    shown.focus();
  };
  const shown = h("pre", { hidden: true, tabIndex: 0, "aria-label": "First rows" });
  const draw = latest(signal, async (signal) => {
    const page = await get("/v1/files?limit=1000", signal);
    replace(
      place,
      page.data.length
        ? table("Files", [
            { title: "Name", of: (file) => h("a", { href: `/v1/files/${file.id}/content`, download: file.filename }, file.filename) },
            { title: "Id", of: (file) => h("code", {}, file.id) },
            { title: "Purpose", of: (file) => file.purpose },
            { title: "Size", number: true, of: (file) => bytes(file.bytes) },
            { title: "Made", whole: true, of: (file) => time(file.created_at) },
            { title: "", of: (file) => button("Look", `at the first rows of ${file.filename}`, preview(file)) },
            { title: "", of: (file) => button("Delete", file.filename, remove(file)) },
          ], page.data)
        : h("p", { class: "faint" }, "No files yet."),
    );
  });
  const [told, attempt] = attempts(draw);
  main.append(
    h("h1", {}, "Files"),
    form({ class: "row" }, upload, h("label", {}, h("span", {}, "Rows for training or validation, as JSONL"), chosen), h("button", { class: "main" }, "Upload")),
    told,
    place,
    shown,
  );
  await draw();
}

export async function models(main, _, signal) {
  const page = await get("/v1/models", signal);
  main.append(
    h("h1", {}, "Models"),
    table("Models", [
      { title: "Model", of: (model) => model.id },
      { title: "Owner", of: (model) => model.owned_by },
      { title: "Made", whole: true, of: (model) => time(model.created) },
      { title: "", of: (model) => h("a", { href: `#/chat/${encodeURIComponent(model.id)}` }, "chat") },
      { title: "", of: (model) => (model.id.startsWith("ft:") ? h("a", { href: `/v1/models/${model.id}/archive`, download: "" }, "download") : "") },
    ], page.data),
  );
}
