// A strip beside a slider's name: what the direction does to this picture across its limits.

import { h, shown } from "./dom.js";
import { blob } from "./api.js";
import { store, editOf, withMove } from "./store.js";

const KEPT = 60;

export class Strip {
  #kept = new Map();
  #timer = null;
  #asked = null;

  constructor() {
    this.picture = h("canvas", { "aria-hidden": "true" });
    this.ends = h("div", { class: "ends" });
    this.element = h("div", { class: "strip", hidden: true, "aria-hidden": "true" }, this.picture, this.ends);
    document.body.append(this.element);
  }

  /** Show the strip of a row soon, unless the person moves on. */
  ask(row) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#show(row), 180);
  }

  leave() {
    clearTimeout(this.#timer);
    this.#asked?.abort();
    this.element.hidden = true;
  }

  async #show(row) {
    const moves = withMove(store.state.moves, row.source, row.row.name, null);
    const body = { edit: editOf(store.state, { moves }), directions: row.source, name: row.row.name, n: 7, largest: 128 };
    if (row.layers) body.layers = row.layers;
    const key = JSON.stringify(body);
    try {
      if (!this.#kept.has(key)) {
        this.#asked = new AbortController();
        const { blob: picture, headers } = await blob("/api/strip", body, this.#asked.signal);
        this.#kept.set(key, { bitmap: await createImageBitmap(picture), steps: headers.get("x-steps").split(",").map(Number) });
        if (this.#kept.size > KEPT) this.#kept.delete(this.#kept.keys().next().value);
      }
    } catch {
      return;  // a strip that does not come is no event; the slider itself says what is wrong
    }
    const { bitmap, steps } = this.#kept.get(key);
    const tile = bitmap.height;
    const scale = Math.max(1, Math.floor(80 / tile));
    this.picture.width = bitmap.width * scale;
    this.picture.height = tile * scale;
    const context = this.picture.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(bitmap, 0, 0, this.picture.width, this.picture.height);
    this.ends.replaceChildren(...[steps[0], 0, steps.at(-1)].map((step) => h("span", {}, step > 0 ? `+${shown(step)}` : shown(step).replace("-", "−"))));
    this.element.hidden = false;
    const place = row.element.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = this.element;
    const above = place.top - height - 6;
    this.element.style.left = `${Math.max(8, Math.min(place.left, innerWidth - width - 8))}px`;
    this.element.style.top = `${above > 8 ? above : place.bottom + 6}px`;
  }
}
