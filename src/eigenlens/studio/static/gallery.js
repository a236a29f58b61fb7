// Forty-eight pictures to choose from; it comes in rows, so that slow generators show something soon.

import { h, complain } from "./dom.js";
import { blob } from "./api.js";
import { store, codesOf } from "./store.js";

const ROW = 12;

/** Cut a picture of tiles into canvases, one each. */
export async function tilesOf(picture, n, columns) {
  const bitmap = await createImageBitmap(picture);
  const tile = bitmap.width / columns;
  return Array.from({ length: n }, (_, k) => {
    const canvas = h("canvas", { width: tile, height: tile });
    canvas.getContext("2d").drawImage(bitmap, (k % columns) * tile, Math.floor(k / columns) * tile, tile, tile, 0, 0, tile, tile);
    return canvas;
  });
}

/** Pictures of codes, each with its own button; `pick(number, button)` is called where one is chosen. */
export class Gallery {
  #asked = null;

  constructor({ n = 48, label = (number) => `Seed ${number}`, pick }) {
    Object.assign(this, { n, label, pick });
    this.element = h("div", { class: "thumbs" });
  }

  /** Show the n pictures from a seed on. */
  async show(first, { moves = [] } = {}) {
    this.#asked?.abort();
    const asked = (this.#asked = new AbortController());
    const { state } = store;
    this.buttons = Array.from({ length: this.n }, (_, k) => h("button", { class: "thumb", "aria-label": this.label(first + k), title: this.label(first + k), onclick: (event) => this.pick(first + k, event.currentTarget) }));
    this.element.replaceChildren(...this.buttons);
    try {
      for (let done = 0; done < this.n; done += ROW) {
        const n = Math.min(ROW, this.n - done);
        const codes = { ...codesOf({ ...state, file: null, index: 0, seed: first + done }) };
        const body = { edit: { version: 1, generator: state.generator, codes, moves }, n, columns: n, largest: 96, final: false };
        const { blob: picture } = await blob("/api/picture", body, asked.signal);
        const tiles = await tilesOf(picture, n, n);
        if (asked.signal.aborted) return;
        tiles.forEach((tile, k) => this.buttons[done + k].replaceChildren(tile));
      }
    } catch (error) {
      if (error.name !== "AbortError") complain(error);
    }
  }
}

export class GalleryPage {
  #first = null;
  #drawn = "";

  constructor(place) {
    this.gallery = new Gallery({ pick: (seed) => store.set({ seed, file: null, index: 0 }) });
    this.withMoves = h("input", { type: "checkbox", onchange: () => this.show() });
    this.range = h("output", { class: "quiet" });
    const page = (by) => { this.#first = Math.max(0, this.#first + by); this.show(); };
    place.append(
      h("div", { class: "bar" },
        h("button", { class: "icon", "aria-label": "48 before", onclick: () => page(-48) }, "‹"),
        h("button", { class: "icon", "aria-label": "48 further", onclick: () => page(48) }, "›"),
        this.range, h("span", { class: "grow" }), h("label", {}, this.withMoves, " with the moves")),
      this.gallery.element);
    store.on("commit", () => { if (!place.hidden) this.show(); });
  }

  show() {
    const { state } = store;
    this.#first ??= Math.floor(state.seed / 48) * 48;
    const moves = this.withMoves.checked ? state.moves : [];
    const drawn = JSON.stringify([this.#first, moves, state.generator, codesOf({ ...state, seed: 0, file: null })]);
    this.range.value = `seeds ${this.#first}–${this.#first + 47}`;
    if (drawn !== this.#drawn) {
      this.#drawn = drawn;
      this.gallery.show(this.#first, { moves });
    }
    this.#mark();
  }

  #mark() {
    const { state } = store;
    this.gallery.buttons?.forEach((each, k) => each.setAttribute("aria-pressed", String(state.file === null && this.#first + k === state.seed)));
  }
}
