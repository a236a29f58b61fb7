// Discover: run a method, look into a box, compare two sets.

import { h, button, complain, shown, grey } from "./dom.js";
import { get, post, blob } from "./api.js";
import { store, editOf } from "./store.js";
import { JobBar } from "./jobs.js";

export class DiscoverPage {
  #methods = [];
  #of = null;

  constructor(place, { sets, tabs, stage, sliders }) {
    Object.assign(this, { sets, tabs, stage, sliders });
    this.method = h("select", { "aria-label": "Method", onchange: () => this.#form() });
    this.summary = h("p", { class: "quiet" });
    this.fields = h("div", { class: "fields" });
    this.seed = h("input", { type: "text", inputmode: "numeric", class: "number", value: "0", "aria-label": "Seed of the method" });
    this.measure = h("select", {}, ["effect", "all", "none"].map((each) => h("option", { value: each }, { effect: "effect", all: "effect and limits", none: "nothing" }[each])));
    this.run = button("Find directions", () => this.#run(), { class: "main" });
    this.job = new JobBar();
    this.boxJob = new JobBar();
    this.boxLayers = h("input", { type: "text", value: "all", "aria-label": "Layers of the box's directions", size: "8" });
    this.inside = h("input", { type: "checkbox", onchange: () => this.#bound() });
    this.box = button("Draw a box", () => this.#region());
    this.clear = button("Forget the box", () => this.#forget());
    this.a = h("select", { "aria-label": "First set" });
    this.b = h("select", { "aria-label": "Second set" });
    this.matrix = h("div", { class: "matrix" });
    place.append(
      h("section", {}, h("h2", {}, "Find directions with a method"),
        h("div", { class: "bar" }, this.method), this.summary, this.fields,
        h("div", { class: "bar" }, h("label", {}, "Seed ", this.seed), h("label", {}, "Measure ", this.measure), this.run), this.job.element),
      h("section", {}, h("h2", {}, "Directions of a box on the picture"),
        h("p", { class: "quiet" }, "What changes inside the box most, and outside least, at this very picture."),
        h("div", { class: "bar" }, this.box, h("label", {}, "Layers ", this.boxLayers), this.clear, h("label", {}, this.inside, " change the picture inside the box alone")), this.boxJob.element),
      h("section", {}, h("h2", {}, "Compare two sets"),
        h("div", { class: "bar" }, this.a, this.b, button("Compare", () => this.#compare())), this.matrix));
    store.on("change", ({ live }) => { if (!live) this.#showBox(); });
  }

  async show() {
    const { state } = store;
    try {
      if (this.#of !== state.generator) {
        this.#methods = await get("/api/methods", { generator: state.generator });
        this.#of = state.generator;
        const usual = this.#methods.find((each) => each.name === "sefa" && !each.reason) ?? this.#methods.find((each) => !each.reason);
        this.method.replaceChildren(...this.#methods.map(({ name, reason }) => h("option", { value: name, selected: name === usual?.name, title: reason }, reason ? `${name} (not here)` : name)));
        this.#form();
      }
    } catch (error) {
      complain(error);
    }
    const options = (select) => {
      const old = select.value;
      select.replaceChildren(...state.sets.map((source) => h("option", { value: source }, this.sliders.table(source)?.title ?? source)));
      if (state.sets.includes(old)) select.value = old;
    };
    options(this.a);
    options(this.b);
    if (this.a.value === this.b.value && state.sets.length > 1) this.b.value = state.sets[1];
    this.#showBox();
  }

  #form() {
    const method = this.#methods.find((each) => each.name === this.method.value);
    if (!method) return;
    this.summary.textContent = method.reason || method.summary;
    grey(this.run, method.reason);
    this.fields.replaceChildren(...method.settings.map((setting) => {
      const value = setting.default === null || setting.default === undefined ? "" : String(setting.default);
      const field = setting.kind === "choice" ? h("select", {}, setting.choices.map((each) => h("option", { value: each, selected: each === value }, each)))
        : setting.kind === "bool" ? h("input", { type: "checkbox", checked: setting.default === true })
          : h("input", { type: "text", value, inputmode: setting.kind === "str" ? "text" : "decimal", placeholder: setting.is_optional ? "default" : "" });
      field.dataset.name = setting.name;
      field.dataset.kind = setting.kind;
      field.dataset.first = setting.kind === "bool" ? String(setting.default) : value;
      return h("label", {}, h("span", {}, setting.name.replaceAll("_", " ")), field);
    }));
  }

  #settings() {
    const settings = {};
    for (const field of this.fields.querySelectorAll("[data-name]")) {
      const value = field.dataset.kind === "bool" ? field.checked : field.value.trim();
      if (String(value) === field.dataset.first) continue;
      settings[field.dataset.name] = ["int", "float"].includes(field.dataset.kind) ? Number(value) : value;
    }
    return settings;
  }

  async #run() {
    if (this.job.isBusy) return;
    const { generator } = store.state;
    try {
      const job = await post("/api/discover", { generator, method: this.method.value, settings: this.#settings(), seed: Math.max(0, Math.trunc(Number(this.seed.value) || 0)), measure: this.measure.value });
      const made = await this.job.follow(job);
      if (!made || store.state.generator !== generator) return;
      this.sets.put(made.source);
      this.tabs.open("axes");
    } catch (error) {
      complain(error);
    }
  }

  // --- region ---

  async #region() {
    if (this.boxJob.isBusy) return;
    const box = await this.stage.drawBox();
    if (!box) return;
    this.lastBox = box.map((value) => Number(value.toFixed(3)));
    this.#bound();
    const { state } = store;
    try {
      const job = await post("/api/region", { edit: editOf({ ...state, region: null }), box: this.lastBox, layers: this.boxLayers.value.trim() || "all" });
      const made = await this.boxJob.follow(job);
      if (!made || store.state.generator !== state.generator) return;
      this.sets.put(made.source);
      this.tabs.open("axes");
    } catch (error) {
      complain(error);
    }
  }

  #forget() {
    this.lastBox = null;
    this.inside.checked = false;
    store.set({ region: null });
    this.stage.showBox(null);
  }

  #bound() {
    if (this.inside.checked && !this.lastBox) {
      this.inside.checked = false;
      complain("Draw a box first");
    } else store.set({ region: this.inside.checked ? this.lastBox : null });
  }

  #showBox() {
    const { region, n } = store.state;
    if (region) this.lastBox = region;
    this.inside.checked = Boolean(region);
    this.stage.showBox(region ?? (this.tabs.now === "discover" ? this.lastBox : null) ?? null);
    grey(this.box, n === 1 ? "" : "Show one picture to draw a box on it");
  }

  // --- compare ---

  async #compare() {
    const { generator } = store.state;
    try {
      const found = await post("/api/similarity", { generator, a: this.a.value, b: this.b.value });
      const matched = new Set(found.pairs.map(([i, j]) => `${i} ${j}`));
      const strips = h("div", { class: "pairs" });
      const cell = (value, i, j) => h("td", {}, h("button", {
        class: `cell${matched.has(`${i} ${j}`) ? " matched" : ""}`, style: `--share:${value}`, tabindex: matched.has(`${i} ${j}`) ? "0" : "-1",
        "aria-label": `${found.a[i]} and ${found.b[j]}: ${shown(value, 2)}`, title: `${found.a[i]} · ${found.b[j]}: ${shown(value, 2)}`, onclick: () => this.#strips(strips, found.a[i], found.b[j]),
      }));
      this.matrix.replaceChildren(
        h("p", {}, `Mean |cos| of the best matching: ${shown(found.mean, 2)}; chance gives ${shown(found.null, 2)} (95 %: ${shown(found.null_95, 2)}). Matched pairs are framed; click one for strips.`),
        h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, h("th", {}), found.b.map((name) => h("th", { scope: "col" }, h("span", {}, name))))),
          h("tbody", {}, found.cosines.map((row, i) => h("tr", {}, h("th", { scope: "row" }, found.a[i]), row.map((value, j) => cell(value, i, j))))))),
        strips);
    } catch (error) {
      complain(error);
    }
  }

  async #strips(place, a, b) {
    try {
      const rows = await Promise.all([[this.a.value, a], [this.b.value, b]].map(async ([directions, name]) => {
        const { blob: picture } = await blob("/api/strip", { edit: editOf({ ...store.state, moves: [], keep: [], region: null }), directions, name, n: 7, largest: 96 });
        return h("figure", {}, h("img", { src: URL.createObjectURL(picture), alt: `What ${name} does` }), h("figcaption", {}, name));
      }));
      place.replaceChildren(...rows);
    } catch (error) {
      complain(error);
    }
  }
}
