// Below the picture: which one it is, how many, how close to the mean, and holding to compare.

import { h, byId, button, complain, grey } from "./dom.js";
import { get } from "./api.js";
import { store } from "./store.js";

export class Transport extends EventTarget {
  #counts = new Map();   // file of codes -> how many it holds; null while that is asked

  constructor() {
    super();
    const seed = (patch) => store.set({ seed: 0, file: null, index: 0, ...patch });
    this.previous = h("button", { class: "icon", "aria-label": "Previous seed", title: "Previous (P)", onclick: () => this.step(-1) }, "‹");
    this.next = h("button", { class: "icon", "aria-label": "Next seed", title: "Next (N)", onclick: () => this.step(1) }, "›");
    this.seed = h("input", {
      type: "text", inputmode: "numeric", class: "number", "aria-label": "Seed",
      onchange: () => seed({ seed: Math.max(0, Math.min(2 ** 31, Math.trunc(Number(this.seed.value) || 0))) }),
    });
    this.random = h("button", { title: "Random (R)", onclick: () => seed({ seed: Math.floor(Math.random() * 1e6) }) }, "Random");
    this.many = h("div", { class: "segments", role: "radiogroup", "aria-label": "Pictures" }, [1, 4, 9].map((n) =>
      button(String(n), () => store.set({ n }), { role: "radio", "data-n": String(n) })));
    this.compare = h("button", { class: "hold", title: "Hold to see it without the moves (B)", "aria-label": "Hold to compare" }, "A/B");
    const hold = (isHeld) => this.dispatchEvent(new CustomEvent("hold", { detail: isHeld }));
    this.compare.addEventListener("pointerdown", () => hold(true));
    for (const name of ["pointerup", "pointerleave", "pointercancel", "blur"]) this.compare.addEventListener(name, () => hold(false));
    this.compare.addEventListener("keydown", (event) => { if ([" ", "Enter"].includes(event.key) && !event.repeat) hold(true); });
    this.compare.addEventListener("keyup", (event) => { if ([" ", "Enter"].includes(event.key)) hold(false); });

    this.truncation = h("input", {
      type: "range", min: "0", max: "1.5", step: "0.01", "aria-label": "Truncation", class: "plain",
      oninput: () => store.set({ truncation: Number(this.truncation.value) }, { commit: false }), onchange: () => store.commit(),
      ondblclick: () => store.set({ truncation: 1 }),
    });
    this.psi = h("output", { class: "value" });
    this.cutoff = h("input", { type: "text", inputmode: "numeric", class: "number", placeholder: "all", "aria-label": "Cutoff: truncate only so many slots",
      onchange: () => store.set({ cutoff: this.cutoff.value.trim() === "" ? null : Math.max(0, Math.trunc(Number(this.cutoff.value) || 0)) }) });
    this.label = h("select", { "aria-label": "Label", onchange: () => store.set({ label: this.label.value === "" ? null : Number(this.label.value) }) });
    this.noise = h("select", { "aria-label": "Noise", onchange: () => store.set({ noise: this.noise.value === "stored" ? null : this.noise.value }) },
      ["stored", "random", "none"].map((mode) => h("option", { value: mode }, mode)));
    this.labelRow = h("label", {}, "Label ", this.label);
    this.cutoffRow = h("label", {}, "Cutoff ", this.cutoff);
    this.noiseRow = h("label", {}, "Noise ", this.noise);
    byId("below").append(
      h("div", { class: "row transport" }, this.previous, h("label", { class: "seed" }, this.seed), this.next, this.random, h("span", { class: "grow" }), this.many, this.compare),
      h("div", { class: "row sampling" }, h("label", { class: "grow row" }, h("span", { title: "1 is the law of training, less is closer to the mean; double-click for 1" }, "Truncation"), this.truncation, this.psi), this.cutoffRow, this.labelRow, this.noiseRow),
    );
    store.on("change", () => this.show());
  }

  /** Fit the controls to a generator. */
  fit(anatomy) {
    this.labelRow.hidden = !anatomy.labels.length;
    this.label.replaceChildren(...anatomy.labels.map((name, k) => h("option", { value: String(k) }, name === String(k) ? name : `${k} ${name}`)));
    this.cutoffRow.hidden = !anatomy.has_cutoff;
    this.noiseRow.hidden = !anatomy.has_noise;
    this.show();
  }

  step(by) {
    const { state } = store;
    if (state.file === null) {
      store.set({ seed: Math.max(0, state.seed + by) });
      return;
    }
    const index = Math.max(0, Math.min(this.#count - state.n, state.index + by));
    if (index !== state.index) store.set({ index });
  }

  /** How many codes there are to show: as many as the file holds, at first those that are shown. */
  get #count() {
    const { file, index, n } = store.state;
    return file === null ? Infinity : this.#counts.get(file) ?? index + n;
  }

  async #learnCount() {
    const { file, generator } = store.state;
    if (file === null || this.#counts.has(file)) return;
    this.#counts.set(file, null);
    try {
      this.#counts.set(file, (await get("/api/codes", { generator, source: file })).n);
      this.show();
    } catch (error) {
      this.#counts.delete(file);
      complain(error);
    }
  }

  show() {
    const { state } = store;
    if (document.activeElement !== this.seed || this.seed.value === "") this.seed.value = state.file === null ? String(state.seed) : state.file.includes("children~") ? `child ${state.index + 1}` : "photo";
    this.#learnCount();
    const left = this.#count - state.index;
    for (const each of this.many.children) {
      const n = Number(each.dataset.n);
      each.setAttribute("aria-checked", String(n === state.n));
      greyed(each, n > Math.max(1, left) ? `Its file holds no ${n} codes from this one on` : "", `${n} ${n === 1 ? "picture" : "pictures"} at once`);
    }
    greyed(this.next, state.n < left ? "" : "This is the last code of its file", "Next (N)");
    this.truncation.value = state.truncation;
    this.psi.value = state.truncation.toFixed(2);
    this.cutoff.value = state.cutoff ?? "";
    this.label.value = String(state.label ?? "");
    this.noise.value = state.noise ?? "stored";
    for (const each of [this.truncation, this.cutoff, this.noise]) {
      each.disabled = state.file !== null;
      each.title = state.file !== null ? "This picture is a code from a file; it is not drawn" : "";
    }
    grey(this.compare, state.moves.length ? "" : "Nothing is moved yet");
  }
}

/** Grey a control with its reason, or give it back its title. */
function greyed(element, reason, title) {
  grey(element, reason);
  if (!reason) element.title = title;
}
