// Holding: what a reader sees stays as it is while sliders move.

import { h, complain } from "./dom.js";
import { get } from "./api.js";
import { store } from "./store.js";
import { openMenu } from "./menu.js";

export class Locks {
  #readers = null;

  constructor(place) {
    this.held = h("span", { class: "chips", role: "group", "aria-label": "What is held" });
    this.button = h("button", { "aria-haspopup": "menu", title: "Hold what a reader sees while sliders move", onclick: () => this.#menu() }, "Hold");
    place.append(this.button, this.held);
    store.on("change", ({ live }) => live || this.show());
  }

  show() {
    this.held.replaceChildren(...store.state.keep.map((name) =>
      h("button", { class: "chip", "aria-label": `Let go of ${name}`, title: "Held; click to let go", onclick: () => this.#toggle(name) }, name.split(":").pop(), h("span", { class: "quiet" }, " ×"))));
  }

  #toggle(name) {
    const { keep } = store.state;
    store.set({ keep: keep.includes(name) ? keep.filter((each) => each !== name) : [...keep, name] });
  }

  async #menu() {
    try {
      this.#readers ??= await get("/api/readers");
    } catch (error) {
      complain(error);
      return;
    }
    const entries = this.#readers.flatMap(({ name, attributes, reason }) => reason
      ? [{ text: `${name}: not here`, reason, act: () => {} }]
      : [h("h2", { class: "menutitle" }, name), ...attributes.map((attribute) => {
        const whole = `${name}:${attribute}`;
        return h("button", { role: "menuitemcheckbox", "aria-checked": String(store.state.keep.includes(whole)), onclick: (event) => {
          this.#toggle(whole);
          event.currentTarget.setAttribute("aria-checked", String(store.state.keep.includes(whole)));
        } }, attribute);
      })]);
    openMenu(this.button, entries);
  }
}
