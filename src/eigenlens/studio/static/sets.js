// Sets of directions: on the page and off it, saved, loaded, joined; names, signs and members changed in place.

import { h, button, complain, download, tell } from "./dom.js";
import { get, post, upload } from "./api.js";
import { store, editOf, withMove } from "./store.js";
import { openMenu } from "./menu.js";
import { JobBar } from "./jobs.js";

export class Sets {
  constructor(sliders, place) {
    this.sliders = sliders;
    this.job = new JobBar();
    this.chips = h("div", { class: "chips", role: "group", "aria-label": "Sets of directions" });
    this.file = h("input", { type: "file", accept: ".safetensors,.pt,.npz,.npy", hidden: true, "aria-label": "File of directions", onchange: () => this.#uploaded() });
    place.prepend(h("div", { class: "bar sets" }, this.chips, this.file, h("span", { class: "grow" }), sliders.count), this.job.element);
    sliders.addEventListener("rename", ({ detail }) => this.#rename(detail));
    sliders.addEventListener("flip", ({ detail }) => this.#flip(detail));
    sliders.addEventListener("drop", ({ detail }) => this.#drop(detail));
    sliders.addEventListener("loaded", () => this.show());
    store.on("change", ({ live }) => live || this.show());
  }

  show() {
    const { sets } = store.state;
    const chips = sets.map((source) => {
      const table = this.sliders.table(source);
      return h("button", { class: "chip", "aria-haspopup": "menu", title: source, onclick: (event) => this.#menu(event.currentTarget, source) },
        table?.title ?? "…", h("span", { class: "quiet" }, ` ${table?.rows.length ?? ""} ▾`));
    });
    this.add = h("button", { class: "chip", "aria-haspopup": "menu", onclick: (event) => this.#addMenu(event.currentTarget) }, "+ Add");
    const focused = this.chips.contains(document.activeElement) ? document.activeElement : null;
    this.chips.replaceChildren(...chips, this.add);
    if (focused) (chips.find((each) => each.title === focused.title) ?? this.add).focus();
  }

  /** Put a set on the page, in the place of another where that one is there still; moves along it go over. */
  put(source, { instead = null, rename = {}, flip = [], drop = [], commit = true } = {}) {
    const { state } = store;
    const sets = state.sets.includes(source) ? state.sets.filter((each) => each !== instead || each === source)
      : state.sets.includes(instead) ? state.sets.map((each) => (each === instead ? source : each)) : [...state.sets, source];
    const moves = state.moves.flatMap((move) => {
      if (!instead || move.directions !== instead) return [move];
      if (drop.includes(move.name)) return [];
      const sign = flip.includes(move.name) ? -1 : 1;
      const turned = move.to === undefined ? { by: sign * move.by } : { to: sign * move.to };
      return [{ ...move, ...turned, directions: source, name: rename[move.name] ?? move.name }];
    });
    store.set({ sets, moves }, { commit });
  }

  async #changed(source, change) {
    try {
      const made = await post("/api/directions/change", { generator: store.state.generator, source, ...change });
      this.sliders.carryPins(source, made.source, change.rename ?? {});
      this.put(made.source, { instead: source, ...change });
    } catch (error) {
      complain(error);
    }
  }

  async #rename(row) {
    const name = await row.askName();
    if (name) await this.#changed(row.source, { rename: { [row.row.name]: name } });
  }

  #flip(row) { return this.#changed(row.source, { flip: [row.row.name] }); }
  #drop(row) { return this.#changed(row.source, { drop: [row.row.name] }); }

  #menu(anchor, source) {
    openMenu(anchor, [
      { text: "Save under a name…", act: () => this.#save(source) },
      { text: "Download", act: () => this.#download(source), reason: /[/\\.]/.test(source) ? "" : "A method's own set has no file yet; save it under a name first" },
      { text: "Measure effects and limits", act: () => this.measure(source), reason: this.sliders.table(source)?.rows.every((row) => row.is_measured && row.effect !== null) ? "All are measured" : "" },
      { text: "Suggest names from pixels", act: () => this.name(source, "pixels") },
      ...this.readers.filter((name) => name !== "pixels").map((name) => ({ text: `Suggest names from ${name}`, act: () => this.name(source, name) })),
      ...this.presets.map((name) => ({ text: `Presets ${name}`, act: () => this.#preset(source, name), reason: this.sliders.table(source)?.method === "ganspace" ? "" : "They name GANSpace's components; find those first" })),
      { text: "Take off the page", act: () => this.#remove(source) },
    ]);
  }

  #remove(source) {
    const { state } = store;
    store.set({ sets: state.sets.filter((each) => each !== source), moves: state.moves.filter((move) => move.directions !== source) });
  }

  #ask(question, value) {
    return new Promise((resolve) => {
      const field = h("input", { type: "text", value, "aria-label": question, maxlength: "60", autofocus: true });
      const dialog = h("dialog", { "aria-label": question }, h("form", { method: "dialog", onsubmit: () => { dialog.returnValue = "yes"; } },
        h("p", {}, question), h("div", { class: "row" }, field, h("button", { class: "main", value: "yes" }, "Save"), h("button", { value: "", formnovalidate: true }, "Cancel"))));
      dialog.onclose = () => {
        dialog.remove();
        resolve(dialog.returnValue === "yes" ? field.value.trim() : null);
      };
      document.body.append(dialog);
      dialog.showModal();
      field.select();
    });
  }

  async #save(source, force = false, given = null) {
    const title = this.sliders.table(source)?.title ?? "directions";
    const name = given ?? await this.#ask("Save the set under the name", title);
    if (!name) return;
    try {
      const made = await post("/api/directions/save", { generator: store.state.generator, source, name, force });
      if (force) await this.sliders.reload(made.source);
      if (made.source !== source) {
        this.sliders.carryPins(source, made.source, {});
        this.put(made.source, { instead: source });
      }
      tell(`saved as ${made.source}`);
    } catch (error) {
      if (!force && /exists already/.test(error.message)) {
        if (confirm(`${name} exists already. Replace it?`)) await this.#save(source, true, name);
      } else complain(error);
    }
  }

  async #download(source) {
    const response = await fetch(`/api/file?${new URLSearchParams({ source })}`);
    if (response.ok) download(await response.blob(), source.split("/").pop());
    else complain((await response.json()).error);
  }

  /** Tell whether a set is being measured or named: there is one bar alone. */
  get #isBusy() {
    if (this.job.isBusy) complain("A set is being measured or named already; wait for it, or cancel it");
    return this.job.isBusy;
  }

  async measure(source) {
    if (this.#isBusy) return;
    const { generator } = store.state;
    try {
      const made = await this.job.follow(await post("/api/measure", { generator, source }));
      if (!made || store.state.generator !== generator) return;
      this.sliders.carryPins(source, made.source, {});
      this.put(made.source, { instead: source });
    } catch (error) {
      complain(error);
    }
  }

  /** Let a reader propose names. */
  async name(source, reader) {
    if (this.#isBusy) return;
    const { generator } = store.state;
    try {
      const made = await this.job.follow(await post("/api/names", { generator, source, reader }));
      if (!made || store.state.generator !== generator) return;
      this.sliders.carryPins(source, made.source, made.rename);
      this.put(made.source, { instead: source, rename: made.rename });
      const n = Object.keys(made.rename).length;
      tell(n ? `${n} named` : "nothing explains them; the names stay");
    } catch (error) {
      complain(error);
    }
  }

  async #preset(source, presets) {
    try {
      this.put((await post("/api/directions/presets", { generator: store.state.generator, source, presets })).source);
    } catch (error) {
      complain(error);
    }
  }

  async #addMenu(anchor) {
    const { state } = store;
    let files = { directions: [] };
    try {
      files = await get("/api/files", { generator: state.generator });
    } catch (error) {
      complain(error);
    }
    const offered = [...this.offered, ...files.directions].filter((source) => !state.sets.includes(source));
    const measured = state.moves.filter((move) => move.by).length;
    openMenu(anchor, [
      ...[...new Set(offered)].map((source) => ({ text: source.split("/").pop(), act: () => this.put(source) })),
      { text: "A file from this device…", act: () => this.file.click() },
      { text: "Join all sets into one", act: () => this.#join(), reason: state.sets.length > 1 ? "" : "There is one set alone" },
      { text: "Merge the moved sliders into one", act: () => this.#merge(), reason: measured > 1 ? "" : "Move two or more sliders first" },
    ]);
  }

  offered = [];
  readers = [];
  presets = [];

  async #uploaded() {
    const [file] = this.file.files;
    if (!file) return;
    try {
      const made = await upload("/api/directions/upload", { generator: store.state.generator, name: file.name }, file);
      this.put(made.source);
    } catch (error) {
      complain(error);
    }
    this.file.value = "";
  }

  async #join() {
    try {
      const { generator, sets } = store.state;
      const made = await post("/api/directions/join", { generator, pieces: sets.map((source) => ({ source })) });
      store.set({ sets: [made.source], moves: [] });
    } catch (error) {
      complain(error);
    }
  }

  async #merge() {
    const name = await this.#ask("Name of the new slider", "mix");
    if (!name) return;
    try {
      const made = await post("/api/directions/compose", { edit: editOf({ ...store.state, keep: [] }), name });
      store.set({ sets: [...store.state.sets, made.source], moves: withMove([], made.source, name, { by: made.by }) });
    } catch (error) {
      complain(error);
    }
  }
}
