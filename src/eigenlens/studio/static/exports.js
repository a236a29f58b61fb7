// Out of the studio: the picture, and how it is made again.

import { h, button, complain, copy, download, grey } from "./dom.js";
import { JobBar } from "./jobs.js";
import { blob, post } from "./api.js";
import { store, editOf, toHash } from "./store.js";

const fileName = () => `${store.state.generator.split("/").pop()}-${store.state.seed}`;

export class ExportsPage {
  constructor(place, { sliders, open }) {
    Object.assign(this, { sliders, open });
    this.shell = h("code", { class: "said", tabindex: "0", "aria-label": "Shell command" });
    this.python = h("code", { class: "said", tabindex: "0", "aria-label": "Python" });
    this.json = h("code", { class: "said", tabindex: "0", "aria-label": "Edit as JSON" });
    const said = (title, code) => h("section", {}, h("h2", {}, title, button("Copy", () => copy(code.textContent), { class: "small", "aria-label": `Copy ${title}` })), code);
    this.of = h("select", { "aria-label": "What the strip or film shows" });
    this.frames = h("input", { type: "text", inputmode: "numeric", class: "number", value: "9", "aria-label": "Pictures in the strip, frames / 3 in a film" });
    this.buttons = Object.fromEntries([["strip", "Strip"], ["gif", "GIF"], ["webp", "WebP"], ["mp4", "MP4"]].map(([kind, text]) => [kind, button(text, () => this.#moving(kind))]));
    this.explored = h("select", { "aria-label": "Set of the explorer page" });
    this.explorer = button("Explorer page", () => this.#explore());
    this.job = new JobBar();
    this.opened = h("input", { type: "file", accept: ".json,application/json", hidden: true, "aria-label": "Edit to open", onchange: () => this.#open() });
    this.files = h("div", { class: "bar" },
      button("PNG", () => this.#picture("png", {})),
      button("Edit (JSON)", () => download(new Blob([`${JSON.stringify(editOf(store.state), null, 2)}\n`], { type: "application/json" }), `${fileName()}.json`)));
    this.files.append(button("Open an Edit…", () => this.opened.click()), this.opened);
    place.append(h("h2", {}, "This picture"), this.files,
      h("h2", {}, "Strips and films"), h("div", { class: "bar" }, this.of, h("label", {}, "Pictures ", this.frames), Object.values(this.buttons)),
      h("h2", {}, "A page that runs the generator in any browser, from a file"), h("div", { class: "bar" }, this.explored, this.explorer), this.job.element, said("The same picture at the shell", this.shell), said("In Python", this.python), said("As an Edit", this.json));
  }

  async show() {
    this.#choices();
    try {
      const { shell, python, edit } = await post("/api/recipe", { edit: editOf(store.state) });
      this.shell.textContent = shell;
      this.python.textContent = python;
      this.json.textContent = JSON.stringify(edit, null, 2);
    } catch (error) {
      complain(error);
    }
  }

  async #picture(kind, about) {
    try {
      const { blob: picture } = await blob("/api/export", { edit: editOf(store.state), kind, ...about });
      const suffix = kind === "png" ? "" : `-${kind === "strip" ? "strip" : "film"}`;
      download(picture, `${fileName()}${suffix}.${kind === "strip" ? "png" : kind}`);
    } catch (error) {
      complain(error);
    }
  }

  /** Grey what the server lacks, with its reason. */
  lack(reasons) {
    for (const [kind, made] of Object.entries({ ...this.buttons, explorer: this.explorer })) grey(made, reasons[kind] ?? "");
  }

  async #explore() {
    if (this.job.isBusy) return;
    try {
      const edit = editOf({ ...store.state, moves: [], region: null });
      if (store.state.file !== null) edit.codes = { seed: store.state.seed };
      const made = await this.job.follow(await post("/api/explorer", { edit, source: this.explored.value }));
      if (!made) return;
      const response = await fetch(`/api/file?${new URLSearchParams({ source: made.file })}`);
      download(await response.blob(), made.file.split("/").pop());
    } catch (error) {
      complain(error);
    }
  }

  #moving(kind) {
    const n = Math.max(2, Math.min(40, Math.trunc(Number(this.frames.value) || 9)));
    const [directions, name] = this.of.value ? JSON.parse(this.of.value) : [null, null];
    return this.#picture(kind, { n: kind === "strip" ? n : 3 * n, directions, name });
  }

  #choices() {
    const { state } = store;
    const old = this.of.value;
    const set = this.explored.value;
    this.explored.replaceChildren(...state.sets.map((source) => h("option", { value: source, selected: source === set }, this.sliders.table(source)?.title ?? source)));
    const way = h("option", { value: "" }, "the way from the original to this picture");
    this.of.replaceChildren(...(state.moves.length ? [way] : []), ...this.sliders.rowsShown().all.map(({ source, row }) => h("option", { value: JSON.stringify([source, row.name]) }, `${row.name}, across its limits`)));
    this.of.value = old;
    if (this.of.selectedIndex < 0) this.of.selectedIndex = 0;
  }

  async #open() {
    try {
      const { edit } = await post("/api/recipe", { edit: read(await this.opened.files[0].text()) });  // filled in, or the server says what is wrong
      const { codes, moves, generator, keep = [], region = null } = edit;
      for (const [what, is] of [["until", edit.until], ["space", codes.space]]) {
        if (is) throw new Error(`This Edit says '${what}': '${is}', which the studio cannot show; eigenlens edit --edit makes its picture`);
      }
      const { seed, index, truncation, file = null, cutoff = null, label = null, noise = null } = codes;
      const state = { generator, seed, index, truncation, file, cutoff, label, noise, moves, keep, region, n: 1 };
      const sets = moves.map((move) => move.directions);
      if (generator === store.state.generator) store.set({ ...state, sets: [...new Set([...store.state.sets, ...sets])] });
      else await this.open({ ...state, sets: [...new Set(sets)] });
    } catch (error) {
      complain(error);
    }
    this.opened.value = "";
  }
}

function read(text) {
  try {
    return JSON.parse(text);
  } catch {
    throw new Error("This file is no JSON; choose one that Edit (JSON) or eigenlens edit --save-edit wrote");
  }
}

export const linkOf = () => location.href.split("#")[0] + toHash(store.state);
