// Teach: more or less of what is meant, a dozen clicks, a slider.

import { h, button, complain, shown } from "./dom.js";
import { post } from "./api.js";
import { store, codesOf } from "./store.js";
import { Gallery } from "./gallery.js";

const N = 24;

export class TeachPage {
  #votes = new Map();     // seed -> 1 or -1
  #first = 0;
  #drawn = "";
  #source = null;
  #number = 0;

  constructor(place, { sliders, sets }) {
    Object.assign(this, { sliders, sets });
    this.name = h("input", { type: "text", value: "taught", "aria-label": "Name of the slider", maxlength: "60", onchange: () => this.#learn() });
    this.said = h("p", { class: "quiet", role: "status" });
    this.place = h("div", { class: "taught" });
    this.gallery = new Gallery({ n: N, label: (seed) => `Picture ${seed}`, pick: (seed) => this.#vote(seed, 1) });
    place.append(
      h("p", {}, "What do you mean? Mark pictures that have ", h("b", {}, "more"), " of it and some that have ", h("b", {}, "less"), ". A slider appears with the first of each, and gets better with every one."),
      h("div", { class: "bar" }, h("label", {}, "Name ", this.name), button("Other pictures", () => this.#other()), button("Start another", () => this.#anew())),
      this.said, this.place, this.gallery.element);
    store.on("commit", () => { if (!place.hidden) this.show(); });
  }

  async show() {
    const { state } = store;
    const drawn = JSON.stringify([this.#first, state.generator, codesOf({ ...state, seed: 0, file: null })]);
    if (drawn === this.#drawn) return;
    const isOther = this.#drawn && JSON.parse(this.#drawn)[1] !== state.generator;
    this.#drawn = drawn;
    if (isOther) this.#anew();
    this.#prepare();
    const coming = this.gallery.show(this.#first);
    this.gallery.buttons.forEach((each, k) => this.#dress(each, this.#first + k));
    await coming;
    this.#mark();
  }

  /** Let the server look at the generator before the first click. */
  #prepare() {
    post("/api/teach", { edit: this.#edit() }).catch(complain);
  }

  #edit() { return { version: 1, generator: store.state.generator, codes: codesOf({ ...store.state, seed: 0, index: 0, file: null }), moves: [] }; }

  /** Turn a thumbnail into a pair of buttons below a picture. */
  #dress(thumb, seed) {
    const vote = (value, text, title) => h("button", { class: "vote", "data-vote": String(value), "aria-pressed": "false", "aria-label": `${title} like picture ${seed}`, title, onclick: () => this.#vote(seed, value) }, text);
    thumb.tabIndex = -1;
    const cell = h("div", { class: "teachcell", "data-seed": String(seed) });
    thumb.replaceWith(cell);
    cell.append(thumb, h("div", { class: "votes" }, vote(-1, "−", "Less"), vote(1, "+", "More")));
  }

  #vote(seed, value) {
    if (this.#votes.get(seed) === value) this.#votes.delete(seed);
    else this.#votes.set(seed, value);
    this.#mark();
    this.#learn();
  }

  #mark(ask = null) {
    for (const cell of this.gallery.element.querySelectorAll(".teachcell")) {
      const vote = this.#votes.get(Number(cell.dataset.seed));
      cell.classList.toggle("asked", Number(cell.dataset.seed) === ask);
      for (const each of cell.querySelectorAll(".vote")) each.setAttribute("aria-pressed", String(Number(each.dataset.vote) === vote));
    }
  }

  async #learn() {
    const seeds = (value) => [...this.#votes].filter(([, vote]) => vote === value).map(([seed]) => seed);
    const more = seeds(1), less = seeds(-1);
    if (!more.length && !less.length) {
      this.said.textContent = "";
      return;
    }
    const number = ++this.#number;
    const began = performance.now();
    const name = this.name.value.trim() || "taught";
    const candidates = Array.from({ length: N }, (_, k) => this.#first + k);
    try {
      const made = await post("/api/teach", { edit: this.#edit(), more, less, candidates, name });
      if (number !== this.#number) return;
      this.#mark(made.ask);
      const asked = made.ask === null ? "" : ` The most telling next: picture ${made.ask}.`;
      if (!made.source) {
        this.said.textContent = `Now mark one that has ${more.length ? "less" : "more"}.${asked}`;
        return;
      }
      this.sets.put(made.source, { instead: store.state.sets.includes(this.#source) ? this.#source : null, rename: this.named && this.named !== name ? { [this.named]: name } : {} });
      this.#source = made.source;
      this.named = name;
      await this.sliders.load();
      const row = this.sliders.table(made.source).rows[0];
      this.row = this.sliders.extraRow(made.source, row);
      this.place.replaceChildren(this.row.element);
      const n = more.length + less.length;
      const right = made.left_out === null || n < 6 ? "" : ` ${Math.round(n * made.left_out)} of the ${n} clicks follow from the others.`;
      this.said.textContent = `${more.length} more, ${less.length} less: learnt in ${shown((performance.now() - began) / 1000, 2)} s.${right}${asked}`;
    } catch (error) {
      complain(error);
    }
  }

  #other() {
    this.#first += N;
    this.show();
  }

  #anew() {
    this.#votes.clear();
    this.#source = this.named = null;
    this.#number++;
    this.place.replaceChildren();
    this.said.textContent = "";
    this.#mark();
  }
}
